"""Which feature maps an image tower has: their names, channels and strides, by the configuration.

    [m.stride for m in feature_maps(zoo.entry("mobileclip2-s0").config.image)]  # [4, 8, 16, 32]

MCi (MobileCLIP, arXiv 2311.17049, section 3.2) is hierarchical: one map per stage, each with half
the resolution of the one before. A vision transformer (arXiv 2010.11929) has one resolution, and a
map per block; by default four blocks at equal distances, the last one included, as dense
prediction transformers use them (DPT, arXiv 2103.13413, section 3.1).

No torch: the model in torch, the ONNX graph and the manifest of a bundle ask the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pocketclip.errors import ConfigError
from pocketclip.zoo import MCiConfig, ModelConfig, ViTConfig

TOKENS = "tokens"
"""The name of the tokens beside the maps."""
_VIT_MAPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMap:
    """One feature map (B, C, H, W) of an image tower."""

    name: str
    """`stage0`, `stage1`, ... of MCi; `block0`, `block1`, ... of a vision transformer."""
    index: int
    """Of the stage or block, from 0."""
    channels: int
    """C."""
    stride: int
    """Pixels of the image per position, in both directions."""


def feature_maps(
    image: MCiConfig | ViTConfig, indices: Sequence[int] | None = None
) -> tuple[FeatureMap, ...]:
    """Return the maps of an image tower in the order of computation.

    Args:
        image: the tower's configuration.
        indices: of the stages (MCi) or blocks (vision transformer); negative ones count from the
            end. None: all stages, or four blocks at equal distances.

    Raises:
        ConfigError: there is no such stage or block, one is named twice, or none is named.
    """
    is_mci = isinstance(image, MCiConfig)
    count = len(image.depths) if isinstance(image, MCiConfig) else image.layers
    what = "stage" if is_mci else "block"
    if indices is None:
        maps = count if is_mci else min(_VIT_MAPS, count)
        chosen = [count * (i + 1) // maps - 1 for i in range(maps)]
    else:
        wrong = [i for i in indices if not -count <= i < count]
        if wrong or not indices:
            raise ConfigError(
                f"the image tower has {what}s 0 to {count - 1} (or -{count} to -1), not "
                f"{wrong[0] if wrong else 'an empty list'}"
            )
        chosen = sorted(i % count for i in indices)
        if len(set(chosen)) < len(chosen):
            raise ConfigError(f"a {what} is named twice: {', '.join(map(str, indices))}")
    return tuple(
        FeatureMap(
            name=f"{what}{i}",
            index=i,
            channels=image.widths[i] if isinstance(image, MCiConfig) else image.width,
            stride=2 ** (i + 2) if isinstance(image, MCiConfig) else image.patch_size,
        )
        for i in chosen
    )


def total_stride(image: MCiConfig | ViTConfig) -> int:
    """Return the number of pixels per token, in both directions."""
    return 2 ** (len(image.depths) + 1) if isinstance(image, MCiConfig) else image.patch_size


def token_width(config: ModelConfig) -> int:
    """Return C, the width of the tokens (B, N, C) of an image tower."""
    image = config.image
    if isinstance(image, MCiConfig):
        return 2 * image.widths[-1]
    return image.width if image.pool_queries is None else config.embed_dim


def map_size(pixels: int, stride: int) -> int:
    """Return the side of an MCi map: each of its convolutions of stride 2 rounds up."""
    return -(-pixels // stride)


def check_sides(image: MCiConfig | ViTConfig, height: int, width: int) -> None:
    """Refuse images that a tower has no maps for.

    Raises:
        ConfigError: a side is below 1 pixel, or is not a multiple of the patch size.
    """
    sides = f"{height} x {width} pixels"
    if min(height, width) < 1:
        raise ConfigError(f"an image of {sides} has no feature maps")
    if isinstance(image, ViTConfig) and (height % image.patch_size or width % image.patch_size):
        raise ConfigError(
            f"the sides of an image must be multiples of {image.patch_size}, not {sides}: resize "
            "it, or pad it"
        )
