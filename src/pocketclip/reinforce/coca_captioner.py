"""Captions from a CoCa of the zoo.

Shapes: B images, n captions per image, S side of a square in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
        self.model, self.tokenizer = model, Tokenizer()
        self.settings = sampling.settings

    def write(self, pixels: Tensor, per_image: int, seeds: Sequence[int]) -> list[str]:
        """Return the B n captions of pixels (B, 3, S, S), in the order of the images."""
        rows = self.model.generate(
            pixels, captions_per_image=per_image, seeds=seeds, **self.settings
        )
        return self.tokenizer.decode([list(row) for row in rows])


def load_coca(
    spec: ModelSource, sampling: Sampling, device: torch.device, dtype: torch.dtype, offline: bool
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
    model = load_model(spec, offline=offline)
    config = model.config
    if not config.is_captioner:
        raise ConfigError(f"{config.name} cannot write captions: use coca-vit-l14 or coca-vit-b32")
    sampling.checked(config.text.context_length)
    facts = {"kind": "coca", "model": config.name, "space_id": model.space_id}
    model = model.requires_grad_(False).to(device, dtype)
    return CocaWriter(model, sampling), facts, *geometry(model)
