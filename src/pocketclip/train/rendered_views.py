"""The encoded views of a materialised set: written once, and read in training.

    data = encode_view(pixels, "jpeg", 90)
    pixels = read_view(data, 224)

`pocketclip.train.materialise` makes such sets.

Shapes: S side of a view.
"""

from __future__ import annotations

import functools
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketclip.augment import Augmentation
from pocketclip.errors import AugmentationError, ConfigError, DataError, ImageError
from pocketclip.shards.index import Materialised
from pocketclip.train.batch_types import DataConfig
from pocketclip.train.replay import AugmentationReplay, decode_pixels

ENCODINGS = ("jpeg", "webp")
QUALITY = 90
"""Default JPEG quality."""
MAX_PSNR = 100.0
"""PSNR of views without any difference, in dB, where a mean needs a number."""


@dataclass(frozen=True, slots=True)
class RenderPlan:
    """How views are rendered; it can be sent to other processes."""

    augmentation: str
    """Its configuration as JSON."""
    size: int
    """S, in pixels."""
    encoding: str
    quality: int | None


@dataclass(slots=True)
class RenderedViews:
    """The encoded views of one sample."""

    views: list[bytes]
    psnr: list[float]
    """Of each view against the exact one, in dB."""


def render_views(image: bytes, params: Sequence[Any], plan: RenderPlan) -> RenderedViews | str:
    """Return the encoded views of an image, or why there are none.

    Args:
        image: the encoded image.
        params: its stored augmentations in the packed format.
        plan: how to render them.
    """
    replay = _replay(plan.augmentation, plan.size)
    out = RenderedViews([], [])
    try:
        for packed in params:
            exact = replay(image, packed)
            data = encode_view(exact, plan.encoding, plan.quality)
            stored = read_view(data, plan.size)
            difference = np.subtract(exact, stored, dtype=np.float32)
            out.views.append(data)
            out.psnr.append(psnr(float(np.mean(difference * difference))))
    except (AugmentationError, DataError, ImageError) as error:
        return str(error)
    return out


@functools.lru_cache(maxsize=4)
def _replay(augmentation: str, size: int) -> AugmentationReplay:
    return AugmentationReplay(Augmentation.from_config(json.loads(augmentation)), size)


def encode_view(pixels: NDArray[np.uint8], encoding: str, quality: int | None) -> bytes:
    """Return the encoded file of a view (S, S, 3).

    Args:
        pixels: RGB.
        encoding: `jpeg`, or `webp` for a lossless file.
        quality: of the JPEG, from 1 to 100.
    """
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if encoding == "webp":
        image.save(buffer, "WEBP", lossless=True, quality=100, method=4)
    else:
        # Full colour: of files of equal size, those with halved chroma are farther from the view.
        image.save(buffer, "JPEG", quality=quality, subsampling="4:4:4")
    return buffer.getvalue()


def read_view(data: bytes, size: int) -> NDArray[np.uint8]:
    """Return the pixels (S, S, 3) of an encoded view.

    Raises:
        DataError: its side is not `size`.
        ImageError: it is damaged.
    """
    pixels = decode_pixels(data)
    if pixels.shape != (size, size, 3):
        height, width = pixels.shape[:2]
        raise DataError(f"a view has {width} x {height} pixels, not {size} x {size}")
    return pixels


def psnr(mean_square: float) -> float:
    """Return the peak signal-to-noise ratio in dB for a mean squared error in levels of 255."""
    if not mean_square:
        return MAX_PSNR
    return min(10 * math.log10(255**2 / mean_square), MAX_PSNR)


def check_views(made: Materialised, size: int, config: DataConfig) -> None:
    """Check that training can use the views of a materialised set.

    Raises:
        ConfigError: the student takes another size, or a setting needs the images themselves.
    """
    if made.size != size:
        raise ConfigError(
            f"{config.source} holds views of {made.size} x {made.size} pixels, but the model takes "
            f"{size} x {size}: give the set that it was made of, or make one of that size with "
            f"`pocketclip materialise SOURCE --size {size} --out DIR`"
        )
    if config.replay != "exact":
        raise ConfigError(
            f"{config.source} holds views that are rendered already, so data.replay="
            f"{config.replay} has nothing to replay: leave it at exact"
        )
    if config.min_image_side:
        raise ConfigError(
            f"{config.source} holds views of one size, and data.min_image_side asks for that of "
            "the images: set it to 0, or give the set that the views were made of"
        )
