"""What augmentations do to pixels, exactly as the published ones do it to Pillow images.

    image = apply_op(image, OP_NAMES.index("Rotate"), -9.0)

The operations are those of RandAugment (Cubuk et al., 2020, arXiv 1909.13719) with torchvision's
ranges: nearest neighbour, black where nothing comes from, and the size kept. `tests/golden`
holds what torchvision makes of them. `resize` and `change_tone` fix what the version of Pillow or
the processor would otherwise decide: stored embeddings belong to these very bytes.

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
)
"""The operations of RandAugment; the packed form names them by position."""

SIGNED_OPS = frozenset(range(1, 10))
"""ShearX to Sharpness: these go either way."""

POSTERIZE = OP_NAMES.index("Posterize")


# --- geometry


def resize(image: Image.Image, size: tuple[int, int], way: Image.Resampling) -> Image.Image:
    """Return `image` resized to `size` (width, height), the same bytes with every Pillow.

    Pillow resizes in one direction after the other and rounds to 8 bits in between, so that the
    order shows in the last bit. Up to version 12 it went across first; from 13 on it goes down
    first where the height shrinks by over twice what the width shrinks by, in pixels. The golden
    values have the latter, and each direction is asked for by itself here.
    """
    (width, height), (to_width, to_height) = image.size, size
    if way is Image.Resampling.NEAREST or to_width == width or to_height == height:
        return image.resize(size, way)
    down_first = height - to_height > max(2 * (width - to_width), 0)
    between = (width, to_height) if down_first else (to_width, height)
    return image.resize(between, way).resize(size, way)


def center_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the middle `size` (width, height) of `image`, black beyond its edges."""
    left, top = (
        -((wanted - given) // 2) if wanted > given else round((given - wanted) / 2)
        for given, wanted in zip(image.size, size, strict=True)
    )
    return image.crop((left, top, left + size[0], top + size[1]))


def _sheared(image: Image.Image, across: float, down: float) -> Image.Image:
    matrix = 1.0, across, 0.0, down, 1.0, 0.0
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=0
    )


def _shear_x(image: Image.Image, magnitude: float) -> Image.Image:
    # By way of the angle in degrees, as was published: it costs some last bits.
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
    """Return the table of a blend of `grey` with the image: as Pillow's, in single precision."""
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
    # Pillow's formula. Pillow itself may fuse it where the processor can, and round otherwise.
    start = base.astype(np.float32)
    values = np.asarray(image) - start
    values *= np.float32(1.0 + magnitude)
    values += start
    np.clip(values, 0, 255, out=values)
    return Image.fromarray(values.astype(np.uint8))


def _smooth(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (H, W, 3) averaged over 3 x 3, the middle counting five times; the rim stays."""
    out = pixels.copy()
    if min(pixels.shape[:2]) < 3:
        return out
    wide = pixels.astype(np.uint16)
    rows = wide[:-2] + wide[1:-1]
    rows += wide[2:]
    total = rows[:, :-2] + rows[:, 1:-1]
    total += rows[:, 2:]
    total += wide[1:-1, 1:-1] << 2
    total *= 2  # thirteenths, rounded: no half is possible
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
)


def apply_op(image: Image.Image, op: int, magnitude: float) -> Image.Image:
    """Return `image` after operation `op`, a position in `OP_NAMES`.

    Shears are slopes, translations pixels (cut to whole ones, towards zero), rotations degrees
    counterclockwise, 1 + magnitude is the factor of Brightness to Sharpness, Posterize keeps so
    many bits (1 to 8), Solarize inverts from that value up; the others take no magnitude.
    """
    return _OPS[op](image, magnitude)


def op_magnitude(op: int, level: int, bins: int, size: tuple[int, int]) -> float:
    """Return the magnitude of operation `op` at `level` of `bins` for an image (width, height).

    The published single-precision values: torch.linspace over the range of the operation.
    """
    name = OP_NAMES[op]
    if name in ("Identity", "AutoContrast", "Equalize"):
        return 0.0
    if name == "Posterize":
        return float(8 - np.rint(np.float32(level) / np.float32((bins - 1) / 4)))
    if name == "Solarize":
        return _linspace(255.0, 0.0, level, bins)
    if name.startswith("Translate"):
        return _linspace(0.0, 150.0 / 331.0 * size[name == "TranslateY"], level, bins)
    end = 0.3 if name.startswith("Shear") else 30.0 if name == "Rotate" else 0.9
    return _linspace(0.0, end, level, bins)


def _linspace(start: float, end: float, position: int, steps: int) -> float:
    # From the nearer end, as torch counts.
    first, last = np.float32(start), np.float32(end)
    step = (last - first) / np.float32(steps - 1)
    if position < steps // 2:
        return float(first + step * np.float32(position))
    return float(last - step * np.float32(steps - 1 - position))


# --- RangeAugment


def change_tone(
    image: Image.Image, brightness: float, contrast: float, noise_std: float, noise_seed: int
) -> Image.Image:
    """Return `image` brightened, then stretched around its mean, then with Gaussian noise.

    RangeAugment's three operations (Mehta et al., 2022, arXiv 2212.10553). The factors are 1 for
    no change; `noise_std` is in units of the whole range from black to white. After each step the
    values are rounded to 8 bits. The bytes depend on no libm, SIMD path, Pillow or numpy version.
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
    """Return standard normal noise of `shape`, the same bits on every machine.

    Philox, whose stream numpy keeps for good (`Generator.standard_normal` is not kept, and a
    Box-Muller of one's own takes sines and logarithms that differ between processors), gives 16
    bits per value, and a table turns these into quantiles of the normal distribution.
    """
    count = math.prod(shape)
    words = np.random.Philox(key=seed).random_raw(-(-count // 4)).astype("<u8")
    return _quantiles()[words.view("<u2")[:count]].reshape(shape)


@functools.cache
def _quantiles() -> NDArray[np.float32]:
    # Whole multiples of 1/4096. No quantile is so near to a half multiple that the last bit of
    # a logarithm decides; a test pins the table.
    normal = NormalDist()
    upper = [round(4096 * normal.inv_cdf(0.5 + (k + 0.5) / 65536)) for k in range(32768)]
    return np.array([-value for value in reversed(upper)] + upper, np.float32) / np.float32(4096)
