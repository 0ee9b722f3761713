"""Pairs from tfrecord files of `tf.train.Example`, without TensorFlow.

A file is a row of frames: length (8 bytes, little-endian), its masked CRC-32C, the data, its
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
from pocketclip.pairs.base import Draft, PairOptions, PairShard, choose_columns, digest_parts
from pocketclip.pairs.crc32c import masked_crc32c
from pocketclip.pairs.loading import completed
from pocketclip.pairs.tables import counts, draft_of_row, folder_of, uid_of_row
from pocketclip.pairs.tars import CutError
from pocketclip.types import Bad, Pair

MAX_RECORD = 1 << 28
"""Bytes of the largest record that is read: 256 MiB."""
MAX_VALUES = 1 << 20
"""The most values of a record, each of which takes some 100 bytes of memory."""
_LARGEST_TEXT = 1 << 26  # in memory a text takes up to four times its bytes
_LENGTH = struct.Struct("<QI")


@dataclass(frozen=True, kw_only=True)
class TfrecordShard(PairShard):
    """A tfrecord file. If it is cut or damaged, what comes before does, then a Bad of its name."""

    path: str
    options: PairOptions
    prefix: str

    def __iter__(self) -> Iterator[Pair | Bad]:
        return completed(self._drafts(), self.options.fetch)

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
    """Return the one shard of a tfrecord file.

    Raises:
        DataError: its first record lacks a feature that is needed, or leaves a choice.
        StorageError: it is missing, or the store cannot be reached.
    """
    size = storage.size(path)
    with storage.open_read(path) as stream:
        try:
            row = _row(next(_records(stream), ""))
        except CutError:
            row = ""  # reported when it is read
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
    """Yield the data of each frame, or why there are none.

    Raises:
        CutError: the file is empty, ends within a frame, or a checksum does not fit.
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
    """Return the features of an Example, or why it is none."""
    if isinstance(data, str):
        return data
    try:
        return parse_example(data)
    except (ValueError, IndexError, TypeError, struct.error) as error:
        return f"the record is not a tf.train.Example: {error}"


def parse_example(data: bytes | memoryview) -> dict[str, Any]:
    """Return the features by name of a serialised `tf.train.Example`.

    A list of one comes as its element, an empty one as None. Bytes come as text where they are
    UTF-8 without a zero byte, which no form of image is.

    Raises:
        ValueError: it is not one, or has more than `MAX_VALUES` values.
    """
    row: dict[str, Any] = {}
    room = MAX_VALUES
    for _, features in _fields(data, wanted=1):
        for _, entry in _fields(features, wanted=1):
            parts = dict(_fields(entry))
            name = bytes(_message(parts.get(1, b""))).decode("utf-8")
            found = chain.from_iterable(map(_values, _fields(parts.get(2, b""))))
            values = list(islice(found, room + 1))
            room -= len(values) + 1
            if room < 0:
                raise ValueError(f"more than {MAX_VALUES:,} values")
            row[name] = values if len(values) > 1 else values[0] if values else None
    return row


def _message(value: Any) -> memoryview | bytes:
    if isinstance(value, int):  # `bytes` would make as many zeros of it
        raise ValueError("a number where bytes should be")
    return value


def _values(kind_and_list: tuple[int, Any]) -> Iterator[Any]:
    kind, items = kind_and_list
    for _, item in _fields(items, wanted=1):
        if kind == 1:
            yield _text_or_bytes(_message(item))
        elif kind == 2:  # packed, or one by one
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


def _fields(data: Any, wanted: int | None = None) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of a message of protocol buffers: an int for varints, else bytes."""
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
        if wanted is None or number == wanted:
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
            raise ValueError("a number of more than 64 bits")
