"""Pairs from parquet tables.

Opening reads only the footer, and the columns of `where` and of the uids if there are any. A shard
is a range of rows. Reading it also reads the earlier rows of its row group, so row groups of up to
some ten thousand rows are best.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from pocketclip import storage
from pocketclip.errors import (
    DataError,
    MissingDependencyError,
    PocketclipError,
    how_to_install,
    one_line,
)
from pocketclip.pairs.base import Draft, PairOptions, digest_parts
from pocketclip.pairs.columns import Columns, choose_columns
from pocketclip.pairs.duplicates import SeenUids, Twins
from pocketclip.pairs.loading import FileShard
from pocketclip.pairs.tables import counts, draft_of_row, folder_of, uid_of_row
from pocketclip.types import Bad, Pair

_BATCH = 64
"""Rows in memory at a time; few, as rows may hold photographs."""
_SCAN_BATCH = 8192


@dataclass(frozen=True, kw_only=True)
class ParquetShard(FileShard):
    """A range of rows of a parquet file."""

    columns: Columns
    folder: str
    prefix: str
    footer: str
    first_row: int
    end_row: int
    twins: Twins = ()

    def _drafts(self) -> Iterator[Pair | Bad | Draft]:
        options, twins, index = self.options, dict(self.twins), 0
        names = [self.columns.image, *self.columns.captions, *self.columns.stored]
        names += [*options.meta_columns, *options.where]
        names += [name for name in (self.columns.url, options.uid_column) if name is not None]
        with storage.open_read(self.path) as stream, _errors_naming(self.path):
            if _footer(stream) != self.footer:
                raise DataError(
                    f"{self.path}: the file has changed since it was opened; start again"
                )
            rows = _rows(stream, names, self.first_row, self.end_row, _BATCH)
            for number, row in enumerate(rows, start=self.first_row):
                if counts(row, options):
                    uid = uid_of_row(row, number, options, self.prefix)
                    twin = twins.get(index)
                    yield draft_of_row(uid, row, twin, self.columns, options, self.folder)
                    index += 1


def open_parquet(path: str, name: str | None, options: PairOptions) -> list[ParquetShard]:
    """Return the shards of a parquet file; `name` prefixes their names if there are other files.

    Raises:
        DataError: columns are missing or cannot be guessed, there are no rows, or the file is
            damaged.
        MissingDependencyError: pyarrow is not installed.
        StorageError: the file cannot be read.
    """
    prefix = f"{name}_" if name else ""
    with storage.open_read(path) as stream, _errors_naming(path):
        footer = _footer(stream)
        table = _table(stream)
        columns = choose_columns(table.schema_arrow.names, options, path)
        seen = SeenUids() if options.uid_column is not None else None
        ranges = list(_ranges(stream, table.metadata.num_rows, options, prefix, seen))
    if not ranges:
        rows = (
            "no row has the values that `where` requires" if options.where else "there are no rows"
        )
        raise DataError(f"{path}: {rows}; nothing to do")
    twins = seen.twins(options.shard_size) if seen else {}
    return [
        ParquetShard(
            name=f"{prefix}{index:08d}",
            fingerprint=digest_parts(footer, options.identity(), prefix, json.dumps([first, end])),
            size=size,
            path=path,
            columns=columns,
            options=options,
            folder=folder_of(path),
            prefix=prefix,
            footer=footer,
            first_row=first,
            end_row=end,
            twins=twins.get(index, ()),
        )
        for index, (first, end, size) in enumerate(ranges)
    ]


def _ranges(
    stream: BinaryIO, total: int, options: PairOptions, prefix: str, seen: SeenUids | None
) -> Iterator[tuple[int, int, int]]:
    """Yield (first row, end row, number of pairs) of each shard; the end is exclusive."""
    step = options.shard_size
    if seen is None and not options.where:
        for first in range(0, total, step):
            yield first, min(first + step, total), min(step, total - first)
        return
    names = [*options.where, *([options.uid_column] if options.uid_column is not None else [])]
    first = size = 0
    for number, row in enumerate(_rows(stream, names, 0, total, _SCAN_BATCH)):
        if counts(row, options):
            size += 1
            if seen is not None:
                seen.add(uid_of_row(row, number, options, prefix))
        if size == step:
            yield first, number + 1, size
            first, size = number + 1, 0
    if size:
        yield first, total, size


def _table(stream: BinaryIO) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise MissingDependencyError(
            f"parquet tables need pyarrow: {how_to_install('parquet')}"
        ) from None
    # With a buffer, a column is read in chunks, not a whole row group at once.
    return parquet.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)


def _rows(
    stream: BinaryIO, names: Sequence[str], first: int, end: int, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Yield rows `first` to `end` (exclusive) with only the columns `names`."""
    table = _table(stream)
    groups: list[int] = []
    skip = start = 0
    for group in range(table.metadata.num_row_groups):
        stop = start + table.metadata.row_group(group).num_rows
        if start < end and stop > first:
            skip = first - start if not groups else skip
            groups.append(group)
        start = stop
    remaining = end - first
    # Single-threaded: a forked process lacks the thread pool.
    for batch in table.iter_batches(
        batch_size=batch_size,
        row_groups=groups,
        columns=list(dict.fromkeys(names)),
        use_threads=False,
    ):
        selected = batch.slice(skip, remaining)
        skip = max(0, skip - batch.num_rows)
        remaining -= selected.num_rows
        yield from selected.to_pylist()
        if remaining <= 0:
            return


def _footer(stream: BinaryIO) -> str:
    """Return a hash of the footer: the schema, and size, offset and statistics of every column."""
    total = stream.seek(0, 2)
    stream.seek(max(0, total - 8))
    tail = stream.read(8)
    if tail[4:] != b"PAR1":
        raise DataError(f"{getattr(stream, 'name', 'this')}: not a parquet file, or truncated")
    length = int.from_bytes(tail[:4], "little")
    stream.seek(max(0, total - 8 - length))
    digest = digest_parts(str(total), stream.read(length))
    stream.seek(0)
    return digest


@contextlib.contextmanager
def _errors_naming(path: str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        text = str(error)
        raise DataError(text if text.startswith(path) else f"{path}: {text}") from error
    except PocketclipError:
        raise
    except (OSError, ValueError, KeyError, NotImplementedError) as error:  # of pyarrow
        raise DataError(f"{path}: cannot be read as parquet: {one_line(error)}") from error
