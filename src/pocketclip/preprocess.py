"""The evaluation transform: any image to the pixels that an image tower expects.

    pixels = Preprocess(zoo.entry("mobileclip2-s0").config.preprocess)("photo.jpg")  # (3, 256, 256)

One implementation, Pillow and numpy, for every backend. It equals the published evaluation
(torchvision's Resize, CenterCrop, ToTensor and Normalize on Pillow images) to the bit, except for
aspects over about 256:1, of which only the crop is computed: single pixels differ.

Shapes: B batch, S side of the result in pixels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketclip.errors import ConfigError, ImageError
from pocketclip.images import MAX_PIXELS, ImageSource, open_image
from pocketclip.zoo import PreprocessConfig, check_range

__all__ = ["MAX_PIXELS", "ImageSource", "Preprocess", "open_image"]

_MAX_RESIZED = 1 << 24
"""Pixels of the largest image that is resized whole and then cropped. Of a longer one (aspects
over about 256:1) only the crop is computed, else a line of pixels would grow to gigabytes."""


class Preprocess:
    """The evaluation transform of a model: shortest side to S, centre crop, scale, normalise.

    Models whose configuration says `resize: squash` take both sides to S instead, uncropped.

    Raises:
        ConfigError: a size, mean or standard deviation is out of range.
    """

    def __init__(self, config: PreprocessConfig, *, max_pixels: int = MAX_PIXELS) -> None:
        for name in ("size", "mean", "std"):
            check_range(name, getattr(config, name))
        self.config = config
        self.max_pixels = max_pixels
        bicubic = config.interpolation == "bicubic"
        self._resample = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
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
            raise ImageError(f"batch takes a list of images, not one {type(sources).__name__}")
        out = np.empty((len(sources), 3, self.config.size, self.config.size), np.float32)
        for position, source in enumerate(sources):
            try:
                self._fill(out[position], source)
            except ImageError as error:
                raise ImageError(f"image {position} of {len(sources)}: {error}") from error
        return out

    def to_uint8(self, source: ImageSource) -> NDArray[np.uint8]:
        """Return `source` resized and cropped, before scaling: uint8 (S, S, 3).

        Raises:
            ImageError, MissingDependencyError: as `open_image`.
        """
        return np.array(self._square(source))

    def whole(self, source: ImageSource, size: tuple[int, int]) -> NDArray[np.float32]:
        """Return the whole image at another size, scaled and normalised, for feature maps.

        Nothing is cropped: an image of another aspect is stretched.

        Args:
            source: the image.
            size: height and width in pixels.

        Returns:
            float32 (3, H, W).

        Raises:
            ConfigError: a side is below 1 pixel, or the image would be too large.
            ImageError, MissingDependencyError: as `open_image`.
        """
        height, width = size
        if min(height, width) < 1 or height * width > _MAX_RESIZED:
            raise ConfigError(
                f"an image of {height} x {width} pixels: sides are at least 1, and an image has at "
                f"most {_MAX_RESIZED:,} pixels"
            )
        image = open_image(source, max_pixels=self.max_pixels)
        if image.size != (width, height):
            image = image.resize((width, height), self._resample)
        out = np.empty((3, height, width), np.float32)
        self._scale(out, image)
        return out

    def _fill(self, out: NDArray[np.float32], source: ImageSource) -> None:
        self._scale(out, self._square(source))

    def _scale(self, out: NDArray[np.float32], image: Image.Image) -> None:
        out[:] = np.asarray(image).transpose(2, 0, 1)
        out /= np.float32(255)
        if not self._scale_only:
            out -= np.array(self.config.mean, np.float32)[:, None, None]
            out /= np.array(self.config.std, np.float32)[:, None, None]

    def seen(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return what is left of an image after the crop.

        Args:
            size: width and height of the image, in pixels.

        Returns:
            Left, top, right and bottom in pixels of the image.
        """
        side, (width, height) = self.config.size, size
        (new_width, new_height), (left, top) = self._geometry(width, height)
        x, y = width / new_width, height / new_height
        return left * x, top * y, (left + side) * x, (top + side) * y

    def _geometry(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the size that an image is resized to, and the crop's left and top in it."""
        side = self.config.size
        if self.config.resize == "squash":
            size = side, side
        elif width <= height:
            size = side, int(side * height / width)
        else:
            size = int(side * width / height), side
        # As published: halves round to even here, and the longer side is truncated above.
        return size, (round((size[0] - side) / 2), round((size[1] - side) / 2))

    def _square(self, source: ImageSource) -> Image.Image:
        image = open_image(source, max_pixels=self.max_pixels)
        side = self.config.size
        width, height = image.size
        size, (left, top) = self._geometry(width, height)
        if size[0] * size[1] > _MAX_RESIZED:
            x, y = width / size[0], height / size[1]
            box = left * x, top * y, (left + side) * x, (top + side) * y
            return image.resize((side, side), self._resample, box=box)
        if size != image.size:
            image = image.resize(size, self._resample)
        if size != (side, side):
            image = image.crop((left, top, left + side, top + side))
        return image
