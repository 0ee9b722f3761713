"""The augmentation: drawn once, stored as numbers, replayed to the same bytes.

    augmentation = Augmentation.from_config({"random_resized_crop": {"size": 224}, ...})
    params = augmentation.draw(rng_for(seed=0, uid="00000012", index=3), image.size)
    stored = json.dumps(augmentation.pack(params))
    pixels = augmentation.apply(image, augmentation.unpack(stored))  # uint8 (224, 224, 3)

The configuration and the packed format are those of the published DataCompDR sets (Vasu et al.,
2024, arXiv 2311.17049; Faghri et al., 2023, arXiv 2303.08983), plus `range_augment`, an addition of
this package. A packed augmentation is a list with one entry per enabled transform, in this order,
which is also the order of application:

    resize                   its size, as configured; may be missing
    random_resized_crop      [top, left, height, width] in pixels of the source
    range_augment            [brightness, contrast, noise_std, noise_seed]
    random_horizontal_flip   true or false (1 or 0, null for false)
    rand_augment             [[operation, magnitude], ...], or null if it was skipped
    random_erase             [top, left, height, width] of the result, or null (or a top of -1)

`center_crop`, applied after resize, is deterministic and has no entry. A list may end early: flip,
operations and erasure without an entry are not applied. Whole numbers may be numpy integers or
floats such as 7.0.

Shapes: H W height and width of the result, in pixels. Sizes are (width, height), as in Pillow.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketclip.augment import pixel_ops
from pocketclip.augment.config import (
    CenterCrop,
    Pair,
    RandAugment,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RangeAugment,
    Resize,
    Size,
    Transform,
    parse,
    to_config,
)
from pocketclip.augment.params import (
    ENTRIES,
    OPTIONAL,
    Box,
    MalformedError,
    Params,
    bare,
    plain,
)
from pocketclip.errors import AugmentationError, ParseError
from pocketclip.formats.json_text import load_json
from pocketclip.images import MAX_PIXELS, open_image

__all__ = ["Augmentation", "Params", "rng_for"]

_T = TypeVar("_T", bound=Transform)
_ATTEMPTS = 10  # to draw a rectangle that fits, as published


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
        self._entries = [entry for entry in ENTRIES if entry[0] in transforms]
        self._resize = self._find(Resize)
        self._center_crop = self._find(CenterCrop)
        self._crop = self._find(RandomResizedCrop)
        self._tone = self._find(RangeAugment)
        self._flip = self._find(RandomHorizontalFlip)
        self._rand_augment = self._find(RandAugment)
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
        for sized in (self._crop, self._center_crop):
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
            AugmentationError: `size` is not two positive whole numbers.
        """
        sides = _checked(size)
        if self._resize is not None:
            sides = self._resize.target(sides)
        if self._center_crop is not None:
            sides = _width_height(self._center_crop.size)
        crop = tone = ops = erase = None
        if self._crop is not None:
            crop = _draw_crop(rng, self._crop, sides)
            sides = _width_height(self._crop.size)
        if self._tone is not None:
            tone = _draw_tone(rng, self._tone)
        flip = self._flip is not None and bool(rng.random() < self._flip.p)
        augment = self._rand_augment
        if augment is not None and rng.random() < augment.p:
            ops = tuple(_draw_op(rng, augment, sides) for _ in range(augment.num_ops))
        if self._erase is not None and rng.random() < self._erase.p:
            erase = _draw_erasure(rng, self._erase, sides)
        return Params(crop=crop, tone=tone, flip=flip, ops=ops, erase=erase)

    def pack(self, params: Params) -> list[Any]:
        """Return `params` in the published packed format, in plain JSON types.

        Raises:
            AugmentationError: `params` do not fit this configuration.
        """
        checked = self.unpack([getattr(params, field) for _, field, _ in self._entries])
        if checked != params:
            raise AugmentationError(f"{params} does not belong to {self}")
        packed = [plain(getattr(checked, field)) for _, field, _ in self._entries]
        if self._resize is not None:
            packed.insert(0, plain(self._resize.size))
        return packed

    def unpack(self, packed: Any) -> Params:
        """Return the parameters of a packed augmentation.

        Args:
            packed: a list as `pack` returns it or published sets hold it, or its JSON text.

        Raises:
            AugmentationError: `packed` is malformed, or does not fit this configuration.
        """
        names = ", ".join(name for name, _, _ in self._entries)
        if isinstance(packed, (str, bytes)):
            try:
                packed = load_json(packed)
            except ParseError:
                raise AugmentationError(
                    f"the augmentation is not JSON: {_shorten(packed)}"
                ) from None
        entries = bare(packed)
        if not isinstance(entries, list):
            raise AugmentationError(
                f"augmentation must be a list ({names}), not {_shorten(packed)}"
            )
        if self._begins_with_resize(entries):
            del entries[0]  # the size, which the configuration has too
        missing = self._entries[len(entries) :]
        if all(name in OPTIONAL for name, _, _ in missing):
            entries += [None] * len(missing)
        if len(entries) != len(self._entries):
            raise AugmentationError(
                f"augmentation must have {len(self._entries)} entries ({names}), "
                f"not {len(entries)}: {_shorten(packed)}"
            )
        values: dict[str, Any] = {}
        for (name, field, read), entry in zip(self._entries, entries, strict=True):
            try:
                values[field] = read(entry)
            except MalformedError as error:
                raise AugmentationError(f"{name}: {error}; got {_shorten(entry)}") from None
        params, augment = Params(**values), self._rand_augment
        if augment and params.ops is not None and len(params.ops) != augment.num_ops:
            raise AugmentationError(
                f"rand_augment: expected {augment.num_ops} operations; got {_shorten(params.ops)}"
            )
        return params

    def _begins_with_resize(self, entries: list[Any]) -> bool:
        if self._resize is None:
            return False
        if len(entries) == len(self._entries) + 1:
            return True
        # In a list that ends early only the value tells: no other entry looks like a size.
        size = plain(self._resize.size)
        return size != 1 and entries[:1] in ([size], [[size]])

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
        if self._crop is not None:
            image = _cropped(image, params.crop)
            resample = _resampling(self._crop.interpolation)
            image = pixel_ops.resize(image, _width_height(self._crop.size), resample)
        if params.tone is not None:
            image = pixel_ops.change_tone(image, *params.tone)
        if params.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for op, magnitude in params.ops or ():
            image = pixel_ops.apply_op(image, op, magnitude)
        pixels = np.array(image)  # (H, W, 3)
        if params.erase is not None:
            top, left, height, width = params.erase
            pixels[top : top + height, left : left + width] = 0
        return pixels


# --- drawing


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def _below(rng: np.random.Generator, count: int) -> int:
    return int(rng.random() * count)


def _draw_shape(
    rng: np.random.Generator, scale: Pair, ratio: Pair, area: int
) -> tuple[float, float]:
    """Return area (uniform) and aspect (log-uniform) of a random rectangle."""
    drawn_area = area * _uniform(rng, *scale)
    return drawn_area, math.exp(_uniform(rng, math.log(ratio[0]), math.log(ratio[1])))


def _draw_crop(rng: np.random.Generator, config: RandomResizedCrop, size: tuple[int, int]) -> Box:
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


def _draw_tone(rng: np.random.Generator, config: RangeAugment) -> tuple[float, float, float, int]:
    brightness = _uniform(rng, *config.brightness)
    contrast = _uniform(rng, *config.contrast)
    return brightness, contrast, _uniform(rng, *config.noise), _below(rng, 1 << 32)


def _draw_op(
    rng: np.random.Generator, config: RandAugment, size: tuple[int, int]
) -> tuple[int, float]:
    op = _below(rng, len(pixel_ops.OP_NAMES))
    magnitude = pixel_ops.op_magnitude(op, config.magnitude, config.num_magnitude_bins, size)
    if op in pixel_ops.SIGNED_OPS and rng.random() < 0.5:
        magnitude = -magnitude
    return op, magnitude


def _draw_erasure(
    rng: np.random.Generator, config: RandomErasing, size: tuple[int, int]
) -> Box | None:
    width, height = size
    for _ in range(_ATTEMPTS):
        area, aspect = _draw_shape(rng, config.scale, config.ratio, width * height)
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            return _below(rng, height - h + 1), _below(rng, width - w + 1), h, w
    return None


# --- applying


def _resized(image: Image.Image, config: Resize) -> Image.Image:
    size = config.target(image.size)
    if size[0] * size[1] > MAX_PIXELS:
        raise AugmentationError(
            f"resize would enlarge {image.size} to {size[0]} x {size[1]} pixels, over the limit"
        )
    return pixel_ops.resize(image, size, _resampling(config.interpolation))


def _cropped(image: Image.Image, crop: Box | None) -> Image.Image:
    if crop is None:
        raise AugmentationError("the parameters have no crop, but the configuration does")
    top, left, height, width = crop
    if left + width > image.width or top + height > image.height:
        raise AugmentationError(
            f"the crop {list(crop)} does not fit an image of {image.width} x {image.height}: "
            "the parameters belong to another image, or to another size of this one"
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
        raise AugmentationError(f"the size must be (width, height) in pixels, not {_shorten(size)}")
    return sides[0], sides[1]


def _shorten(value: Any) -> str:
    text = value if isinstance(value, str) else repr(bare(value))
    text = " ".join(text.split())
    return text if len(text) <= 120 else text[:117] + "..."
