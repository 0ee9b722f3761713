"""Reads the rows of a damaged library from its pages, without SQLite.

SQLite finds a row by its tables' roots and inner pages, and gives up at the first one that is
damaged. Rows themselves are in leaf pages, each of which says where its rows are, and a row says
how many columns it has, of which types; so every leaf that is whole gives its rows, whatever became
of the others. The tables are told apart by their columns.

The format: https://www.sqlite.org/fileformat2.html. Its log counts up to the last commit that is
whole. Deleted rows cannot come back, as a library overwrites them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pocketclip.search.store.schema import COLUMNS

Row = tuple[Any, ...]
_MAGIC = b"SQLite format 3\0"
_INNER_INDEX, _INNER_TABLE, _LEAF_INDEX, _LEAF_TABLE = 2, 5, 10, 13  # the first byte of a page
_LONGEST = 64 << 20  # bytes of a row; a damaged length must not be allocated
_LOG_HEADER, _FRAME_HEADER = 32, 24


@dataclass(slots=True)
class Salvage:
    """What reading a damaged file came upon; complete after the last row."""

    damaged: int = 0
    """The number of pages, or rows of otherwise whole pages, that could not be read."""
    version: int | None = None
    """Of the tables, as the header says; None if the header cannot be read."""


def rows_of(file: Path, log: Path, salvage: Salvage) -> Iterator[tuple[str, Row]]:
    """Yield (table, row) for all rows of a library's file that can be read.

    Rows are as in `schema.COLUMNS`, in the order of the file; of `facts`, also what only looks like
    a fact: (text, value).

    Args:
        file: the file.
        log: its write-ahead log, which need not exist.
        salvage: is filled in.

    Raises:
        OSError: the file cannot be read.
    """
    with file.open("rb") as stream:
        pages = _Pages(stream, log, salvage)
        try:
            for number in range(1, pages.count + 1):
                page = pages.get(number)
                if page is None:
                    salvage.damaged += 1
                else:
                    yield from _rows(page, number, pages, salvage)
        finally:
            pages.close()


class _Pages:
    """The pages of a file, as of the last commit in its log."""

    def __init__(self, stream: BinaryIO, log: Path, salvage: Salvage) -> None:
        self._stream = stream
        self._log: BinaryIO | None = None
        self._frames: dict[int, int] = {}
        header = stream.read(100)
        self.size, reserved = 4096, 0
        count = 0
        if header[:16] == _MAGIC and len(header) == 100:
            size = struct.unpack_from(">H", header, 16)[0]
            size = 65536 if size == 1 else size
            if 512 <= size <= 65536 and not size & (size - 1):
                self.size, reserved = size, header[20]
            salvage.version = struct.unpack_from(">I", header, 60)[0]
            count = struct.unpack_from(">I", header, 28)[0]
        self.usable = self.size - reserved if reserved <= 32 else self.size
        stream.seek(0, 2)
        there = stream.tell() // self.size
        # A cut file lacks pages that its header counts; they are damaged, but a wild count is not.
        self.count = count if there <= count < 2 * there + 1000 else there
        try:
            self._log = log.open("rb")
        except OSError:
            return
        pages = self._read_log(self._log)
        self.count = pages or self.count
        first = self.get(1)
        if first is not None and first[:16] == _MAGIC:
            salvage.version = struct.unpack_from(">I", first, 60)[0]

    def _read_log(self, log: BinaryIO) -> int:
        """Note where the newest pages are; return the count of all pages, 0 without a commit."""
        header = log.read(_LOG_HEADER)
        if len(header) < _LOG_HEADER:
            return 0
        magic, _, size = struct.unpack_from(">III", header)
        order = ">" if magic & 1 else "<"
        sums = _checksum(header[:24], (0, 0), order)
        if magic >> 1 != 0x377F0682 >> 1 or sums != struct.unpack_from(">II", header, 24):
            return 0
        if size != self.size:
            return 0
        count, pending = 0, {}
        while True:
            start = log.tell()
            frame = log.read(_FRAME_HEADER + size)
            if len(frame) < _FRAME_HEADER + size:
                return count
            if frame[8:16] != header[16:24]:  # left from before the log began anew
                return count
            sums = _checksum(frame[:8] + frame[_FRAME_HEADER:], sums, order)
            if sums != struct.unpack_from(">II", frame, 16):
                return count
            number, commit = struct.unpack_from(">II", frame)
            pending[number] = start + _FRAME_HEADER
            if commit:
                self._frames.update(pending)
                pending, count = {}, commit

    def get(self, number: int) -> bytes | None:
        """Return a page; None if it is not in the file."""
        stream, start = self._stream, (number - 1) * self.size
        if number in self._frames and self._log is not None:
            stream, start = self._log, self._frames[number]
        stream.seek(start)
        page = stream.read(self.size)
        return page if len(page) == self.size else None

    def close(self) -> None:
        if self._log is not None:
            self._log.close()


def _checksum(text: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    first, second = sums
    words = struct.unpack(f"{order}{len(text) // 4}I", text)
    for i in range(0, len(words), 2):
        first = (first + words[i] + second) & 0xFFFFFFFF
        second = (second + words[i + 1] + first) & 0xFFFFFFFF
    return first, second


def _rows(page: bytes, number: int, pages: _Pages, salvage: Salvage) -> Iterator[tuple[str, Row]]:
    start = 100 if number == 1 else 0
    kind = page[start]
    if kind not in (_INNER_INDEX, _LEAF_INDEX, _LEAF_TABLE):
        # Inner pages of tables have no rows. Unused pages, and those that continue a long row,
        # begin with the number of a page, of which the first byte is 0.
        salvage.damaged += kind not in (_INNER_TABLE, 0)
        return
    cells = struct.unpack_from(">H", page, start + 3)[0]
    pointers = start + (12 if kind == _INNER_INDEX else 8)
    if pointers + 2 * cells > pages.usable:
        salvage.damaged += 1
        return
    bad = False
    for (offset,) in struct.iter_unpack(">H", page[pointers : pointers + 2 * cells]):
        try:
            if offset < pointers + 2 * cells:
                raise ValueError("a row within the list of rows")
            values, rowid = _read_cell(page, offset, kind, pages)
        except (ValueError, IndexError, struct.error):
            bad = True
            continue
        table = _table_of(values, kind)
        if table == "facts":
            yield table, values
        elif table is not None:
            yield table, (rowid, *values[1:])
    salvage.damaged += bad


def _read_cell(page: bytes, offset: int, kind: int, pages: _Pages) -> tuple[Row, int]:
    """Return the values of a row, and its number (0 in an index)."""
    usable = pages.usable
    if kind == _INNER_INDEX:
        offset += 4  # the page below
    length, offset = _varint(page, offset)
    rowid = 0
    most = (usable - 12) * 64 // 255 - 23
    if kind == _LEAF_TABLE:
        rowid, offset = _varint(page, offset)
        rowid -= (rowid >> 63) << 64
        most = usable - 35
    if length > _LONGEST:
        raise ValueError("too long")
    if length <= most:
        local = length
    else:
        least = (usable - 12) * 32 // 255 - 23
        local = least + (length - least) % (usable - 4)
        local = local if local <= most else least
    end = offset + local
    if end > usable:
        raise ValueError("beyond the page")
    payload = page[offset:end]
    if local < length:
        payload += _overflow(page, end, length - local, pages)
    return _parse_record(payload), rowid


def _overflow(page: bytes, end: int, missing: int, pages: _Pages) -> bytes:
    """Return the rest of a long row, from the pages that it continues on."""
    parts = []
    following = struct.unpack_from(">I", page, end)[0]
    while missing > 0:
        more = pages.get(following) if 1 < following <= pages.count else None
        if more is None:
            raise ValueError("continues on a page that is not there")
        parts.append(more[4 : min(pages.usable, 4 + missing)])
        missing -= len(parts[-1])
        following = struct.unpack_from(">I", more)[0]
    return b"".join(parts)


def _parse_record(record: bytes) -> Row:
    end, at = _varint(record, 0)
    if end > len(record):
        raise ValueError("a header that is longer than its row")
    values: list[Any] = []
    body = end
    while at < end:
        kind, at = _varint(record, at)
        size = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)[kind] if kind < 10 else (kind - 12) // 2
        if kind in (10, 11) or body + size > len(record):
            raise ValueError("no such type, or beyond the row")
        raw = record[body : body + size]
        body += size
        if kind == 0:
            values.append(None)
        elif kind == 7:
            values.append(struct.unpack(">d", raw)[0])
        elif kind < 10:
            values.append(kind - 8 if kind >= 8 else int.from_bytes(raw, "big", signed=True))
        else:
            values.append(raw.decode("utf-8") if kind & 1 else raw)
    if at != end or body != len(record):
        raise ValueError("another length than its header says")
    return tuple(values)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(8):
        byte = data[at + i]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + i + 1
    return value << 8 | data[at + 8], at + 9


_Number = (int, float)
_TYPES: dict[str, tuple[Any, ...]] = {
    "roots": (None, bytes, str),
    "encoders": (None, str),
    "contents": (
        None, bytes, int, (bytes, None), (int, None), (int, None), (str, None), (int, None),
        (int, None), (str, None), (int, None), (*_Number, None), (int, None), (str, None),
        (*_Number, None), (*_Number, None), (int, None),
    ),
    "files": (None, int, bytes, int, int, (int, None), int, (str, None)),
}  # fmt: skip
"""The types of the columns; that of a row's number, which is stored elsewhere, is None."""
assert all(len(types) == len(COLUMNS[table]) for table, types in _TYPES.items())


def _table_of(values: Row, kind: int) -> str | None:
    """Return the table that a row is of; None for other tables and indexes."""
    if kind != _LEAF_TABLE:
        is_fact = len(values) == 2 and isinstance(values[0], str)
        return "facts" if is_fact else None
    for table, types in _TYPES.items():
        if len(values) == len(types) and all(map(_has_type, values, types)):
            return table
    return None


def _has_type(value: Any, types: Any) -> bool:
    if isinstance(types, tuple):
        return any(_has_type(value, one) for one in types)
    return value is None if types is None else isinstance(value, types)
