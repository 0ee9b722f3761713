"""Reads and checks an augmentation's configuration in the published format.

    parse({"random_resized_crop": {"size": 224}, "rand_augment": {"enable": False}})
    # {"random_resized_crop": RandomResizedCrop(size=224, scale=(0.08, 1.0), ...)}

Settings have their published names and defaults; an unknown setting is an error. Sizes are a side
in pixels or (height, width). Settings that cannot change the result are accepted as the published
code accepts them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, TypeAlias

from PIL import Image

from pocketclip.augment.params import whole
from pocketclip.errors import AugmentationError, ParseError
from pocketclip.formats.json_text import load_json

Size: TypeAlias = "int | tuple[int, int]"
Pair: TypeAlias = "tuple[float, float]"

_MAX_SIDE = 16384


class _InvalidError(Exception):
    """Says what a setting must be; `_build` prefixes the setting's name."""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _side(value: Any) -> int:
    number = whole(value)
    if number is None or not 1 <= number <= _MAX_SIDE:
        raise _InvalidError(f"a whole number of pixels from 1 to {_MAX_SIDE}")
    return number


def _size(value: Any) -> Size:
    """Return a side, or (height, width) if these differ."""
    if isinstance(value, (list, tuple)) and 1 <= len(value) <= 2:
        height, width = _side(value[0]), _side(value[-1])
        return height if height == width else (height, width)
    return _side(value)


def _shortest_or_both(value: Any) -> Size:
    """Return the shortest side, or (height, width), equal or not."""
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return _side(value[0]), _side(value[1])
    return _side(value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value)


def _between(low: float, high: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if not _is_number(value) or not low <= value <= high:
            raise _InvalidError(f"a number from {low:g} to {high:g}")
        return float(value)

    return check


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        number = whole(value)
        if number is None or not low <= number <= high:
            raise _InvalidError(f"a whole number from {low} to {high}")
        return number

    return check


def _range(low: float, high: float) -> Callable[[Any], Pair]:
    def check(value: Any) -> Pair:
        if isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_number, value)):
            first, last = float(value[0]), float(value[1])
            if low <= first <= last <= high:
                return first, last
        raise _InvalidError(f"two rising numbers from {low:g} to {high:g}")

    return check


def _channels(value: Any) -> tuple[float, ...]:
    if isinstance(value, (list, tuple)) and len(value) == 3 and all(map(_is_number, value)):
        return tuple(value)
    raise _InvalidError("three numbers")


def _black_or(*allowed: Any) -> Callable[[Any], Any]:
    """Return a check for black, as one number or one per channel, or one of `allowed`."""

    def check(value: Any) -> Any:
        channels = value if isinstance(value, (list, tuple)) and value else [value]
        black = len(channels) in (1, 3) and all(_is_number(c) and c == 0 for c in channels)
        if not black and value not in allowed:
            raise _InvalidError(
                " or ".join(map(str, (*allowed, 0))) + ", other values cannot be replayed"
            )
        return value

    return check


def _interpolation(value: Any) -> str:
    names = [resampling.name.lower() for resampling in Image.Resampling]
    if whole(value) is not None and value in list(Image.Resampling):
        value = Image.Resampling(value).name
    if not isinstance(value, str) or value.lower() not in names:
        raise _InvalidError("one of " + ", ".join(names))
    return value.lower()


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _InvalidError("true or false")
    return value


def _antialias(value: Any) -> None:
    # Affects tensors only: Pillow images are always resized with antialiasing.
    if value is not None and not isinstance(value, bool) and value != "warn":
        raise _InvalidError("true, false or null")


def _nearest(value: Any) -> str:
    if _interpolation(value) != "nearest":
        raise _InvalidError("nearest, other values cannot be replayed")
    return "nearest"


def _optional_side(value: Any) -> int | None:
    return None if value is None else _side(value)


def _by(check: Callable[[Any], Any]) -> dict[str, Callable[[Any], Any]]:
    return {"check": check}


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """An enabled transform with its settings."""

    FIXED: ClassVar[dict[str, Callable[[Any], Any]]] = {}
    """Settings without effect here: checked, and left out of `to_config`."""

    ALIASES: ClassVar[dict[str, str]] = {}
    """Other names of settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize(Transform):
    """Resize: the shortest side to `size`, or to (height, width)."""

    FIXED: ClassVar = {"antialias": _antialias}
    size: Size = field(metadata=_by(_shortest_or_both))
    interpolation: str = field(default="bilinear", metadata=_by(_interpolation))
    max_size: int | None = field(default=None, metadata=_by(_optional_side))

    def target(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size to which an image of `size` is resized; both are (width, height)."""
        if not isinstance(self.size, int):
            return self.size[1], self.size[0]
        short, long = self.size, int(self.size * max(size) / min(size))
        if self.max_size is not None and long > self.max_size:
            short, long = max(1, int(self.max_size * short / long)), self.max_size
        return (short, long) if size[0] <= size[1] else (long, short)


@dataclass(frozen=True, slots=True, kw_only=True)
class CenterCrop(Transform):
    """The centre of the image, padded with black."""

    size: Size = field(metadata=_by(_size))


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomResizedCrop(Transform):
    """A random rectangle, resized to `size`.

    `scale` is the range of its share of the area, `ratio` that of its width divided by height.
    """

    FIXED: ClassVar = {"antialias": _antialias}
    size: Size = field(metadata=_by(_size))
    scale: Pair = field(default=(0.08, 1.0), metadata=_by(_range(1e-6, 1)))
    ratio: Pair = field(default=(3 / 4, 4 / 3), metadata=_by(_range(1e-3, 1e3)))
    interpolation: str = field(default="bilinear", metadata=_by(_interpolation))


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeAugment(Transform):
    """Factors of brightness and contrast, and a noise deviation, drawn from ranges."""

    ALIASES: ClassVar = {"noise_std": "noise"}
    brightness: Pair = field(default=(0.8, 1.2), metadata=_by(_range(0, 10)))
    contrast: Pair = field(default=(0.8, 1.2), metadata=_by(_range(0, 10)))
    noise: Pair = field(default=(0.0, 0.05), metadata=_by(_range(0, 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomHorizontalFlip(Transform):
    """Mirrors the image with probability `p`."""

    p: float = field(default=0.5, metadata=_by(_between(0, 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class RandAugment(Transform):
    """Applies, with probability `p`, `num_ops` random operations.

    Their strength is level `magnitude` of `num_magnitude_bins`.
    """

    FIXED: ClassVar = {"interpolation": _nearest, "fill": _black_or(None)}
    p: float = field(default=1.0, metadata=_by(_between(0, 1)))
    num_ops: int = field(default=2, metadata=_by(_whole(1, 100)))
    magnitude: int = field(default=9, metadata=_by(_whole(0, 999)))
    num_magnitude_bins: int = field(default=31, metadata=_by(_whole(2, 1000)))

    def __post_init__(self) -> None:
        if self.magnitude >= self.num_magnitude_bins:
            raise AugmentationError(
                f"rand_augment.magnitude must be below num_magnitude_bins "
                f"({self.num_magnitude_bins}), not {self.magnitude}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomErasing(Transform):
    """Blackens a random rectangle with probability `p`.

    `scale` is the range of its share of the area, `ratio` that of its height divided by width.
    """

    # The published code erases to black even if the value is "random".
    FIXED: ClassVar = {"inplace": _flag, "value": _black_or("random")}
    p: float = field(default=0.5, metadata=_by(_between(0, 1)))
    scale: Pair = field(default=(0.02, 0.33), metadata=_by(_range(1e-6, 1)))
    ratio: Pair = field(default=(0.3, 3.3), metadata=_by(_range(1e-3, 1e3)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalize(Transform):
    """Mean and deviation for training; not applied here."""

    FIXED: ClassVar = {"inplace": _flag}
    mean: tuple[float, ...] = field(metadata=_by(_channels))
    std: tuple[float, ...] = field(metadata=_by(_channels))


TRANSFORMS: dict[str, type[Transform]] = {
    "to_rgb": Transform,
    "uint8": Transform,
    "resize": Resize,
    "center_crop": CenterCrop,
    "random_resized_crop": RandomResizedCrop,
    "range_augment": RangeAugment,
    "random_horizontal_flip": RandomHorizontalFlip,
    "rand_augment": RandAugment,
    "to_tensor": Transform,
    "random_erase": RandomErasing,
    "normalize": Normalize,
}
"""In the order of application, regardless of the order in a configuration."""

_UNSUPPORTED = (
    "random_crop",
    "auto_augment",
    "trivial_augment_wide",
    "timm_resize_crop_norm",
    "mixup",
    "cutmix",
)


def parse(config: Any) -> dict[str, Transform]:
    """Return the enabled transforms of a configuration by name, in the order of application.

    Args:
        config: the transforms by name, or a whole reinforcement configuration with the transforms
            in `reinforce.image_augmentation`; or the JSON text of either.

    Raises:
        AugmentationError: a transform or setting does not exist, or its value is not allowed.
    """
    if isinstance(config, (str, bytes)):
        try:
            config = load_json(config)
        except ParseError:
            raise AugmentationError("the augmentation configuration is not valid JSON") from None
    for outer in ("reinforce", "image_augmentation"):
        if isinstance(config, dict) and outer in config:
            config = config[outer]
    if not isinstance(config, dict):
        raise AugmentationError(f"an augmentation configuration is a dict, not {_kind(config)}")
    enabled = {}
    for name, settings in config.items():
        if name not in TRANSFORMS and name not in _UNSUPPORTED:
            raise AugmentationError(_unknown("transform", name, TRANSFORMS))
        if TRANSFORMS.get(name) is Transform and (settings is None or isinstance(settings, bool)):
            settings = {"enable": settings is not False}  # it has no other setting
        if not isinstance(settings, dict):
            raise AugmentationError(
                f'{name} must be a dict, as {{"enable": false}}, not {_kind(settings)}'
            )
        settings = dict(settings)
        enable = settings.pop("enable", True)
        if not isinstance(enable, bool):
            raise AugmentationError(f"{name}.enable must be true or false, not {enable!r}")
        if enable and name in _UNSUPPORTED:
            raise AugmentationError(f"{name} cannot be replayed; disable or remove it")
        if enable:
            enabled[name] = _build(TRANSFORMS[name], name, settings)
    return {name: enabled[name] for name in TRANSFORMS if name in enabled}


def to_config(transforms: dict[str, Transform]) -> dict[str, dict[str, Any]]:
    """Return parsed transforms as plain JSON types with all settings."""
    return {
        name: {each.name: _plain(getattr(transform, each.name)) for each in fields(transform)}
        for name, transform in transforms.items()
    }


def _build(kind: type[Transform], name: str, settings: dict[str, Any]) -> Transform:
    known = {each.name: each for each in fields(kind)}
    values = {}
    for setting, value in settings.items():
        key = kind.ALIASES.get(setting, setting)
        if key != setting and key in settings:
            raise AugmentationError(
                f"{name}.{setting} is another name of {name}.{key}: give only one"
            )
        check = known[key].metadata["check"] if key in known else kind.FIXED.get(key)
        if check is None:
            raise AugmentationError(_unknown(f"{name} setting", setting, known))
        try:
            checked = check(value)
        except _InvalidError as error:
            raise AugmentationError(f"{name}.{setting} must be {error}; got {value!r}") from None
        if key in known:
            values[key] = checked
    missing = [key for key in known if key not in values and known[key].default is MISSING]
    if missing:
        raise AugmentationError(f"{name} needs the setting {', '.join(missing)}")
    return kind(**values)


def _unknown(what: str, name: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    hint = f"did you mean {close[0]!r}?" if close else "known: " + (", ".join(known) or "none")
    return f"unknown {what} {str(name)[:80]!r}; {hint}"


def _kind(value: Any) -> str:
    return type(value).__name__


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
