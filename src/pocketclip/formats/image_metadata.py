"""What stands beside the pixels of an image file, kept from taking all the memory.

    stream = without_bombs(stream)  # the same image for Pillow, large texts and tags left out

Pillow unpacks the texts and profiles of a PNG, and refuses the whole image where one is large; it
copies the values of TIFF and EXIF tags, of which thousands may point at the same bytes; it joins
comments of GIFs one by one. None of that is needed for the pixels. What says how the image is
turned is kept.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import BinaryIO, cast

MAX_METADATA = 1 << 20
"""Bytes of the largest text, profile or set of tags that is kept, unpacked: 1 MiB."""
MAX_TAGS = 1 << 23
"""Bytes of all values of a TIFF's tags, among them the places of its strips: 8 MiB."""
_TURNING = (b"XML:com.adobe.xmp", b"Raw profile type exif", b"Raw profile type APP1")
_TYPE_SIZES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)  # of TIFF's types


def without_bombs(stream: BinaryIO) -> BinaryIO:
    """Return `stream`, or one that leaves out what is too large in it; both stand at the start."""
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
    return cast(BinaryIO, _Without(stream, spans)) if spans else stream


def size_of_tags(stream: BinaryIO) -> int:
    """Return how many bytes the values of the first directory of a TIFF or of EXIF take.

    0 where there is no such directory; `stream` stands where it begins.
    """
    start = stream.tell()
    head = stream.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        return 0
    big = head[2:4] in (b"+\0", b"\0+") and len(head) == 16
    form, width = (f"{order}HHQ", 20) if big else (f"{order}HHL", 12)
    place = struct.unpack(f"{order}Q", head[8:16])[0] if big else struct.unpack(
        f"{order}L", head[4:8]
    )[0]  # fmt: skip
    if place >= 1 << 62:
        return 0
    stream.seek(start + place)
    head = stream.read(8 if big else 2)
    if len(head) < (8 if big else 2):
        return 0
    count = min(struct.unpack(f"{order}{'Q' if big else 'H'}", head)[0], 1 << 16)
    entries = stream.read(count * width)
    total = 0
    for begin in range(0, len(entries) - width + 1, width):
        _, kind, values = struct.unpack_from(form, entries, begin)
        total += values * (_TYPE_SIZES[kind] if kind < len(_TYPE_SIZES) else 0)
    return total


def _large_chunks(stream: BinaryIO) -> list[tuple[int, int]]:
    """Return where the chunks of a PNG stand that are better left out."""
    spans: list[tuple[int, int]] = []
    place, room = 8, 4 * MAX_METADATA
    size = stream.seek(0, io.SEEK_END)
    while place + 12 <= size:
        stream.seek(place)
        head = stream.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        end = place + 12 + length
        # Small letters begin the chunks that a reader may pass over.
        if kind[:1].islower() and kind != b"fdAT":
            kept = length <= MAX_METADATA and _is_small(kind, stream.read(length))
            if kept and kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf"):
                room -= MAX_METADATA
            if not kept or room < 0:
                spans.append((place, end))
        if kind == b"IEND":
            break
        place = end
    return spans


def _is_small(kind: bytes, data: bytes) -> bool:
    """Return whether a chunk is worth keeping, and its contents are of a sane size."""
    name, _, rest = data.partition(b"\0")
    if kind == b"eXIf":
        return size_of_tags(io.BytesIO(data)) <= MAX_METADATA
    if kind == b"iCCP" or (kind == b"zTXt" and name in _TURNING):
        return _unpacks_to_little(rest[1:])
    if kind == b"iTXt" and name in _TURNING:
        packed = rest[:1] == b"\1"
        text = rest[2:].split(b"\0", 2)[-1]
        return not packed or _unpacks_to_little(text)
    return kind not in (b"tEXt", b"zTXt", b"iTXt") or name in _TURNING


def _unpacks_to_little(data: bytes) -> bool:
    try:
        return len(zlib.decompressobj().decompress(data, MAX_METADATA + 1)) <= MAX_METADATA
    except zlib.error:
        return True  # damaged, and passed over as such


def _large_segments(stream: BinaryIO) -> list[tuple[int, int]]:
    """Return where EXIF of a JPEG stands that is too large, or is not the first."""
    spans: list[tuple[int, int]] = []
    place, seen = 2, False
    while True:
        stream.seek(place)
        head = stream.read(10)
        if len(head) < 10 or head[0] != 0xFF or head[1] in (0xD9, 0xDA, 0xFF):
            return spans
        end = place + 2 + int.from_bytes(head[2:4], "big")
        if head[1] == 0xE1 and head[4:8] == b"Exif":
            data = stream.read(max(0, end - place - 10))
            if seen or size_of_tags(io.BytesIO(data)) > MAX_METADATA:
                spans.append((place, end))
            seen = True
        place = end


def _comments(stream: BinaryIO) -> list[tuple[int, int]]:
    """Return where the comments of a GIF stand, before its first image."""
    head = stream.read(13)
    if len(head) < 13:
        return []
    place = 13 + (3 << ((head[10] & 7) + 1) if head[10] & 0x80 else 0)
    spans: list[tuple[int, int]] = []
    while True:
        stream.seek(place)
        head = stream.read(2)
        if len(head) < 2 or head[:1] != b"!":
            return spans
        begin, place = place, place + 2
        while True:
            stream.seek(place)
            size = stream.read(1)
            if not size:
                return spans
            place += 1 + size[0]
            if not size[0]:
                break
        if head[1] in (0xFE, 0xFF):  # comments, and what applications add: XMP, loops
            spans.append((begin, place))


class _Without:
    """A stream without some spans of another."""

    def __init__(self, stream: BinaryIO, spans: list[tuple[int, int]]) -> None:
        self._stream = stream
        self._pieces: list[tuple[int, int, int]] = []  # begin here, begin there, size
        size, here, there = stream.seek(0, io.SEEK_END), 0, 0
        for begin, end in [*spans, (size, size)]:
            if begin > there:
                self._pieces.append((here, there, begin - there))
                here += begin - there
            there = max(there, end)
        self._size, self._place = here, 0

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes."""
        left = self._size - self._place
        size = left if size is None or size < 0 else min(size, left)
        out = []
        for here, there, length in self._pieces:
            skipped = self._place - here
            if size and 0 <= skipped < length:
                self._stream.seek(there + skipped)
                out.append(self._stream.read(min(size, length - skipped)))
                self._place, size = self._place + len(out[-1]), size - len(out[-1])
        return b"".join(out)

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """Go elsewhere."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + place)
        return self._place

    def tell(self) -> int:
        """Return the place."""
        return self._place
