"""Checks of single settings of an augmentation's configuration.

Each takes a value as it stands in a configuration and returns it in one canonical form, or raises
InvalidError, which says what the setting must be; the caller names the setting.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeAlias

from PIL import Image

from pocketclip.augment.params import whole
from pocketclip.images import MAX_PIXELS

Size: TypeAlias = "int | tuple[int, int]"
Pair: TypeAlias = "tuple[float, float]"
Border: TypeAlias = "int | tuple[int, int, int, int]"
"""The same on every side, or (left, top, right, bottom), in pixels."""
Colour: TypeAlias = "int | tuple[int, int, int]"
"""One value for all channels, or (red, green, blue)."""

MAX_SIDE = 16384
PADDING_MODES = ("constant", "edge", "reflect", "symmetric")
_POLICIES = {"imagenet": "imagenet", "cifar10": "cifar10", "cifar": "cifar10", "svhn": "svhn"}


class InvalidError(Exception):
    """Says what a setting must be; `_build` prefixes the setting's name."""


def is_number(value: Any) -> bool:
    """Return whether the value is a number that a float can hold; NaN and infinity are not."""
    largest = sys.float_info.max
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and -largest <= value <= largest


def side(value: Any) -> int:
    """Return a side in pixels."""
    number = whole(value)
    if number is None or not 1 <= number <= MAX_SIDE:
        raise InvalidError(f"a whole number of pixels from 1 to {MAX_SIDE}")
    return number


def size(value: Any) -> Size:
    """Return a side, or (height, width) if these differ."""
    pair = value if isinstance(value, (list, tuple)) and 1 <= len(value) <= 2 else [value]
    height, width = side(pair[0]), side(pair[-1])
    if height * width > MAX_PIXELS:
        raise InvalidError(f"at most {MAX_PIXELS:,} pixels")
    return height if height == width else (height, width)


def shortest_or_both(value: Any) -> Size:
    """Return the shortest side, or (height, width), equal or not."""
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return side(value[0]), side(value[1])
    return side(value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value)


def border(value: Any) -> Border:
    """Return a border from 1, 2 (left and right, top and bottom) or 4 numbers; None is none."""
    widths = [whole(item) for item in (value if isinstance(value, (list, tuple)) else [value])]
    good = [width for width in widths if width is not None and 0 <= width <= MAX_SIDE]
    if value is None:
        return 0
    if len(good) != len(widths) or len(good) not in (1, 2, 4):
        raise InvalidError(
            f"1, 2 (left and right, top and bottom) or 4 (left, top, right, bottom) whole numbers "
            f"of pixels from 0 to {MAX_SIDE}"
        )
    left, top, right, bottom = good * (4 // len(good))
    return left if left == top == right == bottom else (left, top, right, bottom)


def colour(value: Any) -> Colour:
    """Return a colour from 1 or 3 numbers, cut to whole ones as published; None is black."""
    values = value if isinstance(value, (list, tuple)) else [0 if value is None else value]
    if len(values) not in (1, 3) or not all(is_number(c) and 0 <= c <= 255 for c in values):
        raise InvalidError("1 or 3 numbers from 0 to 255")
    red, green, blue = (int(c) for c in [*values] * (3 // len(values)))
    return red if red == green == blue else (red, green, blue)


def padding_mode(value: Any) -> str:
    """Return the name of a padding mode."""
    if not isinstance(value, str) or value not in PADDING_MODES:
        raise InvalidError("one of " + ", ".join(PADDING_MODES))
    return value


def policy(value: Any) -> str:
    """Return the name of one of AutoAugment's policies."""
    name = _POLICIES.get(value.lower()) if isinstance(value, str) else None
    if name is None:
        raise InvalidError("one of imagenet, cifar10, svhn")
    return name


def between(low: float, high: float) -> Callable[[Any], float]:
    """Return a check for a number in a range."""

    def check(value: Any) -> float:
        if not is_number(value) or not low <= value <= high:
            raise InvalidError(f"a number from {low:g} to {high:g}")
        return float(value)

    return check


def whole_between(low: int, high: int) -> Callable[[Any], int]:
    """Return a check for a whole number in a range."""

    def check(value: Any) -> int:
        number = whole(value)
        if number is None or not low <= number <= high:
            raise InvalidError(f"a whole number from {low} to {high}")
        return number

    return check


def rising_range(low: float, high: float) -> Callable[[Any], Pair]:
    """Return a check for two rising numbers in a range."""

    def check(value: Any) -> Pair:
        if isinstance(value, (list, tuple)) and len(value) == 2 and all(map(is_number, value)):
            first, last = float(value[0]), float(value[1])
            if low <= first <= last <= high:
                return first, last
        raise InvalidError(f"two rising numbers from {low:g} to {high:g}")

    return check


def channels(value: Any) -> tuple[float, ...]:
    """Return three numbers, one per channel."""
    if isinstance(value, (list, tuple)) and len(value) == 3 and all(map(is_number, value)):
        return tuple(value)
    raise InvalidError("three numbers")


def black_or(*allowed: Any) -> Callable[[Any], Any]:
    """Return a check for black, as one number or one per channel, or one of `allowed`."""

    def check(value: Any) -> Any:
        channels = value if isinstance(value, (list, tuple)) and value else [value]
        black = len(channels) in (1, 3) and all(is_number(c) and c == 0 for c in channels)
        if not black and value not in allowed:
            raise InvalidError(
                " or ".join(map(str, (*allowed, 0))) + ", other values cannot be replayed"
            )
        return value

    return check


def interpolation(value: Any) -> str:
    """Return the name of one of Pillow's resampling filters."""
    names = [resampling.name.lower() for resampling in Image.Resampling]
    if whole(value) is not None and value in list(Image.Resampling):
        value = Image.Resampling(value).name
    if not isinstance(value, str) or value.lower() not in names:
        raise InvalidError("one of " + ", ".join(names))
    return value.lower()


def flag(value: Any) -> bool:
    """Return a boolean."""
    if not isinstance(value, bool):
        raise InvalidError("true or false")
    return value


def antialias(value: Any) -> None:
    """Return None: it affects tensors only, Pillow images are always resized with antialiasing."""
    if value is not None and not isinstance(value, bool) and value != "warn":
        raise InvalidError("true, false or null")


def nearest(value: Any) -> str:
    """Return "nearest", the only interpolation that can be replayed."""
    if interpolation(value) != "nearest":
        raise InvalidError("nearest, other values cannot be replayed")
    return "nearest"


def optional_side(value: Any) -> int | None:
    """Return a side in pixels, or None."""
    return None if value is None else side(value)


def by(check: Callable[[Any], Any]) -> dict[str, Callable[[Any], Any]]:
    """Return the metadata of a field that `check` checks."""
    return {"check": check}
