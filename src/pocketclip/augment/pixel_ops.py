"""The pixel operations of augmentations, equal to the byte to the published ones on Pillow images.

    image = apply_op(image, OP_NAMES.index("Rotate"), -9.0)

The operations are those of RandAugment (Cubuk et al., 2020, arXiv 1909.13719), AutoAugment and
TrivialAugment as in torchvision: nearest neighbour, black outside the image, unchanged size.
`tests/golden` holds torchvision's results. `resize` and `change_tone` do not depend on the version
of Pillow or on the processor, because stored embeddings belong to exactly these bytes.

Shapes: H W height and width of an image, in pixels. Every image is 8-bit RGB.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

OP_NAMES = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
    "Invert",
)
"""The operations; the packed format refers to them by position."""

RAND_AUGMENT_OPS = 14
"""RandAugment and TrivialAugment have those up to Equalize, AutoAugment all but Identity."""

SIGNED_OPS = frozenset(range(1, 10))
"""ShearX to Sharpness: their magnitude may be negative."""

POSTERIZE = OP_NAMES.index("Posterize")


# --- geometry


def resize(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """Return `image` resized to `size` (width, height), with equal bytes in every Pillow version.

    Pillow resizes one direction after the other and rounds to 8 bits in between, so the order
    affects the last bit. Up to version 12 the horizontal pass came first. Version 13 starts with
    the vertical pass if the height shrinks by more than twice as many pixels as the width. The
    golden values follow version 13, so this function requests each pass separately.
    """
    (width, height), (to_width, to_height) = image.size, size
    if resample is Image.Resampling.NEAREST or to_width == width or to_height == height:
        return image.resize(size, resample)
    rows_first = resizes_rows_first(image.size, size)
    between = (width, to_height) if rows_first else (to_width, height)
    return image.resize(between, resample).resize(size, resample)


def resizes_rows_first(size: tuple[int, int], to_size: tuple[int, int]) -> bool:
    """Return whether `resize` changes the height before the width; sizes are (width, height)."""
    (width, height), (to_width, to_height) = size, to_size
    return height - to_height > max(2 * (width - to_width), 0)


def center_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the centre of `image` in `size` (width, height), padded with black."""
    left, top = (
        -((target - source) // 2) if target > source else round((source - target) / 2)
        for source, target in zip(image.size, size, strict=True)
    )
    return image.crop((left, top, left + size[0], top + size[1]))


def _sheared(image: Image.Image, across: float, down: float) -> Image.Image:
    matrix = 1.0, across, 0.0, down, 1.0, 0.0
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=0
    )


def _shear_x(image: Image.Image, magnitude: float) -> Image.Image:
    # Converted to degrees and back, as published: this changes the last bits.
    return _sheared(image, math.tan(math.radians(math.degrees(math.atan(magnitude)))), 0.0)


def _shear_y(image: Image.Image, magnitude: float) -> Image.Image:
    angle = math.radians(math.degrees(math.atan(magnitude)))
    return _sheared(image, 0.0, math.sin(angle) / math.cos(angle))


def _moved(image: Image.Image, right: float, down: float) -> Image.Image:
    width, height = image.size
    x = int(max(-width, min(width, right)))  # whole pixels, towards zero
    y = int(max(-height, min(height, down)))
    return image.crop((-x, -y, width - x, height - y))


def _rotate(image: Image.Image, magnitude: float) -> Image.Image:
    return image.rotate(magnitude, Image.Resampling.NEAREST, fillcolor=0)


# --- colour


def _mapped(image: Image.Image, table: Iterable[int]) -> Image.Image:
    return image.point(list(table) * 3)


def _from_grey(grey: int, magnitude: float) -> list[int]:
    """Return the lookup table that blends `grey` with the image; single precision, as Pillow."""
    base, factor = np.float32(grey), np.float32(1.0 + magnitude)
    values = base + factor * (np.arange(256, dtype=np.float32) - base)
    return [int(value) for value in values.clip(0, 255)]


def _mean_luma(image: Image.Image) -> float:
    counts = image.convert("L").histogram()
    return sum(value * count for value, count in enumerate(counts)) / sum(counts)


def _brightness(image: Image.Image, magnitude: float) -> Image.Image:
    return _mapped(image, _from_grey(0, magnitude))


def _contrast(image: Image.Image, magnitude: float) -> Image.Image:
    return _mapped(image, _from_grey(int(_mean_luma(image) + 0.5), magnitude))


def _color(image: Image.Image, magnitude: float) -> Image.Image:
    grey = np.asarray(image.convert("L").convert("RGB"))
    return _blended(grey, image, magnitude)


def _sharpness(image: Image.Image, magnitude: float) -> Image.Image:
    return _blended(_smooth(np.asarray(image)), image, magnitude)


def _blended(base: NDArray[np.uint8], image: Image.Image, magnitude: float) -> Image.Image:
    # Pillow's formula. Pillow itself may use fused multiply-add, which rounds differently.
    start = base.astype(np.float32)
    values = np.asarray(image) - start
    values *= np.float32(1.0 + magnitude)
    values += start
    np.clip(values, 0, 255, out=values)
    return Image.fromarray(values.astype(np.uint8))


def _smooth(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return means over 3 x 3 pixels (H, W, 3), with weight 5 for the middle; the rim stays."""
    out = pixels.copy()
    if min(pixels.shape[:2]) < 3:
        return out
    wide = pixels.astype(np.uint16)
    rows = wide[:-2] + wide[1:-1]
    rows += wide[2:]
    total = rows[:, :-2] + rows[:, 1:-1]
    total += rows[:, 2:]
    total += wide[1:-1, 1:-1] << 2
    total *= 2  # rounds to the nearest thirteenth; ties are impossible
    total += 13
    total //= 26
    out[1:-1, 1:-1] = total
    return out


def _posterize(image: Image.Image, magnitude: float) -> Image.Image:
    mask = 256 - (1 << (8 - int(magnitude)))
    return _mapped(image, (value & mask for value in range(256)))


def _solarize(image: Image.Image, magnitude: float) -> Image.Image:
    return _mapped(image, (value if value < magnitude else 255 - value for value in range(256)))


_OPS: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda image, _: image,
    _shear_x,
    _shear_y,
    lambda image, magnitude: _moved(image, magnitude, 0),
    lambda image, magnitude: _moved(image, 0, magnitude),
    _rotate,
    _brightness,
    _color,
    _contrast,
    _sharpness,
    _posterize,
    _solarize,
    lambda image, _: ImageOps.autocontrast(image),
    lambda image, _: ImageOps.equalize(image),
    lambda image, _: _mapped(image, range(255, -1, -1)),
)


def apply_op(image: Image.Image, op: int, magnitude: float) -> Image.Image:
    """Return `image` after operation `op`, a position in `OP_NAMES`.

    The magnitude is a slope for shears, pixels for translations (truncated to whole pixels),
    degrees counterclockwise for rotations, the factor minus 1 for Brightness to Sharpness, the
    number of bits to keep (1 to 8) for Posterize, and the lowest value to invert for Solarize. The
    other operations ignore it.
    """
    return _OPS[op](image, magnitude)


# --- RangeAugment


def change_tone(
    image: Image.Image, brightness: float, contrast: float, noise_std: float, noise_seed: int
) -> Image.Image:
    """Return `image` after a change of brightness, then of contrast, then with Gaussian noise.

    The three operations of RangeAugment (Mehta et al., 2022, arXiv 2212.10553). A factor of 1
    changes nothing; `noise_std` is relative to the range from black to white. Values are rounded
    to 8 bits after each step. The bytes do not depend on libm, SIMD, Pillow or numpy versions.
    """
    image = _mapped(image, _rounded(0.0, brightness))
    image = _mapped(image, _rounded(_mean_luma(image), contrast))
    if noise_std == 0:
        return image
    pixels = np.asarray(image)
    noisy = gaussian_noise(noise_seed, pixels.shape)
    noisy *= np.float32(noise_std * 255)
    noisy += pixels
    np.rint(noisy, out=noisy)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _rounded(base: float, factor: float) -> list[int]:
    values = (math.floor(base + factor * (value - base) + 0.5) for value in range(256))
    return [max(0, min(255, value)) for value in values]


def gaussian_noise(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return standard normal noise of `shape`, with the same bits on every machine.

    Philox gives 16 bits per value, and a table maps these to quantiles of the normal distribution.
    numpy guarantees the stream of Philox but not that of `Generator.standard_normal`; a Box-Muller
    transform would use sines and logarithms, which differ between processors.
    """
    count = math.prod(shape)
    words = np.random.Philox(key=seed).random_raw(-(-count // 4)).astype("<u8")
    return _quantiles()[words.view("<u2")[:count]].reshape(shape)


@functools.cache
def _quantiles() -> NDArray[np.float32]:
    # Multiples of 1/4096. No quantile is so near to a half multiple that the last bit of a
    # logarithm matters; a test pins the table.
    normal = NormalDist()
    upper = [round(4096 * normal.inv_cdf(0.5 + (k + 0.5) / 65536)) for k in range(32768)]
    return np.array([-value for value in reversed(upper)] + upper, np.float32) / np.float32(4096)
