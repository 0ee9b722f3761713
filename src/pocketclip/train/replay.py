"""Replays stored augmentations: an encoded image and its parameters become pixels for the student.

A stored crop is a box in the source's pixels, so it is resized directly to the student's size.
Translations and an erasure are in pixels of the stored size, so they are scaled. If the sizes
agree, the pixels equal those of `Augmentation.apply` to the bit. A view without such a crop (a
window of RandomCrop, a centre crop) is made at its stored size, and the result is resized.

The fast mode decodes a JPEG at a fraction of its size if the crop still has enough pixels, and
resizes with torch's uint8 kernels; both differ from the exact mode by a few levels.

`view` leaves everything after the crop to `views`, which does it for a whole batch on the device,
to the same bytes. Only crops of more than 2 S pixels on a side are reduced first, by scaled JPEG
decoding or by means of whole pixels, which differs by a few levels.

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
from pocketclip.augment.fast_ops import Canvas, apply_op, flip
from pocketclip.augment.params import Box
from pocketclip.augment.pixel_ops import resizes_rows_first
from pocketclip.images import open_image
from pocketclip.train import batched_ops
from pocketclip.train.batched_ops import Interpolation
from pocketclip.train.device_views import View

try:
    import simplejpeg
except ModuleNotFoundError:  # Pillow decodes to the same pixels
    simplejpeg = None

_TRANSLATIONS = (3, 4)  # of pixel_ops.OP_NAMES, in pixels of the result
_MIN_REDUCTION = 1.5  # scaled decoding to 6/8 or 7/8 takes as long as full decoding
_BATCHED: dict[str, Interpolation] = {"bilinear": "bilinear", "bicubic": "bicubic"}
_Pixels = NDArray[np.uint8]


def decode(data: bytes) -> Image.Image:
    """Return an encoded image upright and in RGB, as `open_image` does, by the fastest decoder.

    Raises:
        ImageError: it is damaged, or not an image.
    """
    pixels = _decode_jpeg(data)
    return open_image(data) if pixels is None else Image.fromarray(pixels)


def decode_pixels(data: bytes) -> _Pixels:
    """Return the pixels (H, W, 3) of `decode`'s result, without making a Pillow image if possible.

    Raises:
        ImageError: it is damaged, or not an image.
    """
    pixels = _decode_jpeg(data)
    return np.asarray(open_image(data)) if pixels is None else pixels


def _decode_jpeg(data: bytes, min_size: tuple[int, int] = (0, 0)) -> _Pixels | None:
    """Return the pixels (H, W, 3) of a plain JPEG; None if Pillow has to decode it.

    With `min_size` (height, width), it is decoded at the smallest scale that is at least as large.
    """
    if not _is_plain_jpeg(data):
        return None
    try:
        pixels: _Pixels = simplejpeg.decode_jpeg(
            data,
            fastdct=False,
            fastupsample=False,
            min_height=min_size[0],
            min_width=min_size[1],
            min_factor=_MIN_REDUCTION,
        )
    except ValueError:  # damaged: Pillow says how, or reads it nevertheless
        return None
    return pixels


def size_of(data: bytes) -> tuple[int, int]:
    """Return the (width, height) of `decode`'s result, without decoding if possible.

    Raises:
        ImageError: it is not an image.
    """
    if _is_plain_jpeg(data):
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        return width, height
    return decode(data).size


def _is_plain_jpeg(data: bytes) -> bool:
    """Return whether the bytes are a colour JPEG without orientation metadata."""
    if simplejpeg is None or data[:3] != b"\xff\xd8\xff":
        return False
    if _has_metadata(data):
        return False
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    # Pillow handles the rare colour spaces (CMYK, Adobe's), and refuses huge images.
    return bool(colours == "YCbCr" and height * width < 1 << 26)


def _has_metadata(data: bytes) -> bool:
    """Return whether a JPEG has an APP1 segment: EXIF or XMP, which may hold an orientation."""
    offset = 2
    while data[offset : offset + 1] == b"\xff":
        marker = data[offset + 1 : offset + 2]
        if marker in (b"\xe1", b"", b"\xff"):  # or fill bytes, which Pillow handles
            return True
        if marker == b"\xda":  # the image begins
            return False
        offset += 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
    return True


class AugmentationReplay:
    """Replays one augmentation's parameters at one size. Can be pickled.

    Args:
        augmentation: the one that the parameters were drawn from.
        size: S, the side of the result in pixels.
        fast: decode and resize approximately.

    Attributes:
        interpolation: the filter that views are resized with; None: all views are finished.
        slots: the number of operations that a view has at most.
    """

    def __init__(self, augmentation: Augmentation, size: int, *, fast: bool = False) -> None:
        self.stored, self.size, self.fast = augmentation, size, fast
        config = augmentation.config
        crop = config.get("random_resized_crop")
        self._x_scale = self._y_scale = 1.0
        self._replayed = augmentation
        if crop is not None:
            width, height = augmentation.output_size or (size, size)
            self._x_scale, self._y_scale = size / width, size / height
            self._replayed = Augmentation.from_config(
                {**config, "random_resized_crop": {**crop, "size": size}}
            )
        interpolation = str((crop or {}).get("interpolation", "bilinear"))
        # Torch's uint8 kernels and `batched_ops` support two filters; nearest is quick anyway.
        mode = _BATCHED.get(interpolation)
        counts = {"rand_augment": int((config.get("rand_augment") or {}).get("num_ops", 0))}
        counts |= {"auto_augment": 2, "trivial_augment_wide": 1}
        self.slots = sum(counts[name] for name in counts.keys() & config.keys())
        # `Augmentation` applies transforms before the crop, and between it and the flip.
        others = {"resize", "center_crop", "random_crop", "range_augment"} & config.keys()
        self._direct = crop is not None and not others
        self._resampling = Image.Resampling[interpolation.upper()]
        self.interpolation: Interpolation | None = mode if self._direct else None
        self._mode = self.interpolation if fast else None

    def __call__(self, data: bytes, packed: Any) -> _Pixels:
        """Return the pixels (S, S, 3) of an encoded image, augmented as `packed` says.

        Raises:
            ImageError: the image is damaged.
            AugmentationError: the parameters do not fit this augmentation or image.
        """
        return self.apply(data, self.stored.unpack(packed))

    def apply(self, data: bytes, params: Params) -> _Pixels:
        """Return the pixels (S, S, 3) for parameters that are unpacked already."""
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
        """Return what `Augmentation.apply` returns, making a Pillow image of the crop only."""
        pixels = _decode_jpeg(data)
        top, left, h, w = crop
        if pixels is None or top + h > pixels.shape[0] or left + w > pixels.shape[1]:
            return None  # `Augmentation` raises that it does not fit
        # The crop's rows within the whole image; Pillow skips the remainder of each.
        row, first = pixels.shape[1] * 3, (top * pixels.shape[1] + left) * 3
        view = pixels.data.cast("B")[first : first + row * (h - 1) + w * 3]
        image = Image.frombytes("RGB", (w, h), view, "raw", "RGB", row, 1)
        square = pixel_ops.resize(image, (self.size, self.size), self._resampling)
        return _finished(Canvas(image=square), params)

    def view(self, data: bytes, params: Params) -> View:
        """Return what `views` makes the pixels of that `apply` returns; the arguments are the same.

        A crop with at least 2 S pixels in both directions is decoded at a half, quarter or eighth,
        as long as S are left; after that, a side of more than 2 S is reduced to between S and 2 S.
        """
        if self.interpolation is None or params.crop is None:
            return _whole(self.apply(data, params))
        scaled = self._scaled(params)
        matrices = [
            batched_ops.matrix(op, magnitude, self.size) for op, magnitude in scaled.all_ops
        ]
        known = [entries for entries in matrices if entries is not None]
        if len(known) < len(matrices):
            return _whole(self.apply(data, params))
        top, left, height, width = params.crop
        pixels, factor = self._decode_crop(data, params.crop)
        if pixels is None:
            return _whole(self.apply(data, params))  # raises that it does not fit
        box = top / factor, left / factor, (top + height) / factor, (left + width) / factor
        first_row, first_column = math.floor(box[0]), math.floor(box[1])
        pixels = pixels[first_row : math.ceil(box[2]), first_column : math.ceil(box[3])]
        box = box[0] - first_row, box[1] - first_column, box[2] - first_row, box[3] - first_column
        down, across = (-(-side // (2 * self.size)) for side in pixels.shape[:2])
        if max(down, across) > 1:
            pixels = np.asarray(Image.fromarray(pixels).reduce((across, down)))
            box = box[0] / down, box[1] / across, box[2] / down, box[3] / across
        height, width = pixels.shape[:2]
        return View(
            pixels=pixels,
            box=box,
            params=scaled,
            matrices=tuple(known),
            rows_first=resizes_rows_first((width, height), (self.size, self.size)),
        )

    def _decode_crop(self, data: bytes, crop: Box) -> tuple[_Pixels | None, int]:
        """Return the whole image and by what it was divided; None if the crop does not fit it."""
        top, left, height, width = crop
        factor = next((f for f in (8, 4, 2) if min(height, width) >= f * self.size), 1)
        if factor > 1 and _is_plain_jpeg(data):
            full_height, full_width, _, _ = simplejpeg.decode_jpeg_header(data)
            if top + height <= full_height and left + width <= full_width:
                pixels = _decode_jpeg(data, (-(-full_height // factor), -(-full_width // factor)))
                if pixels is not None:
                    return pixels, factor
        pixels = _decode_jpeg(data)
        if pixels is None:
            pixels = np.asarray(open_image(data))
        fits = top + height <= pixels.shape[0] and left + width <= pixels.shape[1]
        return (pixels if fits else None), 1

    def _scaled(self, params: Params) -> Params:
        x_scale, y_scale = self._x_scale, self._y_scale
        if x_scale == y_scale == 1.0:
            return params
        factors, erase = dict(zip(_TRANSLATIONS, (x_scale, y_scale), strict=True)), params.erase
        ops, auto_ops, trivial_ops = (
            ops and tuple((op, magnitude * factors.get(op, 1.0)) for op, magnitude in ops)
            for ops in (params.ops, params.auto_ops, params.trivial_ops)
        )
        if erase is not None:
            top, left = round(erase[0] * y_scale), round(erase[1] * x_scale)
            bottom, right = (
                round((erase[0] + erase[2]) * y_scale),
                round((erase[1] + erase[3]) * x_scale),
            )
            erase = (top, left, bottom - top, right - left)
        return dataclasses.replace(
            params, ops=ops, auto_ops=auto_ops, trivial_ops=trivial_ops, erase=erase
        )

    def _fast(self, data: bytes, params: Params, crop: Box) -> _Pixels | None:
        """Return approximate pixels, or None if only the exact mode can handle the image."""
        if not _is_plain_jpeg(data):
            return None
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        top, left, h, w = crop
        if top + h > height or left + w > width:
            return None
        needed = math.ceil(height * self.size / h), math.ceil(width * self.size / w)
        pixels = _decode_jpeg(data, (min(height, needed[0]), min(width, needed[1])))
        if pixels is None:
            return None
        y_scale, x_scale = pixels.shape[0] / height, pixels.shape[1] / width
        if (y_scale, x_scale) != (1.0, 1.0):
            # The box may now have fractional coordinates, which only Pillow's resize supports.
            box = left * x_scale, top * y_scale, (left + w) * x_scale, (top + h) * y_scale
            image = Image.fromarray(pixels)
            square = image.resize((self.size, self.size), self._resampling, box)
            return _finished(Canvas(image=square), params)
        # A copy: the kernel is fastest on contiguous channels-last pixels.
        cropped = torch.from_numpy(np.ascontiguousarray(pixels[top : top + h, left : left + w]))
        # Not `[None]`, whose stride hides the channels-last layout from torch.
        cropped = cropped.unsqueeze(0).permute(0, 3, 1, 2)
        resized = F.interpolate(
            cropped,
            (self.size, self.size),
            mode=str(self._mode),
            antialias=True,
            align_corners=False,
        )
        out: _Pixels = np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
        return _finished(Canvas(array=out), params)


def _whole(pixels: _Pixels) -> View:
    """Return a view of finished pixels (S, S, 3), with nothing left to do."""
    height, width = pixels.shape[:2]
    return View(pixels=pixels, box=(0, 0, height, width))


def _finished(canvas: Canvas, params: Params) -> _Pixels:
    """Return a resized crop after the steps that follow: flip, operations, erasing."""
    if params.flip:
        canvas = flip(canvas)
    for op, magnitude in params.all_ops:
        canvas = apply_op(canvas, op, magnitude)
    if params.erase is None:
        return canvas.array
    pixels = canvas.array.copy()
    top, left, height, width = params.erase
    pixels[top : top + height, left : left + width] = 0
    return pixels
