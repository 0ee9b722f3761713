"""Pairs from csv, tsv and jsonl tables.

Opening reads the table once, row by row, to find where each shard begins and to hash its rows. It
keeps some hundred bytes per shard and, if there is a uid column, 8 bytes per pair to find
duplicates. A shard reads its own range of bytes.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pocketclip import storage
from pocketclip.errors import DataError, ParseError
from pocketclip.formats.json_text import load_json
from pocketclip.pairs.base import (
    Draft,
    PairOptions,
    PairShard,
    cell_text,
    clean_uid,
    digest_parts,
    is_empty,
    matches,
)
from pocketclip.pairs.columns import Columns, choose_columns, count_known
from pocketclip.pairs.duplicates import SeenUids, Twins
from pocketclip.pairs.loading import completed, pair_of_row
from pocketclip.types import Bad, Pair

_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"BZh", b"\xfd7zXZ")
_LARGEST_FIELD = 1 << 26
_LONGEST_LINE = 1 << 26
_LARGEST_ROW = 1 << 28  # in memory, of a jsonl file
_NUL = "\ue000\ufffd"  # replaces a NUL byte
_DELIMITERS = (",", "\t", ";", "|")
SEPARATOR_LINE = re.compile(r'"?sep=([^"\r\n])"?\s*', re.IGNORECASE)
"""A first line that Excel writes and reads to set the separator."""
_HEAD_ROWS = 100  # of a jsonl file, whose rows may have different keys


class _Lines:
    """The decoded lines of a file, with the current byte position and a running hash."""

    def __init__(self, path: str, stream: BinaryIO, *, start: int = 0, end: int | None = None):
        self._path = path
        self._stream = stream
        self._end = end
        self.position = start
        self.number = 0
        self.hash = hashlib.sha256()
        if start:
            stream.seek(start)

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self._end is not None and self.position >= self._end:
            raise StopIteration
        line = self._stream.readline(_LONGEST_LINE + 1)
        if not line:
            raise StopIteration
        if len(line) > _LONGEST_LINE:
            raise DataError(
                f"{self._path}: line {self.number + 1} is longer than {_LONGEST_LINE:,} bytes; "
                "is this a table?"
            )
        if self.position == 0:
            line = self._without_bom(line)
        self.position += len(line)
        self.number += 1
        self.hash.update(line)
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self._path}: line {self.number} is not UTF-8 (at its byte {error.start + 1}); "
                "convert the file, for example with iconv -f cp1252 -t utf-8"
            ) from error

    def _without_bom(self, line: bytes) -> bytes:
        if line.startswith(_COMPRESSED):
            raise DataError(f"{self._path}: the file is compressed; unpack it first")
        if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line:
            raise DataError(
                f"{self._path}: the file is UTF-16 or not text; convert it with "
                "iconv -f utf-16 -t utf-8"
            )
        if line.startswith(b"\xef\xbb\xbf"):
            self.position += 3
            return line[3:]
        return line


@dataclass(frozen=True)
class _TableFormat:
    """How to read a table's lines as rows."""

    path: str
    delimiter: str | None
    """None for jsonl."""
    quotes: bool
    header: tuple[str, ...] = ()

    def rows(self, lines: _Lines) -> Iterator[dict[str, Any] | str]:
        """Yield each row, or what is wrong with it; empty lines are skipped.

        Raises:
            DataError: quotes are unbalanced, so the ends of rows are unknown.
        """
        return self._json(lines) if self.delimiter is None else self._csv(lines)

    def _json(self, lines: _Lines) -> Iterator[dict[str, Any] | str]:
        for line in lines:
            if not line.strip():
                continue
            try:
                row = load_json(line, what="the line", max_memory=_LARGEST_ROW, constants=True)
            except ParseError as error:
                yield str(error)
            else:
                yield row if isinstance(row, dict) else "the line is not a JSON object"

    def unread(self, lines: _Lines) -> Iterator[dict[str, Any] | str]:
        """Yield an empty row for each row of a jsonl file, without parsing it."""
        return ({} for line in lines if line.strip())

    def _csv(self, lines: _Lines) -> Iterator[dict[str, Any] | str]:
        for row in self.fields(lines):
            if any(_NUL in text for text in row):
                yield "the row holds NUL bytes"
            elif len(row) == len(self.header):
                yield dict(zip(self.header, row, strict=True))
            else:
                yield f"the row has {len(row)} columns, not {len(self.header)}"

    def fields(self, lines: _Lines) -> Iterator[list[str]]:
        """Yield the fields of each row of a csv."""
        # A process-wide limit, by default 128 KiB: too little for an image in base64.
        csv.field_size_limit(max(csv.field_size_limit(), _LARGEST_FIELD))
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE
        try:
            # Python before 3.11 refuses NUL bytes.
            escaped = (line.replace("\0", _NUL) for line in lines)
            for row in csv.reader(
                escaped, delimiter=str(self.delimiter), quoting=quoting, strict=self.quotes
            ):
                if row:
                    yield row
        except csv.Error as error:
            hint = "; if quotes are not meant to enclose fields, use --no-quotes"
            raise DataError(
                f"{self.path}: line {lines.number}: {error}{hint if self.quotes else ''}"
            ) from error


@dataclass(frozen=True, kw_only=True)
class TableShard(PairShard):
    """A range of bytes of a csv, tsv or jsonl file."""

    table_format: _TableFormat
    columns: Columns
    folder: str
    prefix: str
    file_bytes: int
    start: int
    end: int
    first_row: int
    twins: Twins = ()

    @property
    def origin(self) -> str:
        """The file that it reads."""
        return self.table_format.path

    def __iter__(self) -> Iterator[Pair | Bad]:
        return completed(self._drafts(), self.options.fetch)

    def _drafts(self) -> Iterator[Pair | Bad | Draft]:
        path = self.table_format.path
        if storage.size(path) != self.file_bytes:
            raise DataError(f"{path}: the file has changed since it was opened; start again")
        twins, index = dict(self.twins), 0
        with storage.open_read(path) as stream:
            lines = _Lines(path, stream, start=self.start, end=self.end)
            for number, row in enumerate(self.table_format.rows(lines), start=self.first_row):
                if counts(row, self.options):
                    uid = uid_of_row(row, number, self.options, self.prefix)
                    yield draft_of_row(
                        uid, row, twins.get(index), self.columns, self.options, self.folder
                    )
                    index += 1


def draft_of_row(
    uid: str,
    row: dict[str, Any] | str,
    twin: int | None,
    columns: Columns,
    options: PairOptions,
    folder: str,
) -> Pair | Bad | Draft:
    """Return the pair of a row; `twin` is the number of an earlier pair with its uid, if any."""
    if isinstance(row, str):
        return Bad(uid=uid, reason=row)
    if options.uid_column is not None and is_empty(row.get(options.uid_column)):
        return Bad(uid=uid, reason="no uid")
    if twin is not None:
        return Bad(
            uid=uid, reason=f"duplicate uid {uid}: pair {twin} of the table has the same uid"
        )
    return pair_of_row(uid, row, columns, options, folder)


def counts(row: dict[str, Any] | str, options: PairOptions) -> bool:
    """Return whether a row has the values that `where` requires."""
    # Malformed rows count, so that they are reported.
    if isinstance(row, str):
        return True
    return all(matches(row.get(name), value) for name, value in options.where.items())


def uid_of_row(row: dict[str, Any] | str, number: int, options: PairOptions, prefix: str) -> str:
    """Return the uid of row `number`, which may be malformed."""
    value = None
    if options.uid_column is not None and isinstance(row, dict):
        value = row.get(options.uid_column)
    if is_empty(value):
        return f"{prefix}{number:08d}"
    return clean_uid(cell_text(value))


def open_table(path: str, name: str | None, options: PairOptions) -> list[TableShard]:
    """Return the shards of a csv, tsv or jsonl file.

    `name` prefixes the names of shards and the numbers of rows if there are other files.

    Raises:
        DataError: columns are missing or cannot be guessed, there are no rows, the file is not
            UTF-8, or its quotes are unbalanced.
        StorageError: the file cannot be read.
    """
    prefix = f"{name}_" if name else ""
    folder = folder_of(path)
    file_bytes = storage.size(path)
    with storage.open_read(path) as stream:
        lines = _Lines(path, stream)
        table_format = _detect_format(path, options, lines, stream)
        columns = _columns_of(table_format, options, lines, stream)
        seen = SeenUids() if options.uid_column is not None else None
        ranges = list(_ranges(table_format, options, lines, prefix, seen))
    if not ranges:
        rows = (
            "no row has the values that `where` requires" if options.where else "there are no rows"
        )
        raise DataError(f"{path}: {rows}; nothing to do")
    twins = seen.twins(options.shard_size) if seen else {}
    return [
        TableShard(
            name=f"{prefix}{index:08d}",
            fingerprint=shard_range.fingerprint,
            size=shard_range.size,
            table_format=table_format,
            columns=columns,
            options=options,
            folder=folder,
            prefix=prefix,
            file_bytes=file_bytes,
            start=shard_range.start,
            end=shard_range.end,
            first_row=shard_range.first_row,
            twins=twins.get(index, ()),
        )
        for index, shard_range in enumerate(ranges)
    ]


def folder_of(path: str) -> str:
    """Return the folder of a file, local or not."""
    return path.rpartition("/")[0] if storage.is_remote(path) else str(Path(path).parent)


def _detect_format(
    path: str, options: PairOptions, lines: _Lines, stream: BinaryIO
) -> _TableFormat:
    if path.lower().endswith((".jsonl", ".ndjson")):
        return _TableFormat(path, None, quotes=False)
    first = next(_Lines(path, stream), "")
    separator_line = SEPARATOR_LINE.fullmatch(first)
    stream.seek(0)
    if separator_line:
        next(lines)
    stated = separator_line[1] if separator_line else ""
    delimiter = options.delimiter or stated or _guess_delimiter(path, options, stream)
    table_format = _TableFormat(path, delimiter, options.quotes)
    header = list(options.columns) or next(table_format.fields(lines), [])
    if not header:
        raise DataError(f"{path}: the file is empty; nothing to do")
    if len(set(header)) != len(header):
        repeated = next(column for column in header if header.count(column) > 1)
        raise DataError(f"{path}: two columns are named {repeated!r}; rename one")
    return _TableFormat(path, delimiter, options.quotes, tuple(header))


def _guess_delimiter(path: str, options: PairOptions, stream: BinaryIO) -> str:
    """Guess the delimiter. Leaves `stream` at its beginning."""

    def first_row(delimiter: str) -> list[str]:
        stream.seek(0)
        return next(_TableFormat(path, delimiter, options.quotes).fields(_Lines(path, stream)), [])

    def count(row: list[str]) -> int:
        if options.columns:
            return int(len(row) == len(options.columns))
        return count_known(row, options)

    try:
        return choose_delimiter(path, first_row, count)
    finally:
        stream.seek(0)


def choose_delimiter(
    path: str, first_row: Callable[[str], list[str]], count: Callable[[list[str]], int]
) -> str:
    """Return the delimiter that gives the most known columns in the first row of a table.

    Ties are broken by the file's suffix, then by the number of columns.

    Args:
        path: path of the table.
        first_row: returns the first row split by a delimiter; raises DataError if it cannot.
        count: returns how many columns of a row are requested or known.
    """
    usual = "\t" if path.lower().endswith(".tsv") else ","

    def score(delimiter: str) -> tuple[int, bool, int]:
        try:
            row = first_row(delimiter)
        except DataError:
            return (-1, False, 0)  # unbalanced quotes with this delimiter
        return (count(row), delimiter == usual and len(row) > 1, len(row))

    scores = {delimiter: score(delimiter) for delimiter in _DELIMITERS}
    best = max(_DELIMITERS, key=scores.__getitem__)
    return best if scores[best][2] > 1 else usual


def _columns_of(
    table_format: _TableFormat, options: PairOptions, lines: _Lines, stream: BinaryIO
) -> Columns:
    """Choose the columns; the position of `lines` stays."""
    if table_format.delimiter is not None:
        return choose_columns(table_format.header, options, table_format.path)
    head = _Lines(table_format.path, stream)
    names: dict[str, None] = {}
    for row in islice(table_format.rows(head), _HEAD_ROWS):
        if isinstance(row, dict):
            names.update(dict.fromkeys(row))
    stream.seek(lines.position)
    if not names:
        raise DataError(f"{table_format.path}: none of the first lines is a JSON object")
    return choose_columns(names, options, table_format.path)


@dataclass
class _Range:
    start: int
    first_row: int
    end: int = 0
    size: int = 0
    fingerprint: str = ""


def _ranges(
    table_format: _TableFormat,
    options: PairOptions,
    lines: _Lines,
    prefix: str,
    seen: SeenUids | None,
) -> Iterator[_Range]:
    """Read all rows; yield ranges with `shard_size` rows that match `where`."""
    identity = digest_parts(
        options.identity(), json.dumps(table_format.header), str(table_format.delimiter), prefix
    )
    needs_values = table_format.delimiter is not None or options.where or seen is not None
    rows = table_format.rows(lines) if needs_values else table_format.unread(lines)
    shard_range = _Range(lines.position, 0)
    lines.hash = hashlib.sha256()
    for number, row in enumerate(rows):
        if counts(row, options):
            shard_range.size += 1
            if seen is not None:
                seen.add(uid_of_row(row, number, options, prefix))
        if shard_range.size == options.shard_size:
            yield _closed(shard_range, lines, identity)
            shard_range = _Range(lines.position, number + 1)
            lines.hash = hashlib.sha256()
    if shard_range.size:
        yield _closed(shard_range, lines, identity)


def _closed(shard_range: _Range, lines: _Lines, identity: str) -> _Range:
    shard_range.end = lines.position
    shard_range.fingerprint = digest_parts(
        identity, str(shard_range.first_row), lines.hash.digest()
    )
    return shard_range
