"""The matrix of a library: the vectors of its contents, in the form that searching reads.

SQLite's vectors are the truth; the matrix is a copy in `NAME.derived/`, one file per engine. It is
compared with SQLite each time it is opened, by what costs nothing to read: generation, number,
width, embedding space, the latest change and a few rows. If a file is older, the vectors that
changed since are read on top of it, so that a search while photographs are added is quick. If too
many changed, if one was removed, or if the file is damaged, it is written again.

    matrix = open_matrix(database)
    rows, scores = search_matrix(matrix, queries, 20)
    contents = matrix.ids[rows]

Shapes: N vectors, D embedding.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.search.database import Database
from pocketclip.search.kernels import DTYPES, choose_engine
from pocketclip.search.location import Location, private_file, private_folder
from pocketclip.search.vector_file import Block, is_intact, map_file, read_batches, write_file
from pocketclip.search.vector_rows import (
    VectorState,
    count_changed,
    read_all,
    read_changed,
    read_state,
    samples_fit,
)
from pocketclip.storage import locks

_FEW = 2000  # changes that are always read on top of a file, 6 ms
_SHARE = 50  # and one in so many: 20,000 of a million, 65 ms
_LONGEST_WAIT = 60.0  # seconds for another process that writes the same file
_LOCK = "matrix.lock"
_REMEDY = (
    "remove it, and the next search writes it again; `pocketclip index --repair` does that too"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Matrix:
    """The vectors of one generation; several threads may read it."""

    engine: str
    generation: int
    ids: NDArray[np.int64]
    """Ids of the contents (N,), ascending."""
    blocks: tuple[Block, ...]
    """The file; and, as a second one, what changed since."""
    order: NDArray[np.int64] | None = None
    """The place (N,) of each row in the blocks, one after the other; None if it is its own."""
    remark: str | None = None
    """Why it is in memory instead of a file."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def width(self) -> int:
        """D."""
        return self.blocks[0].header.width

    @property
    def space_id(self) -> str | None:
        """The embedding space of the vectors."""
        return self.blocks[0].header.space_id

    @property
    def longest(self) -> float:
        """The length of the longest vector."""
        return max(block.header.longest for block in self.blocks)

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors (R, D) of some rows (R,)."""
        return self.stored_vectors(rows).astype(np.float32)

    def stored_vectors(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the vectors (R, D) of some rows (R,), in float32 or float16 as they are stored."""
        places = np.asarray(rows) if self.order is None else self.order[rows]
        first = self.blocks[0]
        inside = places < len(first.ids)
        if inside.all():
            return first.take(places)
        out = np.empty((len(places), self.width), first.vectors.dtype)
        out[inside] = first.take(places[inside])
        out[~inside] = self.blocks[1].take(places[~inside] - len(first.ids))
        return out


def open_matrix(
    database: Database, engine: str | None = None, last: Matrix | None = None
) -> Matrix:
    """Return the matrix of the library as it is now; it is written if it is missing or too old.

    A matrix that cannot be stored, because the disk is full or the folder read-only, is read into
    memory; `remark` and a warning say so. Within a transaction nothing is stored.

    Args:
        database: the library.
        engine: see `kernels.choose_engine`.
        last: the matrix of an earlier call, to save work; returned itself if it is current.

    Raises:
        LibraryError: a vector is damaged; or SQLite's error.
        MissingDependencyError: see `kernels.choose_engine`.
    """
    stored = not database.connection.in_transaction
    with database.snapshot() as connection:
        matrix = _current(database.location, connection, engine, last)
        if matrix is None and not stored:
            matrix = _in_memory(database.location, connection, engine)
    if matrix is not None:
        return matrix
    with _turn(database.location) as trouble, database.snapshot() as connection:
        # Another process may have written it meanwhile.
        matrix = _current(database.location, connection, engine, None)
        if matrix is None and trouble is None:
            try:
                return _write(database.location, connection, engine)
            except OSError as error:
                trouble = error.strerror or str(error)
        return matrix or _in_memory(database.location, connection, engine, trouble)


def check_matrix(database: Database) -> str | None:
    """Return what is wrong with the stored matrix; None if nothing is, or if there is none.

    It reads all of it, and compares it with SQLite if it is current.

    Raises:
        LibraryError: a vector in SQLite is damaged; or SQLite's error.
    """
    for engine in DTYPES:
        path = _path(database.location, engine)
        if not path.exists():
            continue
        block = map_file(path)
        if block is None or not is_intact(block):
            return f"{path} is damaged: {_REMEDY}"
        with database.snapshot() as connection:
            state = read_state(connection)
            if block.header.generation != state.generation:
                continue  # the vectors that changed since are compared when it is opened
            start = 0
            for ids, vectors in read_all(connection, database.location, state):
                end = start + len(ids)
                same = np.array_equal(block.ids[start:end], ids) and np.array_equal(
                    block.vectors[start:end], vectors
                )
                if not same:
                    return f"{path} is not what SQLite has: {_REMEDY}"
                block.release()
                start = end
            if start != len(block.ids):
                return f"{path} is not what SQLite has: {_REMEDY}"
    return None


def remove_matrix(location: Location) -> None:
    """Remove the stored matrix; the next search writes it again.

    Call this after vectors were removed that must not stay on the disk: a process that is just
    writing the file is waited for.

    Raises:
        OSError: it cannot be removed.
    """
    if not location.derived.exists():
        return
    with _turn(location):
        for engine in DTYPES:
            _path(location, engine).unlink(missing_ok=True)


def _path(location: Location, engine: str) -> Path:
    return location.derived / f"matrix.{np.dtype(DTYPES[engine]).name}"


def _current(
    location: Location, connection: sqlite3.Connection, engine: str | None, last: Matrix | None
) -> Matrix | None:
    """Return the matrix from `last`, or from the file, and what changed since; None if too old."""
    state = read_state(connection)
    engine = choose_engine(engine, state.vectors)
    if last is not None and last.engine == engine:
        if (last.generation, last.space_id) == (state.generation, state.space_id) and all(
            samples_fit(connection, block) for block in last.blocks
        ):
            return last
        matrix = _extend(location, connection, state, engine, last.blocks[0])
        if matrix is not None:
            return matrix
    stored = map_file(_path(location, engine))
    return None if stored is None else _extend(location, connection, state, engine, stored)


def _extend(
    location: Location,
    connection: sqlite3.Connection,
    state: VectorState,
    engine: str,
    block: Block,
) -> Matrix | None:
    """Return a matrix of a block and the vectors that changed since; None if it does not fit."""
    header = block.header
    fits = (header.space_id, header.width, header.dtype) == (
        state.space_id, state.width, DTYPES[engine]
    )  # fmt: skip
    since = header.generation
    if not fits or not state.removed <= since <= state.generation:
        return None
    if not samples_fit(connection, block):
        return None
    if since == state.generation:
        whole = header.rows == state.vectors
        return Matrix(engine, since, block.ids, (block,)) if whole else None
    few = max(_FEW, state.vectors // _SHARE)
    count = count_changed(connection, since)
    if count > few:
        return None
    changed = read_changed(connection, location, state, since)
    later = read_batches(state.header(header.dtype, count), changed)
    ids, order = _merge(block.ids, later.ids)
    if len(ids) != state.vectors:
        return None
    return Matrix(engine, state.generation, ids, (block, later), order)


def _merge(
    old: NDArray[np.int64], new: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Return the union of ids, ascending, and the place of each in `old` followed by `new`.

    An id that is in both is at its place in `new`. The places are None if they are in order.
    """
    if not len(old) or not len(new) or new[0] > old[-1]:
        return np.concatenate([old, new]), None
    at = np.searchsorted(old, new)
    replaced = at[old[np.minimum(at, len(old) - 1)] == new]
    places = np.delete(np.arange(len(old) + len(new)), replaced)
    ids = np.delete(np.concatenate([old, new]), replaced)
    order = np.argsort(ids, kind="stable")
    return ids[order], places[order]


def _write(location: Location, connection: sqlite3.Connection, engine: str | None) -> Matrix:
    """Write the file.

    Raises:
        OSError: it cannot be written.
    """
    state = read_state(connection)
    engine = choose_engine(engine, state.vectors)
    header = state.header(DTYPES[engine])
    block = write_file(_path(location, engine), header, read_all(connection, location, state))
    for other in DTYPES:
        path = _path(location, other)
        stale = map_file(path)
        if other != engine and (stale is None or stale.header.generation != state.generation):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    return Matrix(engine, state.generation, block.ids, (block,))


def _in_memory(
    location: Location,
    connection: sqlite3.Connection,
    engine: str | None,
    trouble: str | None = None,
) -> Matrix:
    state = read_state(connection)
    engine = choose_engine(engine, state.vectors)
    block = read_batches(state.header(DTYPES[engine]), read_all(connection, location, state))
    remark = None
    if trouble is not None:
        remark = (
            f"{_path(location, engine)} cannot be written ({trouble}): every search reads all "
            "vectors again, which takes longer"
        )
        log.warning(remark)
    return Matrix(engine, state.generation, block.ids, (block,), remark=remark)


@contextlib.contextmanager
def _turn(location: Location) -> Iterator[str | None]:
    """Let one process at a time write the file; yield why this one cannot, or None.

    A process that was stopped while it writes delays the others for a minute, not for ever.
    """
    lock = None
    trouble = None
    try:
        private_folder(location.derived)
        private_file(location.derived / _LOCK)
        deadline = time.monotonic() + _LONGEST_WAIT
        while (lock := locks.acquire(location.derived / _LOCK)) is None:
            if time.monotonic() > deadline:
                trouble = f"another process has been writing it for {_LONGEST_WAIT:.0f} s"
                break
            time.sleep(0.05)
    except locks.NoLocksError:
        pass  # written twice, each time whole
    except OSError as error:
        trouble = error.strerror or str(error)
    try:
        yield trouble
    finally:
        if lock is not None:
            locks.release(lock)
