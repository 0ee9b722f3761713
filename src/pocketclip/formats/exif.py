"""Reads a few tags of EXIF, with limits, whatever the bytes are.

    tags = read_exif(io.BytesIO(image.info["exif"]))
    tags.text(EXIF, 0x9003)  # "2024:05:01 10:00:00"

Pillow copies every value of a directory, of which thousands may point at the same megabyte. Here
only the values of the wanted tags are read. What is damaged is left out: nothing raises.

EXIF 2.32 (CIPA DC-008-2019), section 4.6; TIFF 6.0, section 2.
"""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass, field
from typing import BinaryIO

IMAGE, EXIF, GPS = "image", "exif", "gps"
"""The directories: of the image itself, of how it was taken, of where."""
_POINTERS = {EXIF: 0x8769, GPS: 0x8825}
_MAX_ENTRIES = 4096  # cameras write fewer than 100
_MAX_BYTES = 4096  # of one value
_ASCII, _UNDEFINED = 2, 7
_NUMBERS = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 11: "f", 12: "d", 13: "L", 16: "Q"}
_FRACTIONS = {5: "L", 10: "l"}


@dataclass(frozen=True, slots=True)
class Tags:
    """The values that were asked for, by directory and tag."""

    values: dict[tuple[str, int], bytes | tuple[float | None, ...]] = field(default_factory=dict)
    """Texts as bytes; numbers as numbers, None for a fraction with the denominator 0."""

    def text(self, directory: str, tag: int) -> str | None:
        """Return a text up to its first NUL, without spaces around it; None if there is none.

        Bytes that are not UTF-8 become U+FFFD.
        """
        value = self.values.get((directory, tag))
        if not isinstance(value, bytes):
            return None
        return value.partition(b"\0")[0].decode("utf-8", "replace").strip() or None

    def numbers(self, directory: str, tag: int) -> tuple[float | None, ...]:
        """Return the numbers of a tag; none if it is missing or a text."""
        value = self.values.get((directory, tag))
        return value if isinstance(value, tuple) else ()

    def integer(self, directory: str, tag: int) -> int | None:
        """Return a tag that is one whole number, else None."""
        numbers = self.numbers(directory, tag)
        return numbers[0] if len(numbers) == 1 and isinstance(numbers[0], int) else None


def read_exif(stream: BinaryIO, wanted: dict[str, frozenset[int]]) -> Tags:
    """Return the wanted tags of EXIF, or of a TIFF file, which begins at the stream's start.

    Args:
        stream: its position changes. "Exif\\0\\0" before the header is passed over.
        wanted: tags by directory.

    Returns:
        What could be read; the first of equal tags counts.
    """
    start = 0
    for _ in range(2):  # some programs write it twice
        stream.seek(start)
        if stream.read(6) == b"Exif\0\0":
            start += 6
    found: dict[tuple[str, int], bytes | tuple[float | None, ...]] = {}
    try:
        reader = _Reader(stream, start)
        pointers = reader.read(IMAGE, reader.first, wanted.get(IMAGE, frozenset()), found)
        for directory, offset in pointers.items():
            if wanted.get(directory):
                reader.read(directory, offset, wanted[directory], found)
    except (struct.error, ValueError, OverflowError, OSError):
        pass  # what came before the damage is kept
    return Tags(found)


class _Reader:
    """Reads directories of a stream whose TIFF header is at `start`.

    Raises:
        ValueError, struct.error: it has no header.
    """

    def __init__(self, stream: BinaryIO, start: int) -> None:
        self.stream, self.start = stream, start
        head = self._at(0, 16)
        self.order = {b"II": "<", b"MM": ">"}[head[:2]] if head[:2] in (b"II", b"MM") else ""
        version = struct.unpack(f"{self.order or '<'}H", head[2:4])[0]
        if not self.order or version not in (42, 43):
            raise ValueError("no TIFF header")
        self.big = version == 43
        place = "Q" if self.big else "L"
        self.first: int = struct.unpack_from(f"{self.order}{place}", head, 8 if self.big else 4)[0]

    def read(
        self,
        directory: str,
        offset: int,
        wanted: frozenset[int],
        found: dict[tuple[str, int], bytes | tuple[float | None, ...]],
    ) -> dict[str, int]:
        """Add the wanted tags of the directory at `offset` to `found`.

        Returns:
            The offsets of the other directories, if this one names them.
        """
        head = self._at(offset, 8 if self.big else 2)
        count = struct.unpack(f"{self.order}{'Q' if self.big else 'H'}", head)[0]
        width = 20 if self.big else 12
        entries = self._at(offset + len(head), min(count, _MAX_ENTRIES) * width)
        pointers: dict[str, int] = {}
        for begin in range(0, len(entries) - width + 1, width):
            tag, kind = struct.unpack_from(f"{self.order}HH", entries, begin)
            names = [name for name, pointer in _POINTERS.items() if pointer == tag]
            if (directory, tag) in found or not (names or tag in wanted):
                continue
            value = self._value(kind, entries[begin + 4 : begin + width])
            if value is None:
                continue
            if names and directory == IMAGE:
                if isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], int):
                    pointers.setdefault(names[0], value[0])
            elif tag in wanted:
                found[directory, tag] = value
        return pointers

    def _value(self, kind: int, field: bytes) -> bytes | tuple[float | None, ...] | None:
        """Return the value of an entry: its count, then its value or where that is."""
        letter = _NUMBERS.get(kind) or _FRACTIONS.get(kind) or ""
        width = struct.calcsize(f"<{letter}")
        size = 1 if kind in (_ASCII, _UNDEFINED) else 2 * width if kind in _FRACTIONS else width
        half = len(field) // 2
        count = struct.unpack(f"{self.order}{'Q' if self.big else 'L'}", field[:half])[0]
        total = count * size
        if not 0 < total <= _MAX_BYTES:
            return None
        data = field[half : half + total]
        if total > half:
            place = struct.unpack(f"{self.order}{'Q' if self.big else 'L'}", field[half:])[0]
            data = self._at(place, total)
        if len(data) < total:
            return None
        if not letter:
            return data
        numbers = struct.unpack(f"{self.order}{total // width}{letter}", data)
        if kind in _FRACTIONS:
            return tuple(
                top / bottom if bottom else None
                for top, bottom in zip(numbers[::2], numbers[1::2], strict=True)
            )
        return tuple(n if isinstance(n, int) or math.isfinite(n) else None for n in numbers)

    def _at(self, offset: int, size: int) -> bytes:
        if offset >= 1 << 62:
            return b""
        self.stream.seek(self.start + offset, io.SEEK_SET)
        return self.stream.read(size)
