"""The augmentation: drawn once, stored as numbers, replayed to the same bytes.

    augmentation = Augmentation.from_config({"random_resized_crop": {"size": 224}, ...})
    params = augmentation.draw(rng_for(seed=0, uid="00000012", index=3), image.size)
    stored = json.dumps(augmentation.pack(params))
    pixels = augmentation.apply(image, augmentation.unpack(stored))  # uint8 (224, 224, 3)

The configuration and the packed format (`packing`) are those of the published DataCompDR sets (Vasu
et al., 2024, arXiv 2311.17049; Faghri et al., 2023, arXiv 2303.08983), plus `range_augment`, an
addition of this package.

Shapes: H W height and width of the result, in pixels. Sizes are (width, height), as in Pillow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketclip.augment import draws, pixel_ops
from pocketclip.augment.config import parse, to_config
from pocketclip.augment.packing import Packing
from pocketclip.augment.padding import height_width, padded_size, window_of
from pocketclip.augment.params import Box, MalformedError, Params, bare, shortened
from pocketclip.augment.setting_checks import Size
from pocketclip.augment.transforms import (
    AutoAugment,
    CenterCrop,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RangeAugment,
    Resize,
    Transform,
    TrivialAugmentWide,
)
from pocketclip.errors import AugmentationError
from pocketclip.images import MAX_PIXELS, open_image

__all__ = ["Augmentation", "Params", "rng_for"]

_T = TypeVar("_T", bound=Transform)
_OF_ANOTHER = "the parameters belong to another image, or to another size of this one"


def rng_for(seed: int, uid: str, index: int) -> np.random.Generator:
    """Return the random generator for augmentation `index` of the image `uid`.

    A pure function of its arguments: the first 16 bytes of their SHA-256 are the key of a Philox
    counter. The process, machine and order of drawing do not matter.
    """
    identity = json.dumps([int(seed), str(uid), int(index)]).encode("ascii")
    key = int.from_bytes(hashlib.sha256(identity).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))


class Augmentation:
    """A configured augmentation. Compared by configuration; can be pickled."""

    def __init__(self, transforms: dict[str, Transform]) -> None:
        self._transforms = transforms
        self._packing = Packing(transforms)
        self._resize = self._find(Resize)
        self._center_crop = self._find(CenterCrop)
        self._window = self._find(RandomCrop)
        self._crop = self._find(RandomResizedCrop)
        self._tone = self._find(RangeAugment)
        self._flip = self._find(RandomHorizontalFlip)
        self._rand_augment = self._find(RandAugment)
        self._auto_augment = self._find(AutoAugment)
        self._trivial_augment = self._find(TrivialAugmentWide)
        self._erase = self._find(RandomErasing)

    def _find(self, kind: type[_T]) -> _T | None:
        return next((t for t in self._transforms.values() if isinstance(t, kind)), None)

    @classmethod
    def from_config(cls, config: dict[str, Any] | str) -> Augmentation:
        """Return the augmentation of a configuration in the published format.

        Args:
            config: settings by the name of the transform (`{"enable": false}` turns one off), or
                a whole reinforcement configuration with `reinforce.image_augmentation`; or the
                JSON text of either.

        Raises:
            AugmentationError: a transform or setting does not exist, or its value is not allowed.
        """
        return cls(parse(config))

    def __repr__(self) -> str:
        return f"Augmentation.from_config({self.config})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Augmentation) and self._transforms == other._transforms

    def __hash__(self) -> int:
        return hash(tuple(self._transforms.items()))

    @property
    def config(self) -> dict[str, Any]:
        """The enabled transforms with all settings, as plain JSON; `from_config` reads it."""
        return to_config(self._transforms)

    @property
    def output_size(self) -> tuple[int, int] | None:
        """The (width, height) of every result; None if it depends on the image."""
        for sized in (self._crop, self._window, self._center_crop):
            if sized is not None:
                return _width_height(sized.size)
        if self._resize is not None and not isinstance(self._resize.size, int):
            return _width_height(self._resize.size)
        return None

    def draw(
        self, rng: np.random.Generator, size: Sequence[int] | NDArray[np.integer[Any]]
    ) -> Params:
        """Draw one augmentation for an upright image of `size` (width, height).

        Only `rng.random()` is used, the method of a Generator that is least likely to change.

        Raises:
            AugmentationError: `size` is not two positive whole numbers, or the image is smaller
                than the window of `random_crop`.
        """
        sides = _checked(size)
        if self._resize is not None:
            sides = self._resize.target(sides)
        if self._center_crop is not None:
            sides = _width_height(self._center_crop.size)
        drawn: dict[str, Any] = {}
        if self._window is not None:
            drawn["corner"] = draws.draw_corner(rng, self._window, sides)
            sides = _width_height(self._window.size)
        if self._crop is not None:
            drawn["crop"] = draws.draw_crop(rng, self._crop, sides)
            sides = _width_height(self._crop.size)
        if self._tone is not None:
            drawn["tone"] = draws.draw_tone(rng, self._tone)
        drawn["flip"] = self._flip is not None and bool(rng.random() < self._flip.p)
        if self._rand_augment is not None:
            drawn["ops"] = draws.draw_ops(rng, self._rand_augment, sides)
        if self._auto_augment is not None:
            drawn["auto_ops"] = draws.draw_auto_ops(rng, self._auto_augment, sides)
        if self._trivial_augment is not None:
            drawn["trivial_ops"] = draws.draw_trivial_ops(rng, self._trivial_augment)
        if self._erase is not None:
            drawn["erase"] = draws.draw_erasure(rng, self._erase, sides)
        return Params(**drawn)

    def pack(self, params: Params) -> list[Any]:
        """Return `params` in the published packed format, in plain JSON types.

        Raises:
            AugmentationError: `params` do not fit this configuration.
        """
        try:
            return self._packing.pack(params)
        except MalformedError:
            raise AugmentationError(f"{params} does not belong to {self}") from None

    def unpack(self, packed: Any) -> Params:
        """Return the parameters of a packed augmentation.

        Args:
            packed: a list as `pack` returns it or published sets hold it, or its JSON text.

        Raises:
            AugmentationError: `packed` is malformed, or does not fit this configuration.
        """
        return self._packing.unpack(packed)

    def apply(self, image: Image.Image, params: Params | Sequence[Any] | str) -> NDArray[np.uint8]:
        """Return the augmented image before normalisation: uint8 (H, W, 3), writable.

        The image is converted to upright RGB first, as by `open_image`: parameters refer to the
        upright image. Equal arguments give equal bytes in every process. `params` may be packed.

        Raises:
            AugmentationError: `params` do not fit an image of this size, or cannot be unpacked.
            ImageError: the image cannot be decoded.
        """
        if not isinstance(params, Params):
            params = self.unpack(params)
        image = open_image(image)
        if self._resize is not None:
            image = _resized(image, self._resize)
        if self._center_crop is not None:
            image = pixel_ops.center_crop(image, _width_height(self._center_crop.size))
        if self._window is not None:
            image = _windowed(image, params.corner, self._window)
        if self._crop is not None:
            image = _cropped(image, params.crop)
            resample = _resampling(self._crop.interpolation)
            image = pixel_ops.resize(image, _width_height(self._crop.size), resample)
        if params.tone is not None:
            image = pixel_ops.change_tone(image, *params.tone)
        if params.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for op, magnitude in params.all_ops:
            image = pixel_ops.apply_op(image, op, magnitude)
        pixels = np.array(image)  # (H, W, 3)
        if params.erase is not None:
            top, left, height, width = params.erase
            pixels[top : top + height, left : left + width] = 0
        return pixels


# --- applying


def _resized(image: Image.Image, config: Resize) -> Image.Image:
    size = config.target(image.size)
    if size[0] * size[1] > MAX_PIXELS:
        raise AugmentationError(
            f"resize would enlarge {image.size} to {size[0]} x {size[1]} pixels, over the limit"
        )
    return pixel_ops.resize(image, size, _resampling(config.interpolation))


def _windowed(
    image: Image.Image, corner: tuple[int, int] | None, config: RandomCrop
) -> Image.Image:
    if corner is None:
        raise AugmentationError("the parameters have no corner, but the configuration does")
    (width, height), (h, w) = padded_size(image.size, config), height_width(config)
    if corner[0] + h > height or corner[1] + w > width:
        raise AugmentationError(
            f"the window of {w} x {h} at {list(corner)} does not fit an image of {width} x "
            f"{height} with its border: {_OF_ANOTHER}"
        )
    return window_of(image, corner, config)


def _cropped(image: Image.Image, crop: Box | None) -> Image.Image:
    if crop is None:
        raise AugmentationError("the parameters have no crop, but the configuration does")
    top, left, height, width = crop
    if left + width > image.width or top + height > image.height:
        raise AugmentationError(
            f"the crop {list(crop)} does not fit an image of {image.width} x {image.height}: "
            f"{_OF_ANOTHER}"
        )
    return image.crop((left, top, left + width, top + height))


def _resampling(interpolation: str) -> Image.Resampling:
    return Image.Resampling[interpolation.upper()]


def _width_height(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[1], size[0])


def _checked(size: Any) -> tuple[int, int]:
    sides = bare(size)
    is_pair = isinstance(sides, list) and len(sides) == 2
    if not is_pair or not all(type(side) is int and side > 0 for side in sides):
        raise AugmentationError(
            f"the size must be (width, height) in pixels, not {shortened(size)}"
        )
    return sides[0], sides[1]
