"""The two towers of a model, as exporters take them.

    towers = prepare(checkpoint.load("runs/small"), normalize=True)
    torch.export.export(towers.image, (towers.image_example,))

Layer scales are folded into the weights before them, and the input's scaling into the first
convolution, so that a target computes nothing that the weights can hold. ONNX and OpenVINO are
built from the weights alone: `GraphTowers`.

Shapes: B batch, H W height and width of a photograph, S side of the image in pixels, T tokens,
D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

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
    """Maps token ids (B, T) to embeddings (B, D)."""
    image_example: Tensor
    text_example: Tensor
    config: zoo.ModelConfig
    pixels: Pixels
    normalized: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphTowers:
    """The input of the exporters that build a graph from weights, without torch."""

    weights: Mapping[str, NDArray[Any]]
    """Of both towers, under our names, fused or not."""
    config: zoo.ModelConfig
    pixels: Literal["preprocessed", "levels", "photo"] = "preprocessed"
    """The image tower's input: see `Pixels`, or uint8 (B, H, W, 3) of any size."""
    normalized: bool = False
    """Whether both towers return unit embeddings."""


def weights_of(model: CLIP) -> dict[str, NDArray[Any]]:
    """Return the weights of a model under our names; those in float32 share its memory."""
    floats = (
        (name, value.detach().cpu().float() if value.is_floating_point() else value.cpu())
        for name, value in model.state_dict().items()
    )
    return {name: value.numpy() for name, value in floats}


def prepare(model: CLIP, *, normalize: bool = False, pixels: Pixels = "preprocessed") -> Towers:
    """Return the towers of `model`, fused, for export.

    Args:
        model: fused or not; unchanged.
        normalize: both towers return unit embeddings.
        pixels: the image tower's input.
    """
    import torch

    from pocketclip.nn.cpu_optimize import fold_layer_scales
    from pocketclip.nn.reparam import fuse

    ready = fold_layer_scales(model if model.is_fused else fuse(model)).float().cpu()
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
