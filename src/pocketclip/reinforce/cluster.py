"""The same job on a Ray cluster: actors that hold the models, shards handed out one by one.

Ray core actors, not Ray Data: a pipeline of two steps does not pay for the latter's start. This
is the only file that imports ray.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from pocketclip import storage
from pocketclip.errors import DataError, MissingDependencyError, PocketclipError, first_line
from pocketclip.pairs import PairShard
from pocketclip.reinforce import job
from pocketclip.reinforce.driver import Cluster, Driver
from pocketclip.reinforce.engine import Engine
from pocketclip.reinforce.job import Limit, OnPairs, OnShard, OnStart, Report, Summary
from pocketclip.reinforce.local import Workers
from pocketclip.reinforce.recipe import Recipe

__all__ = ["Cluster", "run"]


class _Worker:
    """The actor: a recipe's models, and how far it is in its shard.

    Expected errors are returned, not raised, so that they reach the driver as they are.
    """

    def __init__(self, recipe: Recipe, out: str, workers: int) -> None:
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
        """Return what decides the shards; comes once the models are loaded."""
        return self.error if self.engine is None else self.engine.facts

    def progress(self) -> tuple[str, int, int]:
        """Return the shard's name, how many pairs were done so far, and how many were bad."""
        return self.shard, self.done, self.bad

    def stop(self) -> None:
        """End the shard at its next step."""
        self.stopping = True

    def run(self, shard: PairShard) -> Report | Exception:
        """Reinforce a shard."""
        self.shard, self.done, self.bad = shard.name, 0, 0

        def count(done: int, bad: int) -> None:
            self.done += done
            self.bad += bad
            if self.stopping:
                raise DataError("stopped")  # once the bad pairs so far are written down

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
    on_start: OnStart = job.ignore,
    on_pairs: OnPairs = job.ignore,
    on_shard: OnShard = job.ignore,
) -> Summary:
    """Reinforce shards on a cluster; arguments and errors as in `pocketclip.reinforce.job.run`.

    `out`, the pairs and local checkpoints must be there for every machine under the same path,
    which is absolute unless the cluster was started here. `workers` is the number of processes
    that decode and augment beside each actor.
    """
    limit = limit or Limit()
    out = storage.absolute(out)

    def count(done: int, bad: int) -> None:
        on_pairs(done, bad)
        limit.add(done, bad)

    workers = max(1, int(cluster.cpus)) if workers is None else workers
    with _cleaned(out), _session(cluster.address) as ray:
        # Two at a time: the shard, and the driver's question how far it is.
        remote = ray.remote(
            num_cpus=cluster.cpus,
            num_gpus=cluster.gpus,
            max_concurrency=2,
            max_restarts=0,
            runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},  # as in the command line
        )(_Worker)
        driver = Driver(ray, lambda: remote.remote(recipe, out, workers), cluster, count)
        try:
            facts = driver.muster(min(cluster.min_actors, max(1, len(shards))))
            done, todo = job.resume(shards, facts, out, limit, on_start)
            skipped = len(done)
            for report in driver.work(todo):
                done[report.name] = report
                on_shard(report.samples + report.bad)
        finally:
            driver.dismiss()
    reports = [done[shard.name] for shard in shards]
    index = job.finish(out, facts, done)
    here = {shard.name for shard in index.shards}
    elsewhere = [report.name for report in reports if report.stats["name"] not in here]
    if elsewhere:
        raise PocketclipError(
            f"the actors wrote {elsewhere[0]} elsewhere: --out must be the same place on every "
            "machine"
        )
    return Summary(index=index, reports=reports, skipped=skipped)


@contextlib.contextmanager
def _cleaned(out: str) -> Iterator[None]:
    """Remove what actors of this machine left half-written when they were ended."""
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
            "a cluster needs ray: pip install 'pocketclip[ray]'"
        ) from error
    if ray.is_initialized():
        yield ray
        return
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
            "`ray start --head`, or leave the address out"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()
