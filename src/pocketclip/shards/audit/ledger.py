"""What an audit has found so far: the report, and a database of all uids and problems.

Shapes: K teachers.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pocketclip.shards.audit.inspect import Problem, lack

SHOWN = 100
"""Problems of each kind that a report names; it counts all."""


@dataclass(slots=True, frozen=True)
class Drift:
    """How far recomputed embeddings are from the stored ones, in 1 - cosine."""

    teacher: int
    compared: int
    mean: float
    largest: float
    uid: str
    """Where it is largest."""


@dataclass(slots=True, kw_only=True)
class AuditReport:
    """What an audit found."""

    folder: str
    indexed: bool = False
    """Whether there is an `index.json`; without one, hashes and counts cannot be compared."""
    shards: int = 0
    samples: int = 0
    bytes: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    """Bytes by part: image, captions, augmentations, embeddings, meta, tar."""
    columns: dict[str, int] = field(default_factory=dict)
    """Samples that have each column."""
    dtypes: list[str] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    """Members that are no part of the layout, by key; not a problem, but never read."""
    counts: dict[str, int] = field(default_factory=dict)
    """Problems by kind, see `inspecting`."""
    problems: dict[str, list[Problem]] = field(default_factory=dict)
    """The first problems of each kind."""
    drift: list[Drift] = field(default_factory=list)
    """Per teacher, if embeddings were computed again."""
    repaired: str | None = None
    """Where the clean copy is."""
    kept: int = 0
    dropped: int = 0
    """Samples that the clean copy has and has not."""

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.counts


class Ledger:
    """All uids and problems, on disk."""

    def __init__(self, path: Path) -> None:
        self._base = sqlite3.connect(path)
        for setting in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-65536"):
            self._base.execute(f"PRAGMA {setting}")
        self._base.execute("CREATE TABLE seen (uid TEXT PRIMARY KEY, file TEXT) WITHOUT ROWID")
        self._base.execute("CREATE TABLE held (file TEXT, layout INT, position INT, uid TEXT)")
        self._base.execute(
            "CREATE TABLE problems (kind TEXT, file TEXT, uid TEXT, reason TEXT, position INT)"
        )

    def close(self) -> None:
        """Let go of the file."""
        self._base.close()

    def add(self, problems: Iterable[Problem]) -> None:
        """Note problems."""
        rows = (
            (p.kind, p.file, _storable(p.uid), _storable(p.reason), p.position) for p in problems
        )
        self._base.executemany("INSERT INTO problems VALUES (?, ?, ?, ?, ?)", rows)

    def has_problems(self) -> bool:
        """Return whether a problem was noted."""
        return self._base.execute("SELECT 1 FROM problems LIMIT 1").fetchone() is not None

    def see(self, file: str, uids: Sequence[str]) -> Iterator[Problem]:
        """Note the uids of a shard, and yield what was there before."""
        insert = "INSERT OR IGNORE INTO seen VALUES (?, ?)"
        for position, uid in enumerate(map(_storable, uids)):
            if not self._base.execute(insert, (uid, file)).rowcount:
                query = "SELECT file FROM seen WHERE uid = ?"
                (first,) = self._base.execute(query, (uid,)).fetchone()
                yield Problem("duplicate", file, uid, f"the uid is in {first} before", position)

    def hold(
        self,
        file: str,
        sets: dict[frozenset[str], list[tuple[int, str]]],
        known: dict[frozenset[str], int],
    ) -> None:
        """Note which columns the samples of a shard have, as a number in the order of `known`."""
        numbers = {held: number for number, held in enumerate(known)}
        for held, samples in sets.items():
            rows = ((file, numbers[held], position, _storable(uid)) for position, uid in samples)
            self._base.executemany("INSERT INTO held VALUES (?, ?, ?, ?)", rows)

    def add_lacking(self, known: Sequence[frozenset[str]], expected: set[str]) -> None:
        """Note a problem for each sample that lacks one of the expected columns."""
        for number, held in enumerate(known):
            wrong = lack(held, expected)
            if wrong is not None:
                self._base.execute(
                    "INSERT INTO problems SELECT ?, file, uid, ?, position FROM held "
                    "WHERE layout = ? ORDER BY rowid",
                    (*wrong, number),
                )

    def of(self, file: str) -> list[Problem]:
        """Return the problems of a shard, by position."""
        query = (
            "SELECT kind, file, uid, reason, position FROM problems WHERE file = ? "
            "ORDER BY position, rowid"
        )
        return [Problem(*row) for row in self._base.execute(query, (file,))]

    def report(self, report: AuditReport) -> None:
        """Fill in the counts and the first problems of each kind."""
        query = "SELECT kind, COUNT(*) FROM problems GROUP BY kind ORDER BY kind"
        report.counts = dict(self._base.execute(query).fetchall())
        query = (
            "SELECT kind, file, uid, reason, position FROM problems WHERE kind = ? "
            "ORDER BY rowid LIMIT ?"
        )
        for kind in report.counts:
            rows = self._base.execute(query, (kind, SHOWN))
            report.problems[kind] = [Problem(*row) for row in rows]


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # sqlite takes no lone surrogates
