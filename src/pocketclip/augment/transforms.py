"""The transforms that an augmentation can have, with their settings.

Settings have their published names and defaults. Sizes are a side in pixels or (height, width).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pocketclip.augment import setting_checks as check
from pocketclip.augment.setting_checks import Border, Colour, Pair, Size, by
from pocketclip.errors import AugmentationError


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

    FIXED: ClassVar = {"antialias": check.antialias}
    size: Size = field(metadata=by(check.shortest_or_both))
    interpolation: str = field(default="bilinear", metadata=by(check.interpolation))
    max_size: int | None = field(default=None, metadata=by(check.optional_side))

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

    size: Size = field(metadata=by(check.size))


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomCrop(Transform):
    """A window of `size` at a random place of the image and the `padding` around it.

    `padding` is the width of the border in pixels: one number, left and right with top and bottom,
    or left, top, right, bottom. `pad_if_needed` then adds, on both sides each, what a smaller image
    lacks; without it a smaller image is refused. `padding_mode` says what the border holds: `fill`
    (constant), the last pixel (edge), or the mirrored image without (reflect) or with the last
    pixel (symmetric).
    """

    size: Size = field(metadata=by(check.size))
    padding: Border = field(default=0, metadata=by(check.border))
    pad_if_needed: bool = field(default=False, metadata=by(check.flag))
    fill: Colour = field(default=0, metadata=by(check.colour))
    padding_mode: str = field(default="constant", metadata=by(check.padding_mode))


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomResizedCrop(Transform):
    """A random rectangle, resized to `size`.

    `scale` is the range of its share of the area, `ratio` that of its width divided by height.
    """

    FIXED: ClassVar = {"antialias": check.antialias}
    size: Size = field(metadata=by(check.size))
    scale: Pair = field(default=(0.08, 1.0), metadata=by(check.rising_range(1e-6, 1)))
    ratio: Pair = field(default=(3 / 4, 4 / 3), metadata=by(check.rising_range(1e-3, 1e3)))
    interpolation: str = field(default="bilinear", metadata=by(check.interpolation))


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeAugment(Transform):
    """Factors of brightness and contrast, and a noise deviation, drawn from ranges."""

    ALIASES: ClassVar = {"noise_std": "noise"}
    brightness: Pair = field(default=(0.8, 1.2), metadata=by(check.rising_range(0, 10)))
    contrast: Pair = field(default=(0.8, 1.2), metadata=by(check.rising_range(0, 10)))
    noise: Pair = field(default=(0.0, 0.05), metadata=by(check.rising_range(0, 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomHorizontalFlip(Transform):
    """Mirrors the image with probability `p`."""

    p: float = field(default=0.5, metadata=by(check.between(0, 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class RandAugment(Transform):
    """Applies, with probability `p`, `num_ops` random operations.

    Their strength is level `magnitude` of `num_magnitude_bins`.
    """

    FIXED: ClassVar = {"interpolation": check.nearest, "fill": check.black_or(None)}
    p: float = field(default=1.0, metadata=by(check.between(0, 1)))
    num_ops: int = field(default=2, metadata=by(check.whole_between(1, 100)))
    magnitude: int = field(default=9, metadata=by(check.whole_between(0, 999)))
    num_magnitude_bins: int = field(default=31, metadata=by(check.whole_between(2, 1000)))

    def __post_init__(self) -> None:
        if self.magnitude >= self.num_magnitude_bins:
            raise AugmentationError(
                f"rand_augment.magnitude must be below num_magnitude_bins "
                f"({self.num_magnitude_bins}), not {self.magnitude}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoAugment(Transform):
    """Applies one of 25 learned pairs of operations, each with its own probability and strength.

    `policy` names the set that they were learned on: imagenet, cifar10 or svhn (Cubuk et al., 2019,
    arXiv 1805.09501, appendix). The interpolation is nearest, torchvision's default.
    """

    FIXED: ClassVar = {"interpolation": check.nearest, "fill": check.black_or(None)}
    policy: str = field(default="imagenet", metadata=by(check.policy))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrivialAugmentWide(Transform):
    """Applies one random operation at a random one of `num_magnitude_bins` strengths.

    The ranges are wide (Müller and Hutter, 2021, arXiv 2103.10158, "Wide"). The interpolation is
    nearest, torchvision's default.
    """

    FIXED: ClassVar = {"interpolation": check.nearest, "fill": check.black_or(None)}
    num_magnitude_bins: int = field(default=31, metadata=by(check.whole_between(2, 1000)))


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomErasing(Transform):
    """Blackens a random rectangle with probability `p`.

    `scale` is the range of its share of the area, `ratio` that of its height divided by width.
    """

    # The published code erases to black even if the value is "random".
    FIXED: ClassVar = {"inplace": check.flag, "value": check.black_or("random")}
    p: float = field(default=0.5, metadata=by(check.between(0, 1)))
    scale: Pair = field(default=(0.02, 0.33), metadata=by(check.rising_range(1e-6, 1)))
    ratio: Pair = field(default=(0.3, 3.3), metadata=by(check.rising_range(1e-3, 1e3)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalize(Transform):
    """Mean and deviation for training; not applied here."""

    FIXED: ClassVar = {"inplace": check.flag}
    mean: tuple[float, ...] = field(metadata=by(check.channels))
    std: tuple[float, ...] = field(metadata=by(check.channels))


DATACOMPDR: dict[str, dict[str, Any]] = {
    "random_resized_crop": {"size": 224, "interpolation": "bicubic"},
    "rand_augment": {"p": 1.0},
}
"""The configuration of both generations' published sets."""

TRANSFORMS: dict[str, type[Transform]] = {
    "to_rgb": Transform,
    "uint8": Transform,
    "resize": Resize,
    "center_crop": CenterCrop,
    "random_crop": RandomCrop,
    "random_resized_crop": RandomResizedCrop,
    "range_augment": RangeAugment,
    "random_horizontal_flip": RandomHorizontalFlip,
    "rand_augment": RandAugment,
    "auto_augment": AutoAugment,
    "trivial_augment_wide": TrivialAugmentWide,
    "to_tensor": Transform,
    "random_erase": RandomErasing,
    "normalize": Normalize,
}
"""In the order of application, regardless of the order in a configuration."""

_NO_MIX = (
    "has no meaning for image-text pairs: the published code defines neither the caption nor the "
    "embedding of a mixed image; remove it or set enable: false"
)
REFUSED = {
    "timm_resize_crop_norm": (
        "stands for settings that depend on the installed version of timm: write them as resize, "
        "random_crop (with pad_if_needed: true) and normalize"
    ),
    "mixup": _NO_MIX,
    "cutmix": _NO_MIX,
}
"""Published transforms that cannot be enabled, with the reason and what to do."""
