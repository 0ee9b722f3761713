"""The two towers of a model, as exporters take them.

    towers = prepare(checkpoint.load("runs/small"), normalize=True)
    torch.export.export(towers.image, (towers.image_example,))

Layer scales are folded into the weights before them, and the input's scaling into the first
convolution, so that a target computes nothing that the weights can hold.

Shapes: B batch, S side of the image in pixels, T tokens, D embedding.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pocketclip.export.tracing import Kind, trace

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from pocketclip import zoo
    from pocketclip.nn.clip import CLIP

Pixels = Literal["preprocessed", "levels"]
"""The image tower's input, float32 (B, 3, S, S): `preprocessed` as `pocketclip.preprocess` returns
it, or `levels` 0 to 255 of the resized and cropped image, whose scaling is part of the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Towers:
    """The input of an exporter; both modules are in evaluation mode and need no gradient."""

    image: nn.Module
    """Maps pixels (B, 3, S, S), see `Pixels`, to embeddings (B, D)."""
    text: nn.Module
    """Maps token ids (B, T) to embeddings (B, D); T is any up to the context length where the
    configuration's text tower `ignores_padding`, else exactly the context length."""
    image_example: Tensor
    text_example: Tensor
    config: zoo.ModelConfig
    pixels: Pixels
    normalized: bool


def prepare(
    model: CLIP,
    *,
    normalize: bool = False,
    pixels: Pixels = "preprocessed",
    widen: bool = False,
) -> Towers:
    """Return the towers of `model`, fused, for export.

    Args:
        model: fused or not; unchanged.
        normalize: both towers return unit embeddings.
        pixels: the image tower's input.
        widen: repeat the inputs of depthwise convolutions with several outputs per channel, which
            some runtimes are slow at; see `pocketclip.nn.cpu_optimize.repeat_depthwise_inputs`.
    """
    import torch

    from pocketclip.nn.cpu_optimize import fold_layer_scales, repeat_depthwise_inputs
    from pocketclip.nn.reparam import fuse

    ready = fold_layer_scales(model if model.is_fused else fuse(model)).float().cpu()
    if widen:
        ready = repeat_depthwise_inputs(ready)
    config = model.config
    generator = torch.Generator().manual_seed(0)
    image = _image_module(ready.image, config.preprocess, normalize, pixels)
    text = _text_module(ready.text, normalize)
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
        image_example=example if pixels == "preprocessed" else (example * 255).round(),
        text_example=ids,
        config=config,
        pixels=pixels,
        normalized=normalize,
    )


def _image_module(
    tower: nn.Module, preprocess: zoo.PreprocessConfig, normalize: bool, pixels: Pixels
) -> nn.Module:
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Image(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = tower
            self.shift: Tensor | None
            self.register_buffer("shift", None)
            if pixels == "levels":
                # (x / 255 - mean) / std is (x - 255 mean) times a factor that goes into the
                # weights. The difference stays: the zeros that the convolution pads with are
                # those of the normalised image.
                gain = 1 / (255 * torch.tensor(preprocess.std, dtype=torch.float64))
                first = next(
                    m for m in tower.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3
                )
                with torch.no_grad():
                    first.weight.copy_(first.weight.double() * gain[:, None, None])
                if any(preprocess.mean):
                    self.shift = 255 * torch.tensor(preprocess.mean).reshape(3, 1, 1)

        def forward(self, pixels: Tensor) -> Tensor:
            x = pixels if self.shift is None else pixels - self.shift
            out = self.tower(x)
            return F.normalize(out, dim=-1) if normalize else out

    return Image()


def _text_module(tower: nn.Module, normalize: bool) -> nn.Module:
    import torch.nn.functional as F
    from torch import nn

    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = tower

        def forward(self, ids: Tensor) -> Tensor:
            out = self.tower(ids)
            return F.normalize(out, dim=-1) if normalize else out

    return Text()


def export_program(
    tower: nn.Module, example: Tensor, *, kind: Kind, towers: Towers
) -> tuple[ExportedProgram, tuple[str | None, ...]]:
    """Return a tower as torch's exported program, with a free batch.

    The number of tokens is free too where the text tower ignores padding.

    Args:
        tower: one of `towers`, or another variant of it.
        example: two rows of its input.
        kind: which tower.
        towers: the pair that `tower` belongs to.

    Returns:
        The program, and per axis of its input the name of a free one or None.
    """
    import torch

    free: tuple[str | None, ...] = ("batch", *([None] * (example.ndim - 1)))
    shapes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=1 << 16)}
    if kind == "text" and towers.config.text.ignores_padding:
        free = ("batch", "tokens")
        shapes[1] = torch.export.Dim("tokens", min=3, max=towers.config.text.context_length)
    return trace(tower, example, (shapes,)), free


def source_path(path: str) -> str:
    """Return a module's path in the fused model, given its path in the exported tower."""
    # `fold_layer_scales` and `repeat_depthwise_inputs` of `pocketclip.nn.cpu_optimize` wrap these.
    path = path.replace(".mixer.attn.", ".attn.")
    return re.sub(r"\b(downsample\.conv|expand)\.conv\.conv$", r"\1.conv", path)
