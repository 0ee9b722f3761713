"""Opens any image as upright 8-bit RGB.

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

from pocketclip.errors import ImageError, ImageSupportError, how_to_install, one_line
from pocketclip.formats.image_metadata import MAX_TAGS, size_of_tags, without_bombs
from pocketclip.formats.lfs import LFS_ADVICE, is_lfs_pointer

ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[Any]"
)

MAX_PIXELS = 178_956_970
"""Default limit on pixels, checked before decoding; Pillow's own limit, about 0.7 GB."""
MAX_MEMORY = 1_000_000_000
"""Limit on the memory of decoding, checked before it: rotated images, modes other than RGB and some
formats take up to 21 bytes per pixel."""
MAX_FILE = 1 << 28
"""Limit on the bytes of an image file: 256 MiB, or 1 GiB for formats that are read in pieces."""

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
# Measured memory of decoders in bytes per pixel, without the image itself; JPEG is computed.
_DECODER_BYTES = {
    **dict.fromkeys(("JPEG", "MPO", "PNG", "BMP", "GIF", "PPM", "TGA", "PCX", "TIFF"), 0.1),
    **{"SGI": 2, "WEBP": 13, "AVIF": 8, "HEIF": 8, "JPEG2000": 16},
}
_OTHER_DECODER_BYTES = 8
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
_BAND = 1 << 20  # pixels converted at a time
_COMMON = ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n", "PNG"))
_UNREADABLE = "not an image, or in a format that Pillow cannot read"


class _RefusedError(Exception):
    """A reason to refuse an image; `_explained` prefixes the image's name."""


def open_image(
    source: ImageSource,
    *,
    max_pixels: int = MAX_PIXELS,
    least_side: int | None = None,
    on_header: Callable[[Image.Image], None] | None = None,
) -> Image.Image:
    """Return `source` decoded, upright and in RGB.

    Files and bytes may have any raster format that Pillow reads, and HEIC with the extra `heic`.
    The first frame of an animation is read. EXIF orientation is applied. Transparency is dropped,
    not blended, as in `convert("RGB")` and the published evaluation. 16-bit greyscale and mode "I"
    are scaled to 8 bits; mode "F" has the range 0 to 1, or 0 to 255 if a value exceeds 1. A Pillow
    image in upright RGB is returned itself, not a copy.

    Args:
        source: a path, bytes, a Pillow image, or an array (H, W), (H, W, 1), (H, W, 3) or
            (H, W, 4) of uint8, uint16, bool, or floats from 0 to 1.
        max_pixels: limit on the number of pixels of a file.
        least_side: a file may be decoded at a fraction of its size, which is much faster for a
            large JPEG, as long as both sides have this many pixels. None: in full.
        on_header: called once with the image of a file or of bytes, when its header is read and
            has passed the checks, and before its pixels are decoded; for PNG after that, as its
            tags may come last. It must not change the image.

    Raises:
        ImageError: the source cannot be read, is damaged, or exceeds `max_pixels` or Pillow's own
            limit; the message names it.
        ImageSupportError: HEIC without pillow-heif; a subclass of ImageError.
    """
    if isinstance(source, np.ndarray):
        with _explained("array"):
            return _from_array(source)
    if isinstance(source, Image.Image):
        with _explained("image"):
            return _upright_rgb(source, max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_stream(io.BytesIO(source), "image bytes", max_pixels, least_side, on_header)
    if not isinstance(source, (str, os.PathLike)):
        kind = type(source).__name__
        raise ImageError(f"cannot read an image from {kind}: give a path, bytes, Pillow or numpy")
    name = os.fsdecode(source)
    _refuse_special(name)
    try:
        # Closed by the `with` below, which is outside the `try`: errors of reading are different.
        stream = Path(name).open("rb")  # noqa: SIM115
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: {getattr(error, 'strerror', None) or error}") from error
    with stream:
        return _from_stream(stream, name, max_pixels, least_side, on_header)


def _refuse_special(name: str) -> None:
    """Refuse pipes, sockets and devices; opening a pipe would wait forever for its writer."""
    try:
        mode = os.stat(name).st_mode  # noqa: PTH116
    except (OSError, ValueError):
        return  # opening the file reports the problem
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ImageError(f"{name}: this is a pipe, socket or device, not a file")


def read_size(data: bytes) -> tuple[int, int]:
    """Return the width and height of an image file as they are stored, in pixels.

    Only its header is read. Orientation by EXIF is not applied, as in Pillow's `Image.size`.

    Args:
        data: the file.

    Raises:
        ImageError: it is no image; ImageSupportError for HEIC without pillow-heif.
    """
    with _explained("image bytes"), _opened_stream(io.BytesIO(data)) as image:
        return image.size


def _from_stream(
    stream: BinaryIO,
    name: str,
    max_pixels: int,
    least_side: int | None,
    on_header: Callable[[Image.Image], None] | None,
) -> Image.Image:
    with _explained(name):
        return _upright_rgb(_opened_stream(stream), max_pixels, least_side, on_header)


def _opened_stream(stream: BinaryIO) -> Image.Image:
    """Check what can be checked before decoding, and open an image."""
    head = stream.read(64)
    stream.seek(0)
    if not head:
        raise _RefusedError("empty (0 bytes)")
    if is_lfs_pointer(head):
        raise _RefusedError(f"it {LFS_ADVICE}")
    _check_file(stream, head)
    stream = without_bombs(stream)
    try:
        return _opened(stream, head)
    except UnidentifiedImageError:
        if head[4:8] != b"ftyp" or head[8:12] not in _HEIF_BRANDS + _AVIF_BRANDS:
            raise
        _register_heif(avif=head[8:12] in _AVIF_BRANDS)
        stream.seek(0)
        return Image.open(stream, formats=_formats())


def file_limit(head: bytes) -> int:
    """Return the limit on the bytes of an image file that begins with `head`."""
    return 4 * MAX_FILE if head.startswith(_IN_PIECES) else MAX_FILE


def _check_file(stream: BinaryIO, head: bytes) -> None:
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    limit = file_limit(head)
    if size > limit:
        raise _RefusedError(f"the file has {size:,} bytes, more than the limit of {limit:,}")
    if head[:4] in _IN_PIECES[1:5]:
        tags = size_of_tags(stream)
        stream.seek(0)
        if tags > MAX_TAGS:
            raise _RefusedError(
                f"its tags take {tags:,} bytes, more than the limit of {MAX_TAGS:,}"
            )


def _opened(stream: BinaryIO, head: bytes) -> Image.Image:
    """Open an image that begins with `head`."""
    for magic, name in _COMMON:
        if head.startswith(magic):
            Image.preinit()  # loading all plugins takes longer than decoding a photograph
            try:
                return Image.open(stream, formats=[name])
            except UnidentifiedImageError:
                stream.seek(0)
    return Image.open(stream, formats=_formats())


def _formats() -> list[str]:
    Image.preinit()  # so that the common formats are tried first
    Image.init()
    # For EPS, Pillow would run Ghostscript on untrusted files.
    return [name for name in Image.ID if name != "EPS"]


def _register_heif(*, avif: bool) -> None:
    try:
        import pillow_heif
    except ImportError:
        kind = "AVIF" if avif else "HEIC"
        raise ImageSupportError(
            f"{kind} images need pillow-heif: {how_to_install('heic')}"
        ) from None
    # Pillow reads AVIF since 11.3, pillow-heif did before its 1.0.
    register = getattr(pillow_heif, "register_avif_opener", None)
    if not avif:
        register = pillow_heif.register_heif_opener
    if register is not None:
        register()


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Convert any exception of Pillow into an ImageError about `name`; suppress its warnings."""
    try:
        with _quiet():
            yield
    except ImageSupportError as error:
        raise ImageSupportError(f"{name}: {error}") from error
    except _RefusedError as error:
        raise ImageError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: {_UNREADABLE}") from error
    except Exception as error:
        # On hostile bytes Pillow's plugins raise almost any type of exception.
        raise ImageError(f"{name}: cannot be decoded ({one_line(error)})") from error


class _WarningFilter:
    """Suppresses Pillow's warnings while any thread decodes; shared by all threads.

    `warnings.catch_warnings` replaces a process-wide list, so two threads inside it would restore
    each other's list. Here the first thread to enter replaces it and the last one restores it.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0
        self.swap = contextlib.ExitStack()


_warning_filter = _WarningFilter()


def _renew_warning_filter() -> None:
    global _warning_filter
    _warning_filter = _WarningFilter()


# After a fork while another thread holds the lock, the child would wait for it forever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_warning_filter)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # Pillow warns about damaged metadata, which does not affect the pixels.
    if getattr(sys.flags, "context_aware_warnings", False):
        with warnings.catch_warnings():  # each thread has its own list
            _ignore_pillow()
            yield
        return
    shared = _warning_filter
    with shared.lock:
        if shared.depth == 0:
            shared.swap.enter_context(warnings.catch_warnings())
            _ignore_pillow()
        shared.depth += 1
    try:
        yield
    finally:
        with shared.lock:
            shared.depth -= 1
            if shared.depth == 0:
                shared.swap.close()


def _ignore_pillow() -> None:
    warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif)(\.|$)")


def _upright_rgb(
    image: Image.Image,
    max_pixels: int,
    least_side: int | None = None,
    on_header: Callable[[Image.Image], None] | None = None,
) -> Image.Image:
    from_file = isinstance(image, ImageFile.ImageFile)  # only its header is read so far
    if from_file and image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height}"
        raise _RefusedError(f"{size} pixels exceed the limit of {max_pixels} pixels")
    if min(image.size) < 1:
        raise _RefusedError(f"{image.width} x {image.height} has no pixels")
    if from_file:
        if any(str(tile[0]) == "fits_gzip" for tile in getattr(image, "tile", ())):
            raise _RefusedError("compressed FITS may unpack to any size; convert the file")
        _check_memory(image, _decoder_bytes(image))
        if on_header is not None and image.format != "PNG":
            on_header(image)
        if least_side is not None:
            image.draft(None, (least_side, least_side))  # of JPEGs; others ignore it
    image.load()
    if from_file and on_header is not None and image.format == "PNG":
        on_header(image)
    turn = _UPRIGHT.get(orientation_of(image))
    if from_file:  # some formats report orientation or size only now
        _check_memory(image, 4 if turn is not None else 0)
    image = _rgb(image)
    if turn is not None:
        image = image.transpose(turn)
        image.info = {}  # so that the tag is not applied twice
    return image


def _check_memory(image: Image.Image, more: float) -> None:
    """Refuse an image that needs too much memory, with `more` bytes per pixel besides itself."""
    own = _MODE_BYTES.get(image.mode, 4) + (0 if image.mode == "RGB" else 4)
    need = image.width * image.height * (own + more)
    if need > MAX_MEMORY:
        size = f"{image.width} x {image.height} pixels ({image.format or 'image'}, {image.mode})"
        raise _RefusedError(
            f"{size} would need {need / 1e9:.1f} GB, the limit is {MAX_MEMORY / 1e9:.0f} GB; "
            "reduce its size"
        )


def _decoder_bytes(image: Image.Image) -> float:
    """Return the memory of an opened image's decoder, in bytes per pixel."""
    more: float = _DECODER_BYTES.get(image.format or "", _OTHER_DECODER_BYTES)
    if image.format in ("JPEG", "MPO"):
        layers = [(h, v) for _, h, v, *_ in getattr(image, "layer", ())]
        if image.info.get("progressive") and layers:  # keeps all coefficients, of two bytes each
            full = max(h for h, _ in layers) * max(v for _, v in layers)
            more += 2 * sum(h * v for h, v in layers) / max(1, full)
        if _UPRIGHT.get(orientation_of(image)) is not None:
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
    position = stream.tell()
    size: int = stream.seek(0, io.SEEK_END)
    stream.seek(position)
    return size


def _share_of_tile(image: Image.Image) -> float:
    """Return the share of a JPEG 2000 that is decoded at a time: tile size by image size."""
    stream = getattr(image, "fp", None)
    if stream is None:
        return 1
    position = stream.tell()
    stream.seek(0)
    head = stream.read(1 << 16)
    stream.seek(position)
    begin = head.find(b"\xff\x4f\xff\x51") + 4
    if begin < 4 or len(head) < begin + 28:
        return 1
    width, height = (int.from_bytes(head[begin + k : begin + k + 4], "big") for k in (20, 24))
    return min(1.0, width * height / (image.width * image.height))


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an image; 1 if it has none, or its EXIF is damaged."""
    try:
        data, text = image.info.get("exif"), image.info.get("Raw profile type exif")
        if data is None and text:
            data = bytes.fromhex("".join(text.split("\n")[3:]))
        if data and size_of_tags(io.BytesIO(data.removeprefix(b"Exif\0\0"))) > MAX_TAGS:
            return 1
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF raises anything; the pixels are still good
        return 1
    return value if isinstance(value, int) else 1


def _rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode == "RGB":
        return image
    if mode.startswith("I"):  # "I", and the 16-bit modes in either byte order
        return _by_bands(image, lambda band: _from_16_bit(np.clip(band, 0, 65535)))
    if mode == "F":
        highest = max(_highest(np.asarray(image.crop(box))) for box in _bands(image))
        scale = 1 if highest <= 1 else 255
        return _by_bands(image, lambda band: _from_float(band / np.float32(scale), clip=True))
    # Pillow cannot convert premultiplied grey to RGB directly.
    return (image.convert("LA") if mode == "La" else image).convert("RGB")


def _highest(band: NDArray[Any]) -> float:
    if not np.isfinite(band).all():
        raise _RefusedError("floats must be finite")
    return float(band.max())


def _bands(image: Image.Image) -> list[tuple[int, int, int, int]]:
    """Return boxes of limited size that cover an image."""
    width, height = image.size
    step = min(width, _BAND)
    rows = max(1, _BAND // step)
    return [
        (left, top, min(left + step, width), min(top + rows, height))
        for top in range(0, height, rows)
        for left in range(0, width, step)
    ]


def _by_bands(image: Image.Image, grey: Callable[[NDArray[Any]], NDArray[np.uint8]]) -> Image.Image:
    """Return `image` in RGB from the grey values of its bands, to save memory."""
    out = Image.new("RGB", image.size)
    for box in _bands(image):
        band = Image.fromarray(grey(np.asarray(image.crop(box))))
        out.paste(band.convert("RGB"), box[:2])
    return out


def _from_16_bit(values: NDArray[Any]) -> NDArray[np.uint8]:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 is 255 times 257


def _from_float(values: NDArray[Any], *, clip: bool) -> NDArray[np.uint8]:
    if not np.isfinite(values).all():
        raise _RefusedError("floats must be finite")
    low, high = float(values.min()), float(values.max())
    # Resizing in floating point may exceed 1 slightly.
    if not clip and (low < -1e-3 or high > 1 + 1e-3):
        raise _RefusedError(f"floats must be in [0, 1], not {low:g} to {high:g}")
    return np.rint(values.clip(0, 1) * 255.0).astype(np.uint8)


def _from_array(array: NDArray[Any]) -> Image.Image:
    shape = array.shape
    if array.ndim == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        raise _RefusedError(f"{shape} is channel-first; give (H, W, C)")
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        raise _RefusedError(f"its shape is {shape}, not (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    if 0 in shape:
        raise _RefusedError(f"{shape} has no pixels")
    if array.ndim == 3:
        array = array[..., 0] if shape[2] == 1 else array[..., :3]
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype.newbyteorder("=") == np.uint16:
        array = _from_16_bit(array)
    elif np.issubdtype(array.dtype, np.floating):
        array = _from_float(array, clip=False)
    elif array.dtype != np.uint8:
        raise _RefusedError(
            f"its dtype is {array.dtype}, not uint8, uint16, bool or floating point"
        )
    return _rgb(Image.fromarray(np.ascontiguousarray(array)))
