"""What a request of immich asks for: its part `entries`, and the model names in it.

tasks = read_entries('{"clip": {"visual": {"modelName": "ViT-B-32__openai"}}}')
tasks.clip_type, tasks.model_name, tasks.others  # "visual", "ViT-B-32__openai", {}
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, field
from typing import Any

from pocketclip.formats.escaping import escape_controls
from pocketclip.serve.errors import RequestError

log = logging.getLogger(__name__)

INVALID = "Invalid request format."
"""What immich's own service answers to bad `entries`, with status 422."""

# The width of the embeddings of the models that immich knows, by architecture: the name up to `__`.
# immich sets its database to the width of the name that is chosen.
_WIDTHS = (
    (512, r"ViT-B-(16|32)|RN101|XLM-Roberta-(Base|Large)-Vi[tT]-B-32"),
    (640, r"ViT-B-16-plus-240|RN50x4|XLM-Roberta-Large-Vit-B-16Plus"),
    (768, r"ViT-L-14(-336|-quickgelu)?|RN50x16|(LABSE|XLM-Roberta-Large)-Vit-L-14"),
    (768, r"ViT-B-(16|32)-SigLIP2?(-i18n)?(-\d+)?|nllb-clip-base-siglip"),
    (1024, r"RN50|RN50x64|ViT-[Hg]-14(-378)?(-quickgelu)?|XLM-Roberta-Large-ViT-H-14"),
    (1024, r"ViT-L-16-SigLIP2?(-\d+)?"),
    (1152, r"ViT-SO400M-1[46]-SigLIP2?(-\d+)?|nllb-clip-large-siglip"),
    (1536, r"ViT-gopt-16-SigLIP2(-\d+)?"),
)
_GOOD_NAMES = {512: "ViT-B-32__laion400m_e31", 768: "ViT-L-14__laion400m_e31"}
_MAX_ENTRIES = 1 << 16  # characters; immich's have about 300
_REMEMBERED = 16  # names that the log tells once each; clients may send any number of them
_SHOWN = 80  # characters of a name


@dataclass(frozen=True, slots=True)
class Tasks:
    """What a request asks for."""

    clip_type: str | None
    """`visual` or `textual`; None if no embedding is asked for."""
    model_name: str
    """Of that embedding; any is answered by our model."""
    others: dict[str, Any]
    """What is not ours: `facial-recognition`, `ocr`."""


def read_entries(text: str) -> Tasks:
    """Return the tasks in the part `entries` of a request; `options` in it are ignored.

    Args:
        text: a JSON object: task, type, and then `modelName`.

    Raises:
        RequestError: 422, it is no such object, or asks for two embeddings.
    """
    if len(text) > _MAX_ENTRIES:
        raise RequestError(422, INVALID, param="entries")
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError(422, INVALID, param="entries") from None
    if not isinstance(entries, dict) or not all(isinstance(t, dict) for t in entries.values()):
        raise RequestError(422, INVALID, param="entries")
    clip = entries.pop("clip", {})
    if not clip:
        return Tasks(None, "", entries)
    kind, entry = next(iter(clip.items()))
    name = entry.get("modelName") if isinstance(entry, dict) else None
    if len(clip) > 1 or kind not in ("visual", "textual") or not isinstance(name, str):
        raise RequestError(422, INVALID, param="entries")
    return Tasks(kind, name, entries)


def width_of(model_name: str) -> int | None:
    """Return the width of the embeddings that immich expects of a model; None if not known.

    Args:
        model_name: as immich sends it: `ViT-B-32__openai`, older `immich-app/ViT-B-32::openai`.
    """
    architecture = model_name.split("/")[-1].replace(":", "_").partition("__")[0]
    for width, pattern in _WIDTHS:
        if re.fullmatch(pattern, architecture):
            return width
    return None


@dataclass(slots=True)
class Remarks:
    """What the log is told once."""

    names: set[str] = field(default_factory=set)
    has_refused: bool = False

    def note_name(self, name: str, embed_dim: int) -> None:
        """Log a model name when it comes first, and warn if its embeddings have another width.

        Args:
            name: from a request.
            embed_dim: the width of our model's embeddings.
        """
        name = name[:_SHOWN]
        if name in self.names or len(self.names) == _REMEMBERED:
            return
        self.names.add(name)
        shown, width = escape_controls(name), width_of(name)
        if width is None or width == embed_dim:
            log.info("requests name the model %s; all are answered by the model here", shown)
            return
        good = _GOOD_NAMES.get(embed_dim)
        log.warning(
            "requests name the model %s, for which immich stores %d numbers, but the model here "
            "gives %d: immich will refuse them. Choose another name in immich's settings, of a "
            "model of %d numbers%s",
            shown, width, embed_dim, embed_dim, f", such as {good}" if good else "",
        )  # fmt: skip

    def note_refusal(self) -> None:
        """Log the first request for something that is not offered."""
        if not self.has_refused:
            self.has_refused = True
            log.warning(
                "a request for faces or OCR was refused: give the server --upstream URL with "
                "immich's own service, or switch both off in immich's settings"
            )
