"""Captions from a CoCa of the zoo.

Shapes: B images, n captions per image, S side of a square in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pocketclip import zoo
from pocketclip.checkpoint.resolve import ModelSource
from pocketclip.errors import ConfigError
from pocketclip.reinforce.protocols import Captioning
from pocketclip.reinforce.sampling import Sampling
from pocketclip.reinforce.zoo_towers import geometry, load_model
from pocketclip.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class CocaWriter:
    """A CoCa of the zoo."""

    def __init__(self, model: Any, sampling: Sampling) -> None:
        self.model, self.tokenizer, self.sampling = model, Tokenizer(), sampling
        self.settings = sampling.settings

    def write(self, pixels: Tensor, per_image: int, seeds: Sequence[int]) -> list[str]:
        """Return the B n captions of pixels (B, 3, S, S), in the order of the images."""
        rows = self.model.generate(
            pixels, captions_per_image=per_image, seeds=seeds, **self.settings
        )
        return self.tokenizer.decode([list(row) for row in rows])


def _check(name: str, is_captioner: bool) -> None:
    """Check that a model can write captions.

    Raises:
        ConfigError: it cannot; the message names models that can.
    """
    if is_captioner:
        return
    known = [n for n, e in zoo.entries() if e.config.is_captioner and e.hub]
    few = f"{', '.join(known[:4])}{', ...' if len(known) > 4 else ''}"
    raise ConfigError(
        f"{name} cannot write captions: use a captioner ({few}; `pocketclip models` lists them), a "
        "checkpoint of one, or transformers:ID with a BLIP or GIT model"
    )


def load_coca(
    spec: ModelSource,
    sampling: Sampling,
    device: torch.device,
    dtype: torch.dtype,
    offline: bool,
) -> Captioning:
    """Load the parts of a captioner from a CoCa of the zoo.

    Raises:
        CheckpointError, ConfigError, HubError, UnknownModelError, MissingDependencyError: see
            `load_captioner`.
    """
    if spec.kind == "open_clip":
        raise ConfigError(
            "captioners of open_clip are in the zoo: use coca-vit-b32 or coca-vit-l14, or "
            "coca-vit-l14=FILE for other weights"
        )
    if spec.model is not None:
        _check(spec.model, zoo.entry(spec.model).config.is_captioner)  # before anything is fetched
    model = load_model(spec, offline=offline)
    config = model.config
    _check(config.name, config.is_captioner)
    sampling = sampling.checked(config.text.context_length)
    facts = {"kind": "coca", "model": config.name, "space_id": model.space_id}
    model = model.requires_grad_(False).to(device, dtype)
    return CocaWriter(model, sampling), facts, *geometry(model)
