"""Preprocessing of teachers and captioners: from an image to the square that a model takes.

    square = SquareTransform.of(zoo.entry("tiny").config.preprocess).square(view)  # (64, 64, 3)

Worker processes decode and augment an image once, then resize it for each model here, without
torch. Scaling and normalisation follow on the model's device.

Shapes: H W height and width of an image, S side of the square, in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketclip.errors import ConfigError
from pocketclip.images import ImageSource, open_image
from pocketclip.preprocess import Preprocess
from pocketclip.zoo import CLIP_MEAN, CLIP_STD, PreprocessConfig, check_range

Triple = tuple[float, float, float]

_MAX_RESIZED_PIXELS = 1 << 24
"""Number of pixels to which an image is resized at most before it is cropped."""

# IMAGENET_STANDARD_MEAN and IMAGENET_STANDARD_STD of transformers.
_STANDARD_MEAN_STD = (0.5, 0.5, 0.5)
_BILINEAR, _BICUBIC = int(Image.Resampling.BILINEAR), int(Image.Resampling.BICUBIC)
_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """The scaling of pixels on the device: `(pixels / divisor - mean) / std`, in float32."""

    divisor: float = 255.0
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        check_range("mean", self.mean)
        check_range("std", self.std)
        if not 1e-6 <= self.divisor <= 1e6:  # NaN fails too
            raise ConfigError(f"the divisor of pixels must be from 1e-6 to 1e6, not {self.divisor}")


class ViewTransform(Protocol):
    """Turns a view into what a teacher takes, in any process."""

    @property
    def key(self) -> Hashable:
        """Equal for transforms that make equal arrays."""
        ...

    def square(self, image: ImageSource) -> NDArray[np.uint8]:
        """Return an image as uint8 (H, W, 3)."""
        ...


@dataclass(frozen=True, slots=True)
class AsItIs:
    """Leaves a view as it is, for models with a preprocessing of their own."""

    @property
    def key(self) -> Hashable:
        """Equal for all of them."""
        return ("as it is",)

    def square(self, image: ImageSource) -> NDArray[np.uint8]:
        """Return `image` as uint8 (H, W, 3), of its own size.

        Raises:
            ImageError, MissingDependencyError: as `pocketclip.images.open_image`.
        """
        return np.array(open_image(image))


@dataclass(frozen=True, slots=True, kw_only=True)
class SquareTransform:
    """Resize and centre-crop to S x S; plain values that can be sent to other processes."""

    size: int
    """S, the side of the result."""
    edge: int
    """The target of the resize: the length of the shortest side, or of both."""
    resize: Literal["shortest", "exact"] = "shortest"
    resample: int = _BICUBIC
    """The filter, as a number of `PIL.Image.Resampling`."""
    rounding: Literal["even", "down"] = "even"
    """How to round the crop's position if it falls on half a pixel: as torchvision (`even`) or as
    transformers (`down`)."""

    def __post_init__(self) -> None:
        check_range("size", self.size)
        check_range("edge.size", self.edge)

    @classmethod
    def of(cls, config: PreprocessConfig) -> SquareTransform:
        """Return the geometry of a zoo model's evaluation transform."""
        resample = _BICUBIC if config.interpolation == "bicubic" else _BILINEAR
        resize: Literal["shortest", "exact"] = "exact" if config.resize == "squash" else "shortest"
        return cls(size=config.size, edge=config.size, resample=resample, resize=resize)

    @property
    def key(self) -> Hashable:
        """Equal for transforms that make equal squares."""
        return self.size, self.edge, self.resize, self.resample, self.rounding

    def square(self, image: ImageSource) -> NDArray[np.uint8]:
        """Return `image` as uint8 (S, S, 3).

        An S x S array that needs no resizing is returned itself, not copied.

        Raises:
            ImageError, MissingDependencyError: as `pocketclip.images.open_image`.
        """
        shape = (self.size, self.size, 3)
        if (
            isinstance(image, np.ndarray)
            and image.dtype == np.uint8
            and image.shape == shape
            and self.edge == self.size
        ):
            return image
        is_plain = self.resample in (_BILINEAR, _BICUBIC) and self.edge == self.size
        if is_plain and self.resize == "shortest" and self.rounding == "even":
            interpolation = "bicubic" if self.resample == _BICUBIC else "bilinear"
            config = PreprocessConfig(size=self.size, interpolation=interpolation)  # type: ignore[arg-type]
            return Preprocess(config).to_uint8(image)
        return np.array(self._crop(self._resize(open_image(image))))

    def _resize(self, image: Image.Image) -> Image.Image:
        edge = self.edge
        if self.resize == "exact":
            size = edge, edge
        else:
            image = self._crop_long(image)
            width, height = image.size
            size = (
                (edge, int(edge * height / width))
                if width <= height
                else (int(edge * width / height), edge)
            )
        return image if size == image.size else image.resize(size, Image.Resampling(self.resample))

    def _crop_long(self, image: Image.Image) -> Image.Image:
        """Return the middle of an extremely long image; to enlarge all of it takes gigabytes."""
        width, height = image.size
        short, max_ratio = min(width, height), _MAX_RESIZED_PIXELS // self.edge**2
        longest = max(width, height)
        if longest <= short * max_ratio:
            return image
        length = short * max_ratio
        start = (longest - length) // 2
        box = (
            (start, 0, start + length, height)
            if width > height
            else (0, start, width, start + length)
        )
        return image.crop(box)

    def _crop(self, image: Image.Image) -> Image.Image:
        if image.size == (self.size, self.size):
            return image
        corner = [(n - self.size) / 2 for n in image.size]
        left, top = [round(x) if self.rounding == "even" else math.floor(x) for x in corner]
        return image.crop((left, top, left + self.size, top + self.size))


_CENTER_CROP: dict[str, Any] = {
    "size": {"shortest_edge": 224}, "shortest": True, "crop_size": 224, "do_center_crop": True,
    "resample": _BICUBIC, "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
}  # fmt: skip
_FIXED_SIZE: dict[str, Any] = {
    "size": {"height": 224, "width": 224}, "do_center_crop": False,
    "resample": _BICUBIC, "image_mean": _STANDARD_MEAN_STD, "image_std": _STANDARD_MEAN_STD,
}  # fmt: skip
_DEIT: dict[str, Any] = {"size": {"height": 256, "width": 256}, "crop_size": 224}
_BLIP: dict[str, Any] = {
    "size": {"height": 384, "width": 384}, "image_mean": CLIP_MEAN, "image_std": CLIP_STD
}  # fmt: skip
_NAFLEX: dict[str, Any] = {"patch_size": 16, "max_num_patches": 256, "resample": _BILINEAR}

# Defaults of the processors of transformers.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": _CENTER_CROP,
    "Bit": _CENTER_CROP,
    "Siglip": _FIXED_SIZE,
    "Siglip2": _FIXED_SIZE | _NAFLEX,
    "ViT": _FIXED_SIZE | {"resample": _BILINEAR},
    "DeiT": _FIXED_SIZE | _DEIT | {"do_center_crop": True},
    "Blip": _FIXED_SIZE | _BLIP,
}


def from_processor(raw: Mapping[str, Any], path: str) -> tuple[SquareTransform, Scaling]:
    """Return the transform that a `preprocessor_config.json` of transformers describes.

    The result equals that library's Pillow image processors. For Siglip2, whose resolution is
    flexible, the transform makes a square of the largest whole number of patches and ignores the
    aspect ratio. For square views, the usual case, this is what that processor does.

    Args:
        raw: the contents of the file.
        path: the path of the file, for messages.

    Raises:
        ConfigError: the processor, or one of its settings, is not supported.
    """
    kind = str(raw.get("image_processor_type") or raw.get("feature_extractor_type") or "CLIP")
    for ending in ("Fast", "Pil", "FeatureExtractor", "ImageProcessor"):
        kind = kind.removesuffix(ending)
    if kind not in _DEFAULTS:
        raise ConfigError(
            f"{path} describes a {kind} image processor, which is not supported; supported are "
            f"{', '.join(_DEFAULTS)}"
        )
    config = _DEFAULTS[kind] | {key: value for key, value in raw.items() if value is not None}
    try:
        square = _naflex(config) if kind == "Siglip2" else _geometry(config)
        return square, _scaling(config)
    except (KeyError, TypeError, ValueError, ArithmeticError, ConfigError) as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else error
        raise ConfigError(f"{path} is not supported ({reason})") from error


def _naflex(config: Mapping[str, Any]) -> SquareTransform:
    size = int(config["patch_size"]) * math.isqrt(int(config["max_num_patches"]))
    return SquareTransform(
        size=size, edge=size, resize="exact", resample=int(config["resample"]), rounding="down"
    )


def _geometry(config: Mapping[str, Any]) -> SquareTransform:
    if not config.get("do_resize", True):
        raise ValueError("it does not resize")
    if config.get("do_pad"):
        raise ValueError("it pads")
    size = config["size"]
    if isinstance(size, int):
        size = (
            {"shortest_edge": size} if config.get("shortest") else {"height": size, "width": size}
        )
    if set(size) == {"shortest_edge"}:
        resize, edge = "shortest", int(size["shortest_edge"])
    else:
        resize, edge = "exact", _side(size, "size")
    side = edge
    if config["do_center_crop"]:
        side = _side(config["crop_size"], "crop_size")
    elif resize == "shortest":
        raise ValueError("it keeps the aspect ratio and does not crop")
    if side > edge:
        raise ValueError(f"it crops {side} pixels from {edge}")
    return SquareTransform(
        size=side,
        edge=edge,
        resize=resize,  # type: ignore[arg-type]
        resample=int(config["resample"]),
        rounding="down",
    )


def _side(size: Any, name: str) -> int:
    if isinstance(size, int):
        return size
    if size.get("height") is None or size["height"] != size.get("width"):
        raise ValueError(f"its {name} {dict(size)} is not square")
    return int(size["height"])


def _scaling(config: Mapping[str, Any]) -> Scaling:
    divisor = 1.0
    if config.get("do_rescale", True):
        divisor = 1 / float(config.get("rescale_factor", 1 / 255))
    if not config.get("do_normalize", True):
        return Scaling(divisor=divisor)
    mean, std = _triple(config["image_mean"]), _triple(config["image_std"])
    return Scaling(divisor=divisor, mean=mean, std=std)


def _triple(values: float | Sequence[float]) -> Triple:
    channels = [values] * 3 if isinstance(values, (int, float)) else list(values)
    red, green, blue = (float(v) for v in channels)
    return red, green, blue


def from_open_clip(config: Mapping[str, Any], path: str) -> tuple[SquareTransform, Scaling]:
    """Return the evaluation transform that open_clip's `preprocess_cfg` describes.

    Raises:
        ConfigError: one of its settings is not supported.
    """
    size, mode = config["size"], config.get("resize_mode", "shortest")
    side = size if isinstance(size, int) else size[0]
    square = isinstance(size, int) or len(set(size)) == 1
    resample = _FILTERS.get(str(config.get("interpolation", "bicubic")))
    if not square or mode not in ("shortest", "squash") or resample is None:
        raise ConfigError(f"{path}: its preprocessing {dict(config)} is not supported")
    try:
        transform = SquareTransform(
            size=side,
            edge=side,
            resize="shortest" if mode == "shortest" else "exact",
            resample=resample,
        )
        return transform, Scaling(mean=_triple(config["mean"]), std=_triple(config["std"]))
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise ConfigError(f"{path}: its preprocessing is not supported ({error})") from error
