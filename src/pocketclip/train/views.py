"""From an encoded image and stored parameters to pixels at the student's size.

A stored crop is a box in the source's pixels, so it is resized directly to the student's size.
RandAugment's translations and an erasure are in pixels of the stored size: they are scaled. Where
the sizes agree, pixels are those of `Augmentation.apply` to the bit.

The fast form decodes a JPEG at a fraction of its size where the crop keeps at least the wanted
pixels, and resizes with torch's uint8 kernels; both differ from the exact form by a few levels.

Shapes: S side of the student's square, H W of a decoded image.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from pocketclip import pixel_ops
from pocketclip.augment import Augmentation, Params
from pocketclip.errors import ImageError
from pocketclip.images import open_image

try:
    import simplejpeg
except ModuleNotFoundError:  # Pillow decodes to the same pixels
    simplejpeg = None

_TRANSLATIONS = (3, 4)  # of pixel_ops.OP_NAMES, in pixels of the result
_Pixels = NDArray[np.uint8]


def decode(data: bytes) -> Image.Image:
    """Return an encoded image upright and in RGB, as `open_image` does, by the fastest decoder.

    Raises:
        ImageError: it is damaged, or no image.
    """
    if _is_plain_jpeg(data):
        try:
            pixels = simplejpeg.decode_jpeg(data, fastdct=False, fastupsample=False)
        except ValueError:
            return open_image(data)  # which says what is wrong
        return Image.fromarray(pixels)
    return open_image(data)


def _is_plain_jpeg(data: bytes) -> bool:
    """Return whether the bytes are a colour JPEG without an orientation."""
    if simplejpeg is None or data[:3] != b"\xff\xd8\xff" or b"Exif" in data[:4096]:
        return False
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    # Of the rare colour spaces (CMYK, Adobe's) Pillow knows more; what is huge it refuses.
    return colours == "YCbCr" and height * width < 1 << 26


class View:
    """Replays augmentations at one size. May be sent to other processes.

    Args:
        augmentation: as its parameters were drawn.
        size: S.
        fast: decode and resize approximately.
    """

    def __init__(self, augmentation: Augmentation, size: int, *, fast: bool = False) -> None:
        self.stored, self.size, self.fast = augmentation, size, fast
        config = augmentation.config
        crop = config.get("random_resized_crop")
        self._factor = 1.0
        self._replayed = augmentation
        if crop is not None:
            width = (augmentation.output_size or (size, size))[0]
            self._factor = size / width
            self._replayed = Augmentation.from_config(
                {**config, "random_resized_crop": {**crop, "size": size}}
            )
        way = str((crop or {}).get("interpolation", "bilinear"))
        # torch's uint8 kernels know these two; nearest is quick anyway.
        mode = way if way in ("bilinear", "bicubic") else None
        before = {"resize", "center_crop", "range_augment"} & config.keys()
        self._mode = mode if fast and crop is not None and not before else None

    def __call__(self, data: bytes, packed: Any) -> _Pixels:
        """Return the pixels (S, S, 3) of an encoded image, augmented as `packed` says.

        Raises:
            ImageError: the image is damaged.
            AugmentationError: the parameters are not of this augmentation or image.
        """
        return self.apply(data, self.stored.unpack(packed))

    def apply(self, data: bytes, params: Params) -> _Pixels:
        """Return the same for parameters that were unpacked, or drawn."""
        params = self._scaled(params)
        if self._mode is not None and params.crop is not None and _is_plain_jpeg(data):
            return self._fast(data, params)
        pixels = self._replayed.apply(decode(data), params)
        if pixels.shape[:2] != (self.size, self.size):
            square = Image.fromarray(pixels)
            square = pixel_ops.resize(square, (self.size, self.size), Image.Resampling.BICUBIC)
            pixels = np.array(square)
        return pixels

    def _scaled(self, params: Params) -> Params:
        if self._factor == 1.0:
            return params
        ops, erase = params.ops, params.erase
        if ops is not None:
            ops = tuple(
                (op, magnitude * self._factor if op in _TRANSLATIONS else magnitude)
                for op, magnitude in ops
            )
        if erase is not None:
            top, left, height, width = (round(value * self._factor) for value in erase)
            erase = (top, left, height, width)
        return dataclasses.replace(params, ops=ops, erase=erase)

    def _fast(self, data: bytes, params: Params) -> _Pixels:
        assert params.crop is not None
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        top, left, h, w = params.crop
        if top + h > height or left + w > width:
            return self._replayed.apply(decode(data), params)  # which says that it does not fit
        try:
            pixels = simplejpeg.decode_jpeg(
                data,
                min_height=min(height, math.ceil(height * self.size / h)),
                min_width=min(width, math.ceil(width * self.size / w)),
                min_factor=1,
            )
        except ValueError as error:
            raise ImageError(f"image bytes: {error}") from error
        down, across = pixels.shape[0] / height, pixels.shape[1] / width
        y0, x0 = round(top * down), round(left * across)
        y1 = max(round((top + h) * down), y0 + 1)
        x1 = max(round((left + w) * across), x0 + 1)
        part = torch.from_numpy(pixels[y0:y1, x0:x1]).permute(2, 0, 1)[None]
        square = F.interpolate(
            part, (self.size, self.size), mode=self._mode, antialias=True, align_corners=False
        )
        out: _Pixels = np.ascontiguousarray(square[0].permute(1, 2, 0).numpy())
        if params.flip:
            out = np.ascontiguousarray(out[:, ::-1])
        if params.ops:
            image = Image.fromarray(out)
            for op, magnitude in params.ops:
                image = pixel_ops.apply_op(image, op, magnitude)
            out = np.array(image)
        if params.erase is not None:
            y, x, height, width = params.erase
            out[y : y + height, x : x + width] = 0
        return out
