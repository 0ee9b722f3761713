"""The state of an audit: its report, and a database of all uids and problems.

Shapes: K teachers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pocketclip.shards.audit.inspect import Problem, compare_columns
from pocketclip.shards.scratch_database import open_scratch_database, storable
from pocketclip.teacher_score import TeacherScore

SHOWN = 100
"""Number of problems of each kind that a report lists; it counts all of them."""


@dataclass(slots=True, frozen=True)
class Drift:
    """How far recomputed embeddings are from the stored ones, in 1 - cosine."""

    teacher: int
    compared: int
    mean: float
    largest: float
    uid: str
    """The sample with the largest drift."""


@dataclass(slots=True, kw_only=True)
class AuditReport:
    """The result of an audit."""

    folder: str
    indexed: bool = False
    """Whether the folder has an `index.json`; hashes and counts are compared with it."""
    shards: int = 0
    samples: int = 0
    bytes: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    """Bytes by part: image, captions, augmentations, embeddings, meta, tar."""
    columns: dict[str, int] = field(default_factory=dict)
    """Number of samples that have each column."""
    dtypes: list[str] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    """Number of members that the layout does not have, by key; they are never read."""
    counts: dict[str, int] = field(default_factory=dict)
    """Number of problems by kind, see `pocketclip.shards.audit.inspect`."""
    problems: dict[str, list[Problem]] = field(default_factory=dict)
    """The first problems of each kind."""
    drift: list[Drift] = field(default_factory=list)
    """Per teacher, if embeddings were computed again."""
    scores: dict[str, list[TeacherScore]] = field(default_factory=dict)
    """By key of captions: what each teacher scores on a sample of the set, and all of them together
    as `ensemble`; see `pocketclip.shards.audit.scores`."""
    repaired: str | None = None
    """The folder of the clean copy, if one was written."""
    kept: int = 0
    """Number of samples in the clean copy."""
    dropped: int = 0
    """Number of samples left out of the clean copy."""

    def facts(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        plain = replace(self, scores={})
        scores = {key: [score.facts() for score in some] for key, some in self.scores.items()}
        return {**asdict(plain), "scores": scores, "clean": self.clean}

    @property
    def clean(self) -> bool:
        """Whether there are no problems."""
        return not self.counts


class Ledger:
    """A database of all uids and problems, on disk."""

    def __init__(self, path: Path) -> None:
        self._base = open_scratch_database(path)
        self._base.execute("CREATE TABLE uids (uid TEXT PRIMARY KEY, file TEXT) WITHOUT ROWID")
        self._base.execute("CREATE TABLE layouts (file TEXT, layout INT, position INT, uid TEXT)")
        self._base.execute(
            "CREATE TABLE problems (kind TEXT, file TEXT, uid TEXT, reason TEXT, position INT)"
        )

    def close(self) -> None:
        """Close the database."""
        self._base.close()

    def add(self, problems: Iterable[Problem]) -> None:
        """Store problems."""
        rows = ((p.kind, p.file, storable(p.uid), storable(p.reason), p.position) for p in problems)
        self._base.executemany("INSERT INTO problems VALUES (?, ?, ?, ?, ?)", rows)

    def has_problems(self) -> bool:
        """Return whether any problem was stored."""
        return self._base.execute("SELECT 1 FROM problems LIMIT 1").fetchone() is not None

    def add_uids(self, file: str, uids: Sequence[str]) -> Iterator[Problem]:
        """Store the uids of a shard, and yield a problem for each that an earlier sample has."""
        insert = "INSERT OR IGNORE INTO uids VALUES (?, ?)"
        for position, uid in enumerate(map(storable, uids)):
            if not self._base.execute(insert, (uid, file)).rowcount:
                query = "SELECT file FROM uids WHERE uid = ?"
                (first,) = self._base.execute(query, (uid,)).fetchone()
                yield Problem("duplicate", file, uid, f"{first} already has this uid", position)

    def add_layouts(
        self,
        file: str,
        samples: dict[frozenset[str], list[tuple[int, str]]],
        known: dict[frozenset[str], int],
    ) -> None:
        """Store the columns of each sample of a shard, as the position of the set in `known`."""
        numbers = {layout: number for number, layout in enumerate(known)}
        for layout, positions in samples.items():
            number = numbers[layout]
            rows = ((file, number, position, storable(uid)) for position, uid in positions)
            self._base.executemany("INSERT INTO layouts VALUES (?, ?, ?, ?)", rows)

    def add_missing_columns(self, known: Sequence[frozenset[str]], expected: set[str]) -> None:
        """Store a problem for each sample that lacks one of the expected columns."""
        for number, layout in enumerate(known):
            problem = compare_columns(layout, expected)
            if problem is not None:
                self._base.execute(
                    "INSERT INTO problems SELECT ?, file, uid, ?, position FROM layouts "
                    "WHERE layout = ? ORDER BY rowid",
                    (*problem, number),
                )

    def problems_of(self, file: str) -> list[Problem]:
        """Return the problems of a shard, sorted by position."""
        query = (
            "SELECT kind, file, uid, reason, position FROM problems WHERE file = ? "
            "ORDER BY position, rowid"
        )
        return [Problem(*row) for row in self._base.execute(query, (file,))]

    def fill_report(self, report: AuditReport) -> None:
        """Set the report's counts, and the first problems of each kind."""
        query = "SELECT kind, COUNT(*) FROM problems GROUP BY kind ORDER BY kind"
        report.counts = dict(self._base.execute(query).fetchall())
        query = (
            "SELECT kind, file, uid, reason, position FROM problems WHERE kind = ? "
            "ORDER BY rowid LIMIT ?"
        )
        for kind in report.counts:
            rows = self._base.execute(query, (kind, SHOWN))
            report.problems[kind] = [Problem(*row) for row in rows]
