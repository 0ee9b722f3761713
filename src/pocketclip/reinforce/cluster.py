"""The job on a Ray cluster: actors hold the models and get one shard at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pocketclip import storage
from pocketclip.cluster import ActorUnusableError, Cluster, Driver, Worker, open_driver
from pocketclip.cluster.worker import returned
from pocketclip.errors import PocketclipError
from pocketclip.pairs import PairShard
from pocketclip.reinforce import job
from pocketclip.reinforce.check_report import CheckOptions, OnCheck, TeacherCheck, ignore_check
from pocketclip.reinforce.earlier import earlier_captioners
from pocketclip.reinforce.engine import Engine
from pocketclip.reinforce.job import Summary
from pocketclip.reinforce.own_models import add_search_path
from pocketclip.reinforce.recipe import Recipe, digest
from pocketclip.reinforce.resume import (
    Limit,
    OnPairs,
    OnShard,
    OnStart,
    Report,
    ignore,
    resume,
    write_set_index,
)
from pocketclip.reinforce.workers import Workers

__all__ = ["Cluster", "run"]


class _Worker(Worker):
    """The actor: a recipe's models, and the progress of its current shard."""

    def __init__(self, recipe: Recipe, out: str, workers: int, home: str = "") -> None:
        super().__init__()
        if home:  # the driver's working directory, where the user's own models may be
            add_search_path(home)
        self.recipe, self.out, self.workers = recipe, out, workers

    def load(self) -> dict[str, Any]:
        """Load the models, and return the facts of the recipe."""
        self.engine = Engine(self.recipe)
        self.pool = Workers(self.workers, ahead=2 * self.recipe.batch_size)
        return self.engine.facts

    def check(self, shards: Sequence[PairShard], options: CheckOptions) -> TeacherCheck | Exception:
        """Check the teachers."""
        result: TeacherCheck | Exception = returned(lambda: self.engine.check(shards, options))
        return result

    def work(self, task: PairShard, count: OnPairs) -> Report:
        """Reinforce a shard; if it is stopped, it writes the list of its bad pairs first."""
        return job.run_shard(task, self.engine, self.pool, self.out, count)


def run(
    shards: Sequence[PairShard],
    recipe: Recipe,
    out: str,
    cluster: Cluster,
    *,
    workers: int | None = None,
    limit: Limit | None = None,
    check: CheckOptions | None = None,
    on_check: OnCheck = ignore_check,
    on_start: OnStart = ignore,
    on_pairs: OnPairs = ignore,
    on_shard: OnShard = ignore,
) -> Summary:
    """Reinforce shards on a cluster.

    Every machine must reach `out`, the pairs and local checkpoints under the same paths. The paths
    must be absolute unless this call starts the cluster.

    Args:
        shards: from `pocketclip.pairs.open_pairs`.
        recipe: what to make of them.
        out: a folder or an object store.
        cluster: where to run, and with how many actors.
        workers: number of processes per actor that decode and augment; None: the actor's cores.
        limit: as `pocketclip.reinforce.job.run`, like the checks and the callbacks.
        check: what to check; one of the actors does it.
        on_check: called with the result of the check.
        on_start: called once, with the numbers of shards.
        on_pairs: called with the progress in pairs; negative after an actor died.
        on_shard: called for each finished shard.

    Raises:
        MissingDependencyError: ray is not installed.
        PocketclipError: as `pocketclip.reinforce.job.run`; or the cluster cannot be reached, or
            actors died more often than `cluster.retries` allows.
    """
    limit = limit or Limit()
    out, home = storage.absolute(out), str(Path.cwd())

    def count(done: int, bad: int) -> None:
        on_pairs(done, bad)
        limit.add(done, bad)

    workers = max(1, int(cluster.cpus)) if workers is None else workers
    arguments = (recipe, out, workers, home)
    with _cleaned(out), open_driver(_Worker, arguments, cluster, count) as driver:
        facts = driver.wait_ready(min(cluster.min_actors, max(1, len(shards))))
        started: list[tuple[int, int, int]] = []
        finished, pending = resume(
            shards, facts, out, limit, lambda *numbers: started.append(numbers)
        )
        skipped = len(finished)
        checked = job.check_once(
            out, digest(facts), check, lambda asked: _check(driver, shards, asked),
            on_check, needed=bool(pending and facts["teachers"]),
        )  # fmt: skip
        on_start(*started[0])
        for report in driver.run_tasks(pending):
            finished[report.name] = report
            on_shard(report.samples + report.bad)
    reports = [finished[shard.name] for shard in shards]
    index = write_set_index(out, facts, finished, earlier_captioners(shards))
    indexed = {shard.name for shard in index.shards}
    missing = [report.name for report in reports if report.stats["name"] not in indexed]
    if missing:
        raise PocketclipError(
            f"shard {missing[0]} is not in {out}: --out must mean the same folder on every machine"
        )
    return Summary(index=index, reports=reports, skipped=skipped, teacher_check=checked)


@contextlib.contextmanager
def _cleaned(out: str) -> Iterator[None]:
    """Remove the unfinished files of this machine's actors at the end."""
    try:
        yield
    finally:
        storage.remove_abandoned(out)


def _check(driver: Driver, shards: Sequence[PairShard], options: CheckOptions) -> TeacherCheck:
    """Return the check of the teachers, made by an actor that is ready."""
    try:
        result: TeacherCheck = driver.ask("check", shards, options)
    except ActorUnusableError as error:
        raise PocketclipError(
            f"the actor that checked the teachers died ({error}): run again, with fewer pairs "
            "(--check-pairs) or none"
        ) from error
    return result
