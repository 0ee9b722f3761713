"""The same job on a Ray cluster: actors that hold the models, shards handed out one by one.

Ray core actors, not Ray Data: a pipeline of two steps does not pay for the latter's start. This
is the only file that imports ray.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pocketclip import storage
from pocketclip.errors import ConfigError, DataError, MissingDependencyError, PocketclipError
from pocketclip.files import remove_abandoned
from pocketclip.pairs import PairShard
from pocketclip.reinforce import job
from pocketclip.reinforce.engine import Engine
from pocketclip.reinforce.job import Limit, OnPairs, OnShard, OnStart, Report, Summary
from pocketclip.reinforce.local import Workers, WorkersDiedError
from pocketclip.reinforce.recipe import Recipe

log = logging.getLogger(__name__)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Where to run, and with how much."""

    address: str | None = None
    """`auto`, `ray://host:10001`, or None for a cluster on this machine."""
    min_actors: int = 1
    """Work starts once so many are ready."""
    max_actors: int = 1
    """More start as the cluster has room for them."""
    cpus: float = 1
    """Cores per actor."""
    gpus: float = 0
    """GPUs per actor."""
    retries: int = 3
    """How often a shard is begun again after its actor died."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_actors <= self.max_actors:
            raise ConfigError(
                f"--min-actors {self.min_actors}, --max-actors {self.max_actors}: at least 1, and "
                "the first not above the second"
            )


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


@dataclass(slots=True, eq=False)
class _Hand:
    """The driver's view of one actor."""

    actor: Any
    shard: PairShard | None = None
    counted: tuple[int, int] = (0, 0)
    """Pairs of this shard, and bad ones, that the driver has passed on."""


@dataclass(slots=True)
class _Driver:
    """Keeps the actors busy until no shard is left."""

    ray: Any
    make: Callable[[], Any]
    cluster: Cluster
    count: OnPairs
    facts: dict[str, Any] | None = None
    idle: list[_Hand] = field(default_factory=list)
    starting: dict[Any, _Hand] = field(default_factory=dict)
    running: dict[Any, _Hand] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    stillborn: int = 0

    def hire(self, wanted: int) -> None:
        """Ask for actors up to `wanted`; they come when the cluster has room."""
        while len(self.idle) + len(self.starting) + len(self.running) < wanted:
            hand = _Hand(self.make())
            self.starting[hand.actor.facts.remote()] = hand

    def muster(self, wanted: int) -> dict[str, Any]:
        """Wait until `wanted` actors are ready and return the facts of their recipe."""
        begun = time.monotonic()
        warned = False
        while len(self.idle) < wanted:
            self.hire(wanted)
            self._wait()
            if not warned and time.monotonic() - begun > 30:
                free = self.ray.available_resources()
                log.warning(
                    "%d of %d actors are ready; the cluster has %g cores and %g GPUs free",
                    *(len(self.idle), wanted, free.get("CPU", 0), free.get("GPU", 0)),
                )
                warned = True
        assert self.facts is not None
        return self.facts

    def work(self, shards: Sequence[PairShard]) -> Iterator[Report]:
        """Yield the report of each shard as it is finished."""
        todo = deque(shards)
        while todo or self.running:
            self.hire(min(self.cluster.max_actors, len(todo) + len(self.running)))
            while todo and self.idle:
                hand = self.idle.pop()
                hand.shard, hand.counted = todo.popleft(), (0, 0)
                self.running[hand.actor.run.remote(hand.shard)] = hand
            for report in self._wait():
                if isinstance(report, PairShard):
                    todo.appendleft(report)
                else:
                    yield report
            self._poll()

    def _wait(self) -> list[Report | PairShard]:
        """Return finished shards' reports, and the shards of actors that died."""
        references = [*self.starting, *self.running]
        ready, _ = self.ray.wait(references, num_returns=1, timeout=0.2)
        out: list[Report | PairShard] = []
        for reference in ready:
            starting = reference in self.starting
            hand = (self.starting if starting else self.running).pop(reference)
            try:
                found = self.ray.get(reference)
            except (
                self.ray.exceptions.RayActorError,
                self.ray.exceptions.OutOfMemoryError,
            ) as error:
                out += self._bury(hand, error)
                continue
            if isinstance(found, WorkersDiedError):  # nor will this actor's next shard do
                self.ray.kill(hand.actor)
                out += self._bury(hand, found)
                continue
            if isinstance(found, Exception):
                raise found
            self.idle.append(hand)
            if starting:
                self._agree(found)
            else:
                self._count(hand, found.samples + found.bad, found.bad)
                out.append(found)
        return out

    def _agree(self, facts: dict[str, Any]) -> None:
        if self.facts is None:
            self.facts = facts
        elif facts != self.facts:
            changed = [name for name in facts if facts[name] != self.facts.get(name)]
            raise ConfigError(
                f"the machines of the cluster do not agree on {', '.join(changed)}: set "
                "--precision, and give them all the same files"
            )

    def _bury(self, hand: _Hand, error: Exception) -> list[PairShard]:
        """Return the shard of a dead actor, if it had one, to be begun again."""
        self._count(hand, 0, 0)
        lines = [line.strip() for line in _ANSI.sub("", str(error)).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        if hand.shard is None and "creation task" in reason:
            raise PocketclipError(
                f"an actor could not be made: {lines[-1]}; give all machines the same pocketclip, "
                "with the same extras"
            )
        if hand.shard is None:
            self.stillborn += 1
            if self.stillborn > self.cluster.retries:
                raise PocketclipError(
                    f"actors die before their models are loaded ({reason}): give them more memory"
                )
            return []
        name = hand.shard.name
        self.attempts[name] = self.attempts.get(name, 0) + 1
        if self.attempts[name] > self.cluster.retries:
            raise PocketclipError(
                f"shard {name} was begun {self.attempts[name]} times and its actor died each time "
                f"({reason}); finished shards are kept"
            )
        log.warning("an actor died at shard %s, which is begun again (%s)", name, reason)
        return [hand.shard]

    def _poll(self) -> None:
        asked = {hand.actor.progress.remote(): hand for hand in self.running.values()}
        if not asked:
            return
        answered, _ = self.ray.wait(list(asked), num_returns=len(asked), timeout=1.0)
        for reference in answered:
            hand = asked[reference]
            with contextlib.suppress(self.ray.exceptions.RayError):  # its shard will tell
                name, done, bad = self.ray.get(reference)
                if hand.shard is not None and name == hand.shard.name:
                    self._count(hand, done, bad)

    def _count(self, hand: _Hand, done: int, bad: int) -> None:
        """Pass on what is new; fewer than before after a death."""
        new = done - hand.counted[0], bad - hand.counted[1]
        hand.counted = done, bad
        if any(new):
            self.count(*new)

    def dismiss(self) -> None:
        """End all actors; those at work write down their bad pairs first."""
        for hand in self.running.values():
            hand.actor.stop.remote()
        if self.running:
            self.ray.wait(list(self.running), num_returns=len(self.running), timeout=20)
        for hand in [*self.idle, *self.starting.values(), *self.running.values()]:
            self.ray.kill(hand.actor)


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
        driver = _Driver(ray, lambda: remote.remote(recipe, out, workers), cluster, count)
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
        if not storage.is_remote(out):
            remove_abandoned(out)


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
        reason = str(error).strip().splitlines()[0]
        raise PocketclipError(
            f"no Ray cluster at {address or 'this machine'} ({reason}): start one with "
            "`ray start --head`, or leave the address out"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()
