"""The job on a Ray cluster: actors hold the models and get one shard at a time.

It uses Ray core actors, not Ray Data: a pipeline of two steps does not repay Ray Data's start-up
time. This is the only file that imports ray.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pocketclip import storage
from pocketclip.errors import (
    DataError,
    MissingDependencyError,
    PocketclipError,
    first_line,
    how_to_install,
)
from pocketclip.pairs import PairShard
from pocketclip.reinforce import job
from pocketclip.reinforce.check_report import CheckOptions, OnCheck, TeacherCheck, ignore_check
from pocketclip.reinforce.driver import Cluster, Driver
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


class _Worker:
    """The actor: a recipe's models, and the progress of its current shard.

    Expected errors are returned, not raised, so that they reach the driver unchanged.
    """

    def __init__(self, recipe: Recipe, out: str, workers: int, home: str = "") -> None:
        if home:  # the driver's working directory, where the user's own models may be
            add_search_path(home)
        self.out = out
        self.shard = ""
        self.stopping = False
        self.done = self.bad = 0
        self.engine: Engine | None = None
        try:
            self.engine = Engine(recipe)
            self.pool = Workers(workers, ahead=2 * recipe.batch_size)
        except (PocketclipError, OSError) as error:
            self.error = error

    def facts(self) -> dict[str, Any] | Exception:
        """Return the facts of the recipe, once the models are loaded."""
        return self.error if self.engine is None else self.engine.facts

    def progress(self) -> tuple[str, int, int]:
        """Return the shard's name, the number of pairs done, and of bad ones among them."""
        return self.shard, self.done, self.bad

    def stop(self) -> None:
        """Stop the shard after its current batch."""
        self.stopping = True

    def check(self, shards: Sequence[PairShard], options: CheckOptions) -> TeacherCheck | Exception:
        """Check the teachers."""
        assert self.engine is not None
        try:
            return self.engine.check(shards, options)
        except (PocketclipError, OSError) as error:
            return error

    def run(self, shard: PairShard) -> Report | Exception:
        """Reinforce a shard."""
        self.shard, self.done, self.bad = shard.name, 0, 0

        def count(done: int, bad: int) -> None:
            self.done += done
            self.bad += bad
            if self.stopping:
                raise DataError("stopped")  # `run_shard` then writes the bad pairs so far

        assert self.engine is not None
        try:
            return job.run_shard(shard, self.engine, self.pool, self.out, count)
        except (PocketclipError, OSError) as error:
            return error


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
    with _cleaned(out), _session(cluster.address) as ray:
        # Two calls at a time: `run`, and the driver's `progress` during it.
        remote = ray.remote(
            num_cpus=cluster.cpus,
            num_gpus=cluster.gpus,
            max_concurrency=2,
            max_restarts=0,
            runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},  # as in the command line
        )(_Worker)
        driver = Driver(ray, lambda: remote.remote(recipe, out, workers, home), cluster, count)
        try:
            facts = driver.wait_ready(min(cluster.min_actors, max(1, len(shards))))
            started: list[tuple[int, int, int]] = []
            finished, pending = resume(
                shards, facts, out, limit, lambda *numbers: started.append(numbers)
            )
            skipped = len(finished)
            checked = job.check_once(
                out, digest(facts), check, lambda asked: driver.check(shards, asked),
                on_check, needed=bool(pending and facts["teachers"]),
            )  # fmt: skip
            on_start(*started[0])
            for report in driver.run_shards(pending):
                finished[report.name] = report
                on_shard(report.samples + report.bad)
        finally:
            driver.stop_actors()
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


@contextlib.contextmanager
def _session(address: str | None) -> Iterator[Any]:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"running on a cluster needs ray: {how_to_install('ray')}"
        ) from error
    if ray.is_initialized():
        yield ray
        return
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use
    try:
        ray.init(
            address=address or "local",
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise PocketclipError(
            f"no Ray cluster at {address or 'this machine'} ({reason}): start one with "
            "`ray start --head`, or pass no address"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()
