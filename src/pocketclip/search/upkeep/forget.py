"""Forgetting photographs: the only thing that deletes what a library knows.

The files themselves stay. What is forgotten is gone from the disk too, not only from the tables:
SQLite overwrites it with zeros, its log is emptied, and the thumbnails, the matrix and the backup,
which have copies, are removed.

Contents that no file has any more, such as earlier versions of edited photographs, go with any
forgetting: they are nowhere else asked for.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketclip.errors import LibraryError
from pocketclip.formats.escaping import name_text
from pocketclip.search.indexing.roots import Root, known_roots, list_of_roots, place_of, root_at
from pocketclip.search.store.database import Database
from pocketclip.search.store.location import Location
from pocketclip.storage.local import remove_abandoned

_ABSENT, _EXCLUDED = 1, 2  # of `files.absent`
_SPARSE = 4  # the file is written anew if a quarter of its pages is unused


@dataclass(slots=True)
class ForgetReport:
    """What was forgotten, or would be."""

    files: list[Path] = field(default_factory=list)
    """The files, by path."""
    roots: list[Path] = field(default_factory=list)
    """The roots that are not indexed any more."""
    contents: int = 0
    """Contents that no file has now, those that no file had before included."""
    vectors: int = 0
    """The number of these with a vector."""
    unused: int = 0
    """The number of these that no file had before."""
    still_there: list[Path] = field(default_factory=list)
    """Files that the next indexing will add again, as they are in a root."""
    kept: dict[Path, int] = field(default_factory=dict)
    """Roots that are not there now, with the number of their absent files, which are kept."""
    thumbnails: int = 0
    """The number of removed thumbnails."""
    left: list[str] = field(default_factory=list)
    """Where something of them is still on the disk, and what to do about it."""
    dry_run: bool = False

    def facts(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {
            "files": [name_text(path) for path in self.files],
            "roots": [name_text(path) for path in self.roots],
            "contents": self.contents,
            "vectors": self.vectors,
            "unused": self.unused,
            "still_there": [name_text(path) for path in self.still_there],
            "kept": {name_text(path): count for path, count in self.kept.items()},
            "thumbnails": self.thumbnails,
            "left": self.left,
            "dry_run": self.dry_run,
        }


def forget(
    database: Database,
    paths: Iterable[str | os.PathLike[str]] = (),
    *,
    roots: Iterable[str | os.PathLike[str]] = (),
    absent: bool = False,
    unreadable: bool = False,
    unused: bool = False,
    dry_run: bool = False,
) -> ForgetReport:
    """Forget files, and what is known of their contents unless another file has them.

    Args:
        database: the library's file.
        paths: files, and folders within a root; they need not be there.
        roots: whole roots, which are not indexed any more.
        absent: the files that indexing found gone and that are not there now. Those of a root that
            is not there are kept.
        unreadable: the files that could not be read or decoded.
        unused: no file, only contents that no file has any more; these go with all the others too.
        dry_run: report what would be forgotten, and change nothing.

    Raises:
        LibraryError: nothing was given, or something that the library does not know; nothing was
            forgotten. Or another process writes.
    """
    paths, roots = [*paths], [*roots]
    if not (paths or roots or absent or unreadable or unused):
        raise LibraryError("nothing to forget was given: name files, --root, --absent or --unused")
    report = ForgetReport(dry_run=dry_run)
    if dry_run:
        with database.snapshot() as connection:
            _Choice(database, connection, report).choose(paths, roots, absent, unreadable)
        return report
    with database.writing():
        with database.transaction() as connection:
            choice = _Choice(database, connection, report)
            choice.choose(paths, roots, absent, unreadable)
            digests = choice.delete()
            # Before the commit: after a kill nobody knows whose they were. They can be made again.
            _remove_thumbnails(database.location, digests, report)
        # And after it: a server may have made one again that it still found in the library.
        _remove_thumbnails(database.location, digests, report)
        _remove_copies(database.location, report)
        if report.files or report.roots or digests:
            _clean(database, report)
    return report


class _Choice:
    """The rows to delete, in temporary tables of one connection."""

    def __init__(
        self, database: Database, connection: sqlite3.Connection, report: ForgetReport
    ) -> None:
        self.database, self.connection, self.report = database, connection, report
        self.roots: list[Root] = []

    def choose(
        self,
        paths: list[str | os.PathLike[str]],
        roots: list[str | os.PathLike[str]],
        absent: bool,
        unreadable: bool,
    ) -> None:
        """Choose the rows, and fill in the report."""
        run = self.connection.execute
        run("DROP TABLE IF EXISTS temp.chosen")
        run("CREATE TEMP TABLE chosen (id INTEGER PRIMARY KEY)")
        known = known_roots(self.database)
        for path in paths:
            self._choose_path(path, known)
        if absent:
            self._choose_absent(known)
        if unreadable:
            run(
                "INSERT OR IGNORE INTO chosen SELECT files.id FROM files LEFT JOIN contents "
                "ON contents.id = files.content "
                "WHERE files.error IS NOT NULL OR contents.error IS NOT NULL"
            )
        self.report.still_there = [
            path
            for path, state in self._paths(known)
            if state != _EXCLUDED and os.path.lexists(path)
        ]
        for path in roots:
            self._choose_root(path, known)
        self.report.files = [path for path, _ in self._paths(known)]
        within = [root.path for root in self.roots]
        self.report.still_there = [
            path
            for path in self.report.still_there
            if not any(path.is_relative_to(root) for root in within)
        ]
        self._count_contents()

    def _choose_path(self, path: str | os.PathLike[str], known: list[Root]) -> None:
        whole = Path(path).expanduser()
        # A link to a photograph, and the photograph that it leads to.
        places = (Path(os.path.realpath(whole.parent)) / whole.name, Path(os.path.realpath(whole)))
        for place in places:
            found = place_of(known, place)
            if found is None:
                continue
            root, below = found
            if not below:
                raise LibraryError(
                    f"{path} is a root of the library: to forget all of it, and that it is "
                    f"indexed, use --root {path}"
                )
            cursor = self.connection.execute(
                "INSERT OR REPLACE INTO chosen SELECT id FROM files "
                "WHERE root = ? AND (path = ? OR path > ? AND path < ?)",
                (root.id, below, below + b"/", below + b"0"),  # 0 comes after the slash
            )
            if cursor.rowcount > 0:
                return
        raise LibraryError(
            f"the library {self.database.location.name} does not know {path}; "
            f"{list_of_roots(known)}"
        )

    def _choose_absent(self, known: list[Root]) -> None:
        for root in known:
            rows = self.connection.execute(
                "SELECT id, path FROM files WHERE root = ? AND absent = ?", (root.id, _ABSENT)
            ).fetchall()
            if rows and not root.path.is_dir():
                self.report.kept[root.path] = len(rows)
                continue
            self.connection.executemany(
                "INSERT OR IGNORE INTO chosen VALUES (?)",
                (
                    (row,)
                    for row, path in rows
                    if not os.path.lexists(root.path / os.fsdecode(path))
                ),
            )

    def _choose_root(self, path: str | os.PathLike[str], known: list[Root]) -> None:
        root = root_at(known, path)
        if root is None:
            raise LibraryError(
                f"{path} is no root of the library {self.database.location.name}; "
                f"{list_of_roots(known)}"
            )
        if root not in self.roots:
            self.roots.append(root)
            self.report.roots.append(root.path)
        self.connection.execute(
            "INSERT OR IGNORE INTO chosen SELECT id FROM files WHERE root = ?", (root.id,)
        )

    def _paths(self, known: list[Root]) -> list[tuple[Path, int]]:
        folders = {root.id: root.path for root in known}
        rows = self.connection.execute(
            "SELECT root, path, absent FROM chosen JOIN files USING (id)"
        ).fetchall()
        return sorted((folders[root] / os.fsdecode(path), state) for root, path, state in rows)

    def _count_contents(self) -> None:
        run = self.connection.execute
        run("DROP TABLE IF EXISTS temp.gone")
        run(
            "CREATE TEMP TABLE gone AS SELECT id, vector IS NOT NULL AS encoded, "
            "NOT EXISTS (SELECT 1 FROM files WHERE content = contents.id) AS unused "
            "FROM contents WHERE NOT EXISTS (SELECT 1 FROM files "
            "WHERE content = contents.id AND files.id NOT IN (SELECT id FROM chosen))"
        )
        counts = run("SELECT count(*), total(encoded), total(unused) FROM gone").fetchone()
        self.report.contents, self.report.vectors, self.report.unused = map(int, counts)

    def delete(self) -> list[bytes]:
        """Delete the chosen rows; return the hashes of the contents that went."""
        run = self.connection.execute
        digests = [
            bytes(digest) for (digest,) in run("SELECT digest FROM contents JOIN gone USING (id)")
        ]
        run("DELETE FROM files WHERE id IN (SELECT id FROM chosen)")
        run("DELETE FROM contents WHERE id IN (SELECT id FROM gone)")
        for root in self.roots:
            run("DELETE FROM roots WHERE id = ?", (root.id,))
        return digests


def _remove_thumbnails(location: Location, digests: list[bytes], report: ForgetReport) -> None:
    from pocketclip.search.thumbnail_store import ThumbnailStore

    store = ThumbnailStore(location)
    for digest in digests:
        report.thumbnails += store.remove(digest)
    # Of processes that were killed while writing one.
    for folder in {store.folder, *(store.file(digest).parent for digest in digests)}:
        remove_abandoned(folder)


def _remove_copies(location: Location, report: ForgetReport) -> None:
    """Remove the files beside the library that have something of the forgotten photographs."""
    from pocketclip.search.vectors.matrix import remove_matrix

    if report.vectors:
        remove_matrix(location)
        remove_abandoned(location.derived)  # of processes that were killed while writing it
    location.backup.unlink(missing_ok=True)
    report.left += [
        f"{path} is a damaged file that a repair kept: it may know them; remove it yourself"
        for path in location.damaged()
    ]


def _clean(database: Database, report: ForgetReport) -> None:
    """Give the space of the deleted rows back, and empty the log."""
    with database.reading() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        free = connection.execute("PRAGMA freelist_count").fetchone()[0]
        connection.execute("DROP TABLE IF EXISTS temp.chosen")
        connection.execute("DROP TABLE IF EXISTS temp.gone")
        if free * _SPARSE > pages:
            # On a full disk it fails; the space is used again later.
            with contextlib.suppress(sqlite3.OperationalError):
                connection.execute("VACUUM")
        busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    if busy:
        report.left.append(
            f"{database.location.log} still has them, as another process reads: it is emptied "
            "when that process ends, or by the next `pocketclip index`"
        )
