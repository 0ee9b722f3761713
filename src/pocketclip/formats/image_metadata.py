"""Removes oversized metadata from image files, so that it cannot use up the memory.

    stream = without_bombs(stream)  # the same image, without large texts and tags

Pillow decompresses the texts and profiles of a PNG and refuses the image if one is large. It copies
the values of TIFF and EXIF tags, of which thousands may point at the same bytes. It concatenates
GIF comments one by one. None of that is needed for the pixels. The orientation is preserved.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import BinaryIO, cast

MAX_METADATA = 1 << 20
"""Limit on the unpacked bytes of a text, profile or set of tags: 1 MiB."""
MAX_TAGS = 1 << 23
"""Limit on the bytes of all tag values of a TIFF, including its strip offsets: 8 MiB."""
_ORIENTATION_KEYS = (b"XML:com.adobe.xmp", b"Raw profile type exif", b"Raw profile type APP1")
_DIRECTORIES = (0x8769, 0x8825)  # tags that point at them: EXIF's own, and the place
_TYPE_SIZES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)  # bytes of TIFF's types


def without_bombs(stream: BinaryIO) -> BinaryIO:
    """Return `stream`, or one without oversized metadata, positioned at the start."""
    head = stream.read(8)
    stream.seek(0)
    spans: list[tuple[int, int]] = []
    if head == b"\x89PNG\r\n\x1a\n":
        spans = _large_chunks(stream)
    elif head[:3] == b"\xff\xd8\xff":
        spans = _large_segments(stream)
    elif head[:4] == b"GIF8":
        spans = _comments(stream)
    stream.seek(0)
    return cast(BinaryIO, _Excluding(stream, spans)) if spans else stream


def size_of_tags(stream: BinaryIO) -> int:
    """Return the bytes of all values in the first directory of a TIFF or of EXIF.

    The directories of how and where the photograph was taken, to which it points, count as well.
    `stream` is positioned at its header. Returns 0 if there is no directory.
    """
    start = stream.tell()
    head = stream.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        return 0
    big = head[2:4] in (b"+\0", b"\0+") and len(head) == 16
    offset = struct.unpack(f"{order}Q", head[8:16])[0] if big else struct.unpack(
        f"{order}L", head[4:8]
    )[0]  # fmt: skip
    total, below = _size_of_directory(stream, start, offset, order, big=big)
    return total + sum(_size_of_directory(stream, start, o, order, big=big)[0] for o in below)


def _size_of_directory(
    stream: BinaryIO, start: int, offset: int, order: str, *, big: bool
) -> tuple[int, set[int]]:
    """Return the bytes of a directory's values, and where the directories below it are."""
    below: set[int] = set()
    if offset >= 1 << 62:
        return 0, below
    layout, width = (f"{order}HHQQ", 20) if big else (f"{order}HHLL", 12)
    stream.seek(start + offset)
    head = stream.read(8 if big else 2)
    if len(head) < (8 if big else 2):
        return 0, below
    count = min(struct.unpack(f"{order}{'Q' if big else 'H'}", head)[0], 1 << 16)
    entries = stream.read(count * width)
    total = 0
    for begin in range(0, len(entries) - width + 1, width):
        tag, kind, values, place = struct.unpack_from(layout, entries, begin)
        total += values * (_TYPE_SIZES[kind] if kind < len(_TYPE_SIZES) else 0)
        if tag in _DIRECTORIES and len(below) < 8:
            below.add(place)
    return total, below


def _large_chunks(stream: BinaryIO) -> list[tuple[int, int]]:
    """Return the spans of PNG chunks to leave out."""
    spans: list[tuple[int, int]] = []
    offset, budget = 8, 4 * MAX_METADATA
    size = stream.seek(0, io.SEEK_END)
    while offset + 12 <= size:
        stream.seek(offset)
        head = stream.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        end = offset + 12 + length
        # Lower-case names mark chunks that a reader may ignore.
        if kind[:1].islower() and kind != b"fdAT":
            is_small = length <= MAX_METADATA and _is_small(kind, stream.read(length))
            if is_small and kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf"):
                budget -= MAX_METADATA
            if not is_small or budget < 0:
                spans.append((offset, end))
        if kind == b"IEND":
            break
        offset = end
    return spans


def _is_small(kind: bytes, data: bytes) -> bool:
    """Return whether a chunk is useful and small when unpacked."""
    name, _, content = data.partition(b"\0")
    if kind == b"eXIf":
        return size_of_tags(io.BytesIO(data)) <= MAX_METADATA
    if kind == b"iCCP" or (kind == b"zTXt" and name in _ORIENTATION_KEYS):
        return _is_small_unpacked(content[1:])
    if kind == b"iTXt" and name in _ORIENTATION_KEYS:
        packed = content[:1] == b"\1"
        text = content[2:].split(b"\0", 2)[-1]
        return not packed or _is_small_unpacked(text)
    return kind not in (b"tEXt", b"zTXt", b"iTXt") or name in _ORIENTATION_KEYS


def _is_small_unpacked(data: bytes) -> bool:
    try:
        return len(zlib.decompressobj().decompress(data, MAX_METADATA + 1)) <= MAX_METADATA
    except zlib.error:
        return True  # damaged, and ignored by Pillow


def _large_segments(stream: BinaryIO) -> list[tuple[int, int]]:
    """Return the spans of EXIF segments of a JPEG that are too large or not the first."""
    spans: list[tuple[int, int]] = []
    offset, seen = 2, False
    while True:
        stream.seek(offset)
        head = stream.read(10)
        if len(head) < 10 or head[0] != 0xFF or head[1] in (0xD9, 0xDA, 0xFF):
            return spans
        end = offset + 2 + int.from_bytes(head[2:4], "big")
        if head[1] == 0xE1 and head[4:8] == b"Exif":
            data = stream.read(max(0, end - offset - 10))
            if seen or size_of_tags(io.BytesIO(data)) > MAX_METADATA:
                spans.append((offset, end))
            seen = True
        offset = end


def _comments(stream: BinaryIO) -> list[tuple[int, int]]:
    """Return the spans of comments before the first image of a GIF."""
    head = stream.read(13)
    if len(head) < 13:
        return []
    offset = 13 + (3 << ((head[10] & 7) + 1) if head[10] & 0x80 else 0)
    spans: list[tuple[int, int]] = []
    while True:
        stream.seek(offset)
        head = stream.read(2)
        if len(head) < 2 or head[:1] != b"!":
            return spans
        begin, offset = offset, offset + 2
        while True:
            stream.seek(offset)
            size = stream.read(1)
            if not size:
                return spans
            offset += 1 + size[0]
            if not size[0]:
                break
        if head[1] in (0xFE, 0xFF):  # comments and application data: XMP, loops
            spans.append((begin, offset))


class _Excluding:
    """A view of a stream without some of its spans."""

    def __init__(self, stream: BinaryIO, spans: list[tuple[int, int]]) -> None:
        self._stream = stream
        self._pieces: list[tuple[int, int, int]] = []  # offset here, offset in `stream`, size
        size, here, there = stream.seek(0, io.SEEK_END), 0, 0
        for begin, end in [*spans, (size, size)]:
            if begin > there:
                self._pieces.append((here, there, begin - there))
                here += begin - there
            there = max(there, end)
        self._size, self._position = here, 0

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes."""
        remaining = self._size - self._position
        size = remaining if size is None or size < 0 else min(size, remaining)
        out = []
        for here, there, length in self._pieces:
            skipped = self._position - here
            if size and 0 <= skipped < length:
                self._stream.seek(there + skipped)
                out.append(self._stream.read(min(size, length - skipped)))
                self._position, size = self._position + len(out[-1]), size - len(out[-1])
        return b"".join(out)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """Return the current position."""
        return self._position
