"""Any image, from anywhere, as upright 8-bit RGB.

    image = open_image("photo.jpg")  # PIL, mode RGB

Used by the evaluation transform and by everything else that reads photographs.

Shapes: H W height and width of an image, in pixels.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from pocketclip.errors import ImageError, MissingDependencyError
from pocketclip.hub import LFS_ADVICE, is_lfs_pointer

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
_COMMON = ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n", "PNG"))
_UNREADABLE = "not an image, or in a format that Pillow cannot read"


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
        head = stream.read(64)
        stream.seek(0)
        if not head:
            raise _UnfitError("empty (0 bytes)")
        if is_lfs_pointer(head):
            raise _UnfitError(f"it {LFS_ADVICE}")
        try:
            image = _opened(stream, head)
        except UnidentifiedImageError:
            if head[4:8] != b"ftyp" or head[8:12] not in _HEIF_BRANDS + _AVIF_BRANDS:
                raise
            _register_heif(avif=head[8:12] in _AVIF_BRANDS)
            stream.seek(0)
            image = Image.open(stream, formats=_formats())
        return _upright_rgb(image, max_pixels)


def _opened(stream: BinaryIO, head: bytes) -> Image.Image:
    """Open what begins with `head`."""
    for magic, name in _COMMON:
        if head.startswith(magic):
            Image.preinit()  # loading the plugins of all formats takes longer than a photograph
            try:
                return Image.open(stream, formats=[name])
            except UnidentifiedImageError:
                stream.seek(0)
    return Image.open(stream, formats=_formats())


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
