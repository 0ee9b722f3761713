"""The strengths of operations: torchvision's ranges for RandAugment, AutoAugment, TrivialAugment.

    op_magnitude(OP_NAMES.index("Rotate"), 9, 31, (224, 224))  # 9.0, RandAugment's default
    trivial_magnitude(OP_NAMES.index("Rotate"), 30, 31)  # 135.0

Magnitudes are the published ones: torch.linspace over the range of the operation, in single
precision, counted from the nearer end. Here they do not depend on the machine; torch's last bit
depends on the width of the processor's vectors. Pixels depend on the stored magnitude only.
"""

from __future__ import annotations

import numpy as np

from pocketclip.augment.pixel_ops import OP_NAMES

_WITHOUT = ("Identity", "AutoContrast", "Equalize", "Invert")
_WIDE = {"Shear": 0.99, "Translate": 32.0, "Rotate": 135.0}


def op_magnitude(op: int, level: int, bins: int, size: tuple[int, int]) -> float:
    """Return the magnitude of RandAugment's or AutoAugment's operation `op`, without a sign.

    Args:
        op: a position in `OP_NAMES`.
        level: from 0 to `bins` - 1.
        bins: the number of levels; AutoAugment has 10.
        size: (width, height) of the image, which the range of translations depends on.
    """
    name = OP_NAMES[op]
    if name.startswith("Translate"):
        return _linspace(0.0, 150.0 / 331.0 * size[name == "TranslateY"], level, bins)
    end = 0.3 if name.startswith("Shear") else 30.0 if name == "Rotate" else 0.9
    return _magnitude(name, level, bins, end, fewest_bits=4)


def trivial_magnitude(op: int, level: int, bins: int) -> float:
    """Return the magnitude of TrivialAugment's operation `op` at `level` of `bins`, unsigned."""
    name = OP_NAMES[op]
    return _magnitude(name, level, bins, _WIDE.get(name.rstrip("XY"), 0.99), fewest_bits=2)


def has_levels(op: int) -> bool:
    """Return whether operation `op` has a magnitude."""
    return OP_NAMES[op] not in _WITHOUT


def _magnitude(name: str, level: int, bins: int, end: float, *, fewest_bits: int) -> float:
    if name in _WITHOUT:
        return 0.0
    if name == "Posterize":
        dropped = np.float32(level) / np.float32((bins - 1) / (8 - fewest_bits))
        return float(8 - np.rint(dropped))
    if name == "Solarize":
        return _linspace(255.0, 0.0, level, bins)
    return _linspace(0.0, end, level, bins)


def _linspace(start: float, end: float, position: int, steps: int) -> float:
    first, last = np.float32(start), np.float32(end)
    step = (last - first) / np.float32(steps - 1)
    if position < steps // 2:
        return float(first + step * np.float32(position))
    return float(last - step * np.float32(steps - 1 - position))
