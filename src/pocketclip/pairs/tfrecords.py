"""Pairs from tfrecord files of `tf.train.Example`, without TensorFlow.

A file is a sequence of frames: length (8 bytes, little-endian), its masked CRC-32C, the data, its
masked CRC-32C. The data is an Example: features by name, each a list of bytes, floats or
integers. Features are chosen as a table's columns are; the uid is the record's number.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, BinaryIO, cast

from pocketclip import storage
from pocketclip.pairs.base import Draft, PairOptions, digest_parts
from pocketclip.pairs.columns import choose_columns
from pocketclip.pairs.crc32c import masked_crc32c
from pocketclip.pairs.loading import FileShard
from pocketclip.pairs.tables import counts, draft_of_row, folder_of, uid_of_row
from pocketclip.pairs.tars import CutError
from pocketclip.types import Bad, Pair

MAX_RECORD = 1 << 28
"""Limit on the bytes of a record: 256 MiB."""
MAX_VALUES = 1 << 20
"""Limit on the values of a record; each takes some 100 bytes of memory."""
_LARGEST_TEXT = 1 << 26  # decoded, a text takes up to four times the memory
_LENGTH = struct.Struct("<QI")


@dataclass(frozen=True, kw_only=True)
class TfrecordShard(FileShard):
    """A tfrecord file. If it is damaged, the pairs before come first, then a Bad of its name."""

    prefix: str

    def _drafts(self) -> Iterator[Pair | Bad | Draft]:
        options, seen = self.options, dict[str, int]()
        columns, folder = None, folder_of(self.path)
        with storage.open_read(self.path) as stream:
            try:
                for number, data in enumerate(_records(stream)):
                    row = _row(data)
                    if isinstance(row, dict) and columns is None:
                        columns = choose_columns(row, options, self.path)
                    if columns is None or not counts(row, options):
                        if columns is None:
                            yield Bad(uid=f"{self.prefix}{number:08d}", reason=str(row))
                        continue
                    uid = uid_of_row(row, number, options, self.prefix)
                    first = seen.setdefault(uid, number)
                    twin = first if first != number else None
                    yield draft_of_row(uid, row, twin, columns, options, folder)
            except CutError as error:
                yield Bad(uid=self.name, reason=f"{self.path}: {error}")


def open_tfrecord(
    path: str, name: str, options: PairOptions, *, several: bool
) -> list[TfrecordShard]:
    """Return the single shard of a tfrecord file, in a list.

    Raises:
        DataError: features are missing in the first record, or cannot be guessed.
        StorageError: the file is missing, or the store cannot be reached.
    """
    size = storage.size(path)
    with storage.open_read(path) as stream:
        try:
            row = _row(next(_records(stream), ""))
        except CutError:
            row = ""  # reported when the shard is read
        if isinstance(row, dict) and row:
            choose_columns(row, options, path)
    prefix = f"{name}_" if several else ""
    base = path.replace("\\", "/").rpartition("/")[2]
    return [
        TfrecordShard(
            name=name,
            fingerprint=digest_parts(base, str(size), options.identity(), prefix),
            size=None,
            path=path,
            options=options,
            prefix=prefix,
        )
    ]


def _records(stream: BinaryIO) -> Iterator[memoryview | str]:
    """Yield the bytes of each frame, or why it cannot be read.

    Raises:
        CutError: the file is empty, truncated, or a checksum is wrong.
    """
    packed = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    source = cast(BinaryIO, gzip.GzipFile(fileobj=stream)) if packed else stream
    offset = 0
    try:
        while head := source.read(_LENGTH.size):
            if len(head) < _LENGTH.size:
                raise CutError(f"the file is truncated at byte {offset + len(head):,}")
            length, check = _LENGTH.unpack(head)
            if masked_crc32c(head[:8]) != check:
                what = "the file is damaged" if offset else "not a tfrecord file, or damaged"
                raise CutError(f"{what} at byte {offset:,}")
            if length > MAX_RECORD:
                yield f"the record has {length:,} bytes, more than the limit of {MAX_RECORD:,}"
                _skip(source, length + 4, offset + len(head))
                offset += len(head) + length + 4
                continue
            body = source.read(length + 4)
            if len(body) < length + 4:
                raise CutError(f"the file is truncated at byte {offset + len(head) + len(body):,}")
            data = memoryview(body)[:-4]
            if masked_crc32c(data) != int.from_bytes(body[-4:], "little"):
                raise CutError(f"the file is damaged in the record at byte {offset:,}")
            yield data
            offset += len(head) + len(body)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CutError(f"the compressed file is truncated or damaged: {error}") from error
    if not offset:
        raise CutError("the file is empty")


def _skip(source: BinaryIO, size: int, offset: int) -> None:
    while size > 0:
        data = source.read(min(size, 1 << 20))
        if not data:
            raise CutError(f"the file is truncated at byte {offset:,}")
        size, offset = size - len(data), offset + len(data)


def _row(data: memoryview | str) -> dict[str, Any] | str:
    """Return the features of an Example, or why it cannot be read."""
    if isinstance(data, str):
        return data
    try:
        return parse_example(data)
    except (ValueError, IndexError, TypeError, struct.error) as error:
        return f"the record is not a tf.train.Example: {error}"


def parse_example(data: bytes | memoryview) -> dict[str, Any]:
    """Return the features by name of a serialised `tf.train.Example`.

    A list with one element becomes that element, an empty list None. Bytes become text if they
    are UTF-8 without a zero byte, which no image format is.

    Raises:
        ValueError: it is malformed, or has more than `MAX_VALUES` values.
    """
    row: dict[str, Any] = {}
    remaining = MAX_VALUES
    for _, features in _fields(data, only=1):
        for _, entry in _fields(features, only=1):
            parts = dict(_fields(entry))
            name = bytes(_message(parts.get(1, b""))).decode("utf-8")
            decoded = chain.from_iterable(map(_values, _fields(parts.get(2, b""))))
            values = list(islice(decoded, remaining + 1))
            remaining -= len(values) + 1
            if remaining < 0:
                raise ValueError(f"more than {MAX_VALUES:,} values")
            row[name] = values if len(values) > 1 else values[0] if values else None
    return row


def _message(value: Any) -> memoryview | bytes:
    if isinstance(value, int):  # bytes(n) would return n zeros
        raise ValueError("a number instead of bytes")
    return value


def _values(kind_and_list: tuple[int, Any]) -> Iterator[Any]:
    kind, items = kind_and_list
    for _, item in _fields(items, only=1):
        if kind == 1:
            yield _text_or_bytes(_message(item))
        elif kind == 2:  # packed or not
            yield from (value for (value,) in struct.iter_unpack("<f", _message(item)))
        elif kind == 3 and isinstance(item, int):
            yield _signed(item)
        elif kind == 3:
            position = 0
            while position < len(item):
                value, position = _varint(item, position)
                yield _signed(value)


def _text_or_bytes(item: memoryview | bytes) -> str | bytes:
    data = bytes(item)
    if b"\0" in data or len(data) > _LARGEST_TEXT:
        return data
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _fields(data: Any, only: int | None = None) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of each field of a protocol buffer: ints for varints, else bytes."""
    view = memoryview(_message(data))
    position = count = 0
    while position < len(view):
        count += 1
        if count > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES:,} fields in a message")
        tag, position = _varint(view, position)
        number, wire = tag >> 3, tag & 7
        value: Any
        if wire == 0:
            value, position = _varint(view, position)
        elif wire in (1, 2, 5):
            length = {1: 8, 5: 4}.get(wire, 0)
            if wire == 2:
                length, position = _varint(view, position)
            value = view[position : position + length]
            if len(value) < length:
                raise ValueError("a field is longer than its message")
            position += length
        else:
            raise ValueError(f"wire type {wire}")
        if only is None or number == only:
            yield number, value


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value & ((1 << 64) - 1), position
        if shift > 63:
            raise ValueError("a number with more than 64 bits")
