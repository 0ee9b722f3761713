"""Augmenting a small view quickly: the bytes of `pixel_ops`, each operation where it is cheapest.

    canvas = Canvas(array=pixels)  # or Canvas(image=...)
    for op, magnitude in params.ops:
        canvas = operate(canvas, op, magnitude)
    pixels = canvas.array

Pillow is quick at geometry and at counting, arrays and `bytes.translate` are at tones; a third of
an operation's time was going from one to the other. A canvas is either and becomes the other when
it is asked to. `pixel_ops`, by which views are drawn and stored, stays the definition: tests hold
every operation here against it.

Shapes: H W height and width, in pixels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketclip import pixel_ops

_Pixels = NDArray[np.uint8]


class Canvas:
    """8-bit RGB pixels, as a Pillow image, as an array, or both. Neither is ever written to."""

    __slots__ = ("_array", "_image")

    def __init__(self, *, image: Image.Image | None = None, array: _Pixels | None = None) -> None:
        self._image, self._array = image, array

    @property
    def image(self) -> Image.Image:
        """The pixels for Pillow."""
        if self._image is None:
            self._image = Image.fromarray(self.array)
        return self._image

    @property
    def array(self) -> _Pixels:
        """The pixels (H, W, 3); read-only where they were an image's."""
        if self._array is None:
            assert self._image is not None
            width, height = self._image.size
            # Half the time of `np.array`, which copies once more.
            self._array = np.frombuffer(self._image.tobytes(), np.uint8).reshape(height, width, 3)
        return self._array


def operate(canvas: Canvas, op: int, magnitude: float) -> Canvas:
    """Return the canvas after operation `op`, as `pixel_ops.apply_op` has it."""
    quick = _QUICK.get(pixel_ops.OP_NAMES[op])
    if quick is not None:
        return quick(canvas, magnitude)
    return Canvas(image=pixel_ops.apply_op(canvas.image, op, magnitude))


def flipped(canvas: Canvas) -> Canvas:
    """Return the canvas mirrored, left to right."""
    return Canvas(image=canvas.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


# --- geometry


def _moved(pixels: _Pixels, right: int, down: int) -> Canvas:
    height, width = pixels.shape[:2]
    right, down = max(-width, min(width, right)), max(-height, min(height, down))
    out = np.zeros_like(pixels)
    out[max(down, 0) : height + down, max(right, 0) : width + right] = pixels[
        max(-down, 0) : height - down, max(-right, 0) : width - right
    ]
    return Canvas(array=out)


# --- colour


def _mapped(canvas: Canvas, table: bytes) -> Canvas:
    pixels = canvas.array
    found = np.frombuffer(pixels.tobytes().translate(table), np.uint8)
    return Canvas(array=found.reshape(pixels.shape))


@functools.lru_cache(maxsize=1024)
def _from_grey(grey: int, magnitude: float) -> bytes:
    """Return the table of a blend of `grey` with the image."""
    values = np.arange(256, dtype=np.float32) - np.float32(grey)
    return _stretched(np.float32(grey), values, magnitude).tobytes()


def _stretched(
    base: NDArray[np.float32] | np.float32, difference: NDArray[np.float32], magnitude: float
) -> _Pixels:
    """Return base + (1 + magnitude) * difference in 8 bits; `difference` is used up."""
    difference *= np.float32(1.0 + magnitude)
    difference += base
    np.clip(difference, np.float32(0), np.float32(255), out=difference)
    return difference.astype(np.uint8)


def _contrast(canvas: Canvas, magnitude: float) -> Canvas:
    counts = canvas.image.convert("L").histogram()
    mean = sum(value * count for value, count in enumerate(counts)) / sum(counts)
    return _mapped(canvas, _from_grey(int(mean + 0.5), magnitude))


def _color(canvas: Canvas, magnitude: float) -> Canvas:
    grey = canvas.image.convert("L")
    base = Canvas(image=Image.merge("RGB", (grey,) * 3)).array.astype(np.float32)
    return Canvas(array=_stretched(base, canvas.array - base, magnitude))


def _sharpness(canvas: Canvas, magnitude: float) -> Canvas:
    pixels = canvas.array
    height, width = pixels.shape[:2]
    if min(height, width) < 3:
        return canvas
    # One long row, so that every sum is of contiguous numbers; what crosses an edge is rim.
    row, flat = width * 3, pixels.reshape(-1)
    wide = flat.astype(np.uint16)
    rows = wide[: -2 * row] + wide[row:-row]
    rows += wide[2 * row :]
    total = rows[:-6] + rows[3:-3]
    total += rows[6:]
    inside = slice(row + 3, -row - 3)
    total += wide[inside] << 2  # the middle counts five times
    total += 6  # thirteenths, rounded: no half is possible
    total //= 13
    smooth = total.astype(np.float32)
    out = flat.copy()
    out[inside] = _stretched(smooth, flat[inside] - smooth, magnitude)
    out = out.reshape(pixels.shape)
    out[:, 0], out[:, -1] = pixels[:, 0], pixels[:, -1]
    return Canvas(array=out)


def _posterize(canvas: Canvas, magnitude: float) -> Canvas:
    return Canvas(array=canvas.array & np.uint8(256 - (1 << (8 - int(magnitude)))))


def _solarize(canvas: Canvas, magnitude: float) -> Canvas:
    pixels, first = canvas.array, max(0, math.ceil(magnitude))
    if first > 255:
        return canvas
    # True is 1, and minus 1 is 255: those values are inverted.
    return Canvas(array=pixels ^ -(pixels >= np.uint8(first)).view(np.uint8))


def _autocontrast(canvas: Canvas, _magnitude: float) -> Canvas:
    if canvas.image.getextrema() == ((0, 255),) * 3:
        return canvas
    return Canvas(image=pixel_ops.apply_op(canvas.image, 12, 0.0))


_QUICK: dict[str, Callable[[Canvas, float], Canvas]] = {
    "Identity": lambda canvas, _: canvas,
    "TranslateX": lambda canvas, magnitude: _moved(canvas.array, int(magnitude), 0),
    "TranslateY": lambda canvas, magnitude: _moved(canvas.array, 0, int(magnitude)),
    "Brightness": lambda canvas, magnitude: _mapped(canvas, _from_grey(0, magnitude)),
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _autocontrast,
}
