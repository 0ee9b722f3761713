"""The job: each shard of pairs becomes one reinforced shard.

    run(open_pairs("pairs.csv"), load_recipe(teachers=["vit-b16"]), "reinforced")

A shard is a pure function of its pairs and the recipe, and it is written whole or not at all. A
run can therefore be killed at any moment and started again: `pocketclip.reinforce.resume` finds
the finished shards. Source: MobileCLIP (arXiv 2311.17049), section 4.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pocketclip.errors import DataError
from pocketclip.pairs import PairShard
from pocketclip.reinforce.check_report import (
    CheckOptions,
    OnCheck,
    TeacherCheck,
    ignore_check,
    read_check,
    write_check,
)
from pocketclip.reinforce.earlier import earlier_captioners
from pocketclip.reinforce.engine import Engine
from pocketclip.reinforce.prepare import Prepared
from pocketclip.reinforce.recipe import Recipe
from pocketclip.reinforce.resume import (
    Limit,
    OnPairs,
    OnShard,
    OnStart,
    Report,
    check_claim,
    ignore,
    resume,
    shard_path,
    write_bad,
    write_report,
    write_set_index,
)
from pocketclip.reinforce.workers import Workers
from pocketclip.shards import Index
from pocketclip.types import Bad, Pair

__all__ = ["Limit", "Report", "Summary", "run", "run_shard"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The result of a run."""

    index: Index
    reports: list[Report]
    skipped: int
    """Shards that were finished before this run."""
    teacher_check: dict[str, Any] | None = None
    """What the teachers scored, as `teacher_check.json` holds it; None if they were not checked."""


def run(
    shards: Sequence[PairShard],
    recipe: Recipe,
    out: str,
    *,
    workers: int | None = None,
    limit: Limit | None = None,
    check: CheckOptions | None = None,
    on_check: OnCheck = ignore_check,
    on_start: OnStart = ignore,
    on_pairs: OnPairs = ignore,
    on_shard: OnShard = ignore,
) -> Summary:
    """Reinforce shards on this machine, skipping those that are finished.

    Args:
        shards: from `pocketclip.pairs.open_pairs`.
        recipe: what to make of them.
        out: a folder or an object store.
        workers: number of processes that decode and augment; None: one per core.
        limit: the number or share of bad pairs at which the run stops; None: no limit.
        check: check the teachers on a sample of the pairs first, unless this job did before; None:
            do not.
        on_check: called with the result of the check.
        on_start: called once, with the numbers of shards.
        on_pairs: called with the progress in pairs.
        on_shard: called for each finished shard.

    Raises:
        PocketclipError: bad input; finished shards are kept.
    """
    with Workers(workers, ahead=2 * recipe.batch_size) as pool:
        engine = Engine(recipe)
        limit = limit or Limit()
        started: list[tuple[int, int, int]] = []
        finished, pending = resume(
            shards, engine.facts, out, limit, lambda *numbers: started.append(numbers)
        )
        skipped = len(finished)
        checked = check_once(
            out, engine.config_hash, check, lambda asked: engine.check(shards, asked),
            on_check, needed=bool(pending and engine.teachers),
        )  # fmt: skip
        on_start(*started[0])

        def count(pairs: int, bad: int) -> None:
            on_pairs(pairs, bad)
            limit.add(pairs, bad)

        for shard in pending:
            report = finished[shard.name] = run_shard(shard, engine, pool, out, count)
            on_shard(report.samples + report.bad)
    reports = [finished[shard.name] for shard in shards]
    index = write_set_index(out, engine.facts, finished, earlier_captioners(shards))
    return Summary(index=index, reports=reports, skipped=skipped, teacher_check=checked)


def check_once(
    out: str,
    config_hash: str,
    options: CheckOptions | None,
    check: Callable[[CheckOptions], TeacherCheck],
    on_check: OnCheck,
    *,
    needed: bool,
) -> dict[str, Any] | None:
    """Return the facts of the teachers' check: stored ones, or else of a check that is made now.

    Args:
        out: the job's folder or object store, which gets the file.
        config_hash: the job's.
        options: None: nothing is checked; what an earlier run stored is still returned.
        check: makes the check.
        on_check: called with the result of a check that was made now.
        needed: whether there is work left; without it nothing is checked.

    Raises:
        PocketclipError: as `check`; or the folder cannot be read or written to.
    """
    stored = read_check(out, config_hash, options)
    if stored is not None or options is None or not needed:
        return stored
    made = check(options)
    on_check(made)
    return write_check(out, config_hash, options, made)


def run_shard(
    shard: PairShard,
    engine: Engine,
    workers: Workers,
    out: str,
    on_pairs: OnPairs = ignore,
) -> Report:
    """Reinforce one shard of pairs into `out`, a folder or an object store.

    Raises:
        PocketclipError: nothing of this shard was written.
        OSError: the disk is full or cannot be written to; nothing of this shard was written.
    """
    bad: list[Bad] = []
    seen: set[str] = set()
    captions_cut = 0
    try:
        with engine.writer(shard_path(shard.name, engine.recipe.format, out)) as writer:
            pairs = workers.map(shard, engine.plan)
            for good, failed in batches(pairs, engine.recipe.batch_size, seen):
                count = len(good) + len(failed)
                samples = engine.reinforce(good) if good else []
                for sample in samples:
                    try:
                        writer.write(sample)
                    except DataError as error:
                        failed.append(Bad(uid=sample.uid, reason=str(error)))
                captions_cut += engine.count_cut(samples)
                bad += failed
                on_pairs(count, len(failed))
            check_claim(out, engine.config_hash)
    except DataError:
        write_bad(shard.name, bad, out)  # a run that bad pairs stopped must show which they were
        raise
    write_bad(shard.name, bad, out)
    report = Report(
        name=shard.name,
        fingerprint=shard.fingerprint,
        config_hash=engine.config_hash,
        samples=writer.stats.samples,
        bad=len(bad),
        captions_cut=captions_cut,
        stats=dataclasses.asdict(writer.stats),
    )
    write_report(report, out)
    return report


def batches(
    items: Iterable[tuple[Pair | Bad, Prepared | Bad]], size: int, seen: set[str]
) -> Iterator[tuple[list[tuple[Pair, Prepared]], list[Bad]]]:
    """Yield batches of `size` good pairs, and the bad ones among them; the last may be smaller.

    Bad pairs do not count, so that the same pairs meet in a batch whether or not the bad ones were
    left out before: embeddings are the same to the bit.

    Args:
        items: pairs with their prepared images.
        size: of a batch.
        seen: the uids of earlier good pairs, whose further ones are bad; gets those of these.
    """
    good: list[tuple[Pair, Prepared]] = []
    bad: list[Bad] = []
    for pair, prepared in items:
        if isinstance(prepared, Bad) or isinstance(pair, Bad):
            assert isinstance(prepared, Bad)
            bad.append(prepared)
        elif pair.uid in seen:
            bad.append(Bad(uid=pair.uid, reason="duplicate uid; the first one was kept"))
        else:
            seen.add(pair.uid)
            good.append((pair, prepared))
        if len(good) == size:
            yield good, bad
            good, bad = [], []
        elif len(bad) == size:  # for the progress and the limit
            yield [], bad
            bad = []
    if good or bad:
        yield good, bad
