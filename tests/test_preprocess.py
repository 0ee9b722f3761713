from __future__ import annotations

import dataclasses
import gc
import io
import os
import pickle
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from pocketclip import preprocess as module
from pocketclip.errors import ImageError, MissingDependencyError
from pocketclip.preprocess import Preprocess, open_image
from pocketclip.reinforce.teacher_preprocess import SquareTransform
from pocketclip.zoo import CLIP_MEAN, CLIP_STD, PreprocessConfig

GOLDEN = Path(__file__).parent / "golden" / "preprocess"
PLAIN = PreprocessConfig(size=16)
CLIP = PreprocessConfig(size=16, interpolation="bicubic", mean=CLIP_MEAN, std=CLIP_STD)
# 2 x 3 pixels, all different, so that every orientation is told from every other
CORNERS = np.arange(18, dtype=np.uint8).reshape(3, 2, 3) * 14


def _noise(width: int, height: int) -> np.ndarray[Any, Any]:
    random = np.random.RandomState(width * 1000 + height)
    return random.randint(0, 256, (height, width, 3)).astype(np.uint8)


def _encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def _pixels(source: Any) -> list[Any]:
    image = open_image(source)
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


# --- the transform


def _golden() -> list[Any]:
    with np.load(GOLDEN / "torchvision.npz") as file:
        return [pytest.param(name, file[name], id=name) for name in file.files]


@pytest.mark.parametrize(("name", "expected"), _golden())
def test_equals_torchvision(name: str, expected: np.ndarray[Any, Any]) -> None:
    # The file was made with torchvision's Resize, CenterCrop, ToTensor and Normalize.
    shape, size, interpolation, normalisation = name.split("-")
    width, height = map(int, shape.split("x"))
    config = PreprocessConfig(size=int(size), interpolation=interpolation)  # type: ignore[arg-type]
    if normalisation == "clip":
        config = PreprocessConfig(
            size=int(size),
            interpolation=interpolation,  # type: ignore[arg-type]
            mean=CLIP_MEAN,
            std=CLIP_STD,
        )
    out = Preprocess(config)(_noise(width, height))
    assert out.dtype == np.float32
    assert np.array_equal(out, expected)


def _reference(image: Image.Image, config: PreprocessConfig) -> np.ndarray[Any, Any]:
    """Compute the published formula in its plainest form."""
    side, (width, height) = config.size, image.size
    if width <= height:
        size = (side, int(side * height / width))
    else:
        size = (int(side * width / height), side)
    left = round((size[0] - side) / 2.0)
    top = round((size[1] - side) / 2.0)
    way = getattr(Image.Resampling, config.interpolation.upper())
    whole = np.asarray(image.resize(size, way))
    pixels = whole[top : top + side, left : left + side].astype(np.float32) / np.float32(255)
    pixels = (pixels - np.float32(config.mean)) / np.float32(config.std)
    return pixels.transpose(2, 0, 1)


_SIDES = st.one_of(st.integers(1, 8), st.integers(1, 90))
_CONFIGS = st.builds(
    PreprocessConfig,
    size=st.integers(1, 40),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    mean=st.sampled_from([(0.0, 0.0, 0.0), CLIP_MEAN]),
    std=st.sampled_from([(1.0, 1.0, 1.0), CLIP_STD]),
)


@settings(deadline=None)
@given(_SIDES, _SIDES, _CONFIGS)
def test_equals_the_published_formula(width: int, height: int, config: PreprocessConfig) -> None:
    image = Image.fromarray(_noise(width, height))
    out = Preprocess(config)(image)
    assert out.shape == (3, config.size, config.size)
    assert out.dtype == np.float32
    assert np.array_equal(out, _reference(image, config))


@settings(deadline=None)
@given(_SIDES, _SIDES, _CONFIGS)
def test_squashed_images_are_resized_whole(width: int, height: int, config: Any) -> None:
    # As open_clip's resize mode "squash": both sides to S, whatever the aspect; nothing is cut off.
    image = Image.fromarray(_noise(width, height))
    filter = getattr(Image.Resampling, config.interpolation.upper())
    whole = np.asarray(image.resize((config.size, config.size), filter))
    config = dataclasses.replace(config, resize="squash")
    assert np.array_equal(Preprocess(config).to_uint8(image), whole)
    assert np.array_equal(SquareTransform.of(config).square(image), whole)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(3, 12), st.booleans(), _CONFIGS)
def test_long_images_are_nearly_equal_to_those_resized_whole(
    short: int, ratio: int, tall: bool, config: PreprocessConfig
) -> None:
    long = short * ratio + 1
    image = Image.fromarray(_noise(short, long) if tall else _noise(long, short))
    expected = Preprocess(config)(image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MAX_RESIZED", 0)
        difference = np.abs(Preprocess(config)(image) - expected) * min(config.std) * 255
    # Pillow may swap the two passes, and bicubic values are clipped between them.
    assert difference.mean() < 1.5
    assert config.interpolation == "bicubic" or difference.max() < 1.01


@pytest.mark.parametrize("shape", [(20_000, 1), (1, 20_000), (300_000, 2), (3, 300_000)])
@pytest.mark.parametrize("config", [PreprocessConfig(size=224), CLIP], ids=["plain", "clip"])
def test_a_line_of_pixels_takes_little_memory(
    shape: tuple[int, int], config: PreprocessConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.new("RGB", shape, (255, 0, 51))
    resize = Image.Image.resize

    def bounded(
        self: Image.Image, size: tuple[int, int], *args: Any, **options: Any
    ) -> Image.Image:
        assert size[0] * size[1] <= 1 << 24
        return resize(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", bounded)
    out = Preprocess(config).to_uint8(image)
    assert (out == [255, 0, 51]).all()


def test_uint8_is_the_same_before_scaling() -> None:
    image = Image.fromarray(_noise(31, 22))
    out = Preprocess(PLAIN).to_uint8(image)
    assert (out.dtype, out.shape) == (np.uint8, (16, 16, 3))
    assert np.array_equal(Preprocess(PLAIN)(image) * 255, out.transpose(2, 0, 1))
    out[:] = 0  # the caller's own


def test_batch() -> None:
    images = [Image.fromarray(_noise(20 + i, 30)) for i in range(3)]
    preprocess = Preprocess(CLIP)
    out = preprocess.batch(images)
    assert (out.dtype, out.shape) == (np.float32, (3, 3, 16, 16))
    assert all(np.array_equal(out[i], preprocess(image)) for i, image in enumerate(images))
    assert preprocess.batch([]).shape == (0, 3, 16, 16)
    assert np.array_equal(
        preprocess.batch(np.stack([_noise(9, 9)] * 2))[1], preprocess(_noise(9, 9))
    )


def test_batch_says_which_image_is_bad() -> None:
    with pytest.raises(ImageError, match=r"image 1 of 2: image bytes: empty"):
        Preprocess(PLAIN).batch([CORNERS, b""])
    with pytest.raises(ImageError, match="list of images, not one str"):
        Preprocess(PLAIN).batch("photo.jpg")
    with pytest.raises(ImageError, match="not one ndarray"):
        Preprocess(PLAIN).batch(CORNERS)  # type: ignore[arg-type]


def test_pickles() -> None:
    preprocess = Preprocess(CLIP, max_pixels=500)
    other = pickle.loads(pickle.dumps(preprocess))
    assert repr(other) == repr(preprocess)
    assert other.max_pixels == 500
    assert np.array_equal(other(CORNERS), preprocess(CORNERS))


# --- sources


def test_every_kind_of_source_gives_the_same(tmp_path: Path) -> None:
    image = Image.fromarray(CORNERS)
    data = _encoded(image, "PNG")
    path = tmp_path / "ä b.png"
    path.write_bytes(data)
    for source in (path, str(path), data, bytearray(data), memoryview(data), image, CORNERS):
        assert _pixels(source) == CORNERS.tolist()


def test_an_upright_rgb_image_is_not_copied() -> None:
    image = Image.fromarray(CORNERS)
    assert open_image(image) is image


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(format: str, orientation: int) -> None:
    base = np.kron(CORNERS, np.ones((16, 16, 1), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _encoded(Image.fromarray(base), format, exif=exif)
    upright = [
        base, base[:, ::-1], base[::-1, ::-1], base[::-1], base.swapaxes(0, 1),
        np.rot90(base, -1), np.rot90(base, 2).swapaxes(0, 1), np.rot90(base),
    ][orientation - 1]  # fmt: skip
    image = open_image(data)
    assert np.abs(np.asarray(image).astype(int) - upright).mean() < 12  # lossy at block edges
    assert open_image(image).size == image.size
    assert np.array_equal(np.asarray(open_image(image)), np.asarray(image))
    lazy = Image.open(io.BytesIO(data))
    assert np.array_equal(np.asarray(open_image(lazy)), np.asarray(image))


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\xff", b"\xff" * 40])
def test_damaged_exif_is_ignored(exif: bytes) -> None:
    data = _encoded(Image.fromarray(CORNERS), "PNG", exif=exif)
    assert _pixels(data) == CORNERS.tolist()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_modes_are_converted_as_pillow_does(mode: str) -> None:
    image = Image.fromarray(_noise(6, 5)).convert(mode)
    assert _pixels(image) == np.asarray(image.convert("RGB")).tolist()


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBa", "RGBA"])
def test_transparency_is_dropped_not_blended(mode: str) -> None:
    image = Image.new("RGBA", (1, 1), (90, 90, 90, 255))
    image = image.convert("LA").convert(mode) if mode != "RGBa" else image.convert(mode)
    assert _pixels(image) == [[[90, 90, 90]]]
    assert _pixels(Image.new("RGBA", (1, 1), (10, 20, 30, 0))) == [[[10, 20, 30]]]


@pytest.mark.parametrize("transparency", [0, b"\x00\x80"])
def test_a_palette_with_transparency_does_not_warn(transparency: int | bytes) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    data = _encoded(image, "PNG", transparency=transparency)
    for source in (data, Image.open(io.BytesIO(data))):
        assert _pixels(source) == [[[10, 20, 30], [40, 50, 60]]]


DEEP = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
SHALLOW = [0, 0, 1, 1, 128, 255]


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I"])
def test_16_bit_grey_is_scaled(mode: str) -> None:
    dtype = {"I;16B": ">u2", "I": "<i4"}.get(mode, "<u2")
    image = Image.frombytes(mode, (6, 1), DEEP.astype(dtype).tobytes())
    assert _pixels(image) == [[[v] * 3 for v in SHALLOW]]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_files(format: str) -> None:
    data = _encoded(Image.fromarray(DEEP), format)
    assert _pixels(data) == [[[v] * 3 for v in SHALLOW]]


def test_big_endian_tiff_and_pgm() -> None:
    image = Image.frombytes("I;16B", (6, 1), DEEP.astype(">u2").tobytes())
    assert _pixels(_encoded(image, "TIFF")) == [[[v] * 3 for v in SHALLOW]]
    assert _pixels(b"P5 6 1 65535\n" + DEEP.astype(">u2").tobytes()) == [[[v] * 3 for v in SHALLOW]]


def test_floating_point_images() -> None:
    unit = np.array([[-0.5, 0.0, 0.5, 1.0]], np.float32)
    assert _pixels(Image.fromarray(unit)) == [[[v] * 3 for v in (0, 0, 128, 255)]]
    assert _pixels(Image.fromarray(unit * 255)) == [[[v] * 3 for v in (0, 0, 128, 255)]]
    with pytest.raises(ImageError, match="image: floats must be finite"):
        open_image(Image.fromarray(unit * np.nan))


def test_cmyk_jpeg_is_not_inverted() -> None:
    # Adobe's files hold inverted inks; Pillow writes them so, with Adobe's marker.
    data = _encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert b"Adobe" in data
    red = np.asarray(open_image(data))[8, 8]
    assert red[0] > 240
    assert red[1:].max() < 15


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(format: str) -> None:
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if format == "WEBP" else {}
    data = _encoded(first, format, save_all=True, append_images=[second], **options)
    assert _pixels(data)[0][0] == [255, 0, 0]


# --- arrays


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 7]], np.uint8), [0, 7]),
        (np.array([[[0], [7]]], np.uint8), [0, 7]),
        (DEEP, SHALLOW),
        (DEEP.astype(">u2"), SHALLOW),
        (np.array([[True, False]]), [255, 0]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.2]], np.float64), [51]),
        (np.array([[1.0]], np.float16), [255]),
        (np.array([[1.0005, -0.0005]]), [255, 0]),
    ],
)
def test_grey_arrays(array: np.ndarray[Any, Any], expected: list[int]) -> None:
    assert _pixels(array) == [[[v] * 3 for v in expected]]


def test_colour_arrays() -> None:
    rgba = np.dstack([CORNERS, np.zeros((3, 2), np.uint8)])
    assert _pixels(rgba) == CORNERS.tolist()
    assert _pixels(CORNERS / 255) == CORNERS.tolist()
    assert _pixels(CORNERS[::-1, ::-1]) == CORNERS[::-1, ::-1].tolist()
    assert _pixels(np.zeros((3, 5, 3), np.uint8)) == np.zeros((3, 5, 3)).tolist()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 8, 9), np.uint8), r"array: \(3, 8, 9\) is channel-first; give \(H, W, C\)"),
        (np.zeros((1, 8, 9), np.uint8), "channel-first"),
        (np.zeros((8, 9, 2), np.uint8), r"not \(H, W\), "),
        (np.zeros((2, 8, 9, 3), np.uint8), r"not \(H, W\), "),
        (np.zeros(5, np.uint8), r"not \(H, W\), "),
        (np.zeros((0, 9, 3), np.uint8), "has no pixels"),
        (np.zeros((8, 9), np.int64), "int64, not uint8"),
        (np.zeros((8, 9), object), "object, not uint8"),
        (np.full((8, 9), 255.0), r"floats must be in \[0, 1\], not 255 to 255"),
        (np.full((8, 9), -1.0), r"floats must be in \[0, 1\]"),
        (np.full((8, 9), np.nan), "finite"),
    ],
)
def test_arrays_refused(array: np.ndarray[Any, Any], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        open_image(array)


# --- errors: one line that names the source


def _refused(source: Any, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


PNG = _encoded(Image.fromarray(_noise(40, 40)), "PNG")
JPEG = _encoded(Image.fromarray(_noise(40, 40)), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty (0 bytes)"),
        (b"hello, this is text", "not an image"),
        (PNG[:100], "cannot be decoded"),
        (JPEG[: len(JPEG) // 2], "cannot be decoded"),
        (JPEG[:30], ""),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", ""),
    ],
)
def test_bad_files_and_bytes(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    for source, name in ((path, str(path)), (data, "image bytes")):
        message = _refused(source)
        assert message.startswith(f"{name}: ")
        assert reason in message
        assert "BytesIO" not in message


def test_bad_paths(tmp_path: Path) -> None:
    assert _refused(tmp_path / "no.png") == f"{tmp_path / 'no.png'}: No such file or directory"
    assert "s a directory" in _refused(tmp_path) or os.name == "nt"
    assert "null" in _refused("a\0b")


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # the rights of a file do not stop root
    assert _refused(tmp_path / "a.png") == f"{tmp_path / 'a.png'}: Permission denied"


@pytest.mark.parametrize("source", [None, 5, [[1, 2]], object()])
def test_other_types_are_refused(source: Any) -> None:
    assert type(source).__name__ in _refused(source)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_large_images_are_refused_before_decoding(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: object) -> None:
        raise AssertionError("decoded")

    data = _encoded(Image.fromarray(_noise(40, 40)), format)
    assert open_image(data, max_pixels=1600).size == (40, 40)
    lazy = Image.open(io.BytesIO(data))
    monkeypatch.setattr(type(lazy), "load", refuse)
    for source in (data, lazy):
        assert "40 x 40 pixels exceed the limit of 1599" in _refused(source, max_pixels=1599)
    with pytest.raises(ImageError, match="exceed the limit of 9"):
        Preprocess(PLAIN, max_pixels=9)(data)


@pytest.mark.parametrize("limit", [10, 1000, 10_000])
def test_pillows_own_limit_makes_no_warning(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    if limit == 10:
        assert "decompression bomb" in _refused(PNG)
    else:
        assert open_image(PNG).size == (40, 40)  # at 1000 Pillow would warn


def test_global_state_is_left_alone() -> None:
    state = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)
    _refused(PNG[:100])
    open_image(PNG)
    assert state == (
        Image.MAX_IMAGE_PIXELS,
        ImageFile.LOAD_TRUNCATED_IMAGES,
        list(warnings.filters),
    )


def _damaged_metadata() -> bytes:
    # an APNG control chunk with no frames: Pillow warns and shows the plain image
    head, chunk = PNG[:33], b"acTL" + bytes(8)
    return head + struct.pack(">I", 8) + chunk + struct.pack(">I", zlib.crc32(chunk)) + PNG[33:]


def test_pillows_warnings_do_not_leak_from_any_thread() -> None:
    data = _damaged_metadata()
    with pytest.warns(UserWarning, match="APNG"):
        Image.open(io.BytesIO(data))
    before = list(warnings.filters)
    expected = _pixels(PNG)
    with ThreadPoolExecutor(8) as pool:
        assert all(p == expected for p in pool.map(_pixels, [data] * 200))
    assert list(warnings.filters) == before


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "MPO"])
def test_files_are_closed(format: str, tmp_path: Path) -> None:
    image, other = Image.fromarray(_noise(20, 20)), Image.new("RGB", (20, 20))
    path = tmp_path / "image"
    several: dict[str, Any] = {"save_all": True, "append_images": [other]}
    image.save(path, format, **({} if format == "JPEG" else several))
    bad = tmp_path / "bad"
    bad.write_bytes(path.read_bytes()[:60])
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    opened = open_image(path)
    _refused(bad)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert np.asarray(opened.resize((30, 30))).shape == (30, 30, 3)


# --- HEIC


def _forget_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])


def test_heic_without_its_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _forget_heif(monkeypatch)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / "photo.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "AVIF"])
    with pytest.raises(MissingDependencyError, match="image bytes: AVIF images need"):
        open_image(b"\0\0\0\x18ftypavif\0\0\0\0mif1avif")
    with pytest.raises(MissingDependencyError, match=r"photo.heic: .*'pocketclip\[heic\]'"):
        open_image(path)


@pytest.mark.parametrize("orientation", [1, 6])
def test_heic(orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new("RGB", (64, 32), (200, 30, 40))
    data = _encoded(image, "HEIF", exif=exif.tobytes(), quality=95)
    _forget_heif(monkeypatch)
    out = open_image(data)
    assert out.size == ((64, 32) if orientation == 1 else (32, 64))
    assert np.abs(np.asarray(out).astype(int) - [200, 30, 40]).max() < 8
    assert open_image(out).size == out.size
    _refused(data[:200])


@pytest.mark.skipif("AVIF" not in Image.registered_extensions().values(), reason="no AVIF here")
def test_avif() -> None:
    data = _encoded(Image.new("RGB", (64, 32), (200, 30, 40)), "AVIF")
    assert np.abs(np.asarray(open_image(data)).astype(int) - [200, 30, 40]).max() < 8


# --- no input may cause anything but an ImageError


_SEEDS: dict[str, Callable[[], bytes]] = {
    format: lambda format=format: _encoded(Image.fromarray(_noise(20, 20)), format)  # type: ignore[misc]
    for format in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM", "ICO")
}


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(sorted(_SEEDS)),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=8),
    st.integers(20, 2000),
)
def test_damaged_bytes_give_an_image_or_an_error(
    format: str, changes: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(_SEEDS[format]())[:length]
    for index, value in changes:
        data[index % len(data)] = value
    message = "image bytes: "
    try:
        mode = open_image(data, max_pixels=1_000_000).mode
    except ImageError as error:
        mode, message = "RGB", str(error)
    assert mode == "RGB"
    assert message.startswith("image bytes: ")


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    text = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"
    (tmp_path / "a.jpg").write_bytes(text)
    for source in (tmp_path / "a.jpg", text):
        with pytest.raises(ImageError, match=r"is a git-LFS pointer.*git lfs pull"):
            open_image(source)
