"""What a library has, and what the next indexing would find; nothing is written or decoded.

    read_status(Database.open(locate())).roots[0].new

It lists the roots as indexing does, and works while another process indexes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pocketclip.formats.escaping import name_text
from pocketclip.search.indexing.roots import known_roots, resolve_root, rules_for
from pocketclip.search.indexing.scan import PRESENT, Changes, Listing, compare, list_root, scan_root
from pocketclip.search.store.database import Database
from pocketclip.search.store.location import size_of

_NO_ROOT = 0  # no row of `roots` has this id


@dataclass(slots=True)
class RootStatus:
    """The files of a root, or of a part of it."""

    path: Path
    exclude: tuple[str, ...] = ()
    """Patterns of what its root leaves out; see `pocketclip.search.indexing.rules`."""
    missing: str | None = None
    """Why it cannot be listed. Then only `photographs` and `unreadable` are known."""
    photographs: int = 0
    """Files that are indexed, as far as the last run found; neither absent nor excluded ones."""
    new: int = 0
    """Files at paths that are not known, without those that were probably moved."""
    moved: int = 0
    """New files that have the size, time and suffix of one that is gone: probably the same. Whether
    they are, indexing finds out from their bytes."""
    changed: int = 0
    """Known files with another size or time."""
    read_again: int = 0
    """Files that look the same and will be read: they were written just before they were read, or
    could not be opened."""
    unchanged: int = 0
    gone: int = 0
    """Indexed files that are not there now, without those that were probably moved."""
    returned: int = 0
    """Absent or excluded files that are there again, as they were."""
    absent: int = 0
    """Files that an earlier run did not find, and that are not there now; they are kept."""
    excluded: int = 0
    """Known files that are left out now; what is known of them is kept."""
    unknown: int = 0
    """Indexed files in folders that cannot be listed."""
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    """Files that the last run could not read or decode, with the reason; by path."""
    unlisted: list[tuple[Path, str]] = field(default_factory=list)
    """Folders that cannot be listed, with the reason."""
    passed_over: dict[str, int] = field(default_factory=dict)
    """Entries that are no photographs, hidden, excluded, ...: how many of each kind."""
    examples: dict[str, Path] = field(default_factory=dict)
    """One that was passed over of each kind."""


@dataclass(frozen=True, slots=True)
class Status:
    """What a library has."""

    library: Path
    """Its file."""
    model: str | None
    """Name of the model's configuration; None if nothing was indexed yet."""
    model_source: str | None
    """What the model is loaded from."""
    space_id: str | None
    embed_dim: int | None
    encoders: tuple[str, ...]
    """What made the vectors: forms of the model, such as int8."""
    photographs: int
    """Files that are indexed and there, as far as the last run found."""
    contents: int
    """Different photographs among them."""
    duplicates: int
    """Files among them whose bytes another one has too."""
    vectors: int
    """Photographs with a vector, those of absent files included."""
    to_encode: int
    """Photographs that wait for a vector, as after `--rebuild`."""
    roots: tuple[RootStatus, ...]
    sizes: dict[str, int]
    """Bytes on disk: of the `library`, its `matrix` and its `thumbnails`."""

    def facts(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        roots = []
        for root in self.roots:
            facts = {name.name: getattr(root, name.name) for name in dataclasses.fields(root)}
            facts["path"] = name_text(root.path)
            facts["exclude"] = list(root.exclude)
            for name in ("unreadable", "unlisted"):
                facts[name] = {name_text(path): reason for path, reason in facts[name]}
            facts["examples"] = {kind: name_text(path) for kind, path in root.examples.items()}
            roots.append(facts)
        facts = {name.name: getattr(self, name.name) for name in dataclasses.fields(self)}
        return facts | {
            "library": name_text(self.library), "encoders": list(self.encoders), "roots": roots
        }  # fmt: skip


def read_status(
    database: Database,
    roots: Sequence[str | os.PathLike[str]] = (),
    *,
    progress: Callable[[int], None] | None = None,
) -> Status:
    """Return what a library has, and how its roots differ from what it knows.

    Args:
        database: the library's file.
        roots: folders; one that is not known shows what indexing it would add. Empty: all known
            roots.
        progress: called with the number of files found so far in a root.

    Raises:
        LibraryError: the library cannot be read, or a folder is not there and not known.
    """
    known = known_roots(database)
    ids = [] if roots else [root.id for root in known]
    found: list[tuple[Listing, Changes]] = []
    for path in roots:
        target = resolve_root(database, path)
        if target.root_id is not None:
            found.append(scan_root(database, target.root_id, target.below, progress=progress))
        else:
            rules = rules_for(target.path, (), known)
            listing = list_root(target.path, rules, progress=progress)
            found.append((listing, compare(database, _NO_ROOT, listing)))
        ids += target.absorbs
    found += [scan_root(database, root, progress=progress) for root in ids]
    with database.snapshot() as connection:
        statuses = [_root_status(connection, listing, changes) for listing, changes in found]
        _guess_moves(connection, statuses, [changes for _, changes in found])
        return _status(database, connection, statuses)


def _root_status(connection: sqlite3.Connection, listing: Listing, changes: Changes) -> RootStatus:
    def path(relative: bytes) -> Path:
        return listing.root / os.fsdecode(relative)

    scope, values = changes.scope
    indexed = _one(
        connection, f"SELECT COUNT(content) FROM files WHERE {scope} AND absent = {PRESENT}", values
    )
    exclude = _one(connection, "SELECT exclude FROM roots WHERE id = ?", [changes.root_id])
    undecodable = connection.execute(
        "SELECT f.path, c.error FROM contents c CROSS JOIN files f ON f.content = c.id "
        f"WHERE c.error IS NOT NULL AND f.error IS NULL AND f.absent = {PRESENT} AND {scope}",
        values,
    ).fetchall()
    unread = connection.execute(
        f"SELECT path, error FROM files WHERE error IS NOT NULL AND absent = {PRESENT} AND {scope}",
        values,
    ).fetchall()
    again = {file.path for file in changes.changed}
    return RootStatus(
        path=path(listing.below),
        exclude=tuple(json.loads(exclude or "[]")),
        missing=changes.missing,
        photographs=indexed - len(undecodable),
        new=len(changes.new),
        changed=len(changes.changed) - changes.again,
        read_again=changes.again,
        unchanged=max(0, changes.unchanged - sum(name not in again for name, _ in undecodable)),
        gone=len(changes.vanished),
        returned=len(changes.returned),
        absent=changes.absent,
        excluded=len(changes.excluded) + changes.left_out,
        unknown=changes.unknown,
        unreadable=[(path(name), error) for name, error in sorted(undecodable + unread)],
        unlisted=[(path(folder), reason) for folder, reason in sorted(listing.failed.items())],
        passed_over=dict(listing.passed_over),
        examples={kind: path(example) for kind, example in listing.examples.items()},
    )


def _guess_moves(
    connection: sqlite3.Connection, statuses: Sequence[RootStatus], found: Sequence[Changes]
) -> None:
    """Count new files that look like files that are gone, from any of the roots, as moved."""
    if not any(changes.new for changes in found):
        return
    gone: dict[tuple[int, int, bytes], list[RootStatus]] = {}
    for status, changes in zip(statuses, found, strict=True):
        for row in changes.vanished:
            before = connection.execute(
                "SELECT size, mtime_ns, path FROM files WHERE id = ?", (row,)
            ).fetchone()
            if before is not None:
                size, mtime_ns, path = before
                gone.setdefault((size, mtime_ns, _suffix(path)), []).append(status)
    for status, changes in zip(statuses, found, strict=True):
        for file in changes.new:
            lost = gone.get((file.size, file.mtime_ns, _suffix(file.path)))
            if lost:
                status.new -= 1
                status.moved += 1
                lost.pop().gone -= 1


def _suffix(path: bytes) -> bytes:
    return path.rpartition(b".")[2].lower()


def _status(
    database: Database, connection: sqlite3.Connection, roots: Sequence[RootStatus]
) -> Status:
    counts = count_photographs(connection)
    facts = dict(connection.execute("SELECT name, value FROM facts"))
    encoders = connection.execute("SELECT description FROM encoders ORDER BY id").fetchall()
    location = database.location
    thumbnails = location.derived / "thumbnails"
    return Status(
        library=location.file,
        model=facts.get("model"),
        model_source=facts.get("model_source"),
        space_id=facts.get("space_id"),
        embed_dim=facts.get("embed_dim"),
        encoders=tuple(description for (description,) in encoders),
        photographs=counts.files,
        contents=counts.contents,
        duplicates=counts.files - counts.contents,
        vectors=facts.get("vectors", 0),
        to_encode=counts.to_encode,
        roots=tuple(roots),
        sizes={
            "library": sum(size_of(file) or 0 for file in (location.file, location.log)),
            "matrix": _size_below(location.derived, but=thumbnails),
            "thumbnails": _size_below(thumbnails),
        },
    )


class Counts(NamedTuple):
    """How much a library has, as far as the last run found."""

    files: int
    """Files that are indexed and there."""
    contents: int
    """Different photographs among them."""
    to_encode: int
    """Photographs that wait for a vector."""
    unreadable: int
    """Files that could not be read or decoded."""


def count_photographs(connection: sqlite3.Connection) -> Counts:
    """Return how much a library has."""
    indexed, different = connection.execute(
        f"SELECT COUNT(content), COUNT(DISTINCT content) FROM files WHERE absent = {PRESENT}"
    ).fetchone()
    # Those that cannot be decoded are few, and in an index: a cross join begins with them.
    bad_files, bad = connection.execute(
        "SELECT COUNT(*), COUNT(DISTINCT c.id) FROM contents c "
        f"CROSS JOIN files f ON f.content = c.id WHERE c.error IS NOT NULL AND f.absent = {PRESENT}"
    ).fetchone()
    unread = _one(
        connection,
        f"SELECT COUNT(*) FROM files WHERE error IS NOT NULL AND absent = {PRESENT}",
        [],
    )
    waiting = _one(
        connection,
        "SELECT COUNT(*) FROM contents c WHERE vector IS NULL AND error IS NULL AND EXISTS "
        f"(SELECT 1 FROM files f WHERE f.content = c.id AND f.absent = {PRESENT})",
        [],
    )
    return Counts(indexed - bad_files, different - bad, waiting, bad_files + unread)


def _one(connection: sqlite3.Connection, query: str, values: Sequence[Any]) -> Any:
    row = connection.execute(query, values).fetchone()
    return None if row is None else row[0]


def _size_below(folder: Path, but: Path | None = None) -> int:
    """Return the bytes of the files in a folder and below, without those in the folder `but`."""
    size = 0
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if Path(parent, name) != but]
        size += sum(size_of(Path(parent, name)) or 0 for name in names)
    return size
