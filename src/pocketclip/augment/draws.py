"""Draws the parameters of each transform. Only `rng.random()` is used, see `Augmentation.draw`.

    crop = draw_crop(rng, RandomResizedCrop(size=224), (640, 480))  # (top, left, height, width)

Sizes are (width, height), as in Pillow.
"""

from __future__ import annotations

import math

import numpy as np

from pocketclip.augment.magnitudes import has_levels, op_magnitude, trivial_magnitude
from pocketclip.augment.padding import height_width, padded_size
from pocketclip.augment.params import Box, Ops
from pocketclip.augment.pixel_ops import RAND_AUGMENT_OPS, SIGNED_OPS
from pocketclip.augment.policies import LEVELS, POLICIES
from pocketclip.augment.setting_checks import Pair
from pocketclip.augment.transforms import (
    AutoAugment,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    RangeAugment,
    TrivialAugmentWide,
)
from pocketclip.errors import AugmentationError

_ATTEMPTS = 10  # to draw a rectangle that fits, as published


def draw_corner(
    rng: np.random.Generator, config: RandomCrop, size: tuple[int, int]
) -> tuple[int, int]:
    """Return top and left of a window, in pixels of the image with its border.

    Raises:
        AugmentationError: the image with its border is smaller than the window.
    """
    (width, height), (h, w) = padded_size(size, config), height_width(config)
    if height < h or width < w:
        raise AugmentationError(
            f"random_crop: {w} x {h} pixels do not fit into an image of {width} x {height}; set "
            "pad_if_needed: true, or a resize before it"
        )
    return _below(rng, height - h + 1), _below(rng, width - w + 1)


def draw_crop(rng: np.random.Generator, config: RandomResizedCrop, size: tuple[int, int]) -> Box:
    """Return a rectangle of random area and aspect."""
    width, height = size
    for _ in range(_ATTEMPTS):
        area, aspect = _draw_shape(rng, config.scale, config.ratio, width * height)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return _below(rng, height - h + 1), _below(rng, width - w + 1), h, w
    # Fall back to the largest centred rectangle with an allowed aspect.
    low, high = config.ratio
    w = max(1, min(width, round(height * high)))
    h = max(1, min(height, round(width / low)))
    return (height - h) // 2, (width - w) // 2, h, w


def draw_tone(rng: np.random.Generator, config: RangeAugment) -> tuple[float, float, float, int]:
    """Return brightness, contrast, deviation and seed of the noise."""
    brightness = _uniform(rng, *config.brightness)
    contrast = _uniform(rng, *config.contrast)
    return brightness, contrast, _uniform(rng, *config.noise), _below(rng, 1 << 32)


def draw_ops(rng: np.random.Generator, config: RandAugment, size: tuple[int, int]) -> Ops | None:
    """Return RandAugment's operations; None: skipped."""
    if rng.random() >= config.p:
        return None
    ops = []
    for _ in range(config.num_ops):
        op = _below(rng, RAND_AUGMENT_OPS)
        magnitude = op_magnitude(op, config.magnitude, config.num_magnitude_bins, size)
        ops.append((op, _signed(rng, op, magnitude)))
    return tuple(ops)


def draw_auto_ops(rng: np.random.Generator, config: AutoAugment, size: tuple[int, int]) -> Ops:
    """Return the operations of a random sub-policy that apply: none to two."""
    policy = POLICIES[config.policy]
    ops = []
    for op, probability, level in policy[_below(rng, len(policy))]:
        if rng.random() < probability:
            ops.append((op, _signed(rng, op, op_magnitude(op, level, LEVELS, size))))
    return tuple(ops)


def draw_trivial_ops(rng: np.random.Generator, config: TrivialAugmentWide) -> Ops:
    """Return one random operation at a random level."""
    op, bins = _below(rng, RAND_AUGMENT_OPS), config.num_magnitude_bins
    level = _below(rng, bins) if has_levels(op) else 0
    return ((op, _signed(rng, op, trivial_magnitude(op, level, bins))),)


def draw_erasure(
    rng: np.random.Generator, config: RandomErasing, size: tuple[int, int]
) -> Box | None:
    """Return a rectangle to blacken; None: skipped, or none that fits was found."""
    if rng.random() >= config.p:
        return None
    width, height = size
    for _ in range(_ATTEMPTS):
        area, aspect = _draw_shape(rng, config.scale, config.ratio, width * height)
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            return _below(rng, height - h + 1), _below(rng, width - w + 1), h, w
    return None


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def _below(rng: np.random.Generator, count: int) -> int:
    return int(rng.random() * count)


def _signed(rng: np.random.Generator, op: int, magnitude: float) -> float:
    return -magnitude if op in SIGNED_OPS and rng.random() < 0.5 else magnitude


def _draw_shape(
    rng: np.random.Generator, scale: Pair, ratio: Pair, area: int
) -> tuple[float, float]:
    """Return area (uniform) and aspect (log-uniform) of a random rectangle."""
    drawn_area = area * _uniform(rng, *scale)
    return drawn_area, math.exp(_uniform(rng, math.log(ratio[0]), math.log(ratio[1])))
