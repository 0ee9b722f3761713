"""Checking a library: whether its file is whole, and what is derived from it fits.

`pocketclip.search.upkeep.repair` mends what this finds.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pocketclip.errors import count_of
from pocketclip.search.store.database import Database
from pocketclip.search.store.location import Location
from pocketclip.storage.private import others_can_read

Kind = Literal["file", "vectors", "matrix", "permissions"]
_TOLERANCE = 0.002  # of a vector's length; rounding to float16 changes it by less than 0.0005
_BATCH = 4096  # vectors
NO_PATH = (
    "(typeof(path) != 'blob' OR path = x'' OR instr(path, x'00') OR substr(path, 1, 1) = x'2f')"
)
"""A condition on `files`: what cannot be the path of a file in a root."""
_REPORTED, _SHOWN = 20, 5  # problems that SQLite looks for, and that are listed


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong with a library."""

    kind: Kind
    text: str
    """One sentence for people."""


@dataclass(slots=True)
class CheckReport:
    """What a check found."""

    problems: list[Problem] = field(default_factory=list)
    roots: int = 0
    files: int = 0
    contents: int = 0
    vectors: int = 0
    unused: int = 0
    """Contents that no file has now, such as earlier versions; no problem."""

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def kinds(self) -> set[Kind]:
        """Return what kinds of problems there are."""
        return {problem.kind for problem in self.problems}

    def facts(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {
            "sound": self.is_sound,
            "problems": [{"kind": p.kind, "text": p.text} for p in self.problems],
            "roots": self.roots,
            "files": self.files,
            "contents": self.contents,
            "vectors": self.vectors,
            "unused": self.unused,
        }


def check(database: Database) -> CheckReport:
    """Check a library; nothing is changed.

    It reads the whole file: SQLite's own check, references between the tables, the length of
    every vector, the matrix against the vectors, and who can read the files.

    Args:
        database: the library's file, which could be opened.
    """
    report = CheckReport()
    with database.snapshot() as connection:
        for find in (_structure, _references, _facts, _vectors):
            try:
                report.problems += find(connection)
            except sqlite3.DatabaseError as error:
                report.problems.append(Problem("file", f"SQLite cannot read it: {error}"))
        try:
            _count(connection, report)
        except sqlite3.DatabaseError as error:
            report.problems.append(Problem("file", f"SQLite cannot read it: {error}"))
    # Several checks may come upon the same damage.
    report.problems = list(dict.fromkeys(report.problems))
    if not report.problems:
        report.problems += _matrix(database)
    report.problems += _permissions(database.location)
    return report


def _structure(connection: sqlite3.Connection) -> Iterator[Problem]:
    found = connection.execute(f"PRAGMA integrity_check({_REPORTED})").fetchall()
    # Some versions of SQLite give several lines in a row, the first without anything to know.
    lines = [line.strip() for (text,) in found for line in str(text).splitlines()]
    lines = [line for line in lines if line != "ok" and not line.startswith("***")]
    for line in lines[:_SHOWN]:
        yield Problem("file", line)
    if len(lines) > _SHOWN:
        yield Problem("file", "and more of this kind")


def _references(connection: sqlite3.Connection) -> Iterator[Problem]:
    broken: dict[tuple[str, str], int] = {}
    for table, _, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        broken[table, parent] = broken.get((table, parent), 0) + 1
    for (table, parent), count in broken.items():
        yield Problem("file", f"{count_of(count, 'row')} of {table} without one of {parent}")
    (count,) = connection.execute(f"SELECT count(*) FROM files WHERE {NO_PATH}").fetchone()
    if count:
        yield Problem("file", f"{count_of(count, 'file')} with something else than a path")


def _facts(connection: sqlite3.Connection) -> Iterator[Problem]:
    facts = dict(connection.execute("SELECT name, value FROM facts"))
    (count,) = connection.execute(
        "SELECT count(*) FROM contents WHERE vector IS NOT NULL"
    ).fetchone()
    for name in ("generation", "vectors", "removed"):
        if not isinstance(facts.get(name), int):
            yield Problem("file", f"the fact {name} is missing")
    if isinstance(facts.get("vectors"), int) and facts["vectors"] != count:
        yield Problem("file", f"{count} vectors, but {facts['vectors']} were counted")
    if count and not (isinstance(facts.get("space_id"), str) and facts["space_id"]):
        yield Problem("file", "vectors, but not of which embedding space they are")


def _vectors(connection: sqlite3.Connection) -> Iterator[Problem]:
    row = connection.execute("SELECT value FROM facts WHERE name = 'embed_dim'").fetchone()
    width = row[0] if row and isinstance(row[0], int) else None
    cursor = connection.execute("SELECT vector FROM contents WHERE vector IS NOT NULL")
    bad = 0
    while rows := cursor.fetchmany(_BATCH):
        if width is None:
            width = len(rows[0][0]) // 2
        bad += sum(not sound for sound in sound_vectors([vector for (vector,) in rows], width))
    if bad:
        yield Problem("vectors", f"{count_of(bad, 'vector')} of another length than 1, or cut")


def sound_vectors(vectors: list[bytes], width: int) -> list[bool]:
    """Return which vectors are whole: of `width` finite numbers and unit length.

    Args:
        vectors: little-endian float16.
        width: the embedding dimension.
    """
    import numpy as np

    whole = [isinstance(vector, bytes) and len(vector) == 2 * width for vector in vectors]
    joined = b"".join(vector for vector, is_whole in zip(vectors, whole, strict=True) if is_whole)
    rows = np.frombuffer(joined, "<f2").astype(np.float32).reshape(-1, width)
    with np.errstate(all="ignore"):
        sound = iter((np.abs(np.linalg.norm(rows, axis=1) - 1) < _TOLERANCE).tolist())
    return [is_whole and next(sound) for is_whole in whole]


def _matrix(database: Database) -> Iterator[Problem]:
    from pocketclip.search.vectors.matrix import check_matrix

    wrong = check_matrix(database)
    if wrong is not None:
        yield Problem("matrix", wrong)


def _permissions(location: Location) -> Iterator[Problem]:
    for path in open_to_others(location):
        yield Problem("permissions", f"{path} can be read by other users")


def open_to_others(location: Location) -> list[Path]:
    """Return the files and folders of a library that others than its owner can use."""
    if os.name != "posix":
        return []
    files = [location.file, location.log, location.shared, location.lock, location.backup]
    files += [location.progress, *location.damaged()]
    found = [path for path in files if others_can_read(path)]
    # What is within a folder that only its owner can enter cannot be reached.
    return found + [location.derived] * others_can_read(location.derived)


def _count(connection: sqlite3.Connection, report: CheckReport) -> None:
    def count(query: str) -> int:
        return int(connection.execute(f"SELECT count(*) FROM {query}").fetchone()[0])

    report.roots, report.files, report.contents = map(count, ("roots", "files", "contents"))
    report.vectors = count("contents WHERE vector IS NOT NULL")
    report.unused = count(
        "contents WHERE NOT EXISTS (SELECT 1 FROM files WHERE content = contents.id)"
    )
