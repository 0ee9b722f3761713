"""Audit a folder of shards: open everything in it, and report all problems.

    report = audit("out")
    report.clean, report.counts, report.problems["norm"][0].reason

Memory stays small: uids and problems, which grow with the set, are stored in a database on disk.
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
from pocketclip.shards.audit.scores import SAMPLES, Draw, score_set
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
    score_samples: int = SAMPLES,
    on_progress: Callable[[int], None] | None = None,
) -> AuditReport:
    """Return a report of all problems in `folder`.

    Args:
        folder: a folder of shards, with or without an `index.json` or a published `config.json`.
        repair: a new folder for a copy of all good samples. Its `dropped.jsonl` lists what was
            left out.
        recompute: a number of augmented images, drawn at random, and a function that embeds them
            again, see `pocketclip.shards.audit.drift.Recompute`.
        tolerance: 1 - cosine above which a recomputed embedding counts as drifted.
        seed: seeds the draw of those images.
        workers: number of processes that open shards; 1: none besides this one.
        decode_images: whether to decode every image.
        score_samples: number of samples, chosen by their uids, on which the teachers are scored by
            stored embeddings, see `pocketclip.shards.audit.scores`; 0: none.
        on_progress: called with the number of shards done since the last call.

    Raises:
        DataError: there is nothing to audit, the index is damaged, or `repair` is not empty.
        StorageError: a folder cannot be reached.
        MissingDependencyError: a package that is needed to open the set is not installed.
    """
    if not storage.is_folder(folder):
        raise DataError(f"{folder}: no such folder; audit takes a folder of shards")
    index = read_index(folder)
    description = describe(folder) or Index()
    paths = shards_in(folder)
    if not paths and not (index and index.shards):
        raise DataError(f"{folder}: no shards in this folder ({', '.join(SUFFIXES)})")
    if repair is not None:
        check_target(repair, folder)
    widths = {shard.dims for shard in description.shards if shard.dims}
    rules = Rules(
        teacher_dims=description.teacher_dims,
        dims=widths.pop() if len(widths) == 1 else 0,
        augmentation=description.augmentation,
        decode_images=decode_images,
        view_size=description.materialised.size if description.materialised else 0,
        score_samples=score_samples,
    )
    draw = Draw(score_samples)
    report = AuditReport(folder=folder, indexed=index is not None)
    with scratch_folder("audit") as scratch:
        ledger = Ledger(scratch / "ledger.sqlite")
        try:
            inspections = _inspect_all(paths, rules, max(1, workers))
            stats = _collect(inspections, ledger, report, index, draw, on_progress)
            if not report.samples and not ledger.has_problems():
                raise DataError(
                    f"{folder}: no samples in {report.shards} shards; there is nothing to audit"
                )
            if recompute is not None:
                report.drift = recompute_drift(
                    paths, stats, ledger, recompute, description.teacher_dims, tolerance, seed
                )
            ledger.fill_report(report)
            report.scores = score_set(draw.heap, description)
            if repair is not None:
                write_clean(paths, repair, ledger, description, report)
        finally:
            ledger.close()
    return report


def _inspect_all(paths: list[str], rules: Rules, workers: int) -> Iterator[Inspection]:
    """Yield the inspection of each shard, in order; other processes work a few shards ahead."""
    if workers == 1 or len(paths) < 2:
        for path in paths:
            yield inspect(path, rules)
        return
    # Not `fork`: it would copy locks that threads of torch or of the caller hold.
    with ProcessPoolExecutor(min(workers, len(paths)), mp_context=get_context("spawn")) as pool:
        pending: list[Future[Inspection]] = []
        try:
            for path in paths:
                pending.append(pool.submit(inspect, path, rules))
                if len(pending) > 2 * workers:
                    yield pending.pop(0).result()
            while pending:
                yield pending.pop(0).result()
        finally:
            for future in pending:
                future.cancel()


def _collect(
    inspections: Iterator[Inspection],
    ledger: Ledger,
    report: AuditReport,
    index: Index | None,
    draw: Draw,
    on_progress: Callable[[int], None] | None,
) -> list[ShardStats]:
    """Add the inspections to ledger and report; return the shards' statistics."""
    stats: list[ShardStats] = []
    layouts: dict[frozenset[str], int] = {}
    declared = {shard.name: shard for shard in index.shards} if index is not None else None
    for inspection in inspections:
        name = inspection.stats.name
        stats.append(inspection.stats)
        ledger.add(inspection.problems)
        ledger.add(list(ledger.add_uids(name, inspection.uids)))
        ledger.add(_compare_with_index(inspection.stats, declared))
        damaged = any(problem.kind == "tar" for problem in inspection.problems)
        if not inspection.stats.samples and not damaged and not _known_empty(name, declared):
            ledger.add([Problem("tar", name, "", "it holds no samples")])
        _add(layouts, inspection.counts.items())
        ledger.add_layouts(name, inspection.layouts, layouts)
        _add_to_report(report, inspection)
        draw.add(inspection.drawn)
        if on_progress is not None:
            on_progress(1)
    expected = expected_columns(list(layouts.items()), index.columns if index else ())
    ledger.add_missing_columns(list(layouts), expected)
    for name in sorted(set(declared or ()) - {shard.name for shard in stats}):
        reason = "index.json lists this shard, but it does not exist"
        ledger.add([Problem("absent", name, "", reason)])
    return stats


def _known_empty(name: str, declared: dict[str, ShardStats] | None) -> bool:
    """Return whether the index says that a shard is empty, because all its pairs were bad."""
    entry = (declared or {}).get(name)
    return entry is not None and not entry.samples


_K = TypeVar("_K")


def _add(total: dict[_K, int], items: Iterable[tuple[_K, int]]) -> None:
    for key, count in items:
        total[key] = total.get(key, 0) + count


def _add_to_report(report: AuditReport, inspection: Inspection) -> None:
    stats = inspection.stats
    report.shards += 1
    report.samples += stats.samples
    report.bytes += stats.bytes
    report.dtypes = sorted({*report.dtypes, *filter(None, stats.dtype.split("+"))})
    _add(report.parts, stats.parts.items())
    _add(report.ignored, inspection.ignored.items())
    counts = inspection.counts.items()
    _add(report.columns, [(c, n) for layout, n in counts for c in columns_only(layout)])


def _compare_with_index(
    stats: ShardStats, declared: dict[str, ShardStats] | None
) -> Iterator[Problem]:
    if declared is None:
        return
    entry = declared.get(stats.name)
    if entry is None:
        yield Problem("undeclared", stats.name, "", "index.json does not list this shard")
        return
    if stats.bytes != entry.bytes:
        reason = f"{stats.bytes} bytes, index.json says {entry.bytes}"
        yield Problem("size", stats.name, "", reason)
    if stats.sha256 != entry.sha256:
        reason = f"SHA-256 {stats.sha256[:12]}..., index.json says {entry.sha256[:12]}..."
        yield Problem("hash", stats.name, "", reason)
    if stats.samples != entry.samples:
        reason = f"{stats.samples} samples, index.json says {entry.samples}"
        yield Problem("count", stats.name, "", reason)
