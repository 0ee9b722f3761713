"""Find samples of a set of shards by uid: an index on disk, so that memory stays small."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pocketclip import storage
from pocketclip.shards.scratch_database import open_scratch_database, storable
from pocketclip.shards.tar import Group, group_at, groups, members

_MAX_OPEN = 8  # open files; neighbours in one set tend to be neighbours in the other


class Lookup:
    """Finds samples of tar shards by uid; a context manager.

    Args:
        folder: the folder of the index, which may be deleted afterwards.
        paths: the shards; only their headers are read.

    Raises:
        DataError: a shard is truncated or damaged.
    """

    def __init__(self, folder: Path, paths: list[str]) -> None:
        self.paths = paths
        self.samples = 0
        self.empty: list[str] = []
        """Paths of the shards without samples."""
        self._streams: OrderedDict[int, BinaryIO] = OrderedDict()
        self._base = open_scratch_database(folder / "lookup.sqlite")
        self._base.execute(
            "CREATE TABLE samples (uid TEXT PRIMARY KEY, file INT, first INT, last INT, "
            "used INT DEFAULT 0) WITHOUT ROWID"
        )
        # A uid begins with the member's folders; this table has it without them too.
        self._base.execute("CREATE TABLE bare (uid TEXT PRIMARY KEY, whole TEXT) WITHOUT ROWID")
        self._base.execute("CREATE TABLE duplicates (uid TEXT, file INT)")
        try:
            for number, path in enumerate(paths):
                self._add(number, path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Lookup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the index and all shards."""
        for stream in self._streams.values():
            stream.close()
        self._base.close()

    def _add(self, number: int, path: str) -> None:
        samples_before = self.samples
        with storage.open_read(path) as stream:
            for group in groups(members(stream, path, load=False)):
                row = (storable(group.uid), number, group.begin, group.end)
                cursor = self._base.execute(
                    "INSERT OR IGNORE INTO samples (uid, file, first, last) VALUES (?, ?, ?, ?)",
                    row,
                )
                self.samples += 1
                if not cursor.rowcount:
                    self._base.execute("INSERT INTO duplicates VALUES (?, ?)", row[:2])
                elif group.bare_uid != group.uid:
                    self._base.execute(
                        "INSERT INTO bare VALUES (?, ?) ON CONFLICT DO UPDATE SET whole = NULL",
                        (storable(group.bare_uid), row[0]),
                    )
        if self.samples == samples_before:
            self.empty.append(path)

    def find(self, uid: str) -> tuple[int, int, int] | None:
        """Return the location of a uid's sample (file number, first and last byte), or None.

        A sample in a folder is also found by its uid without the folder, unless several match.
        """
        query = "SELECT file, first, last FROM samples WHERE uid = ?"
        key = self._whole_uid(uid)
        row: tuple[int, int, int] | None = self._base.execute(query, (key,)).fetchone()
        return row

    def mark(self, uid: str) -> bool:
        """Mark `uid` as matched, and return whether it was not marked before."""
        query = "UPDATE samples SET used = 1 WHERE uid = ? AND used = 0"
        return bool(self._base.execute(query, (self._whole_uid(uid),)).rowcount)

    def _whole_uid(self, uid: str) -> str:
        key = storable(uid)
        if self._base.execute("SELECT 1 FROM samples WHERE uid = ?", (key,)).fetchone() is None:
            row = self._base.execute("SELECT whole FROM bare WHERE uid = ?", (key,)).fetchone()
            key = (row and row[0]) or key
        return key

    def load(self, location: tuple[int, int, int]) -> tuple[Group, str]:
        """Return the sample at a location from `find`, and the path of its shard.

        Raises:
            DataError: it is damaged.
        """
        number, first, last = location
        stream = self._streams.pop(number, None) or storage.open_read(self.paths[number])
        self._streams[number] = stream
        if len(self._streams) > _MAX_OPEN:
            self._streams.popitem(last=False)[1].close()
        path = self.paths[number]
        return group_at(stream, first, last, path), path

    def unmatched(self) -> Iterator[tuple[str, str]]:
        """Yield (uid, path) of all samples that were never marked, sorted by uid."""
        query = "SELECT uid, file FROM samples WHERE used = 0 ORDER BY uid"
        for uid, number in self._base.execute(query):
            yield uid, self.paths[number]

    def duplicates(self) -> Iterator[tuple[str, str]]:
        """Yield (uid, path) of samples whose uid an earlier sample has; `find` skips them."""
        for uid, number in self._base.execute(
            "SELECT uid, file FROM duplicates ORDER BY uid, file"
        ):
            yield uid, self.paths[number]
