"""Compares an export with its model, on photographs and captions.

Both get the same photographs and captions, and their unit embeddings are compared: the largest
absolute difference of a component, and the smallest cosine. An export beyond a gate (`gates.py`) is
refused, and no bundle is written.

Shapes: N photographs or captions, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import (
    DriftError,
    EmbeddingError,
    ExportError,
    ImageError,
)
from pocketclip.infer.backends import has_bf16
from pocketclip.infer.bundle import Bundle
from pocketclip.infer.comparison import (
    CAPTIONS,
    compare,
    judge_backends,
    median_ms,
    own_photos,
)
from pocketclip.infer.encoder import Encoder
from pocketclip.infer.gates import Gate, gate_failure
from pocketclip.types import Embeddings

if TYPE_CHECKING:
    from pocketclip.nn.clip import CLIP

NO_BF16 = (
    "this processor has no bf16: the towers were computed in fp32 here, so bf16 itself is not "
    "verified; export on a processor that has it, or compare results there"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Photographs and captions, and their embeddings by the model in torch."""

    photos: Sequence[Any]
    captions: Sequence[str]
    image: Embeddings  # (N, D)
    text: Embeddings  # (N, D)
    logit_scale: float


def compute_reference(
    model: CLIP, photos: Sequence[Any] = (), captions: Sequence[str] = ()
) -> Reference:
    """Return the model's embeddings of the package's photographs and captions, and of more.

    Args:
        model: the model.
        photos: added to the package's own.
        captions: likewise.

    Raises:
        ExportError: a photograph cannot be read, the model gives a non-finite embedding, or it has
            no logit scale.
    """
    encoder = Encoder(model)
    photos = [*own_photos(), *photos]
    captions = [*CAPTIONS, *captions]
    encoder.tokenizer = type(encoder.tokenizer)(warn=False)  # one caption is too long on purpose
    try:
        scale = encoder.logit_scale
        image, text = encoder.encode_image(photos), encoder.encode_text(captions)
    except ImageError as error:
        raise ExportError(f"a photograph to compare with cannot be read: {error}") from error
    except EmbeddingError as error:
        raise ExportError(f"the model itself is not usable: {error}") from error
    return Reference(photos=photos, captions=captions, image=image, text=text, logit_scale=scale)


def verify(bundle: Bundle, reference: Reference) -> dict[str, Any]:
    """Run `bundle` in every installed backend; return the figures.

    Returns:
        The entries of `judge_backends`, which says which backend decides: per backend `image` and
        `text` with `max_abs_error`, `min_cosine` and `count`, `passed`, and `ms`, the median time
        of the image tower for one photograph; and a `reason` where this processor has no bf16, so
        that nothing is verified.

    Raises:
        ExportError: the target's own backend is not installed.
        DriftError: the result of that backend is beyond the gate; the message gives the figures.
    """
    figures = judge_backends(
        bundle,
        lambda name: _in_backend(bundle, name, reference),
        "the export does not reproduce the model; nothing was written",
    )
    return figures if figures["executed"] else {**figures, "reason": NO_BF16}


def _in_backend(bundle: Bundle, name: str, reference: Reference) -> dict[str, Any]:
    """Return the figures of a backend."""
    encoder = Encoder(bundle, name)
    encoder.tokenizer = type(encoder.tokenizer)(warn=False)
    figures: dict[str, Any] = {
        "image": compare(encoder.encode_image(reference.photos), reference.image),
        "text": compare(encoder.encode_text(reference.captions), reference.text),
    }
    pixels = encoder.prepare(reference.photos[0])[None]
    figures["ms"] = median_ms(lambda: encoder.encode_pixels(pixels))
    if bundle.precision == "bf16":
        figures["computed_in"] = "bf16" if has_bf16() else "fp32"
    return figures


def compare_towers(
    runs: Mapping[str, Callable[[NDArray[Any]], Embeddings]],
    inputs: Mapping[str, NDArray[Any]],
    reference: Reference,
    gate: Gate,
) -> dict[str, Any]:
    """Run the towers of a target without a backend in `infer`, one row at a time.

    Args:
        runs: a function that runs each tower.
        inputs: rows for each tower: pixels of `reference.photos`, ids of `reference.captions`.
        reference: the model's embeddings.
        gate: how far the towers' embeddings may be from them.

    Raises:
        DriftError: they are further away.
    """
    figures: dict[str, Any] = {"executed": True, "verified": True}
    for tower, embeddings in (("image", reference.image), ("text", reference.text)):
        rows = [runs[tower](row[None]) for row in inputs[tower]]
        figures[tower] = compare(np.concatenate(rows), embeddings)
        why = gate_failure(figures[tower], gate)
        if why is not None:
            raise DriftError(
                "the export does not reproduce the model; nothing was written: "
                f"{tower} tower: {why}"
            )
    return figures
