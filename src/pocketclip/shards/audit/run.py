"""Open everything in a folder of shards, and say what is wrong.

    report = audit("out")
    report.clean, report.counts, report.problems["norm"][0].reason

Memory stays small: what grows with the set (uids, problems) is kept in a database on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.shards.audit.drift import Recompute, recompute_drift
from pocketclip.shards.audit.inspect import (
    Inspection,
    Problem,
    Rules,
    columns_only,
    expected_columns,
    inspect,
)
from pocketclip.shards.audit.ledger import AuditReport, Ledger
from pocketclip.shards.audit.repair import check_target, write_clean
from pocketclip.shards.index import Index, describe, read_index
from pocketclip.shards.reader import SUFFIXES, shards_in
from pocketclip.shards.writer import ShardStats
from pocketclip.storage.temporary import scratch_folder


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
                write_clean(paths, repair, ledger, about, report)
        finally:
            ledger.close()
    return report


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
