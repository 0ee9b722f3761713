"""Mending a library: what can be read of a damaged file is copied to a new one.

The damaged file is kept beside it. What is lost is read again from the photographs by the next
`pocketclip index`; an embedding whose file's row is lost is found again by the file's hash.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pocketclip.errors import LibraryError
from pocketclip.formats.escaping import name_text
from pocketclip.search.store import schema
from pocketclip.search.store.database import Database, open_databases
from pocketclip.search.store.location import Location, refuse_network, size_of
from pocketclip.search.store.origin import read_origin, write_origin
from pocketclip.search.store.sqlite_errors import explained
from pocketclip.search.store.writer import hold
from pocketclip.search.upkeep.check import NO_PATH, Problem, check, open_to_others, sound_vectors
from pocketclip.search.upkeep.salvage import Row, Salvage, rows_of
from pocketclip.search.vectors.matrix import open_matrix, remove_matrix
from pocketclip.storage.local import write_whole

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_SHARED_FIRST, _SHARED_SIZE = 0x40000002, 510  # bytes that SQLite's users of a file lock
_BATCH = 1000  # rows
_FACT = re.compile(r"[a-z][a-z0-9_]{0,49}")
_COUNTED = ("generation", "vectors", "removed")  # facts that the new file counts itself


@dataclass(slots=True)
class RepairReport:
    """What a repair found and did."""

    source: Literal["sound", "saved", "backup"] = "sound"
    """`sound`: the file needed no repair; `saved`: it was made anew from what could be read of it;
    `backup`: nothing could be read, and the copy from before a migration was put in its place."""
    problems: list[Problem] = field(default_factory=list)
    """What was wrong."""
    roots: int = 0
    files: int = 0
    contents: int = 0
    vectors: int = 0
    """These are in the library now."""
    damaged_pages: int = 0
    """Pages of 4 KiB that could not be read."""
    lost_vectors: int | None = None
    """Of those that the library had counted; None if the count is lost too."""
    dropped_vectors: int = 0
    """Vectors that were damaged, or of an unknown embedding space; they are encoded again."""
    kept: Path | None = None
    """Where the damaged file is now."""
    made_private: list[Path] = field(default_factory=list)
    """Files that others could read."""
    derived_removed: bool = False
    """Whether the matrix was made anew; thumbnails are made when they are shown."""

    left: list[Problem] = field(default_factory=list)
    """What is still wrong."""

    @property
    def next_step(self) -> str | None:
        """What to do now, as a sentence; None if there is nothing to do."""
        if self.source == "sound":
            return None
        return "run `pocketclip index` to read what is missing"

    def facts(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {
            "source": self.source,
            "problems": [{"kind": p.kind, "text": p.text} for p in self.problems],
            "roots": self.roots,
            "files": self.files,
            "contents": self.contents,
            "vectors": self.vectors,
            "damaged_pages": self.damaged_pages,
            "lost_vectors": self.lost_vectors,
            "dropped_vectors": self.dropped_vectors,
            "kept": None if self.kept is None else name_text(self.kept),
            "made_private": [name_text(path) for path in self.made_private],
            "derived_removed": self.derived_removed,
            "left": [{"kind": p.kind, "text": p.text} for p in self.left],
            "next": self.next_step,
        }


def repair(location: Location) -> RepairReport:
    """Check a library and mend what is wrong; the damaged file is kept, never deleted.

    Args:
        location: its files. None of its `Database` objects may be open.

    Raises:
        LibraryError: nothing of a library could be read and there is no backup, the library is of
            a newer version, or it is in use. Nothing was changed.
        OSError: the new file cannot be written. Nothing was changed.
    """
    refuse_network(location)
    if not location.file.parent.is_dir() or not _sources(location):
        raise LibraryError(f"there is no library {location.name} ({location.file})")
    with hold(location) as lock, explained(location.file):
        with _alone(location):
            pass
        report = RepairReport()
        report.made_private = _make_private(location)
        report.problems = _problems(location, lock)
        kinds = {problem.kind for problem in report.problems}
        if kinds & {"file", "vectors"}:
            with _alone(location):
                _make_anew(location, report)
            shutil.rmtree(location.derived, ignore_errors=True)
            report.derived_removed = True
        elif "matrix" in kinds:
            remove_matrix(location)
            report.derived_removed = True
        with contextlib.closing(Database.open(location, lock=lock)) as database:
            now = check(database)
            if not now.kinds() & {"file", "vectors"}:
                open_matrix(database)
            with contextlib.suppress(OSError):
                write_origin(database.connection, location)
    report.roots, report.files = now.roots, now.files
    report.contents, report.vectors = now.contents, now.vectors
    report.left = now.problems
    return report


def _sources(location: Location) -> list[tuple[Path, Path]]:
    """Return the files, with their logs, that may have rows of the library; the best one first."""
    if os.path.lexists(location.file):
        return [(location.file, location.log)]
    # A repair was killed after it had moved the damaged file.
    kept = location.damaged()[-1:]
    sources = [(file, file.with_name(f"{file.name}-wal")) for file in kept]
    return sources or [(location.backup, location.backup)] * location.backup.exists()


@contextlib.contextmanager
def _alone(location: Location) -> Iterator[None]:
    """Keep other processes from opening a library's file, with the lock that SQLite uses.

    Raises:
        LibraryError: a process has it open.
    """
    in_use = LibraryError(
        f"{location.file} is open in another process: end it (a search, a server), then repair"
    )
    if any(other.location == location for other in open_databases()):
        raise in_use
    if fcntl is None or not location.file.is_file():
        yield
        return
    with location.file.open("rb+") as stream:
        try:
            fcntl.lockf(
                stream, fcntl.LOCK_EX | fcntl.LOCK_NB, _SHARED_SIZE, _SHARED_FIRST, os.SEEK_SET
            )
        except OSError as error:
            raise in_use from error
        yield


def _make_private(location: Location) -> list[Path]:
    changed = []
    for path in open_to_others(location):
        with contextlib.suppress(OSError):  # the check reports it
            path.chmod(stat.S_IMODE(path.stat().st_mode) & 0o700)
            changed.append(path)
    return changed


def _problems(location: Location, lock: int) -> list[Problem]:
    try:
        database = Database.open(location, lock=lock)
    except LibraryError as error:
        if location.file.exists() and not location.file.is_file():
            raise
        return [Problem("file", str(error))]
    with contextlib.closing(database):
        return [problem for problem in check(database).problems if problem.kind != "permissions"]


def _make_anew(location: Location, report: RepairReport) -> None:
    """Write a new file from what can be read, and move the damaged one aside."""
    file, log = _sources(location)[0]
    with write_whole(location.file) as temporary:
        schema.create(temporary)
        with contextlib.closing(schema.connect(temporary)) as connection:
            # A file that is not whole is not used: there is nothing to roll back to.
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("BEGIN")
            salvage = Salvage()
            saved, count = _copy_rows(connection, rows_of(file, log, salvage))
            if not count and location.backup.exists():
                saved = None  # it has more than the roots and the model
            if saved is not None:
                _finish(connection, _complete(connection, location, saved), report)
            connection.execute("COMMIT")
            connection.execute("PRAGMA journal_mode = WAL")
        # A damaged header may say anything.
        if salvage.version in range(schema.VERSION + 1, schema.VERSION + 100):
            raise LibraryError(
                f"{location.file} was written by a newer pocketclip: update it with "
                "`pip install -U pocketclip`, then repair"
            )
        report.source, report.damaged_pages = "saved", salvage.damaged
        if saved is None:
            report.source = "backup"
            _copy_backup(location, temporary)
        if os.path.lexists(location.file):
            report.kept = _move_aside(location)


def _copy_rows(
    connection: sqlite3.Connection, rows: Iterable[tuple[str, Row]]
) -> tuple[dict[str, Any] | None, int]:
    """Insert rows into an empty library.

    Returns:
        Its facts, None if there is nothing of a library; and the number of contents and files.
    """
    facts: dict[str, Any] = {}
    counts = dict.fromkeys(schema.COLUMNS, 0)
    rows = iter(rows)
    while batch := list(islice(rows, _BATCH)):
        for table in ("roots", "encoders", "contents", "files"):
            of_table = [row for name, row in batch if name == table]
            counts[table] += len(of_table)
            marks = ", ".join("?" * len(schema.COLUMNS[table]))
            connection.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", of_table)
        facts |= {
            row[0]: row[1] for name, row in batch if name == "facts" and _FACT.fullmatch(row[0])
        }
    # The index of the encoders looks like facts.
    for (description,) in connection.execute("SELECT description FROM encoders"):
        facts.pop(description, None)
    count = counts["contents"] + counts["files"]
    # With roots and model, the next indexing reads the rest.
    is_library = count or (counts["roots"] and isinstance(facts.get("space_id"), str))
    return (facts if is_library else None), count


def _complete(
    connection: sqlite3.Connection, location: Location, facts: dict[str, Any]
) -> dict[str, Any]:
    """Add the roots and facts that are lost, from their copy or the backup; return the facts."""
    copied, roots = read_origin(location)
    if location.backup.exists() and not (copied and roots):
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(schema.connect(location.backup, "mode=ro")) as backup,
        ):
            copied = dict(backup.execute("SELECT name, value FROM facts")) | copied
            roots += backup.execute("SELECT id, path, exclude FROM roots").fetchall()
    connection.executemany("INSERT OR IGNORE INTO roots VALUES (?, ?, ?)", roots)
    return copied | facts


def _finish(connection: sqlite3.Connection, facts: dict[str, Any], report: RepairReport) -> None:
    """Make copied rows consistent, and drop vectors that cannot be used."""
    run = connection.execute
    connection.executemany(
        "INSERT OR REPLACE INTO facts VALUES (?, ?)",
        ((name, value) for name, value in facts.items() if name not in _COUNTED),
    )
    run("UPDATE contents SET encoder = NULL WHERE encoder NOT IN (SELECT id FROM encoders)")
    run(f"DELETE FROM files WHERE root NOT IN (SELECT id FROM roots) OR {NO_PATH}")
    # Without its content a file is read again.
    run(
        "UPDATE files SET content = NULL, mtime_ns = -1 "
        "WHERE content NOT IN (SELECT id FROM contents)"
    )
    # Of an unknown embedding space, no vector can be used.
    width = facts.get("embed_dim") if isinstance(facts.get("space_id"), str) else None
    bad: list[int] = []
    cursor = run("SELECT id, vector FROM contents WHERE vector IS NOT NULL")
    while batch := cursor.fetchmany(_BATCH):
        sound = [False] * len(batch)
        if isinstance(width, int) and width > 0:
            sound = sound_vectors([vector for _, vector in batch], width)
        bad += [row for (row, _), is_sound in zip(batch, sound, strict=True) if not is_sound]
    before = run("SELECT value FROM facts WHERE name = 'vectors'").fetchone()[0]
    connection.executemany("UPDATE contents SET vector = NULL WHERE id = ?", ((i,) for i in bad))
    report.dropped_vectors = len(bad)
    counted = facts.get("vectors")
    if isinstance(counted, int):
        report.lost_vectors = max(0, counted - before)


def _copy_backup(location: Location, target: Path) -> None:
    """Copy the backup to a file.

    Raises:
        LibraryError: there is none, or it is damaged too.
    """
    problem = "there is no backup"
    if location.backup.exists():
        problem = f"its backup {location.backup.name} is damaged too"
        with contextlib.suppress(sqlite3.Error, LibraryError):
            with contextlib.closing(schema.connect(location.backup, "mode=ro")) as connection:
                schema.version_of(connection, location.backup)
                if connection.execute("PRAGMA quick_check").fetchone()[0] == "ok":
                    problem = ""
                    schema.back_up(connection, target)
            with contextlib.closing(schema.connect(target)) as copy:
                copy.execute("PRAGMA journal_mode = WAL")
    if problem:
        raise LibraryError(
            f"{location.file}: nothing of a library can be read, and {problem}: move it away, and "
            "make a new one with `pocketclip index FOLDER`"
        )


def _move_aside(location: Location) -> Path:
    """Rename the damaged file, and its log, to names that are free."""
    number = 1
    while True:
        suffix = ".damaged" if number == 1 else f".damaged-{number}"
        kept = location.file.with_name(f"{location.file.name}{suffix}")
        log = kept.with_name(f"{kept.name}-wal")
        if not os.path.lexists(kept) and not os.path.lexists(log):
            break
        number += 1
    location.file.rename(kept)
    if size_of(location.log) is not None:
        location.log.rename(log)
    location.shared.unlink(missing_ok=True)
    return kept
