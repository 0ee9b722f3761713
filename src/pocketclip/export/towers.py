"""The two towers of a model, as exporters take them.

    towers = prepare(checkpoint.load("runs/small"), normalize=True)
    torch.export.export(towers.image, (towers.image_example,))

Layer scales are folded into the weights before them, so that a target computes nothing that the
weights can hold. ONNX and OpenVINO are built from the weights alone: `GraphTowers`.

Shapes: B batch, H W height and width of a photograph, S side of the image in pixels, T tokens,
D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pocketclip.graph.build import Pixels
from pocketclip.graph.writer import StoredArrays
from pocketclip.types import Arrays

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pocketclip import zoo
    from pocketclip.nn.clip import CLIP


@dataclass(frozen=True, slots=True, kw_only=True)
class Towers:
    """The input of an exporter; both modules are in evaluation mode and need no gradient."""

    image: nn.Module
    """Maps pixels (B, 3, S, S), as `pocketclip.preprocess` returns them, to embeddings (B, D)."""
    text: nn.Module
    """Maps token ids (B, T) to embeddings (B, D)."""
    image_example: Tensor
    text_example: Tensor
    config: zoo.ModelConfig
    normalized: bool
    pixels: ClassVar[Pixels] = "preprocessed"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphTowers:
    """The input of the exporters that build a graph from weights, without torch."""

    weights: Arrays
    """Of both towers, under our names, fused or not."""
    config: zoo.ModelConfig
    pixels: Pixels = "preprocessed"
    """The image tower's input: `preprocessed`, as `pocketclip.preprocess` returns it; `levels` 0 to
    255 of the resized and cropped image, float32 (B, 3, S, S); or `photo`, uint8 (B, H, W, 3) of
    any size."""
    normalized: bool = False
    """Whether both towers return unit embeddings."""
    stored: StoredArrays | None = None
    """Receives where the arrays of both towers are, for a graph that shares them."""


def prepare(model: CLIP, *, normalize: bool = False) -> Towers:
    """Return the towers of `model`, fused, for export.

    Args:
        model: fused or not; unchanged.
        normalize: both towers return unit embeddings.
    """
    import torch

    from pocketclip.nn.cpu_optimize import fold_layer_scales, separate_experts
    from pocketclip.nn.reparam import fuse

    ready = fold_layer_scales(model if model.is_fused else fuse(model)).float().cpu()
    ready = separate_experts(ready)
    config = model.config
    generator = torch.Generator().manual_seed(0)
    image, text = (_tower_module(tower, normalize) for tower in (ready.image, ready.text))
    for tower in (image, text):
        tower.eval().requires_grad_(False)
    size = config.image_size
    # Two rows: with one, `torch.export` would fix the batch.
    example = torch.rand(2, 3, size, size, generator=generator)
    ids = torch.zeros(2, config.text.context_length, dtype=torch.int64)
    ids[:, 0], ids[:, 1], ids[:, 2] = 49406, 320, 49407
    return Towers(
        image=image,
        text=text,
        image_example=example,
        text_example=ids,
        config=config,
        normalized=normalize,
    )


def _tower_module(tower: nn.Module, normalize: bool) -> nn.Module:
    import torch.nn.functional as F
    from torch import nn

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = tower

        def forward(self, inputs: Tensor) -> Tensor:
            out = self.tower(inputs)
            return F.normalize(out, dim=-1) if normalize else out

    return Tower()
