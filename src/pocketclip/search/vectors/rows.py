"""The vectors in SQLite, read in batches, and whether a block of them is still what SQLite has.

The functions read within `Database.snapshot`, so that they agree.

Shapes: B batch, D embedding.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pocketclip.errors import LibraryError
from pocketclip.search.store.database import Database
from pocketclip.search.store.location import Location
from pocketclip.search.store.sqlite_errors import MEND
from pocketclip.search.vectors.file import Batch, Block, Header

_BATCH = 4096  # rows that are read at once
# Otherwise SQLite would go through all rows, because they are in the order of their ids.
_CHANGED = "FROM contents INDEXED BY contents_changed WHERE vector IS NOT NULL AND changed > ?"
_SAMPLES = 8  # rows that are compared beside the latest


@dataclass(frozen=True, slots=True)
class VectorState:
    """What SQLite says of its vectors, without reading them."""

    generation: int
    """The number of changes so far."""
    token: int
    """See `Database.token`."""
    vectors: int
    """Their number."""
    removed: int
    """The generation in which one was last removed."""
    space_id: str | None
    width: int
    """D; 0 if it is not known yet."""

    def header(self, dtype: str, rows: int | None = None) -> Header:
        """Return a header for vectors of this generation."""
        rows = self.vectors if rows is None else rows
        return Header(self.space_id, self.generation, self.token, rows, self.width, dtype, 0.0, "")


def read_state(database: Database) -> VectorState:
    """Return what SQLite says of its vectors; takes no longer for more of them.

    Raises:
        LibraryError: it does not say it.
    """
    with database.snapshot() as connection:
        facts = dict(
            connection.execute(
                "SELECT name, value FROM facts "
                "WHERE name IN ('vectors', 'removed', 'space_id', 'embed_dim')"
            ).fetchall()
        )
        vectors, removed = facts.get("vectors"), facts.get("removed")
        if not (isinstance(vectors, int) and isinstance(removed, int)):
            raise LibraryError(f"{database.location.file}: it is damaged (no counts): {MEND}")
        width = facts.get("embed_dim")
        if not isinstance(width, int):
            row = connection.execute(
                "SELECT length(vector) / 2 FROM contents WHERE vector IS NOT NULL LIMIT 1"
            ).fetchone()
            width = row[0] if row else 0
        generation = database.generation()
        token = database.token(generation)
    return VectorState(generation, token, vectors, removed, facts.get("space_id"), width)


def read_all(database: Database, state: VectorState) -> Iterator[Batch]:
    """Yield all vectors in the order of their ids.

    Raises:
        LibraryError: one is damaged, or their number is not what SQLite says.
    """
    # By id, not by an index: the rows are then read one after the other.
    cursor = database.connection.execute(
        "SELECT id, vector FROM contents NOT INDEXED WHERE vector IS NOT NULL ORDER BY id"
    )
    count = 0
    for ids, vectors in _batches(cursor, database.location, state):
        count += len(ids)
        yield ids, vectors
    if count != state.vectors:
        raise LibraryError(
            f"{database.location.file} has {count} vectors and says {state.vectors}: {MEND}"
        )


def count_changed(database: Database, since: int) -> int:
    """Return how many vectors were set after a generation."""
    query = f"SELECT count(*) {_CHANGED}"
    return int(database.connection.execute(query, (since,)).fetchone()[0])


def read_changed(database: Database, state: VectorState, since: int) -> Iterator[Batch]:
    """Yield the vectors that were set after a generation, in the order of their ids.

    Raises:
        LibraryError: one is damaged.
    """
    query = f"SELECT id, vector {_CHANGED} ORDER BY id"
    cursor = database.connection.execute(query, (since,))
    yield from _batches(cursor, database.location, state)


def is_of(database: Database, block: Block) -> bool:
    """Return whether a block is of this library, and of one of its generations.

    A library that lost its last commits, was restored from a copy or was made anew may come to the
    same generation and number with other vectors. So a few rows are compared too, the one that
    changed last among them.
    """
    header = block.header
    if header.generation > database.generation() or header.token != database.token(
        header.generation
    ):
        return False
    connection = database.connection
    since = block.header.generation
    query = "SELECT id, vector, changed FROM contents WHERE "
    rows = connection.execute(
        f"{query} vector IS NOT NULL AND changed <= ? ORDER BY changed DESC LIMIT 1", (since,)
    ).fetchall()
    count = len(block.ids)
    for place in {i * (count - 1) // (_SAMPLES - 1) for i in range(_SAMPLES)} if count else ():
        found = connection.execute(f"{query} id = ?", (int(block.ids[place]),)).fetchone()
        if found is None:
            return False
        rows.append(found)
    for number, vector, changed in rows:
        place = int(np.searchsorted(block.ids, number))
        if changed is None or place == count or block.ids[place] != number:
            return False
        if changed <= since and not (
            isinstance(vector, bytes)
            and len(vector) == 2 * block.header.width
            and np.array_equal(block.vectors[place], np.frombuffer(vector, "<f2"))
        ):
            return False
    return True


def _batches(cursor: sqlite3.Cursor, location: Location, state: VectorState) -> Iterator[Batch]:
    while rows := cursor.fetchmany(_BATCH):
        ids, blobs = zip(*rows, strict=True)
        # In a damaged file they can be of any type.
        size = 2 * state.width
        bad = [i for i, v in enumerate(blobs) if not isinstance(v, bytes) or len(v) != size]
        if not bad:
            vectors = np.frombuffer(b"".join(blobs), "<f2").reshape(len(blobs), state.width)
            # NaN and infinity have all bits of the exponent; the numbers need no conversion for it.
            finite = (vectors.view("<u2") & 0x7C00 != 0x7C00).all(axis=1)
            bad = np.flatnonzero(~finite).tolist()
        if bad:
            raise LibraryError(
                f"{location.file}: the vector of content {ids[bad[0]]} is damaged: {MEND}"
            )
        yield np.array(ids, np.int64), vectors
