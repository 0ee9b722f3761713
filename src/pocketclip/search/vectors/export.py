"""The vectors of a library in the files that clip-retrieval writes, for autofaiss and others.

| file | what |
|---|---|
| `img_emb/img_emb_0.npy` | float16 (N, D), of unit length |
| `metadata/metadata_0.parquet` | for each row `image_path`, and what is known of the photograph |
| `library.json` | the model and its embedding space, and the counts |

There is a row per file, so a copy has its own. After a million rows the next two files begin. As
parquet, `img_emb/img_emb_0.parquet` holds everything, the vectors in the column `embedding`, in
float32: not every reader of parquet knows float16. Without pyarrow, the metadata of .npy files are
JSON Lines.

Shapes: N files, D embedding.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import (
    LibraryError,
    MissingDependencyError,
    PocketclipError,
    how_to_install,
)
from pocketclip.formats.escaping import dump_json, escape_surrogates, name_text
from pocketclip.progress import ProgressReporter, as_reporter
from pocketclip.search.indexing.scan import ABSENT, PRESENT
from pocketclip.search.store.database import Database
from pocketclip.search.vectors.rows import read_state
from pocketclip.storage.local import files_in, write_whole_folder

FORMATS = ("npy", "parquet")
FACTS = "library.json"
_OURS = re.compile(
    rf"img_emb/img_emb_\d+\.(npy|parquet)|metadata/metadata_\d+\.(parquet|jsonl)|{FACTS}"
)
_PART = 1_000_000  # rows per file, clip-retrieval's default
_BATCH = 4000  # rows that are read and written at once; files are multiples of it
_COLUMNS = {
    "image_path": "string", "content": "string", "size": "int64", "width": "int32",
    "height": "int32", "format": "string", "taken": "string", "camera": "string",
    "latitude": "float64", "longitude": "float64",
}  # fmt: skip
# A cross join is done in this order: sorting all rows would copy all vectors.
_FROM = "FROM contents c CROSS JOIN files f ON f.content = c.id CROSS JOIN roots r ON r.id = f.root"


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written."""

    out: Path
    format: str
    rows: int
    """Files whose vectors were written."""
    embed_dim: int
    model: str | None
    space_id: str | None
    absent: int
    """Files that were left out because they are not there now."""
    excluded: int
    """Files that were left out because a rule of indexing leaves them out now."""
    without_vector: int
    """Files that are there and have no vector: unreadable, or not encoded yet."""
    files: tuple[str, ...]
    """Relative paths of what was written, without `library.json`."""
    remark: str | None = None

    def facts(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {**asdict(self), "out": name_text(self.out), "files": list(self.files)}


@dataclass(frozen=True, slots=True)
class _Batch:
    vectors: NDArray[np.float16]
    rows: list[dict[str, Any]]


def export_vectors(
    database: Database,
    out: str | os.PathLike[str],
    *,
    format: str = "npy",
    include_absent: bool = False,
    reporter: ProgressReporter | Callable[[str], None] | None = None,
) -> ExportReport:
    """Write the vectors of a library to a folder, whole or not at all.

    Bytes of a path that are not UTF-8 are escaped: in parquet as the six characters `\\udcff`, in
    JSON Lines so that `os.fsencode` restores them.

    Args:
        database: the library.
        out: the folder; an earlier export in it is replaced, other files are not.
        format: `npy` or `parquet`.
        include_absent: also write files that are not there now.
        reporter: receives the stage and the progress.

    Raises:
        LibraryError: there is nothing to write, or a vector is damaged.
        MissingDependencyError: pyarrow is not installed, for parquet.
        PocketclipError: no such format; or the folder holds other files.
        OSError: the folder cannot be written.
    """
    if format not in FORMATS:
        raise PocketclipError(f"there is no format {format!r}: use {' or '.join(FORMATS)}")
    has_pyarrow = _has_pyarrow()
    if format == "parquet" and not has_pyarrow:
        raise MissingDependencyError(f"writing parquet needs pyarrow: {how_to_install('parquet')}")
    reporter = as_reporter(reporter)
    states = (PRESENT, ABSENT) if include_absent else (PRESENT,)
    with write_whole_folder(out, _own_files) as folder, database.snapshot() as connection:
        counts = _count(connection)
        total = sum(counts.get((state, True), 0) for state in states)
        if not total:
            raise LibraryError(
                f"the library {database.location.name} has no embeddings of photographs that are "
                "there now: index some with `pocketclip index FOLDER`"
            )
        reporter.stage(f"writing {total} embeddings")
        state = read_state(database)
        batches = _batches(database, connection, state.width, states)
        parts = -(-total // _PART)
        files: list[str] = []
        done = 0
        for number in range(parts):
            size = min(_PART, total - number * _PART)
            name = str(number).zfill(len(str(parts)))  # readers sort them by name
            with contextlib.ExitStack() as opened:
                if format == "npy":
                    writers = [
                        _VectorFile(opened, folder, name, (size, state.width)),
                        (_Table if has_pyarrow else _Lines)(opened, folder, name),
                    ]
                else:
                    writers = [_Table(opened, folder, name, state.width)]
                for batch in _take(batches, size):
                    for writer in writers:
                        writer.write(batch)
                    done += len(batch.rows)
                    reporter.progress(done, total, "files")
            files += [writer.file for writer in writers]
        report = ExportReport(
            Path(out), format, total, state.width, database.fact("model"), state.space_id,
            absent=0 if include_absent else counts.get((ABSENT, True), 0),
            excluded=sum(n for (s, has), n in counts.items() if has and s not in (PRESENT, ABSENT)),
            without_vector=counts.get((PRESENT, False), 0),
            files=tuple(files),
            remark=None if has_pyarrow else (
                "the paths are in JSON Lines; clip-retrieval reads them as parquet, which needs "
                f"pyarrow: {how_to_install('parquet')}"
            ),
        )  # fmt: skip
        facts = {key: value for key, value in report.facts().items() if key != "out"}
        text = dump_json({"version": 1, **facts}, indent=2)
        (folder / FACTS).write_text(text + "\n", "utf-8")
    return report


class _Writer:
    """Writes one file.

    Args:
        opened: closes it.
        folder: the folder of the export.
        file: its relative path.
    """

    def __init__(self, opened: contextlib.ExitStack, folder: Path, file: str) -> None:
        self.file = file
        path = folder / file
        path.parent.mkdir(exist_ok=True)
        # Through a handle: pyarrow takes no path that is not UTF-8.
        self.handle = opened.enter_context(path.open("wb"))

    def write(self, batch: _Batch) -> None:
        """Append a batch."""
        raise NotImplementedError


class _VectorFile(_Writer):
    def __init__(
        self, opened: contextlib.ExitStack, folder: Path, name: str, shape: tuple[int, int]
    ) -> None:
        super().__init__(opened, folder, f"img_emb/img_emb_{name}.npy")
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.handle, header)

    def write(self, batch: _Batch) -> None:
        """Append vectors."""
        self.handle.write(np.ascontiguousarray(batch.vectors).data)


class _Lines(_Writer):
    def __init__(self, opened: contextlib.ExitStack, folder: Path, name: str) -> None:
        super().__init__(opened, folder, f"metadata/metadata_{name}.jsonl")

    def write(self, batch: _Batch) -> None:
        """Append a line per file."""
        self.handle.write("".join(dump_json(row) + "\n" for row in batch.rows).encode())


class _Table(_Writer):
    """A parquet file: the metadata, and with a `width` the vectors too."""

    def __init__(
        self, opened: contextlib.ExitStack, folder: Path, name: str, width: int | None = None
    ) -> None:
        import pyarrow as pa
        import pyarrow.parquet

        place = f"metadata/metadata_{name}" if width is None else f"img_emb/img_emb_{name}"
        super().__init__(opened, folder, f"{place}.parquet")
        self._pa, self._width = pa, width
        fields = [pa.field(name, getattr(pa, kind)()) for name, kind in _COLUMNS.items()]
        if width is not None:
            fields.append(pa.field("embedding", pa.list_(pa.float32(), width)))
        self._schema = pa.schema(fields)
        self._writer = opened.enter_context(
            pyarrow.parquet.ParquetWriter(self.handle, self._schema)
        )

    def write(self, batch: _Batch) -> None:
        """Append a row per file."""
        rows = [{**row, "image_path": escape_surrogates(row["image_path"])} for row in batch.rows]
        columns = [
            self._pa.array([row[name] for row in rows], self._schema.field(name).type)
            for name in _COLUMNS
        ]
        if self._width is not None:
            flat = self._pa.array(batch.vectors.astype(np.float32).ravel())
            columns.append(self._pa.FixedSizeListArray.from_arrays(flat, self._width))
        self._writer.write_table(self._pa.table(columns, schema=self._schema))


def _has_pyarrow() -> bool:
    try:
        import pyarrow.parquet  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def _own_files(folder: Path) -> set[str]:
    """Return the files of an earlier export."""
    if not (folder / FACTS).is_file():
        return set()
    return {name for name in files_in(folder) if _OURS.fullmatch(name)}


def _count(connection: sqlite3.Connection) -> dict[tuple[int, bool], int]:
    """Return the number of files by state, and by whether they have a vector."""
    # The partial index tells which contents have one without reading the vectors.
    rows = connection.execute(
        "SELECT f.absent, f.content IN (SELECT id FROM contents INDEXED BY contents_changed "
        "WHERE vector IS NOT NULL), count(*) FROM files f GROUP BY 1, 2"
    )
    counts: dict[tuple[int, bool], int] = {}
    for state, has, count in rows:
        key = (state, bool(has))  # a file without a content has neither
        counts[key] = counts.get(key, 0) + count
    return counts


def _batches(
    database: Database, connection: sqlite3.Connection, width: int, states: Sequence[int]
) -> Iterator[_Batch]:
    """Yield the files in the order of their contents, and by path.

    Raises:
        LibraryError: a vector is damaged.
    """
    marks = ", ".join("?" * len(states))
    cursor = connection.execute(
        "SELECT c.vector, r.path, f.path, c.digest, c.size, c.width, c.height, c.format, c.taken, "
        f"c.taken_offset, c.camera, c.latitude, c.longitude {_FROM} WHERE c.vector IS NOT NULL "
        f"AND f.absent IN ({marks}) ORDER BY c.id, r.path, f.path",
        states,
    )
    while found := cursor.fetchmany(_BATCH):
        rows = []
        for vector, root, path, digest, size, *facts in found:
            if len(vector) != 2 * width:
                raise LibraryError(
                    f"{database.location.file}: the vector of content {digest.hex()} is damaged: "
                    "mend it with `pocketclip index --repair`"
                )
            across, down, kind, taken, offset, camera, latitude, longitude = facts
            place = name_text(os.fsdecode(root.rstrip(b"/") + b"/" + path))
            values = (
                place, digest.hex(), size, across, down, kind, _time_text(taken, offset),
                camera, latitude, longitude,
            )  # fmt: skip
            rows.append(dict(zip(_COLUMNS, values, strict=True)))
        vectors = np.frombuffer(b"".join(row[0] for row in found), "<f2")
        yield _Batch(vectors.reshape(len(rows), width), rows)


def _take(batches: Iterator[_Batch], count: int) -> Iterator[_Batch]:
    """Yield batches of `count` rows together."""
    while count > 0:
        batch = next(batches)
        count -= len(batch.rows)
        yield batch


def _time_text(taken: float | None, offset: int | None) -> str | None:
    """Return what the camera's clock showed, in ISO 8601, with its offset if that is known."""
    if taken is None:
        return None
    try:
        clock = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=taken)
    except OverflowError:
        return None
    if offset is not None:
        clock = clock.replace(tzinfo=datetime.timezone(datetime.timedelta(minutes=offset)))
    return clock.isoformat()
