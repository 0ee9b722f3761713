"""The photographs of a library without a query: the newest first.

    newest_first(database, Filters(since="2024"))   # ids (N,) of contents

The time of a photograph is that of the camera's clock, without it the time of its oldest file. The
order is the same every time: by time, then by id, the larger first.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pocketclip.search.filters import Filters, conditions, offer_file_time
from pocketclip.search.searching import roots_away
from pocketclip.search.store.database import Database

_QUARTER = 900  # seconds: clocks are set forward and back at full quarters of an hour


def newest_first(database: Database, filters: Filters | None = None) -> NDArray[np.int64]:
    """Return the ids (N,) of all photographs that have a file there now, the newest first.

    Files are not looked for on the disk. Photographs that have no embedding yet are among them;
    those that cannot be decoded are not.

    Args:
        database: the library.
        filters: which photographs.

    Raises:
        QueryError: a filter cannot be understood.
        LibraryError: the library cannot be read.
    """
    made = [*conditions(database, filters or Filters()), *roots_away(database)[1]]
    where = "".join(f" AND {condition.sql}" for condition in made)
    values = [value for condition in made for value in condition.values]
    offer_file_time(database)
    with database.snapshot() as connection:
        # Each query reads indexes and the table of files; the rows of contents hold the vectors.
        files = connection.execute(
            "SELECT f.content, MIN(CASE f.mtime_ns WHEN -1 THEN pc_mtime_ns(f.root, f.path) "
            "ELSE f.mtime_ns END) FROM files f WHERE f.absent = 0 AND f.content IS NOT NULL AND "
            f"f.error IS NULL{where} GROUP BY f.content",
            values,
        ).fetchall()
        taken = connection.execute(
            "SELECT id, taken FROM contents WHERE taken IS NOT NULL ORDER BY id"
        ).fetchall()
        failed = connection.execute("SELECT id FROM contents WHERE error IS NOT NULL").fetchall()
    ids = np.array([content for content, _ in files], np.int64)
    dates = _local_clock(np.array([(changed or 0) / 1e9 for _, changed in files], np.float64))
    if taken and len(ids):
        known = np.array([content for content, _ in taken], np.int64)
        at = np.searchsorted(known, ids).clip(max=len(known) - 1)
        shot = np.array([moment for _, moment in taken], np.float64)[at]
        dates = np.where(known[at] == ids, shot, dates)
    keep = ~np.isin(ids, np.array([content for (content,) in failed], np.int64))
    ids, dates = ids[keep], dates[keep]
    return np.asarray(ids[np.lexsort((-ids, -dates))])


def _local_clock(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what a clock here showed at some times (N,), read as if it were UTC."""
    quarters, which = np.unique(np.floor_divide(seconds, _QUARTER), return_inverse=True)
    ahead = np.array([_ahead(quarter * _QUARTER) for quarter in quarters.tolist()], np.float64)
    return seconds + ahead[which] if len(ahead) else seconds


def _ahead(seconds: float) -> int:
    try:
        return time.localtime(seconds).tm_gmtoff
    except (ValueError, OverflowError, OSError):
        return 0


class Newest:
    """Remembers the order until the library changes; for one thread."""

    def __init__(self) -> None:
        self._known: _Known | None = None

    def __call__(self, database: Database, filters: Filters | None = None) -> NDArray[np.int64]:
        """Return what `newest_first` returns; the array is shared."""
        with database.reading() as connection:
            [version] = connection.execute("PRAGMA data_version").fetchone()
        away = tuple(condition.values for condition in roots_away(database)[1])
        state = (version, away, filters or Filters())
        if self._known is None or self._known.state != state:
            self._known = _Known(state, newest_first(database, filters))
        return self._known.ids


class _Known(NamedTuple):
    state: tuple[object, ...]
    ids: NDArray[np.int64]
