"""RandomCrop: a window of an image and the border around it, without making the whole border.

    width, height = padded_size(image.size, crop)
    window = window_of(image, (top, left), crop)

A side of the border holds a colour, the last pixel or mirror images of the image, however wide it
is. Equal to torchvision's results, which pads with numpy, and to the byte in every numpy version.

Shapes: H W height and width of the window, in pixels. Sizes are (width, height), as in Pillow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketclip.augment.transforms import RandomCrop

_Places = NDArray[np.int64]
_OUTSIDE = -1


def padded_size(size: tuple[int, int], crop: RandomCrop) -> tuple[int, int]:
    """Return the size of an image of `size` with its border; both are (width, height)."""
    width, height = _sides(size, crop)
    return width[0] + 2 * width[1], height[0] + 2 * height[1]


def window_of(image: Image.Image, corner: tuple[int, int], crop: RandomCrop) -> Image.Image:
    """Return the window at `corner` (top, left) of the image with its border."""
    to_height, to_width = height_width(crop)
    rows = _sources(image.size, crop, 1, np.arange(corner[0], corner[0] + to_height))
    columns = _sources(image.size, crop, 0, np.arange(corner[1], corner[1] + to_width))
    fill = crop.fill if isinstance(crop.fill, tuple) else (crop.fill,) * 3
    inside = rows[rows >= 0], columns[columns >= 0]
    if not len(inside[0]) or not len(inside[1]):
        return Image.new("RGB", (to_width, to_height), fill)
    (top, bottom), (left, right) = ((int(p.min()), int(p.max()) + 1) for p in inside)
    used = image.crop((left, top, right, bottom))
    if used.size == (to_width, to_height) and crop.padding_mode == "constant":
        return used  # no border is in it
    pixels = np.asarray(used)[np.maximum(rows - top, 0)][:, np.maximum(columns - left, 0)]
    pixels[rows < 0], pixels[:, columns < 0] = fill, fill
    return Image.fromarray(pixels)


def height_width(crop: RandomCrop) -> tuple[int, int]:
    """Return the size of the window."""
    return (crop.size, crop.size) if isinstance(crop.size, int) else crop.size


def _borders(crop: RandomCrop) -> tuple[int, int, int, int]:
    return (crop.padding,) * 4 if isinstance(crop.padding, int) else crop.padding


def _sides(size: tuple[int, int], crop: RandomCrop) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return for width and height: the length with `padding`, and what is added on each side."""
    left, top, right, bottom = _borders(crop)
    height, width = height_width(crop)
    lengths = size[0] + left + right, size[1] + top + bottom
    lacks = [max(0, want - have) for want, have in zip((width, height), lengths, strict=True)]
    added = lacks if crop.pad_if_needed else [0, 0]
    return (lengths[0], added[0]), (lengths[1], added[1])


def _sources(size: tuple[int, int], crop: RandomCrop, axis: int, places: _Places) -> _Places:
    """Return the places in the image, 0: columns, 1: rows, of places in the image with its border.

    Places that hold the fill colour are negative.
    """
    length, added = _sides(size, crop)[axis]
    places = _inward(places - added, length, crop.padding_mode)
    return _inward(places - _borders(crop)[axis], size[axis], crop.padding_mode)


def _inward(places: _Places, length: int, mode: str) -> _Places:
    """Return places from 0 to `length` - 1 for places on an endless line."""
    if mode == "edge" or (mode == "reflect" and length == 1):
        return places.clip(0, length - 1)
    if mode == "constant":
        return np.where((places < 0) | (places >= length), _OUTSIDE, places)
    period = 2 * length - (2 if mode == "reflect" else 0)
    last = period - (0 if mode == "reflect" else 1)
    turned = places % period
    return np.minimum(turned, last - turned)
