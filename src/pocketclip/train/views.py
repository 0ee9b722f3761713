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

from pocketclip.augment import Augmentation, Params, pixel_ops
from pocketclip.augment.fast_ops import Canvas, flipped, operate
from pocketclip.augment.params import Box
from pocketclip.images import open_image

try:
    import simplejpeg
except ModuleNotFoundError:  # Pillow decodes to the same pixels
    simplejpeg = None

_TRANSLATIONS = (3, 4)  # of pixel_ops.OP_NAMES, in pixels of the result
_SHRINK = 1.5  # scaled decoding to 6/8 or 7/8 takes as long as all of it
_Pixels = NDArray[np.uint8]


def decode(data: bytes) -> Image.Image:
    """Return an encoded image upright and in RGB, as `open_image` does, by the fastest decoder.

    Raises:
        ImageError: it is damaged, or no image.
    """
    pixels = _jpeg(data)
    return open_image(data) if pixels is None else Image.fromarray(pixels)


def _jpeg(data: bytes, least: tuple[int, int] = (0, 0)) -> _Pixels | None:
    """Return the pixels (H, W, 3) of a plain JPEG, or None where Pillow is to decide.

    With `least` (height, width) it is decoded at the smallest size that has these.
    """
    if not _is_plain_jpeg(data):
        return None
    try:
        pixels: _Pixels = simplejpeg.decode_jpeg(
            data,
            fastdct=False,
            fastupsample=False,
            min_height=least[0],
            min_width=least[1],
            min_factor=_SHRINK,
        )
    except ValueError:  # damaged: Pillow says how, or reads it all the same
        return None
    return pixels


def size_of(data: bytes) -> tuple[int, int]:
    """Return the (width, height) that `decode` would give, without decoding where that can be.

    Raises:
        ImageError: it is no image.
    """
    if _is_plain_jpeg(data):
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        return width, height
    return decode(data).size


def _is_plain_jpeg(data: bytes) -> bool:
    """Return whether the bytes are a colour JPEG without an orientation."""
    if simplejpeg is None or data[:3] != b"\xff\xd8\xff":
        return False
    if _has_metadata(data):
        return False
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    # Of the rare colour spaces (CMYK, Adobe's) Pillow knows more; what is huge it refuses.
    return bool(colours == "YCbCr" and height * width < 1 << 26)


def _has_metadata(data: bytes) -> bool:
    """Return whether a JPEG has an APP1 segment: EXIF or XMP, which may hold an orientation."""
    place = 2
    while data[place : place + 1] == b"\xff":
        marker = data[place + 1 : place + 2]
        if marker in (b"\xe1", b"", b"\xff"):  # or fill bytes, which are for Pillow
            return True
        if marker == b"\xda":  # the image begins
            return False
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return True


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
        self._across = self._down = 1.0
        self._replayed = augmentation
        if crop is not None:
            width, height = augmentation.output_size or (size, size)
            self._across, self._down = size / width, size / height
            self._replayed = Augmentation.from_config(
                {**config, "random_resized_crop": {**crop, "size": size}}
            )
        way = str((crop or {}).get("interpolation", "bilinear"))
        # torch's uint8 kernels know these two; nearest is quick anyway.
        mode = way if way in ("bilinear", "bicubic") else None
        # What comes before the crop, or between it and the flip, is left to `Augmentation`.
        before = {"resize", "center_crop", "range_augment"} & config.keys()
        self._direct = crop is not None and not before
        self._way = Image.Resampling[way.upper()]
        self._mode = mode if fast and self._direct else None

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
        if self._mode is not None and params.crop is not None:
            pixels = self._fast(data, params, params.crop)
            if pixels is not None:
                return pixels
        if self._direct and params.crop is not None:
            pixels = self._cropped(data, params, params.crop)
            if pixels is not None:
                return pixels
        pixels = self._replayed.apply(decode(data), params)
        if pixels.shape[:2] != (self.size, self.size):
            square = Image.fromarray(pixels)
            square = pixel_ops.resize(square, (self.size, self.size), Image.Resampling.BICUBIC)
            pixels = np.array(square)
        return pixels

    def _cropped(self, data: bytes, params: Params, crop: Box) -> _Pixels | None:
        """Return what `Augmentation.apply` does, with only the crop made a Pillow image."""
        pixels = _jpeg(data)
        top, left, h, w = crop
        if pixels is None or top + h > pixels.shape[0] or left + w > pixels.shape[1]:
            return None  # `Augmentation` says that it does not fit
        # The crop's rows as they lie in the whole image; Pillow steps over the rest of each.
        row, first = pixels.shape[1] * 3, (top * pixels.shape[1] + left) * 3
        view = pixels.data.cast("B")[first : first + row * (h - 1) + w * 3]
        image = Image.frombytes("RGB", (w, h), view, "raw", "RGB", row, 1)
        square = pixel_ops.resize(image, (self.size, self.size), self._way)
        return _finished(Canvas(image=square), params)

    def _scaled(self, params: Params) -> Params:
        across, down = self._across, self._down
        if across == down == 1.0:
            return params
        ops, erase = params.ops, params.erase
        if ops is not None:
            factors = dict(zip(_TRANSLATIONS, (across, down), strict=True))
            ops = tuple((op, magnitude * factors.get(op, 1.0)) for op, magnitude in ops)
        if erase is not None:
            top, left = round(erase[0] * down), round(erase[1] * across)
            bottom, right = (
                round((erase[0] + erase[2]) * down),
                round((erase[1] + erase[3]) * across),
            )
            erase = (top, left, bottom - top, right - left)
        return dataclasses.replace(params, ops=ops, erase=erase)

    def _fast(self, data: bytes, params: Params, crop: Box) -> _Pixels | None:
        """Return approximate pixels, or None where the exact way has to decide."""
        if not _is_plain_jpeg(data):
            return None
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        top, left, h, w = crop
        if top + h > height or left + w > width:
            return None
        least = math.ceil(height * self.size / h), math.ceil(width * self.size / w)
        pixels = _jpeg(data, (min(height, least[0]), min(width, least[1])))
        if pixels is None:
            return None
        down, across = pixels.shape[0] / height, pixels.shape[1] / width
        if (down, across) != (1.0, 1.0):
            # Between pixels now, where only Pillow's resize can begin; few are left to resize.
            box = left * across, top * down, (left + w) * across, (top + h) * down
            image = Image.fromarray(pixels)
            square = image.resize((self.size, self.size), self._way, box)
            return _finished(Canvas(image=square), params)
        # A copy: of an image whose channels lie together in memory the kernel is fastest.
        part = torch.from_numpy(np.ascontiguousarray(pixels[top : top + h, left : left + w]))
        # Not `[None]`, whose stride hides from torch how the channels lie.
        part = part.unsqueeze(0).permute(0, 3, 1, 2)
        resized = F.interpolate(
            part, (self.size, self.size), mode=str(self._mode), antialias=True, align_corners=False
        )
        out: _Pixels = np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
        return _finished(Canvas(array=out), params)


def _finished(canvas: Canvas, params: Params) -> _Pixels:
    """Return a resized crop after what comes behind it: mirrored, altered, erased."""
    if params.flip:
        canvas = flipped(canvas)
    for op, magnitude in params.ops or ():
        canvas = operate(canvas, op, magnitude)
    if params.erase is None:
        return canvas.array
    pixels = canvas.array.copy()
    top, left, height, width = params.erase
    pixels[top : top + height, left : left + width] = 0
    return pixels
