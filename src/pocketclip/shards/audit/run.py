"""Open everything in a folder of shards, and say what is wrong.

    report = audit("out")
    report.clean, report.counts, report.problems["norm"][0].reason

Memory stays small: what grows with the set (uids, problems) is kept in a database on disk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.shards.audit.drift import Drift, Recompute, recompute_drift
from pocketclip.shards.audit.inspect import (
    Inspection,
    Problem,
    Rules,
    columns_only,
    expected_columns,
    inspect,
    lack,
)
from pocketclip.shards.index import Index, describe, read_index
from pocketclip.shards.reader import SUFFIXES, shards_in
from pocketclip.shards.writer import ShardStats
from pocketclip.storage.temporary import scratch_folder

SHOWN = 100
"""Problems of each kind that a report names; it counts all."""


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


def audit(
    folder: str,
    *,
    repair: str | None = None,
    recompute: tuple[int, Recompute] | None = None,
    tolerance: float = 0.01,
    seed: int = 0,
    workers: int = 1,
    decode_images: bool = True,
    on_progress: Callable[[int], None] | None = None,
) -> AuditReport:
    """Return a report of everything in `folder`.

    Args:
        folder: of shards, with or without an `index.json` or a published `config.json`.
        repair: a new folder for a copy of everything that is good. What is left out is listed
            in its `dropped.jsonl`.
        recompute: a number of augmented images, drawn at random, and a function that embeds
            them anew, see `recomputing.Recompute`.
        tolerance: 1 - cosine beyond which such an embedding counts as drifted.
        seed: of that drawing.
        workers: processes that open shards; with 1, none are started.
        decode_images: whether to decode every image.
        on_progress: called with the number of shards done since the last call.

    Raises:
        DataError: there is nothing to audit, the index is damaged, or `repair` is not empty.
        StorageError: a place cannot be reached.
        MissingDependencyError: something that is needed to open the set is not installed.
    """
    if not storage.is_folder(folder):
        raise DataError(f"{folder}: no such folder; audit takes a folder of shards")
    index = read_index(folder)
    about = describe(folder) or Index()
    paths = shards_in(folder)
    if not paths and not (index and index.shards):
        raise DataError(f"{folder}: no shards in this folder ({', '.join(SUFFIXES)})")
    if repair is not None:
        from pocketclip.shards.audit.repair import check_target

        check_target(repair, folder)
    widths = {shard.dims for shard in about.shards if shard.dims}
    rules = Rules(
        teacher_dims=about.teacher_dims,
        dims=widths.pop() if len(widths) == 1 else 0,
        augmentation=about.augmentation,
        decode_images=decode_images,
    )
    report = AuditReport(folder=folder, indexed=index is not None)
    with scratch_folder("audit") as place:
        ledger = Ledger(place / "ledger.sqlite")
        try:
            found = _inspected(paths, rules, max(1, workers))
            stats = _collect(found, ledger, report, index, on_progress)
            if not report.samples and not ledger.has_problems():
                raise DataError(
                    f"{folder}: no samples in {report.shards} shards; there is nothing to audit"
                )
            if recompute is not None:
                report.drift = recompute_drift(
                    paths, stats, ledger, recompute, about.teacher_dims, tolerance, seed
                )
            ledger.report(report)
            if repair is not None:
                from pocketclip.shards.audit.repair import write_clean

                write_clean(paths, repair, ledger, about, report)
        finally:
            ledger.close()
    return report


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


def _inspected(paths: list[str], rules: Rules, workers: int) -> Iterator[Inspection]:
    """Yield the inspection of each shard, in order; a few shards ahead in other processes."""
    if workers == 1 or len(paths) < 2:
        for path in paths:
            yield inspect(path, rules)
        return
    # Forked processes would share locks of the threads that torch or a caller has started.
    with ProcessPoolExecutor(min(workers, len(paths)), mp_context=get_context("spawn")) as pool:
        waiting: list[Future[Inspection]] = []
        try:
            for path in paths:
                waiting.append(pool.submit(inspect, path, rules))
                if len(waiting) > 2 * workers:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def _collect(
    found: Iterator[Inspection],
    ledger: Ledger,
    report: AuditReport,
    index: Index | None,
    on_progress: Callable[[int], None] | None,
) -> list[ShardStats]:
    """Take the inspections into ledger and report; return the shards' statistics."""
    stats: list[ShardStats] = []
    layouts: dict[frozenset[str], int] = {}
    declared = {shard.name: shard for shard in index.shards} if index is not None else None
    for one in found:
        stats.append(one.stats)
        ledger.add(one.problems)
        ledger.add(list(ledger.see(one.stats.name, one.uids)))
        ledger.add(_against_index(one.stats, declared))
        told = any(problem.kind == "tar" for problem in one.problems)
        if not one.stats.samples and not told and not _known_empty(one.stats.name, declared):
            ledger.add([Problem("tar", one.stats.name, "", "it holds no samples")])
        _add(layouts, one.counts.items())
        ledger.hold(one.stats.name, one.layouts, layouts)
        _add_up(report, one)
        if on_progress is not None:
            on_progress(1)
    expected = expected_columns(list(layouts.items()), index.columns if index else ())
    ledger.add_lacking(list(layouts), expected)
    for name in sorted(set(declared or ()) - {shard.name for shard in stats}):
        reason = "index.json lists this shard, and it is not there"
        ledger.add([Problem("absent", name, "", reason)])
    return stats


def _known_empty(name: str, declared: dict[str, ShardStats] | None) -> bool:
    """Return whether the index says that a shard is empty: all its pairs were bad."""
    said = (declared or {}).get(name)
    return said is not None and not said.samples


_K = TypeVar("_K")


def _add(total: dict[_K, int], items: Iterable[tuple[_K, int]]) -> None:
    for key, count in items:
        total[key] = total.get(key, 0) + count


def _add_up(report: AuditReport, one: Inspection) -> None:
    report.shards += 1
    report.samples += one.stats.samples
    report.bytes += one.stats.bytes
    report.dtypes = sorted({*report.dtypes, *filter(None, one.stats.dtype.split("+"))})
    _add(report.parts, one.stats.parts.items())
    _add(report.ignored, one.ignored.items())
    _add(report.columns, [(c, n) for held, n in one.counts.items() for c in columns_only(held)])


def _against_index(stats: ShardStats, declared: dict[str, ShardStats] | None) -> Iterator[Problem]:
    if declared is None:
        return
    said = declared.get(stats.name)
    if said is None:
        yield Problem("undeclared", stats.name, "", "index.json does not list this shard")
        return
    if stats.bytes != said.bytes:
        reason = f"{stats.bytes} bytes, index.json says {said.bytes}"
        yield Problem("size", stats.name, "", reason)
    if stats.sha256 != said.sha256:
        reason = f"SHA-256 {stats.sha256[:12]}..., index.json says {said.sha256[:12]}..."
        yield Problem("hash", stats.name, "", reason)
    if stats.samples != said.samples:
        reason = f"{stats.samples} samples, index.json says {said.samples}"
        yield Problem("count", stats.name, "", reason)
