"""The evaluation transform: any image to the pixels that an image tower expects.

    pixels = Preprocess(zoo.entry("mobileclip2-s0").config.preprocess)("photo.jpg")  # (3, 256, 256)

One implementation, Pillow and numpy, for every backend. It equals the published evaluation
(torchvision's Resize, CenterCrop, ToTensor and Normalize on Pillow images) to the bit.

Shapes: B batch, H W height and width of a source, S side of the result, in pixels.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from pocketclip.errors import ImageError, MissingDependencyError
from pocketclip.zoo import PreprocessConfig

ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[Any]"
)

MAX_PIXELS = 178_956_970
"""Larger images are refused before they are decoded; about 0.7 GB, Pillow's own limit."""

_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_UNREADABLE = "not an image, or in a format that Pillow cannot read"

_WHOLE = 1 << 24
"""Up to this many pixels an image is resized whole and then cut; beyond, only the part that is
kept is computed, as a line of pixels would otherwise grow to gigabytes."""

# Which pass comes first changes the rounding. Pillow 13 resizes tall images down before across.
_DOWN_FIRST = int(PIL.__version__.split(".")[0]) >= 13


class _UnfitError(Exception):
    """A reason to refuse an image; `_explained` puts the image's name before it."""


def open_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return `source` decoded, upright and in RGB.

    Files and bytes may be in any raster format of Pillow, HEIC with the extra `heic`; of an
    animation the first frame counts. EXIF orientation is applied. Transparency is dropped, not
    blended, as `convert("RGB")` does and the published evaluation with it. 16-bit greyscale is
    scaled to 8 bits; mode "I" is taken as 16-bit too, mode "F" as 0 to 1, or as 0 to 255 if a
    value exceeds 1. Arrays are (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, uint16, bool,
    or floats from 0 to 1. An RGB Pillow image that is upright comes back itself, not a copy.

    Raises:
        ImageError: the source cannot be read, is damaged, or has more than `max_pixels` pixels
            (or more than Pillow's own limit); the message names it.
        MissingDependencyError: HEIC, and pillow-heif is not installed.
    """
    if isinstance(source, np.ndarray):
        with _explained("array"):
            return _from_array(source)
    if isinstance(source, Image.Image):
        with _explained("image"):
            return _upright_rgb(source, max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_stream(io.BytesIO(source), "image bytes", max_pixels)
    if not isinstance(source, (str, os.PathLike)):
        kind = type(source).__name__
        raise ImageError(f"cannot read an image from {kind}: give a path, bytes, Pillow or numpy")
    name = os.fsdecode(source)
    try:
        # Closed by the `with` below, which must not be in here: errors of reading differ.
        stream = Path(name).open("rb")  # noqa: SIM115
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: {getattr(error, 'strerror', None) or error}") from error
    with stream:
        return _from_stream(stream, name, max_pixels)


def _from_stream(stream: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    with _explained(name):
        head = stream.read(12)
        stream.seek(0)
        if not head:
            raise _UnfitError("empty (0 bytes)")
        try:
            image = Image.open(stream, formats=_formats())
        except UnidentifiedImageError:
            if head[4:8] != b"ftyp" or head[8:12] not in _HEIF_BRANDS + _AVIF_BRANDS:
                raise
            _register_heif(avif=head[8:12] in _AVIF_BRANDS)
            stream.seek(0)
            image = Image.open(stream, formats=_formats())
        return _upright_rgb(image, max_pixels)


def _formats() -> list[str]:
    Image.preinit()  # so that the common formats are tried first
    Image.init()
    # To draw an EPS file Pillow runs Ghostscript on it: not on anyone's upload.
    return [name for name in Image.ID if name != "EPS"]


def _register_heif(*, avif: bool) -> None:
    try:
        import pillow_heif
    except ImportError:
        kind = "AVIF" if avif else "HEIC"
        raise MissingDependencyError(
            f'{kind} images need pillow-heif: pip install "pocketclip[heic]"'
        ) from None
    # Pillow reads AVIF itself since 11.3; pillow-heif did until its 1.0.
    register = getattr(pillow_heif, "register_avif_opener", None)
    if not avif:
        register = pillow_heif.register_heif_opener
    if register is not None:
        register()


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises into an ImageError about `name`, and keep it quiet."""
    try:
        with _quiet():
            yield
    except MissingDependencyError as error:
        raise MissingDependencyError(f"{name}: {error}") from error
    except _UnfitError as error:
        raise ImageError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: {_UNREADABLE}") from error
    except Exception as error:
        # On hostile bytes Pillow's plugins let almost any type of exception escape.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name}: cannot be decoded ({reason})") from error


class _Hush:
    """Who is decoding just now; shared by all threads.

    `warnings.catch_warnings` swaps a list that all threads share, so that two threads inside it
    would restore each other's. The first to enter swaps it, the last to leave swaps it back.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0
        self.swap = contextlib.ExitStack()


_hush = _Hush()


def _renew_hush() -> None:
    global _hush
    _hush = _Hush()


# A fork while another thread holds the lock would leave the child waiting for it forever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_hush)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # Pillow warns of damaged metadata, which does not concern the pixels. Nobody else is hushed.
    if getattr(sys.flags, "context_aware_warnings", False):
        with warnings.catch_warnings():  # each thread has a list of its own
            _ignore_pillow()
            yield
        return
    hush = _hush
    with hush.lock:
        if hush.depth == 0:
            hush.swap.enter_context(warnings.catch_warnings())
            _ignore_pillow()
        hush.depth += 1
    try:
        yield
    finally:
        with hush.lock:
            hush.depth -= 1
            if hush.depth == 0:
                hush.swap.close()


def _ignore_pillow() -> None:
    warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif)(\.|$)")


def _upright_rgb(image: Image.Image, max_pixels: int) -> Image.Image:
    from_file = isinstance(image, ImageFile.ImageFile)  # of which only the head is read yet
    if from_file and image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height}"
        raise _UnfitError(f"{size} pixels exceed the limit of {max_pixels} in all")
    if min(image.size) < 1:
        raise _UnfitError(f"{image.width} x {image.height} has no pixels")
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    image = _rgb(image)
    if turn is not None:
        image = image.transpose(turn)
        image.info = {}  # lest the tag be applied twice
    return image


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF, in as many ways as above: the pixels are still good
        return 1
    return value if isinstance(value, int) else 1


def _rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode == "RGB":
        return image
    if mode.startswith("I"):  # "I", and the 16-bit modes in either byte order
        grey = _from_16_bit(np.clip(np.asarray(image), 0, 65535))
    elif mode == "F":
        values = np.asarray(image)
        grey = _from_float(values if values.max() <= 1 else values / 255, clip=True)
    else:
        # Pillow has no direct way from premultiplied grey.
        return (image.convert("LA") if mode == "La" else image).convert("RGB")
    return Image.fromarray(grey).convert("RGB")


def _from_16_bit(values: NDArray[Any]) -> NDArray[np.uint8]:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 is 255 times 257


def _from_float(values: NDArray[Any], *, clip: bool) -> NDArray[np.uint8]:
    if not np.isfinite(values).all():
        raise _UnfitError("floats must be finite")
    low, high = float(values.min()), float(values.max())
    # A resize in floating point leaves a little more than 1.
    if not clip and (low < -1e-3 or high > 1 + 1e-3):
        raise _UnfitError(f"floats must lie in [0, 1], found {low:g} to {high:g}")
    return np.rint(values.clip(0, 1) * 255.0).astype(np.uint8)


def _from_array(array: NDArray[Any]) -> Image.Image:
    shape = array.shape
    if array.ndim == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        raise _UnfitError(f"{shape} is channel-first; give (H, W, C)")
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        raise _UnfitError(f"{shape} is none of (H, W), (H, W, 1), (H, W, 3), (H, W, 4)")
    if 0 in shape:
        raise _UnfitError(f"{shape} has no pixels")
    if array.ndim == 3:
        array = array[..., 0] if shape[2] == 1 else array[..., :3]
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype.newbyteorder("=") == np.uint16:
        array = _from_16_bit(array)
    elif np.issubdtype(array.dtype, np.floating):
        array = _from_float(array, clip=False)
    elif array.dtype != np.uint8:
        raise _UnfitError(f"{array.dtype} is none of uint8, uint16, bool or floating point")
    return _rgb(Image.fromarray(np.ascontiguousarray(array)))


class Preprocess:
    """The evaluation transform of a model: shortest side to S, centre crop, scale, normalise."""

    def __init__(self, config: PreprocessConfig, *, max_pixels: int = MAX_PIXELS) -> None:
        self.config = config
        self.max_pixels = max_pixels
        self._scale_only = set(config.mean) == {0.0} and set(config.std) == {1.0}

    def __repr__(self) -> str:
        return f"Preprocess({self.config})"

    def __call__(self, source: ImageSource) -> NDArray[np.float32]:
        """Return the pixels that the image tower expects, float32 (3, S, S).

        Raises:
            ImageError, MissingDependencyError: as `open_image`.
        """
        out = np.empty((3, self.config.size, self.config.size), np.float32)
        self._fill(out, source)
        return out

    def batch(self, sources: Sequence[ImageSource]) -> NDArray[np.float32]:
        """Return the pixels of several images, float32 (B, 3, S, S).

        Raises:
            ImageError, MissingDependencyError: as `open_image`, naming the position.
        """
        single = isinstance(sources, np.ndarray) and sources.ndim != 4
        if single or isinstance(sources, (str, os.PathLike, bytes, Image.Image)):
            raise ImageError(f"batch wants a list of images, not one {type(sources).__name__}")
        out = np.empty((len(sources), 3, self.config.size, self.config.size), np.float32)
        for position, source in enumerate(sources):
            try:
                self._fill(out[position], source)
            except ImageError as error:
                raise ImageError(f"image {position} of {len(sources)}: {error}") from error
        return out

    def to_uint8(self, source: ImageSource) -> NDArray[np.uint8]:
        """Return `source` resized and cropped, not yet scaled: uint8 (S, S, 3).

        Raises:
            ImageError, MissingDependencyError: as `open_image`.
        """
        return np.array(self._square(source))

    def _fill(self, out: NDArray[np.float32], source: ImageSource) -> None:
        out[:] = np.asarray(self._square(source)).transpose(2, 0, 1)
        out /= np.float32(255)
        if not self._scale_only:
            out -= np.array(self.config.mean, np.float32)[:, None, None]
            out /= np.array(self.config.std, np.float32)[:, None, None]

    def _square(self, source: ImageSource) -> Image.Image:
        image = open_image(source, max_pixels=self.max_pixels)
        side = self.config.size
        bicubic = self.config.interpolation == "bicubic"
        width, height = image.size
        if width <= height:
            size = side, int(side * height / width)
        else:
            size = int(side * width / height), side
        # Halves round to even here, and the longer side is cut off above, as was published.
        left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
        if size[0] * size[1] > _WHOLE:
            return _resized_window(image, size, (left, top), side, bicubic=bicubic)
        if size != image.size:
            way = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
            image = image.resize(size, way)
        if size != (side, side):
            image = image.crop((left, top, left + side, top + side))
        return image


def _resized_window(
    image: Image.Image, size: tuple[int, int], corner: tuple[int, int], side: int, *, bicubic: bool
) -> Image.Image:
    """Return `image` resized to `size` and cut to S x S at `corner`, computing only that part.

    Pixel for pixel what Pillow gives: its weights in fixed point, one direction after the other,
    rounded to 8 bits in between. (Its own `box` argument is in single precision, which does not
    give the same pixels.)
    """
    across, down = (
        [_weights(n, m, x, bicubic=bicubic) for x in range(start, start + side)]
        for n, m, start in zip(image.size, size, corner, strict=True)
    )
    box = across[0][0], down[0][0], _stop(across[-1]), _stop(down[-1])
    block = np.asarray(image.crop(box)).astype(np.float64)  # (h, w, 3)
    if _DOWN_FIRST and image.width < image.height and size[1] < image.height:
        block = _weighted_down(block, down, box[1])  # (S, w, 3)
        block = _weighted(block, across, box[0])  # (S, S, 3)
    else:
        block = _weighted(block, across, box[0])  # (h, S, 3)
        block = _weighted_down(block, down, box[1])  # (S, S, 3)
    return Image.fromarray(block.astype(np.uint8))


_FIXED_POINT = 1 << 22
_Weights: TypeAlias = "tuple[int, NDArray[np.float64]]"


def _weights(length: int, target: int, x: int, *, bicubic: bool) -> _Weights:
    """Return which pixels of a line make pixel `x` of its resized form: the first, and weights."""
    scale = length / target
    stretch = max(scale, 1.0)
    reach = (2.0 if bicubic else 1.0) * stretch
    center = (x + 0.5) * scale
    first = max(int(center - reach + 0.5), 0)
    last = min(int(center + reach + 0.5), length)
    t = np.abs((np.arange(first, last) - center + 0.5) * (1.0 / stretch))
    if bicubic:  # Keys' cubic convolution with a = -1/2
        near, far = (1.5 * t - 2.5) * t * t + 1.0, (((t - 5.0) * t + 8.0) * t - 4.0) * -0.5
        weights = np.where(t < 1.0, near, np.where(t < 2.0, far, 0.0))
    else:
        weights = np.maximum(1.0 - t, 0.0)
    weights = weights / weights.cumsum()[-1]  # added up one by one, as Pillow does
    return first, np.trunc(weights * _FIXED_POINT + np.copysign(0.5, weights))


def _stop(weights: _Weights) -> int:
    return weights[0] + len(weights[1])


def _weighted(
    block: NDArray[np.float64], weights: Sequence[_Weights], origin: int
) -> NDArray[np.float64]:
    """Return (n, S, 3): each of S weights applied along the second axis of `block` (n, m, 3)."""
    # Whole numbers below 2 ** 53 throughout, so floating point adds them up exactly.
    out = np.empty((block.shape[0], len(weights), 3))
    for i, (first, weight) in enumerate(weights):
        part = block[:, first - origin : first - origin + len(weight)]
        out[:, i] = np.einsum("nmc,m->nc", part, weight)
    return np.floor((out + _FIXED_POINT / 2) / _FIXED_POINT).clip(0, 255)


def _weighted_down(
    block: NDArray[np.float64], weights: Sequence[_Weights], origin: int
) -> NDArray[np.float64]:
    """Return (S, m, 3): the same along the first axis of `block` (n, m, 3)."""
    return _weighted(block.swapaxes(0, 1), weights, origin).swapaxes(0, 1)
