"""Where each uid of a set of shards lies: an index on disk, so that memory stays small."""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from pocketclip import storage
from pocketclip.shards.tar import Group, group_at, groups, members

_OPEN = 8  # files kept open; neighbours in one set tend to be neighbours in the other


class Lookup:
    """Finds samples of tar shards by uid; a context manager.

    Args:
        folder: for the index, which may be deleted afterwards.
        paths: the shards; only their headers are read.

    Raises:
        DataError: a shard is cut or damaged.
    """

    def __init__(self, folder: Path, paths: list[str]) -> None:
        self.paths = paths
        self.samples = 0
        self.empty: list[str] = []
        """The shards that hold no samples."""
        self._streams: OrderedDict[int, BinaryIO] = OrderedDict()
        self._base = sqlite3.connect(folder / "lookup.sqlite")
        for setting in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-65536"):
            self._base.execute(f"PRAGMA {setting}")
        self._base.execute(
            "CREATE TABLE places (uid TEXT PRIMARY KEY, file INT, first INT, last INT, "
            "used INT DEFAULT 0) WITHOUT ROWID"
        )
        # Of members in folders, which are part of the uid, also the uid without them.
        self._base.execute("CREATE TABLE bare (uid TEXT PRIMARY KEY, whole TEXT) WITHOUT ROWID")
        self._base.execute("CREATE TABLE again (uid TEXT, file INT)")
        try:
            for number, path in enumerate(paths):
                self._add(number, path)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> Lookup:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for stream in self._streams.values():
            stream.close()
        self._base.close()

    def _add(self, number: int, path: str) -> None:
        before = self.samples
        with storage.open_read(path) as stream:
            for group in groups(members(stream, path, load=False)):
                row = (_key(group.uid), number, group.begin, group.end)
                done = self._base.execute(
                    "INSERT OR IGNORE INTO places (uid, file, first, last) VALUES (?, ?, ?, ?)", row
                )
                self.samples += 1
                if not done.rowcount:
                    self._base.execute("INSERT INTO again VALUES (?, ?)", row[:2])
                elif group.bare_uid != group.uid:
                    self._base.execute(
                        "INSERT INTO bare VALUES (?, ?) ON CONFLICT DO UPDATE SET whole = NULL",
                        (_key(group.bare_uid), row[0]),
                    )
        if self.samples == before:
            self.empty.append(path)

    def find(self, uid: str) -> tuple[int, int, int] | None:
        """Return file number, first and last byte of a uid's sample, or None.

        A sample in a folder is also found by its uid without the folder, if that is the only one.
        """
        query = "SELECT file, first, last FROM places WHERE uid = ?"
        key = self._whole(uid)
        row: tuple[int, int, int] | None = self._base.execute(query, (key,)).fetchone()
        return row

    def mark(self, uid: str) -> bool:
        """Note that `uid` found its partner, and return whether it is the first time."""
        query = "UPDATE places SET used = 1 WHERE uid = ? AND used = 0"
        return bool(self._base.execute(query, (self._whole(uid),)).rowcount)

    def _whole(self, uid: str) -> str:
        key = _key(uid)
        if self._base.execute("SELECT 1 FROM places WHERE uid = ?", (key,)).fetchone() is None:
            row = self._base.execute("SELECT whole FROM bare WHERE uid = ?", (key,)).fetchone()
            key = (row and row[0]) or key
        return key

    def load(self, place: tuple[int, int, int]) -> tuple[Group, str]:
        """Return the sample at a place that `find` gave, and its shard's path.

        Raises:
            DataError: it is damaged.
        """
        number, first, last = place
        stream = self._streams.pop(number, None) or storage.open_read(self.paths[number])
        self._streams[number] = stream
        if len(self._streams) > _OPEN:
            self._streams.popitem(last=False)[1].close()
        path = self.paths[number]
        return group_at(stream, first, last, path), path

    def unused(self) -> Iterator[tuple[str, str]]:
        """Yield (uid, path) of what was never marked, by uid."""
        query = "SELECT uid, file FROM places WHERE used = 0 ORDER BY uid"
        for uid, number in self._base.execute(query):
            yield uid, self.paths[number]

    def doubles(self) -> Iterator[tuple[str, str]]:
        """Yield (uid, path) of samples whose uid stands before them, and which are not found."""
        for uid, number in self._base.execute("SELECT uid, file FROM again ORDER BY uid, file"):
            yield uid, self.paths[number]


def _key(uid: str) -> str:
    return uid.encode("utf-8", "replace").decode()  # sqlite takes no lone surrogates
