"""Fast versions of `pixel_ops` for training: the same bytes, in less time.

    canvas = Canvas(array=pixels)  # or Canvas(image=...)
    for op, magnitude in params.ops:
        canvas = apply_op(canvas, op, magnitude)
    pixels = canvas.array

Pillow is fast at geometry and histograms, numpy and `bytes.translate` at tones. Converting between
them took a third of an operation's time, so a canvas holds either and converts on demand. The
operations are defined by `pixel_ops`; tests compare each of these with it.

Shapes: H W height and width, in pixels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketclip.augment import pixel_ops

_Pixels = NDArray[np.uint8]
_BLOCK = 24576
"""Values blended at once: small enough that their float32 copy stays in the cache, and that its
memory is reused instead of requested from the system."""


class Canvas:
    """8-bit RGB pixels as a Pillow image, as an array, or both. Neither is ever modified."""

    __slots__ = ("_array", "_image")

    def __init__(self, *, image: Image.Image | None = None, array: _Pixels | None = None) -> None:
        self._image, self._array = image, array

    @property
    def image(self) -> Image.Image:
        """The pixels as a Pillow image."""
        if self._image is None:
            self._image = Image.fromarray(self.array)
        return self._image

    @property
    def array(self) -> _Pixels:
        """The pixels (H, W, 3); read-only if they come from an image."""
        if self._array is None:
            assert self._image is not None
            width, height = self._image.size
            # Takes half the time of `np.array`, which makes another copy.
            self._array = np.frombuffer(self._image.tobytes(), np.uint8).reshape(height, width, 3)
        return self._array


def apply_op(canvas: Canvas, op: int, magnitude: float) -> Canvas:
    """Return the canvas after operation `op`; gives the bytes of `pixel_ops.apply_op`."""
    fast = _FAST.get(pixel_ops.OP_NAMES[op])
    if fast is not None:
        return fast(canvas, magnitude)
    return Canvas(image=pixel_ops.apply_op(canvas.image, op, magnitude))


def flip(canvas: Canvas) -> Canvas:
    """Return the canvas mirrored horizontally."""
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
    mapped = np.frombuffer(pixels.tobytes().translate(table), np.uint8)
    return Canvas(array=mapped.reshape(pixels.shape))


@functools.lru_cache(maxsize=1024)
def _from_grey(grey: int, magnitude: float) -> bytes:
    """Return the lookup table that blends `grey` with the image."""
    table = np.empty(256, np.uint8)
    _blend(np.full(256, grey, np.uint8), np.arange(256, dtype=np.uint8), magnitude, table)
    return table.tobytes()


def _blend(
    base: NDArray[np.uint8 | np.uint16], pixels: _Pixels, magnitude: float, out: _Pixels
) -> None:
    """Write base + (1 + magnitude) * (pixels - base) into `out`; all have one dimension.

    Works in blocks: the memory for a whole image of floats would be requested from the system each
    time, which took longer than the computation.
    """
    factor, black, white = np.float32(1.0 + magnitude), np.float32(0), np.float32(255)
    for begin in range(0, len(pixels), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        start = base[block].astype(np.float32)
        values = pixels[block] - start
        values *= factor
        values += start
        np.clip(values, black, white, out=values)
        out[block] = values


def _contrast(canvas: Canvas, magnitude: float) -> Canvas:
    counts = canvas.image.convert("L").histogram()
    mean = sum(value * count for value, count in enumerate(counts)) / sum(counts)
    return _mapped(canvas, _from_grey(int(mean + 0.5), magnitude))


def _color(canvas: Canvas, magnitude: float) -> Canvas:
    grey, pixels = canvas.image.convert("L"), canvas.array
    base = Canvas(image=Image.merge("RGB", (grey,) * 3)).array
    out = np.empty_like(pixels)
    _blend(base.reshape(-1), pixels.reshape(-1), magnitude, out.reshape(-1))
    return Canvas(array=out)


def _sharpness(canvas: Canvas, magnitude: float) -> Canvas:
    pixels = canvas.array
    height, width = pixels.shape[:2]
    if min(height, width) < 3:
        return canvas
    out = pixels.copy()  # the rim stays unchanged
    flat, into, row = pixels.reshape(-1), out.reshape(-1), width * 3
    step = max(1, _BLOCK // row)  # rows
    for top in range(1, height - 1, step):
        begin, end = top * row + 3, min(top + step, height - 1) * row - 3
        smooth = _smooth(flat[begin - row - 3 : end + row + 3], row)
        _blend(smooth, flat[begin:end], magnitude, into[begin:end])
    out[:, 0], out[:, -1] = pixels[:, 0], pixels[:, -1]
    return Canvas(array=out)


def _smooth(flat: _Pixels, row: int) -> NDArray[np.uint16]:
    """Return means over 3 x 3 pixels, with weight 5 for the middle; rows are `row` values long.

    The rows are concatenated, so all sums are over contiguous values; at the edges they are wrong.
    """
    wide = flat.astype(np.uint16)
    rows = wide[: -2 * row] + wide[row:-row]
    rows += wide[2 * row :]
    total = rows[:-6] + rows[3:-3]
    total += rows[6:]
    total += wide[row + 3 : -row - 3] << 2
    total += 6  # rounds to the nearest thirteenth; ties are impossible
    total //= 13
    return total


def _posterize(canvas: Canvas, magnitude: float) -> Canvas:
    return Canvas(array=canvas.array & np.uint8(256 - (1 << (8 - int(magnitude)))))


def _solarize(canvas: Canvas, magnitude: float) -> Canvas:
    pixels, first = canvas.array, max(0, math.ceil(magnitude))
    if first > 255:
        return canvas
    # True is 1, and -1 as uint8 is 255: XOR inverts those values.
    return Canvas(array=pixels ^ -(pixels >= np.uint8(first)).view(np.uint8))


_FAST: dict[str, Callable[[Canvas, float], Canvas]] = {
    "Identity": lambda canvas, _: canvas,
    "TranslateX": lambda canvas, magnitude: _moved(canvas.array, int(magnitude), 0),
    "TranslateY": lambda canvas, magnitude: _moved(canvas.array, 0, int(magnitude)),
    "Brightness": lambda canvas, magnitude: _mapped(canvas, _from_grey(0, magnitude)),
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "Invert": lambda canvas, _: Canvas(array=canvas.array ^ np.uint8(255)),
}
