"""What is needed of every photograph to find duplicates, as columns.

N: contents with a file that is there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketclip.search.folders import folder_condition
from pocketclip.search.store.database import Database

_CHUNK = 50_000  # rows
_NEVER = np.iinfo(np.int64).max
THERE = "f.absent = 0 AND f.error IS NULL AND f.content IS NOT NULL"
"""SQL: whether a file is there as far as the library knows."""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns (N,), by ascending id."""

    ids: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    """Perceptual hashes; 0 where there is none."""
    hashed: NDArray[np.bool_]
    """Whether there is one."""
    taken: NDArray[np.float64]
    """What the camera's clock showed, in seconds; NaN if unknown."""
    camera: NDArray[np.int64]
    """A number for each camera; -1 if unknown."""
    ratio: NDArray[np.float64]
    """Width by height; NaN if unknown."""
    files: NDArray[np.int64]
    """The number of files."""
    readable: NDArray[np.bool_]
    """Whether it can be decoded, as far as was tried; others are compared by bytes only."""
    rank: NDArray[np.int64]
    """Place in the order from best to worst: most pixels, most bytes, oldest file, smallest id."""

    @property
    def timed(self) -> NDArray[np.bool_]:
        """Whether camera and time are known."""
        return ~np.isnan(self.taken) & (self.camera >= 0)


def read_table(database: Database, folders: Sequence[str | os.PathLike[str]] = ()) -> Table:
    """Return the table of the files in some folders, or of all.

    Raises:
        QueryError: a folder is not in the library.
    """
    where, values = in_folders(database, folders)
    cameras: dict[str, int] = {}
    chunks: list[NDArray[np.float64]] = []
    whole: list[NDArray[np.int64]] = []
    with database.reading() as connection:
        rows = connection.execute(
            "SELECT c.id, c.perceptual_hash, c.width, c.height, c.size, c.taken, c.camera, "
            "c.error IS NULL, MIN(NULLIF(f.mtime_ns, -1)), COUNT(*) "
            "FROM files f JOIN contents c ON c.id = f.content "
            f"WHERE {THERE}{where} GROUP BY c.id ORDER BY c.id",
            values,
        )
        while chunk := rows.fetchmany(_CHUNK):
            numbers = [
                (
                    content, value or 0, value is not None, (width or 0) * (height or 0), size,
                    _NEVER if changed is None else changed, count,
                    -1 if camera is None else cameras.setdefault(camera, len(cameras)), readable,
                )
                for content, value, width, height, size, _, camera, readable, changed, count
                in chunk
            ]  # fmt: skip
            whole.append(np.array(numbers, np.int64))
            floats = [
                (
                    np.nan if taken is None else taken,
                    width / height if width and height else np.nan,
                )
                for _, _, width, height, _, taken, *_ in chunk
            ]
            chunks.append(np.array(floats, np.float64))
    columns = np.concatenate([np.empty((0, 9), np.int64), *whole]).T
    taken, ratio = np.concatenate([np.empty((0, 2)), *chunks]).T
    ids, hashes, hashed, pixels, size, changed, count, camera, readable = columns
    best = np.lexsort((ids, changed, -size, -pixels))
    rank = np.empty(len(ids), np.int64)
    rank[best] = np.arange(len(ids))
    return Table(
        ids=ids, hashes=hashes.astype(np.uint64), hashed=hashed.astype(np.bool_), taken=taken,
        camera=camera, ratio=ratio, files=count, readable=readable.astype(np.bool_), rank=rank,
    )  # fmt: skip


def in_folders(
    database: Database, folders: Sequence[str | os.PathLike[str]]
) -> tuple[str, tuple[object, ...]]:
    """Return SQL that continues a condition on `files f`, and its values."""
    if not folders:
        return "", ()
    condition, values = folder_condition(database, folders)
    return f" AND {condition}", values
