"""Any image, from anywhere, as upright 8-bit RGB.

    image = open_image("photo.jpg")  # PIL, mode RGB

Used by the evaluation transform and by everything else that reads photographs.

Shapes: H W height and width of an image, in pixels.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from pocketclip.errors import ImageError, ImageSupportError
from pocketclip.formats.image_metadata import MAX_TAGS, size_of_tags, without_bombs
from pocketclip.formats.lfs import LFS_ADVICE, is_lfs_pointer

ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[Any]"
)

MAX_PIXELS = 178_956_970
"""Larger images are refused before they are decoded; about 0.7 GB, Pillow's own limit."""
MAX_MEMORY = 1_000_000_000
"""Images whose decoding would take more bytes are refused before, whatever their pixels: those
that are turned or in another mode than RGB, and some formats, take up to 21 bytes per pixel."""
MAX_FILE = 1 << 28
"""Bytes of the largest image file, 256 MiB; of those that are read in pieces, 1 GiB."""

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
_IN_PIECES = (b"\x89PNG", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM", b"P5", b"P6", b"Pf")
# What decoders take beside the image itself, in bytes per pixel, as measured; JPEG is computed.
_DECODER_BYTES = {
    **dict.fromkeys(("JPEG", "MPO", "PNG", "BMP", "GIF", "PPM", "TGA", "PCX", "TIFF"), 0.1),
    **{"SGI": 2, "WEBP": 13, "AVIF": 8, "HEIF": 8, "JPEG2000": 16},
}
_OTHER_DECODER_BYTES = 8
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
_BAND = 1 << 20  # pixels that are converted at once
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
        ImageSupportError: HEIC, and pillow-heif is not installed; it is an ImageError too.
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
    _refuse_special(name)
    try:
        # Closed by the `with` below, which must not be in here: errors of reading differ.
        stream = Path(name).open("rb")  # noqa: SIM115
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: {getattr(error, 'strerror', None) or error}") from error
    with stream:
        return _from_stream(stream, name, max_pixels)


def _refuse_special(name: str) -> None:
    """Refuse what is no file before it is opened: a pipe would wait for ever for its writer."""
    try:
        mode = os.stat(name).st_mode  # noqa: PTH116
    except (OSError, ValueError):
        return  # opening it says why
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ImageError(f"{name}: a pipe, socket or device, not a file")


def _from_stream(stream: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    with _explained(name):
        head = stream.read(64)
        stream.seek(0)
        if not head:
            raise _UnfitError("empty (0 bytes)")
        if is_lfs_pointer(head):
            raise _UnfitError(f"it {LFS_ADVICE}")
        _check_file(stream, head)
        stream = without_bombs(stream)
        try:
            image = _opened(stream, head)
        except UnidentifiedImageError:
            if head[4:8] != b"ftyp" or head[8:12] not in _HEIF_BRANDS + _AVIF_BRANDS:
                raise
            _register_heif(avif=head[8:12] in _AVIF_BRANDS)
            stream.seek(0)
            image = Image.open(stream, formats=_formats())
        return _upright_rgb(image, max_pixels)


def _check_file(stream: BinaryIO, head: bytes) -> None:
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    limit = 4 * MAX_FILE if head.startswith(_IN_PIECES) else MAX_FILE
    if size > limit:
        raise _UnfitError(f"the file has {size:,} bytes, more than the limit of {limit:,}")
    if head[:4] in _IN_PIECES[1:5]:
        tags = size_of_tags(stream)
        stream.seek(0)
        if tags > MAX_TAGS:
            raise _UnfitError(f"its tags take {tags:,} bytes, more than the limit of {MAX_TAGS:,}")


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
        raise ImageSupportError(
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
    except ImageSupportError as error:
        raise ImageSupportError(f"{name}: {error}") from error
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
    if from_file:
        if any(str(tile[0]) == "fits_gzip" for tile in getattr(image, "tile", ())):
            raise _UnfitError("compressed FITS, which may unpack to any size; convert it")
        _check_memory(image, _decoder_bytes(image))
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    if from_file:  # some formats say only now how they are turned, or how large they are
        _check_memory(image, 4 if turn is not None else 0)
    image = _rgb(image)
    if turn is not None:
        image = image.transpose(turn)
        image.info = {}  # lest the tag be applied twice
    return image


def _check_memory(image: Image.Image, more: float) -> None:
    """Refuse an image that would take too much with `more` bytes per pixel beside itself."""
    own = _MODE_BYTES.get(image.mode, 4) + (0 if image.mode == "RGB" else 4)
    need = image.width * image.height * (own + more)
    if need > MAX_MEMORY:
        size = f"{image.width} x {image.height} pixels ({image.format or 'image'}, {image.mode})"
        raise _UnfitError(
            f"{size} would take {need / 1e9:.1f} GB, the limit is {MAX_MEMORY / 1e9:.0f} GB; "
            "scale it down"
        )


def _decoder_bytes(image: Image.Image) -> float:
    """Return what the decoder of an image that was opened takes, in bytes per pixel."""
    more: float = _DECODER_BYTES.get(image.format or "", _OTHER_DECODER_BYTES)
    if image.format in ("JPEG", "MPO"):
        layers = [(h, v) for _, h, v, *_ in getattr(image, "layer", ())]
        if image.info.get("progressive") and layers:  # holds all coefficients, of two bytes
            most = max(h for h, _ in layers) * max(v for _, v in layers)
            more += 2 * sum(h * v for h, v in layers) / max(1, most)
        if _UPRIGHT.get(_orientation(image)) is not None:
            more = max(more, 4)
    elif image.format == "TIFF" and image.info.get("compression") != "raw":
        more += _file_size(image) / (image.width * image.height)  # its decoder maps the file
    elif image.format == "JPEG2000":
        more = 1.5 + more * _share_of_tile(image)
    return more


def _file_size(image: Image.Image) -> int:
    stream = getattr(image, "fp", None)
    if stream is None:
        return 0
    place = stream.tell()
    size: int = stream.seek(0, io.SEEK_END)
    stream.seek(place)
    return size


def _share_of_tile(image: Image.Image) -> float:
    """Return how much of a JPEG 2000 is decoded at once: its tiles by its pixels."""
    stream = getattr(image, "fp", None)
    if stream is None:
        return 1
    place = stream.tell()
    stream.seek(0)
    head = stream.read(1 << 16)
    stream.seek(place)
    begin = head.find(b"\xff\x4f\xff\x51") + 4
    if begin < 4 or len(head) < begin + 28:
        return 1
    width, height = (int.from_bytes(head[begin + k : begin + k + 4], "big") for k in (20, 24))
    return min(1.0, width * height / (image.width * image.height))


def _orientation(image: Image.Image) -> int:
    try:
        text = image.info.get("Raw profile type exif")
        if text and size_of_tags(io.BytesIO(bytes.fromhex("".join(text.split("\n")[3:]))[6:])) > (
            MAX_TAGS
        ):
            return 1
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF, in as many ways as above: the pixels are still good
        return 1
    return value if isinstance(value, int) else 1


def _rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode == "RGB":
        return image
    if mode.startswith("I"):  # "I", and the 16-bit modes in either byte order
        return _by_bands(image, lambda part: _from_16_bit(np.clip(part, 0, 65535)))
    if mode == "F":
        highest = max(_highest(np.asarray(image.crop(box))) for box in _bands(image))
        scale = 1 if highest <= 1 else 255
        return _by_bands(image, lambda part: _from_float(part / np.float32(scale), clip=True))
    # Pillow has no direct way from premultiplied grey.
    return (image.convert("LA") if mode == "La" else image).convert("RGB")


def _highest(part: NDArray[Any]) -> float:
    if not np.isfinite(part).all():
        raise _UnfitError("floats must be finite")
    return float(part.max())


def _bands(image: Image.Image) -> list[tuple[int, int, int, int]]:
    """Return boxes that cover an image, each of few pixels."""
    width, height = image.size
    step = min(width, _BAND)
    rows = max(1, _BAND // step)
    return [
        (left, top, min(left + step, width), min(top + rows, height))
        for top in range(0, height, rows)
        for left in range(0, width, step)
    ]


def _by_bands(image: Image.Image, grey: Callable[[NDArray[Any]], NDArray[np.uint8]]) -> Image.Image:
    """Return `image` in RGB, made of the greys of its bands: as a whole they take gigabytes."""
    out = Image.new("RGB", image.size)
    for box in _bands(image):
        part = Image.fromarray(grey(np.asarray(image.crop(box))))
        out.paste(part.convert("RGB"), box[:2])
    return out


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
