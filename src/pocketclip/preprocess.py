"""The evaluation transform: any image to the pixels that an image tower expects.

    pixels = Preprocess(zoo.entry("mobileclip2-s0").config.preprocess)("photo.jpg")  # (3, 256, 256)

One implementation, Pillow and numpy, for every backend. It equals the published evaluation
(torchvision's Resize, CenterCrop, ToTensor and Normalize on Pillow images) to the bit.

Shapes: B batch, H W height and width of a source, S side of the result, in pixels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from pocketclip.errors import ImageError
from pocketclip.images import MAX_PIXELS, ImageSource, open_image
from pocketclip.zoo import PreprocessConfig, check_range

__all__ = ["MAX_PIXELS", "ImageSource", "Preprocess", "open_image"]

_WHOLE = 1 << 24
"""Up to this many pixels an image is resized whole and then cut; beyond, only the part that is
kept is computed, as a line of pixels would otherwise grow to gigabytes."""

# Which pass comes first changes the rounding. Pillow 13 resizes tall images down before across.
_DOWN_FIRST = int(PIL.__version__.split(".")[0]) >= 13


class Preprocess:
    """The evaluation transform of a model: shortest side to S, centre crop, scale, normalise.

    Raises:
        ConfigError: a size, mean or standard deviation that makes no sense.
    """

    def __init__(self, config: PreprocessConfig, *, max_pixels: int = MAX_PIXELS) -> None:
        for name in ("size", "mean", "std"):
            check_range(name, getattr(config, name))
        self.config = config
        self.max_pixels = max_pixels
        self._scale_only = set(config.mean) == {0.0} and set(config.std) == {1.0}

    def __repr__(self) -> str:
        return f"Preprocess({self.config})"

    def __call__(self, source: ImageSource) -> NDArray[np.float32]:
        """Return the pixels that the image tower expects, float32 (3, S, S).

        Raises:
            ImageError, MissingDependencyError: as `open_image`.
        """
        out = np.empty((3, self.config.size, self.config.size), np.float32)
        self._fill(out, source)
        return out

    def batch(self, sources: Sequence[ImageSource]) -> NDArray[np.float32]:
        """Return the pixels of several images, float32 (B, 3, S, S).

        Raises:
            ImageError, MissingDependencyError: as `open_image`, naming the position.
        """
        single = isinstance(sources, np.ndarray) and sources.ndim != 4
        if single or isinstance(sources, (str, os.PathLike, bytes, Image.Image)):
            raise ImageError(f"batch wants a list of images, not one {type(sources).__name__}")
        out = np.empty((len(sources), 3, self.config.size, self.config.size), np.float32)
        for position, source in enumerate(sources):
            try:
                self._fill(out[position], source)
            except ImageError as error:
                raise ImageError(f"image {position} of {len(sources)}: {error}") from error
        return out

    def to_uint8(self, source: ImageSource) -> NDArray[np.uint8]:
        """Return `source` resized and cropped, not yet scaled: uint8 (S, S, 3).

        Raises:
            ImageError, MissingDependencyError: as `open_image`.
        """
        return np.array(self._square(source))

    def _fill(self, out: NDArray[np.float32], source: ImageSource) -> None:
        out[:] = np.asarray(self._square(source)).transpose(2, 0, 1)
        out /= np.float32(255)
        if not self._scale_only:
            out -= np.array(self.config.mean, np.float32)[:, None, None]
            out /= np.array(self.config.std, np.float32)[:, None, None]

    def _square(self, source: ImageSource) -> Image.Image:
        image = open_image(source, max_pixels=self.max_pixels)
        side = self.config.size
        bicubic = self.config.interpolation == "bicubic"
        width, height = image.size
        if width <= height:
            size = side, int(side * height / width)
        else:
            size = int(side * width / height), side
        # Halves round to even here, and the longer side is cut off above, as was published.
        left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
        if size[0] * size[1] > _WHOLE:
            return _resized_window(image, size, (left, top), side, bicubic=bicubic)
        if size != image.size:
            way = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
            image = image.resize(size, way)
        if size != (side, side):
            image = image.crop((left, top, left + side, top + side))
        return image


def _resized_window(
    image: Image.Image, size: tuple[int, int], corner: tuple[int, int], side: int, *, bicubic: bool
) -> Image.Image:
    """Return `image` resized to `size` and cut to S x S at `corner`, computing only that part.

    Pixel for pixel what Pillow gives: its weights in fixed point, one direction after the other,
    rounded to 8 bits in between. (Its own `box` argument is in single precision, which does not
    give the same pixels.)
    """
    across, down = (
        [_weights(n, m, x, bicubic=bicubic) for x in range(start, start + side)]
        for n, m, start in zip(image.size, size, corner, strict=True)
    )
    box = across[0][0], down[0][0], _stop(across[-1]), _stop(down[-1])
    block = np.asarray(image.crop(box)).astype(np.float64)  # (h, w, 3)
    if _DOWN_FIRST and image.width < image.height and size[1] < image.height:
        block = _weighted_down(block, down, box[1])  # (S, w, 3)
        block = _weighted(block, across, box[0])  # (S, S, 3)
    else:
        block = _weighted(block, across, box[0])  # (h, S, 3)
        block = _weighted_down(block, down, box[1])  # (S, S, 3)
    return Image.fromarray(block.astype(np.uint8))


_FIXED_POINT = 1 << 22
_Weights: TypeAlias = "tuple[int, NDArray[np.float64]]"


def _weights(length: int, target: int, x: int, *, bicubic: bool) -> _Weights:
    """Return which pixels of a line make pixel `x` of its resized form: the first, and weights."""
    scale = length / target
    stretch = max(scale, 1.0)
    reach = (2.0 if bicubic else 1.0) * stretch
    center = (x + 0.5) * scale
    first = max(int(center - reach + 0.5), 0)
    last = min(int(center + reach + 0.5), length)
    t = np.abs((np.arange(first, last) - center + 0.5) * (1.0 / stretch))
    if bicubic:  # Keys' cubic convolution with a = -1/2
        near, far = (1.5 * t - 2.5) * t * t + 1.0, (((t - 5.0) * t + 8.0) * t - 4.0) * -0.5
        weights = np.where(t < 1.0, near, np.where(t < 2.0, far, 0.0))
    else:
        weights = np.maximum(1.0 - t, 0.0)
    weights = weights / weights.cumsum()[-1]  # added up one by one, as Pillow does
    return first, np.trunc(weights * _FIXED_POINT + np.copysign(0.5, weights))


def _stop(weights: _Weights) -> int:
    return weights[0] + len(weights[1])


def _weighted(
    block: NDArray[np.float64], weights: Sequence[_Weights], origin: int
) -> NDArray[np.float64]:
    """Return (n, S, 3): each of S weights applied along the second axis of `block` (n, m, 3)."""
    # Whole numbers below 2 ** 53 throughout, so floating point adds them up exactly.
    out = np.empty((block.shape[0], len(weights), 3))
    for i, (first, weight) in enumerate(weights):
        part = block[:, first - origin : first - origin + len(weight)]
        out[:, i] = np.einsum("nmc,m->nc", part, weight)
    return np.floor((out + _FIXED_POINT / 2) / _FIXED_POINT).clip(0, 255)


def _weighted_down(
    block: NDArray[np.float64], weights: Sequence[_Weights], origin: int
) -> NDArray[np.float64]:
    """Return (S, m, 3): the same along the first axis of `block` (n, m, 3)."""
    return _weighted(block.swapaxes(0, 1), weights, origin).swapaxes(0, 1)
