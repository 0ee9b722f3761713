"""What the header of a photograph says: size, capture time, camera, place.

    facts: list[PhotoFacts] = []
    open_image(path, on_header=lambda image: facts.append(read_photo_facts(image)))

A fact that is damaged or implausible is None; nothing is guessed:

- The time is `DateTimeOriginal`, else `DateTimeDigitized` unless a scanner wrote it. `DateTime` is
  when a program last saved the file, so it does not count, nor does the file's own time. Clocks
  that were never set (midnight of 1 January 1900, 1904, 1970 or 1980) do not count.
- The offset to UTC is the one written for that time, never the one of another tag.
- A place needs both hemispheres. Cameras without a fix write 0, 0, or the status "void".
"""

from __future__ import annotations

import calendar
import datetime
import io
import re
import unicodedata
from typing import Any

from PIL import Image

from pocketclip.formats.exif import EXIF, GPS, IMAGE, Tags, read_exif
from pocketclip.images import orientation_of
from pocketclip.search.records import PhotoFacts

_MAKE, _MODEL = 0x010F, 0x0110
_FILE_SOURCE = 0xA300
_SCANNERS = ((1,), (2,), b"\1", b"\2")  # of films, of prints
# Of each time: the tags of its date, fraction of a second, and offset.
_TIMES = ((0x9003, 0x9291, 0x9011), (0x9004, 0x9292, 0x9012))
_LATITUDE, _LONGITUDE, _STATUS = (1, 2, "NS", 90), (3, 4, "EW", 180), 9
_WANTED = {
    IMAGE: frozenset({_MAKE, _MODEL}),
    EXIF: frozenset({_FILE_SOURCE, *(tag for time in _TIMES for tag in time)}),
    GPS: frozenset({*_LATITUDE[:2], *_LONGITUDE[:2], _STATUS}),
}
_DATE = re.compile(
    r"(\d{4})[:./-](\d\d?)[:./-](\d\d?)[ T](\d\d?):(\d\d):(\d\d)(?:\.(\d{1,9})\d*)?"
    r" ?(Z|[+-]\d\d:?\d\d)?",
    re.ASCII,
)
_OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)", re.ASCII)
_FRACTION = re.compile(r"\d{1,9}", re.ASCII)
_FIRST_YEAR = 1826  # of the oldest photograph
_UNSET_CLOCKS = {(year, 1, 1, 0, 0, 0) for year in (1900, 1904, 1970, 1980)}
_MAX_NAME = 100  # characters
_LEGAL_FORMS = {
    "ag", "co", "company", "corp", "corporation", "gmbh", "inc", "incorporated", "kg", "limited",
    "llc", "ltd",
}  # fmt: skip
_NO_NAMES = {"", "default", "n/a", "none", "null", "unknown"}


def read_photo_facts(image: Image.Image) -> PhotoFacts:
    """Return what the header of an opened image says.

    Args:
        image: as `open_image` hands it to `on_header`: JPEG, HEIF, PNG, WebP, TIFF and AVIF have
            EXIF, the other formats a size only.

    Returns:
        The facts. It never raises because of metadata, and reads at most a few kB of it.
    """
    orientation, width, height = _upright(image)
    tags = _tags(image)
    taken, offset = _capture_time(tags)
    place = _place(tags)
    return PhotoFacts(
        width=width,
        height=height,
        format="JPEG" if image.format == "MPO" else image.format,  # a JPEG with more behind it
        orientation=orientation,
        taken=taken,
        taken_offset=offset,
        camera=_camera(tags.text(IMAGE, _MAKE), tags.text(IMAGE, _MODEL)),
        latitude=place[0] if place else None,
        longitude=place[1] if place else None,
    )


def _upright(image: Image.Image) -> tuple[int | None, int, int]:
    """Return the orientation in the file, and the upright size."""
    width, height = image.size
    tag = orientation_of(image)
    if image.format == "TIFF":  # versions of Pillow differ in whether `size` is upright already
        stored: Any = getattr(image, "tag_v2", {})
        sides = stored.get(0x0100), stored.get(0x0101)
        if sorted(sides, key=str) == sorted(image.size, key=str):
            width, height = sides
    if tag in (5, 6, 7, 8):
        width, height = height, width
    turned = image.info.get("original_orientation")  # by pillow-heif, which clears the tag
    tag = turned if isinstance(turned, int) else tag
    return (tag if tag in range(1, 9) else None), width, height


def _tags(image: Image.Image) -> Tags:
    try:
        data = image.info.get("exif")
        text = image.info.get("Raw profile type exif")
        if isinstance(data, bytes):
            return read_exif(io.BytesIO(data), _WANTED)
        if isinstance(text, str):  # of ImageMagick: a name, a length, then hexadecimal digits
            return read_exif(io.BytesIO(bytes.fromhex("".join(text.split("\n")[3:]))), _WANTED)
        stream = getattr(image, "fp", None)
        if image.format == "TIFF" and stream is not None:
            position = stream.tell()
            try:
                return read_exif(stream, _WANTED)
            finally:
                stream.seek(position)
    except Exception:  # hostile bytes make Pillow's objects raise anything
        pass
    return Tags()


def _capture_time(tags: Tags) -> tuple[float | None, int | None]:
    """Return seconds from 1970 to what the clock showed, and minutes it was ahead of UTC."""
    scanned = tags.values.get((EXIF, _FILE_SOURCE)) in _SCANNERS
    for date, fraction, offset in _TIMES[: 1 if scanned else 2]:
        match = _DATE.fullmatch(tags.text(EXIF, date) or "")
        seconds = _seconds(match) if match else None
        if match is None or seconds is None:
            continue
        digits = match[7] or tags.text(EXIF, fraction) or ""
        if _FRACTION.fullmatch(digits):
            seconds += int(digits) / 10 ** len(digits)
        return seconds, _minutes(tags.text(EXIF, offset) or match[8] or "")
    return None, None


def _seconds(match: re.Match[str]) -> float | None:
    year, month, day, hour, minute, second = numbers = tuple(int(match[i]) for i in range(1, 7))
    if numbers in _UNSET_CLOCKS or not _FIRST_YEAR <= year <= datetime.date.today().year + 1:
        return None
    if hour > 23 or minute > 59 or second > 59:
        return None
    try:
        datetime.date(year, month, day)
    except ValueError:
        return None
    return float(calendar.timegm((year, month, day, hour, minute, second)))


def _minutes(text: str) -> int | None:
    if text == "Z":
        return 0
    match = _OFFSET.fullmatch(text)
    if match is None:
        return None
    minutes = int(match[2]) * 60 + int(match[3])
    minutes *= -1 if match[1] == "-" else 1
    return minutes if -12 * 60 <= minutes <= 14 * 60 and minutes % 15 == 0 else None


def _camera(make: str | None, model: str | None) -> str | None:
    """Return maker and model on one line, the maker once and without its legal form."""
    make, model = _name(make), _name(model)
    words = make.split()
    while len(words) > 1 and words[-1].casefold().strip(".,") in _LEGAL_FORMS:
        words.pop()
    if words:
        words[-1] = words[-1].rstrip(",")
    # Of "EASTMAN KODAK" the model repeats the second word.
    first = model.casefold().split()[:1]
    if first and first[0] in (word.casefold() for word in words):
        return model
    return " ".join([*words, model]).strip() or None


def _name(text: str | None) -> str:
    if text is None or len(text) > _MAX_NAME:
        return ""
    text = " ".join("".join(c if unicodedata.category(c)[0] != "C" else " " for c in text).split())
    return "" if text.casefold() in _NO_NAMES else text


def _place(tags: Tags) -> tuple[float, float] | None:
    """Return degrees north and east."""
    if tags.text(GPS, _STATUS) == "V":
        return None
    latitude, longitude = _degrees(tags, *_LATITUDE), _degrees(tags, *_LONGITUDE)
    if latitude is None or longitude is None or latitude == longitude == 0:
        return None
    return latitude, longitude


def _degrees(tags: Tags, sign: int, angle: int, letters: str, most: int) -> float | None:
    letter = (tags.text(GPS, sign) or "").upper()
    numbers = tags.numbers(GPS, angle)
    if len(letter) != 1 or letter not in letters or not 1 <= len(numbers) <= 3:
        return None
    if len(numbers) == 3 and numbers[2] is None:
        numbers = numbers[:2]  # seconds 0/0: the minutes have decimals
    degrees = 0.0
    for number, unit, limit in zip(numbers, (1, 60, 3600), (most, 60, 60), strict=False):
        if number is None or not 0 <= number <= limit:
            return None
        degrees += number / unit
    if degrees > most:
        return None
    return -degrees if letter == letters[1] else degrees
