"""A picture's file gives the page the pixels that it gives Python."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from pocketclip.preprocess import Preprocess
from pocketclip.zoo import PreprocessConfig

CONFIG = {"size": 16, "interpolation": "bicubic", "mean": [0, 0, 0], "std": [1, 1, 1]}
_SQUARES = """async ([files, preprocess]) => {
  const { assets } = JSON.parse(document.getElementById("config").textContent);
  const url = new URL(`${assets}app/inference/decode.js`, document.baseURI);
  const { decodeSquare } = await import(url.href);
  const out = {};
  for (const [name, text] of Object.entries(files)) {
    const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
    try {
      const { pixels, exact, width, height } = await decodeSquare(new Blob([bytes]), preprocess);
      out[name] = { pixels: [...pixels], exact, size: [width, height] };
    } catch (error) {
      out[name] = { code: error.code, message: error.message };
    }
  }
  return out;
}"""


def _saved(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def _png_of_16_bits(values: np.ndarray[Any, Any], kind: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def _files() -> Iterator[tuple[str, bytes]]:
    random = np.random.RandomState(0)
    noise = random.randint(0, 256, (23, 37, 4)).astype(np.uint8)
    rgba, rgb = Image.fromarray(noise), Image.fromarray(noise[..., :3])
    photo = Image.fromarray(noise[:6, :8, :3]).resize((160, 120), Image.Resampling.BICUBIC)
    palette = rgb.quantize(64)
    yield "png", _saved(rgb, "PNG")
    yield "png, translucent", _saved(rgba, "PNG")
    yield "png, grey and translucent", _saved(rgba.convert("LA"), "PNG")
    yield "png, palette", _saved(palette, "PNG")
    yield "png, palette with a transparent colour", _saved(palette, "PNG", transparency=3)
    yield "png, one bit", _saved(rgb.convert("1"), "PNG")
    yield "png, 16 bits", _png_of_16_bits(random.randint(0, 65536, (23, 37, 3)), 2)
    yield "png, 16 bits, translucent", _png_of_16_bits(random.randint(0, 65536, (23, 37, 4)), 6)
    yield "webp", _saved(rgb, "WEBP", lossless=True)
    yield "webp, translucent", _saved(rgba, "WEBP", lossless=True, exact=True)
    yield "gif", _saved(palette, "GIF")
    yield "bmp", _saved(rgb, "BMP")
    yield "jpeg", _saved(photo, "JPEG", quality=90)
    yield "jpeg, grey", _saved(photo.convert("L"), "JPEG", quality=90)
    yield "jpeg, cmyk", _saved(photo.convert("CMYK"), "JPEG", quality=95)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield "jpeg, colour profile", _saved(photo, "JPEG", quality=95, icc_profile=_other_red(lab))
    yield "png, colour profile", _saved(rgb, "PNG", icc_profile=_other_red(lab))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"jpeg, orientation {orientation}", _saved(photo, "JPEG", quality=90, exif=exif)
    yield "png, orientation 8", _saved(rgb, "PNG", exif=exif)


def _other_red(profile: bytes) -> bytes:
    """Return a colour profile in which red and blue are exchanged."""
    return profile.replace(b"rXYZ", b"tXYZ").replace(b"bXYZ", b"rXYZ").replace(b"tXYZ", b"bXYZ")


def _squares(page: Any, url: str, files: dict[str, bytes]) -> Any:
    page.goto(f"{url}/")
    texts = {name: base64.b64encode(data).decode() for name, data in files.items()}
    return page.evaluate(_SQUARES, [texts, CONFIG])


def test_pixels_are_those_of_python(page, offering_server):
    files = dict(_files())
    found = _squares(page, offering_server.url, files)
    preprocess = Preprocess(PreprocessConfig(size=16, interpolation="bicubic"))
    differ = {}
    for name, data in files.items():
        assert found[name]["exact"], name
        pixels = np.array(found[name]["pixels"], np.int64).reshape(16, 16, 3)
        most = int(np.abs(pixels - preprocess.to_uint8(data)).max())
        # Decoders of JPEG may round differently; here they agree.
        if most > (1 if name.startswith("jpeg") else 0):
            differ[name] = most
    assert not differ, differ


@pytest.mark.slow
def test_grey_of_16_bits_is_cut_off_where_python_rounds(page, offering_server):
    values = np.random.RandomState(0).randint(0, 65536, (23, 37)).astype(np.uint16)
    data = _saved(Image.fromarray(values), "PNG")
    found = _squares(page, offering_server.url, {"grey": data})["grey"]
    expected = Preprocess(PreprocessConfig(size=16, interpolation="bicubic")).to_uint8(data)
    pixels = np.array(found["pixels"], np.int64).reshape(16, 16, 3)
    assert np.abs(pixels - expected).max() == 1


_DRAWN = """async ([text, preprocess]) => {
  const { assets } = JSON.parse(document.getElementById("config").textContent);
  const url = new URL(`${assets}app/inference/decode.js`, document.baseURI);
  const { drawnSquare } = await import(url.href);
  const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes]));
  const frame = new VideoFrame(bitmap, { timestamp: 0 });
  const small = new OffscreenCanvas(1, 1);
  small.getContext("2d").fillRect(0, 0, 1, 1);
  const out = [bitmap, small, frame].map((one) => [...drawnSquare(one, preprocess)]);
  frame.close();
  return out;
}"""


@pytest.mark.slow
def test_frames_are_resized_as_files_are(page, offering_server):
    noise = np.random.RandomState(0).randint(0, 256, (48, 64, 3)).astype(np.uint8)
    data = _saved(Image.fromarray(noise), "PNG")
    page.goto(f"{offering_server.url}/")
    found = page.evaluate(_DRAWN, [base64.b64encode(data).decode(), CONFIG])
    bitmap, black, frame = (np.array(one).reshape(16, 16, 3) for one in found)
    expected = Preprocess(PreprocessConfig(size=16, interpolation="bicubic")).to_uint8(noise)
    assert np.array_equal(bitmap, expected)
    assert np.array_equal(frame, expected)
    assert not black.any()


def test_what_is_no_picture_is_refused(page, offering_server):
    files = {"empty": b"", "text": b"no picture", "cut": b"\x89PNG\r\n\x1a\n"}
    refused = {
        "code": "bad_image",
        "message": "The browser cannot open this picture: choose a JPEG, PNG or WebP file.",
    }
    assert _squares(page, offering_server.url, files) == dict.fromkeys(files, refused)
