"""Lists the photographs of a root, and compares them with the rows of a library.

    listing, changes = scan_root(database, root_id)
    with database.writing():
        apply_changes(database, changes)  # then read changes.new and changes.changed

A file whose size and time are those of its row is unchanged and is not read. A row whose file is
not there is marked, never deleted, and only if its folder was listed whole: a folder that cannot be
read, a root that is missing, or an empty one that had files (a drive that is not mounted), changes
no row. Paths are bytes, relative to the root.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pocketclip.search.indexing.roots import rules_of
from pocketclip.search.indexing.rules import Rules
from pocketclip.search.indexing.walk import (
    READ_AGAIN,
    FileState,
    Listing,
    file_state,
    list_root,
)
from pocketclip.search.store.database import Database
from pocketclip.storage.photos import is_hidden

__all__ = [
    "ABSENT", "EXCLUDED", "PRESENT", "Changes", "FileState", "FoundFile", "Listing", "Rules",
    "apply_changes", "compare", "list_root", "scan_root", "stored_state",
]  # fmt: skip

PRESENT, ABSENT, EXCLUDED = 0, 1, 2
"""Values of `files.absent`: there; not there; left out by a rule, whether it is there or not."""
_TICK_NS = 2_000_000_000  # the coarsest clock of a file system, FAT's
_UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that has to be read."""

    path: bytes
    size: int
    mtime_ns: int
    row: int | None
    """Its id in `files`; None if the path is not known."""


@dataclass(slots=True)
class Changes:
    """How the listing of a root differs from its rows; ids are those of `files`."""

    root_id: int
    below: bytes = b""
    """The part of the root that was listed; empty for all of it."""
    new: list[FoundFile] = field(default_factory=list)
    """By path."""
    changed: list[FoundFile] = field(default_factory=list)
    """Known paths with another size or time, or that were not read whole; by path."""
    returned: list[int] = field(default_factory=list)
    """Were absent or excluded, and are there as they were."""
    vanished: list[int] = field(default_factory=list)
    excluded: list[int] = field(default_factory=list)
    """A rule leaves them out now."""
    unreadable: list[FoundFile] = field(default_factory=list)
    """Could not be read by an earlier run, and have not changed since."""
    again: int = 0
    """Of `changed`, those whose stored time is `READ_AGAIN`, and whose size is the same."""
    unchanged: int = 0
    """Without the unreadable ones."""
    absent: int = 0
    """Were absent before, and are."""
    left_out: int = 0
    """Were excluded before, and are."""
    unknown: int = 0
    """Are in folders that could not be listed; nothing is known of them."""
    missing: str | None = None
    """Why the root was not listed. Then everything above is empty: no row changes."""

    @property
    def scope(self) -> tuple[str, list[int | bytes]]:
        """The condition for the rows of `files` that it is about, with its values."""
        if not self.below:
            return "root = ?", [self.root_id]
        # "0" follows "/".
        between = [self.below + b"/", self.below + b"0"]
        return "root = ? AND path > ? AND path < ?", [self.root_id, *between]


def scan_root(
    database: Database,
    root_id: int,
    below: bytes = b"",
    *,
    progress: Callable[[int], None] | None = None,
) -> tuple[Listing, Changes]:
    """List a known root, or a part of it, and compare it with its rows; nothing is written.

    Args:
        database: the library's file.
        root_id: id in `roots`.
        below: a folder of the root; empty for the whole root.
        progress: called with the number of files found so far.
    """
    with database.reading() as connection:
        (path,) = connection.execute("SELECT path FROM roots WHERE id = ?", (root_id,)).fetchone()
    rules = rules_of(database, root_id)
    listing = list_root(Path(os.fsdecode(path)), rules, below, progress=progress)
    return listing, compare(database, root_id, listing)


def compare(database: Database, root_id: int, listing: Listing) -> Changes:
    """Return how a listing differs from the rows of its root, or of the part that was listed."""
    changes = Changes(root_id, listing.below, missing=listing.missing)
    if listing.missing is not None:
        return changes
    condition, values = changes.scope
    with database.reading() as connection:
        if (
            listing.empty
            and not listing.below  # within a root that is there, an emptied folder is just that
            and connection.execute(
                f"SELECT 1 FROM files WHERE {condition} AND absent = {PRESENT} LIMIT 1", values
            ).fetchone()
        ):
            changes.missing = "it is an empty folder, as if its drive is not mounted"
            return changes
        rows = connection.execute(
            "SELECT id, path, size, mtime_ns, absent, content IS NULL, error IS NOT NULL "
            f"FROM files WHERE {condition}",
            values,
        )
        fates = _Fates(listing)
        unseen = dict(listing.files)
        for row, path, size, mtime_ns, absent, unread, failed in rows:
            state = unseen.pop(path, None)
            if state is None:
                _not_listed(changes, row, absent, fates.of(path))
            elif state != (size, mtime_ns) or (unread and not failed):
                changes.changed.append(FoundFile(path, *state, row))
                changes.again += mtime_ns == READ_AGAIN and state[0] == size
            else:
                if absent:
                    changes.returned.append(row)
                if failed:
                    changes.unreadable.append(FoundFile(path, *state, row))
                elif not absent:
                    changes.unchanged += 1
    changes.new = [FoundFile(path, *unseen[path], None) for path in sorted(unseen)]
    changes.changed.sort(key=lambda file: file.path)
    return changes


def _not_listed(changes: Changes, row: int, absent: int, fate: int) -> None:
    if fate == _UNKNOWN:
        changes.unknown += 1
    elif fate == EXCLUDED:
        if absent == EXCLUDED:
            changes.left_out += 1
        else:
            changes.excluded.append(row)
    elif absent == ABSENT:
        changes.absent += 1
    else:
        changes.vanished.append(row)


class _Fates:
    """Says what became of known files that a listing does not have."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._folders: dict[bytes, int] = {listing.below: self._own(listing.below, ABSENT)}

    def of(self, path: bytes) -> int:
        """Return `ABSENT`, `EXCLUDED`, or `_UNKNOWN` for a folder that was not listed whole."""
        if path in self._listing.excluded_files:
            return EXCLUDED
        folder, _, name = path.rpartition(b"/")
        fate = self._folder(folder)
        return EXCLUDED if fate == ABSENT and _is_hidden(name) else fate

    def _folder(self, folder: bytes) -> int:
        """Return the fate of the files in a folder: that of the first parent that has one."""
        way = []
        while folder not in self._folders:
            way.append(folder)
            folder = folder.rpartition(b"/")[0]
        fate = self._folders[folder]
        for inner in reversed(way):
            # Folders in one that was not listed whole are unknown, unless they were themselves.
            self._folders[inner] = fate = self._own(inner, fate)
        return fate

    def _own(self, folder: bytes, outer: int) -> int:
        listing = self._listing
        if folder in listing.failed:
            return _UNKNOWN
        if folder in listing.excluded_folders or _is_hidden(folder.rpartition(b"/")[2]):
            return EXCLUDED
        return ABSENT if folder in listing.folders else outer


def _is_hidden(name: bytes) -> bool:
    return is_hidden(os.fsdecode(name))


def apply_changes(database: Database, changes: Changes) -> None:
    """Record which files are there, absent and excluded; within `Database.writing`."""
    with database.transaction() as connection:
        for state, rows in (
            (PRESENT, changes.returned), (ABSENT, changes.vanished), (EXCLUDED, changes.excluded),
        ):  # fmt: skip
            connection.executemany(
                f"UPDATE files SET absent = {state} WHERE id = ?", ((row,) for row in rows)
            )


def stored_state(before: os.stat_result, after: os.stat_result, began_ns: int) -> FileState:
    """Return the size and time to store for a file that was read.

    The time is -1, so that the next run reads the file again, if the file changed while it was
    read, or was written within the last tick of its file system's clock: another write in that tick
    would leave the same time.

    Args:
        before: of the opened file, before it was read.
        after: of the same opened file, after it was read.
        began_ns: `time.time_ns()` from before it was read.
    """
    changed = (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)
    if changed or abs(began_ns - before.st_mtime_ns) < _TICK_NS:
        return before.st_size, READ_AGAIN
    return file_state(before)
