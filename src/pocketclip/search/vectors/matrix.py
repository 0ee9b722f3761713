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
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.search.store.database import Database
from pocketclip.search.store.location import Location
from pocketclip.search.vectors.file import Block, is_intact, map_file, read_batches, write_file
from pocketclip.search.vectors.kernels import DTYPES, choose_engine
from pocketclip.search.vectors.rows import (
    VectorState,
    count_changed,
    is_of,
    read_all,
    read_changed,
    read_state,
)
from pocketclip.storage import locks
from pocketclip.storage.private import private_file, private_folder

_FEW = 2000  # changes that are always read on top of a file, 6 ms
_SHARE = 50  # and one in so many: 20,000 of a million, 65 ms
_LONGEST_WAIT = 60.0  # seconds for another process that writes the same file
_LOCK = "matrix.lock"
_TRIES = 3  # a removal while the file is written makes it useless
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
    is_open = database.connection.in_transaction
    with database.snapshot():
        matrix = _current(database, engine, last)
        if matrix is None and is_open:
            matrix = _in_memory(database, engine)
    if matrix is not None:
        return matrix
    matrix, trouble = _renew(database, engine)
    if matrix is not None:
        return matrix
    with database.snapshot():
        return _in_memory(database, engine, trouble)


def prepare_matrix(database: Database) -> None:
    """Write the matrix if the next search would have to; nothing if it cannot be written.

    Raises:
        LibraryError: a vector is damaged; or SQLite's error.
    """
    with database.snapshot():
        current = _current(database, None, None)
    if current is None:
        _, trouble = _renew(database, None)
        log.debug("the matrix of %s: %s", database.location.file, trouble or "written")


def _renew(database: Database, engine: str | None) -> tuple[Matrix | None, str | None]:
    """Return the matrix from a new file, and why there is none."""
    with _turn(database) as trouble:
        for _ in range(_TRIES if trouble is None else 0):
            try:
                with database.snapshot():
                    # Another process may have written it meanwhile.
                    matrix = _current(database, engine, None)
                    if matrix is None:
                        matrix = _write(database, engine)
                if not _is_left_over(database, matrix):
                    return matrix, None
            except OSError as error:
                return None, error.strerror or str(error)
    return None, trouble


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
        with database.snapshot():
            state = read_state(database)
            if block.header.generation != state.generation or not is_of(database, block):
                continue  # what is older is compared when it is opened, and read again if need be
            start = 0
            for ids, vectors in read_all(database, state):
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

    Raises:
        OSError: it cannot be removed.
    """
    for engine in DTYPES:
        _path(location, engine).unlink(missing_ok=True)


def _path(location: Location, engine: str) -> Path:
    return location.derived / f"matrix.{np.dtype(DTYPES[engine]).name}"


def _current(database: Database, engine: str | None, last: Matrix | None) -> Matrix | None:
    """Return the matrix from `last`, or from the file, and what changed since; None if too old."""
    state = read_state(database)
    engine = choose_engine(engine, state.vectors)
    if last is not None and last.engine == engine:
        matrix = _extend(database, state, engine, last.blocks[0], last)
        if matrix is not None:
            return matrix
    stored = map_file(_path(database.location, engine))
    return None if stored is None else _extend(database, state, engine, stored)


def _extend(
    database: Database, state: VectorState, engine: str, block: Block, last: Matrix | None = None
) -> Matrix | None:
    """Return a matrix of a block and the vectors that changed since; None if it does not fit."""
    header = block.header
    fits = (header.space_id, header.width, header.dtype) == (
        state.space_id, state.width, DTYPES[engine]
    )  # fmt: skip
    since = header.generation
    if not fits or since < state.removed or not is_of(database, block):
        return None
    if last is not None and last.generation == state.generation:
        return last
    if since == state.generation:
        whole = header.rows == state.vectors
        return Matrix(engine, since, block.ids, (block,)) if whole else None
    few = max(_FEW, state.vectors // _SHARE)
    count = count_changed(database, since)
    if count > few:
        return None
    changed = read_changed(database, state, since)
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


def _write(database: Database, engine: str | None) -> Matrix:
    """Write the file.

    Raises:
        OSError: it cannot be written.
    """
    state = read_state(database)
    engine = choose_engine(engine, state.vectors)
    path = _path(database.location, engine)
    block = write_file(path, state.header(DTYPES[engine]), read_all(database, state))
    return Matrix(engine, state.generation, block.ids, (block,))


def _is_left_over(database: Database, matrix: Matrix) -> bool:
    """Remove files with vectors that were removed meanwhile, and old ones of another engine.

    Returns whether the matrix just written is one: what is forgotten must not stay on the disk.
    """
    with database.snapshot():
        state = read_state(database)
        for engine in DTYPES:
            path = _path(database.location, engine)
            block = map_file(path)
            oldest = state.removed if engine == matrix.engine else state.generation
            if block is None or block.header.generation < oldest or not is_of(database, block):
                path.unlink(missing_ok=True)
        return matrix.generation < state.removed


def _in_memory(database: Database, engine: str | None, trouble: str | None = None) -> Matrix:
    state = read_state(database)
    engine = choose_engine(engine, state.vectors)
    block = read_batches(state.header(DTYPES[engine]), read_all(database, state))
    remark = None
    if trouble is not None:
        remark = (
            f"{_path(database.location, engine)} cannot be written ({trouble}): every search reads "
            "all vectors again, which takes longer"
        )
        log.warning(remark)
    return Matrix(engine, state.generation, block.ids, (block,), remark=remark)


@contextlib.contextmanager
def _turn(database: Database) -> Iterator[str | None]:
    """Let one process at a time write the file; yield why this one cannot, or None.

    A process that was stopped while it writes delays the others for a minute, not for ever.
    """
    lock = None
    trouble = "the library is read-only" if database.read_only else None
    folder = database.location.derived
    try:
        if trouble is None:
            private_folder(folder)
            private_file(folder / _LOCK)
            lock = _wait(folder / _LOCK)
            if lock is None:
                trouble = f"another process has been writing it for {_LONGEST_WAIT:.0f} s"
    except locks.NoLocksError:
        pass  # written twice, each time whole
    except OSError as error:
        trouble = error.strerror or str(error)
    try:
        yield trouble
    finally:
        if lock is not None:
            locks.release(lock)


def _wait(path: Path) -> int | None:
    deadline = time.monotonic() + _LONGEST_WAIT
    while True:
        lock = locks.acquire(path, create=True)  # `forget` may have removed the file
        if lock is not None or time.monotonic() > deadline:
            return lock
        time.sleep(0.05)
