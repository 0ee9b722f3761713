"""The parameters of one augmentation of one image, and the readers of their stored entries.

read_box([137, 24, 347, 405])  # (137, 24, 347, 405)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np

from pocketclip.augment.pixel_ops import OP_NAMES, POSTERIZE, RAND_AUGMENT_OPS

Box: TypeAlias = "tuple[int, int, int, int]"
"""(top, left, height, width), in pixels."""
Ops: TypeAlias = "tuple[tuple[int, float], ...]"
"""Positions in `OP_NAMES`, with magnitudes as `pixel_ops.apply_op` takes them."""

_MAX_COORDINATE = 1 << 31
_MAX_MAGNITUDE = 1e6
_MAX_DEPTH = 3  # nested lists: entries, operations, (operation, magnitude)


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """One augmentation; transforms that are not configured keep these defaults."""

    corner: tuple[int, int] | None = None
    """RandomCrop: top and left of the window, in pixels of the image with its border."""
    crop: Box | None = None
    """The rectangle of the source to keep."""
    tone: tuple[float, float, float, int] | None = None
    """RangeAugment: brightness factor, contrast factor, noise deviation (0 to 1), noise seed."""
    flip: bool = False
    ops: Ops | None = None
    """RandAugment's operations; None if it was skipped."""
    auto_ops: Ops | None = None
    """AutoAugment's operations, from none to two; None is read as none."""
    trivial_ops: Ops | None = None
    """TrivialAugment's operation; None if it was skipped."""
    erase: Box | None = None
    """The black rectangle of the result; may extend beyond the edge."""

    @property
    def all_ops(self) -> Ops:
        """The operations of all three transforms, in the order of application."""
        return (self.ops or ()) + (self.auto_ops or ()) + (self.trivial_ops or ())


class MalformedError(Exception):
    """Says what an entry of the packed format must be; the caller names the entry."""


def read_corner(entry: Any) -> tuple[int, int]:
    """Return top and left of RandomCrop's window, or raise MalformedError."""
    numbers = [whole(item) for item in entry] if isinstance(entry, (list, tuple)) else []
    corner = [n for n in numbers if n is not None and 0 <= n < _MAX_COORDINATE]
    if len(corner) == len(numbers) == 2:
        return corner[0], corner[1]
    raise MalformedError("expected [top, left] in whole pixels, none negative")


def read_crop(entry: Any) -> Box:
    """Return the crop rectangle, or raise MalformedError."""
    box = _box(entry)
    if min(box[:2]) < 0 or min(box[2:]) < 1:
        raise MalformedError("expected [top, left, height, width] of at least one pixel")
    return box


def read_tone(entry: Any) -> tuple[float, float, float, int]:
    """Return RangeAugment's parameters, or raise MalformedError."""
    if isinstance(entry, (list, tuple)) and len(entry) == 4:
        *factors, seed = entry
        brightness, contrast, noise = map(_number, factors)
        number = whole(seed)
        if min(brightness, contrast, noise) >= 0 and number is not None and 0 <= number < 1 << 63:
            return brightness, contrast, noise, number
    raise MalformedError("expected [brightness, contrast, noise_std, noise_seed]")


def read_flip(entry: Any) -> bool:
    """Return whether the image is mirrored (None: it is not), or raise MalformedError."""
    if entry is None or isinstance(entry, bool):
        return bool(entry)
    if whole(entry) not in (0, 1):
        raise MalformedError("expected true or false")
    return whole(entry) == 1


def read_ops(entry: Any, names: int = RAND_AUGMENT_OPS) -> Ops | None:
    """Return operations (None: skipped), or raise MalformedError.

    Args:
        entry: the entry.
        names: how many of `OP_NAMES` are allowed.
    """
    if entry is None:
        return None
    if not isinstance(entry, (list, tuple)):
        raise MalformedError("expected [[operation, magnitude], ...] or null")
    return tuple(_op(item, names) for item in entry)


def read_auto_ops(entry: Any) -> Ops | None:
    """Return AutoAugment's operations, or raise MalformedError."""
    ops = read_ops(entry, len(OP_NAMES))
    if ops is not None and len(ops) > 2:
        raise MalformedError("expected at most 2 operations")
    return ops


def read_trivial_ops(entry: Any) -> Ops | None:
    """Return TrivialAugment's operation (None: skipped), or raise MalformedError."""
    ops = read_ops(entry)
    if ops is not None and len(ops) != 1:
        raise MalformedError("expected 1 operation")
    return ops


def read_erasure(entry: Any) -> Box | None:
    """Return the erased rectangle (None: none), or raise MalformedError."""
    if entry is None:
        return None
    box = _box(entry)
    if box[0] == -1:
        return None
    if min(box) < 0:
        raise MalformedError("expected [top, left, height, width], none negative")
    return box


ENTRIES: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    ("random_crop", "corner", read_corner),
    ("random_resized_crop", "crop", read_crop),
    ("range_augment", "tone", read_tone),
    ("random_horizontal_flip", "flip", read_flip),
    ("rand_augment", "ops", read_ops),
    ("auto_augment", "auto_ops", read_auto_ops),
    ("trivial_augment_wide", "trivial_ops", read_trivial_ops),
    ("random_erase", "erase", read_erasure),
)
"""(transform, field of Params, reader) in the order of the packed format."""

OWN = ("auto_augment", "trivial_augment_wide")
"""Transforms without an entry in published lists: the published generator does not apply them."""

OPTIONAL = ("random_horizontal_flip", "rand_augment", *OWN, "random_erase")
"""Transforms that are not applied if their entry is null or missing at the end."""


def plain(value: Any) -> Any:
    """Return a field of Params in JSON types: tuples become lists."""
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def bare(value: Any, depth: int = _MAX_DEPTH) -> Any:
    """Return `value` with arrays and tuples as lists, and numpy numbers as Python numbers."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, (list, tuple)) and depth > 0:
        return [bare(item, depth - 1) for item in value]
    return value


def shortened(value: Any) -> str:
    """Return a value as text of one line and at most 120 characters, for a message."""
    text = value if isinstance(value, str) else repr(bare(value))
    text = " ".join(text.split())
    return text if len(text) <= 120 else text[:117] + "..."


def whole(value: Any) -> int | None:
    """Return a whole number such as 7 or 7.0 as an int; None for bools and anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    return None


def _number(value: Any) -> float:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if is_number and -_MAX_MAGNITUDE <= value <= _MAX_MAGNITUDE:  # False for NaN
        return float(value)
    raise MalformedError(f"expected numbers up to {_MAX_MAGNITUDE:g}")


def _box(entry: Any) -> Box:
    is_box = isinstance(entry, (list, tuple)) and len(entry) == 4
    numbers = [whole(item) for item in entry] if is_box else []
    box = [number for number in numbers if number is not None and abs(number) < _MAX_COORDINATE]
    if len(box) == 4:
        return box[0], box[1], box[2], box[3]
    raise MalformedError("expected [top, left, height, width] in whole pixels")


def _op(entry: Any, names: int) -> tuple[int, float]:
    is_pair = isinstance(entry, (list, tuple)) and len(entry) == 2
    op = whole(entry[0]) if is_pair else None
    if op is None:
        raise MalformedError("expected [operation, magnitude] pairs")
    magnitude = _number(entry[1])
    if not 0 <= op < names:
        raise MalformedError(f"operations go from 0 to {names - 1}")
    if op == POSTERIZE and not 1 <= int(magnitude) <= 8:
        raise MalformedError("Posterize keeps 1 to 8 bits")
    return op, magnitude
