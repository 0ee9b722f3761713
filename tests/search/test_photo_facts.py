"""Facts of the header: right for every format, None where it is damaged or implausible."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pocketclip.errors import ImageError
from pocketclip.images import open_image, orientation_of
from pocketclip.search.indexing.photo_facts import read_photo_facts
from tests.fuzzing import mutate
from tests.search.exif_bytes import (
    DIGITIZED,
    LONG,
    MAKE,
    MODEL,
    ORIENTATION,
    SHORT,
    TAKEN,
    exif,
    fractions,
    place,
    text,
)

CAMERA = {MAKE: text("Apple"), MODEL: text("iPhone 12")}
BERLIN = place([(52, 1), (31, 1), (125, 10)], [(13, 1), (24, 1), (0, 1)])
FULL = {
    "taken": {TAKEN: text("2024:05:01 10:11:12"), 0x9291: text("250"), 0x9011: text("+02:00")},
    "gps": BERLIN,
}


def facts_of(data):
    """Return the facts of an encoded image; they must change nothing of its pixels."""
    found = []
    image = open_image(data, on_header=lambda header: found.append(read_photo_facts(header)))
    assert np.array_equal(np.asarray(image), np.asarray(open_image(data)))
    assert len(found) == 1
    return found[0], image


def encoded(kind, data, **options):
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((24, 16)).convert("RGB").save(
        buffer, kind, **({"exif": b"Exif\0\0" + data} if data else {}), **options
    )
    return buffer.getvalue()


def facts(**directories):
    return facts_of(encoded("JPEG", exif(**directories)))[0]


def as_png(data, place_of_chunk):
    """Return a PNG with EXIF before or after its pixels, or as ImageMagick writes it."""
    if place_of_chunk == "text":
        info = PngImagePlugin.PngInfo()
        info.add_text("Raw profile type exif", f"\nexif\n{len(data) + 6:8}\n" + (
            b"Exif\0\0" + data).hex(), zip=True)  # fmt: skip
        return encoded("PNG", None, pnginfo=info)
    plain = encoded("PNG", None)
    at = 33 if place_of_chunk == "early" else plain.rindex(b"IEND") - 4
    chunk = struct.pack(">L", len(data)) + b"eXIf" + data
    chunk += struct.pack(">L", zlib.crc32(chunk[4:]))
    return plain[:at] + chunk + plain[at:]


def as_tiff(orientation, compression, pixels):
    """Return a TIFF of one strip, in which EXIF is a directory like any other."""
    numbers = {256: 24, 257: 16, 259: compression, 262: 2, 273: 0, 277: 3, 278: 16}
    numbers |= {279: len(pixels), ORIENTATION: orientation}
    while True:
        tags = {tag: (LONG, struct.pack(">L", number)) for tag, number in numbers.items()}
        tags |= {258: (SHORT, struct.pack(">3H", 8, 8, 8)), **CAMERA}
        data = exif(tags, **FULL)
        if numbers[273] == len(data):
            return data + pixels
        numbers[273] = len(data)


def heif(data):
    pytest.importorskip("pillow_heif").register_heif_opener()
    return encoded("HEIF", data)


PIXELS = bytes(range(192)) * 6
SECOND = [Image.new("RGB", (8, 8))]
FORMATS = {
    "JPEG": lambda data, _: encoded("JPEG", data),
    "MPO": lambda data, _: encoded("MPO", data, save_all=True, append_images=SECOND),
    "WebP": lambda data, _: encoded("WEBP", data),
    "PNG": lambda data, _: as_png(data, "early"),
    "PNG, late": lambda data, _: as_png(data, "late"),
    "PNG, text": lambda data, _: as_png(data, "text"),
    "TIFF": lambda _, orientation: as_tiff(orientation, 1, PIXELS),
    "packed TIFF": lambda _, orientation: as_tiff(orientation, 8, zlib.compress(PIXELS)),
    "HEIF": lambda data, _: heif(data),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format(kind):
    for orientation in range(1, 9):
        camera = {**CAMERA, ORIENTATION: (SHORT, struct.pack(">H", orientation))}
        found, image = facts_of(FORMATS[kind](exif(camera, **FULL), orientation))
        assert (found.width, found.height) == image.size
        assert found.orientation == orientation
        assert found.taken == 1714558272.25
        assert found.taken_offset == 120
        assert found.camera == "Apple iPhone 12"
        assert (found.latitude, found.longitude) == (pytest.approx(52.5201389), 13.4)
    assert found.format == {"MPO": "JPEG"}.get(kind, kind.split(",")[0].split()[-1].upper())


def test_an_image_without_metadata():
    found, _ = facts_of(encoded("BMP", None))
    assert (found.width, found.height, found.format) == (24, 16, "BMP")
    assert found.taken is found.camera is found.latitude is found.taken_offset is None


@pytest.mark.parametrize(
    ("date", "seconds"),
    [
        ("1955:03:02 08:00:00", -468172800.0),
        ("2024-02-29T23:59:59", 1709251199.0),
        ("2024:05:01 10:11:12.5+09:30", 1714558272.5),
        ("0000:00:00 00:00:00", None),
        ("    :  :     :  :  ", None),
        ("2024:13:45 10:00:00", None),
        ("2023:02:29 10:00:00", None),
        ("2024:05:01 24:00:00", None),
        ("2024:05:01", None),
        ("1900:01:01 00:00:00", None),
        ("1970:01:01 00:00:00", None),
        ("1980:01:01 00:00:00", None),
        ("1980:01:01 00:00:01", 315532801.0),
        ("9999:12:31 23:59:59", None),
        ("0001:01:01 00:00:00", None),
        ("２０２４:05:01 10:00:00", None),
        ("nan", None),
        ("", None),
    ],
)
def test_dates(date, seconds):
    assert facts(taken={TAKEN: text(date)}).taken == seconds


def test_which_date_counts():
    saved = {0x0132: text("2024:05:01 10:00:00")}
    scanned = {DIGITIZED: text("2010:01:02 03:04:05"), 0x9292: text("5"), 0x9012: text("-03:30")}
    assert facts(image=saved).taken is None
    later = facts(image=saved, taken=scanned)
    assert (later.taken, later.taken_offset) == (1262401445.5, -210)
    assert facts(taken={**scanned, 0xA300: (7, b"\2")}).taken is None
    both = facts(taken={**scanned, TAKEN: text("2001:01:01 00:00:00")})
    assert (both.taken, both.taken_offset) == (978307200.0, None)
    # A clock that was never set does not hide the other time.
    assert facts(taken={**scanned, TAKEN: text("0000:00:00 00:00:00")}).taken == 1262401445.5


@pytest.mark.parametrize(
    ("offset", "minutes"),
    [("Z", 0), ("+05:45", 345), ("-12:00", -720), ("+14:00", 840), ("+14:15", None),
     ("+99:99", None), ("02:00", None), ("+02:07", None), ("   :  ", None)],
)  # fmt: skip
def test_offsets(offset, minutes):
    taken = {TAKEN: text("2024:05:01 10:11:12"), 0x9011: text(offset), 0x9010: text("+01:00")}
    assert facts(taken=taken).taken_offset == minutes


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        ("Canon", "Canon EOS 5D", "Canon EOS 5D"),
        ("NIKON CORPORATION", "NIKON D750", "NIKON D750"),
        ("EASTMAN KODAK COMPANY", "KODAK EASYSHARE C813", "KODAK EASYSHARE C813"),
        ("FUJI PHOTO FILM CO., LTD.", "FinePix S5000", "FUJI PHOTO FILM FinePix S5000"),
        ("  Google \0junk", "Pixel\x1b[2J 7\u202e ", "Google Pixel [2J 7"),
        ("", "Pixel 7", "Pixel 7"),
        ("Leica Camera AG", "", "Leica Camera"),
        ("x" * 5000, "Pixel 7", "Pixel 7"),
        ("Unknown", "unknown", None),
        ("\0\0\0", "   ", None),
    ],
)
def test_cameras(make, model, camera):
    assert facts(image={MAKE: text(make), MODEL: text(model)}).camera == camera


def test_bytes_that_are_not_utf_8():
    assert facts(image={MAKE: (2, b"Caf\xe9\0")}).camera == "Caf\ufffd"


ZERO = [(0, 1)] * 3


@pytest.mark.parametrize(
    ("gps", "expected"),
    [
        (place([(33, 1), (512, 10)], [(70, 1), (0, 1), (36, 1)], "SW"), (-33.8533333, -70.01)),
        (place([(52, 1), (306, 10), (0, 0)], [(13, 1), (0, 1), (0, 0)]), (52.51, 13)),
        (place([(525, 10)], [(135, 10)]), (52.5, 13.5)),
        (place(ZERO, ZERO), None),
        (place(ZERO, [(7, 1), (30, 1), (0, 1)]), (0, 7.5)),
        (place([(0, 0)] * 3, [(0, 0)] * 3), None),
        (place([(52, 1), (1, 0), (0, 1)], [(13, 1), (0, 1), (0, 1)]), None),
        (place([(91, 1), (0, 1), (0, 1)], [(13, 1), (0, 1), (0, 1)]), None),
        (place([(90, 1), (1, 1), (0, 1)], [(13, 1), (0, 1), (0, 1)]), None),
        (place([(52, 1), (61, 1), (0, 1)], [(13, 1), (0, 1), (0, 1)]), None),
        (place([(52, 1), (0, 1), (0, 1)], [(181, 1), (0, 1), (0, 1)]), None),
        ({**BERLIN, 1: text("X")}, None),
        ({key: BERLIN[key] for key in (2, 3, 4)}, None),
        ({key: BERLIN[key] for key in (1, 2)}, None),
        ({**BERLIN, 9: text("V")}, None),
        ({**BERLIN, 2: (11, struct.pack(">3f", 1, float("nan"), 0))}, None),
        ({**BERLIN, 2: text("52.5")}, None),
        ({**BERLIN, 2: fractions(*[(1, 1)] * 4)}, None),
    ],
)  # fmt: skip
def test_places(gps, expected):
    found = facts(gps=gps)
    if expected is None:
        assert found.latitude is found.longitude is None
    else:
        assert (found.latitude, found.longitude) == pytest.approx(expected)


def with_huge_tags(first):
    """Return EXIF whose second directory has 5,000 values of a megabyte, at the same place."""
    entries = b"".join(struct.pack(">HHLL", TAKEN + i % 9, 2, 1 << 20, 8) for i in range(5000))
    head = struct.pack(">H", len(first) + 1) + b"".join(
        struct.pack(">HHLHH", tag, SHORT, 1, number, 0) for tag, number in first.items()
    )
    at = 8 + len(head) + 12 + 4
    head += struct.pack(">HHLL", 0x8769, 4, 1, at) + b"\0\0\0\0"
    return b"MM\0*\0\0\0\x08" + head + struct.pack(">H", 5000) + entries


def test_a_directory_of_huge_values_is_not_copied():
    image = Image.new("RGB", (4, 4))
    image.info["exif"] = with_huge_tags({ORIENTATION: 6})
    # Older Pillow would copy 5 GB to learn the orientation.
    assert orientation_of(image) == 1
    assert read_photo_facts(image).taken is None
    with pytest.raises(ImageError, match="its tags take 5,242,880,016 bytes"):
        open_image(with_huge_tags({256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 277: 1}))


def test_damaged_exif_is_left_out():
    rng = random.Random(0)
    whole = exif({MAKE: text("Apple"), ORIENTATION: (SHORT, b"\0\6")}, **FULL)
    image = Image.new("RGB", (24, 16))
    kept = 0
    for _ in range(2000):
        image.info["exif"] = mutate(rng, whole, whole)
        image._exif = None
        found = read_photo_facts(image)
        kept += found.taken is not None
        assert found.taken is None or -4.6e9 < found.taken < 4e9
        assert found.latitude is None or (abs(found.latitude) <= 90 and abs(found.longitude) <= 180)
        assert found.orientation in range(1, 9) or found.orientation is None
        assert found.camera is None or found.camera.isprintable()
    assert 300 < kept < 2000
