"""Keep a cluster's actors busy until no shard is left: start them, replace dead ones, count pairs.

The driver gets Ray as an object and does not import it, so that tests can run it without a
cluster.
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

from pocketclip.errors import ConfigError, PocketclipError
from pocketclip.pairs import PairShard
from pocketclip.reinforce.check_report import CheckOptions, TeacherCheck
from pocketclip.reinforce.resume import OnPairs, Report
from pocketclip.reinforce.workers import WorkersDiedError

log = logging.getLogger(__name__)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_PAUSE = 2.0
"""Seconds before an actor that died while loading its models is replaced; doubles each time."""
_LONGEST_PAUSE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The Ray cluster to run on, and the actors to start there."""

    address: str | None = None
    """`auto`, `ray://host:10001`, or None for a cluster on this machine."""
    min_actors: int = 1
    """Number of actors that must be ready before the first shard starts."""
    max_actors: int = 1
    """Maximum number of actors; those above `min_actors` start when the cluster has room."""
    cpus: float = 1
    """CPU cores per actor."""
    gpus: float = 0
    """GPUs per actor."""
    retries: int = 3
    """Times a shard is retried after its actor died, and times in a row that actors are started
    again after they died while loading their models."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_actors <= self.max_actors:
            raise ConfigError(
                f"--min-actors {self.min_actors} and --max-actors {self.max_actors}: both must be "
                "at least 1, and --min-actors at most --max-actors"
            )


@dataclass(slots=True, eq=False)
class ActorState:
    """One actor, and what the driver knows about it."""

    actor: Any
    shard: PairShard | None = None
    counted: tuple[int, int] = (0, 0)
    """Pairs of this shard, and bad pairs among them, that were reported so far."""


@dataclass(slots=True)
class Driver:
    """Keeps the actors busy until no shard is left."""

    ray: Any
    make_actor: Callable[[], Any]
    cluster: Cluster
    on_pairs: OnPairs
    facts: dict[str, Any] | None = None
    """What the actors loaded, as `Engine.facts`; all must agree."""
    idle: list[ActorState] = field(default_factory=list)
    starting: dict[Any, ActorState] = field(default_factory=dict)
    running: dict[Any, ActorState] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    failed_starts: int = 0
    """Times in a row that actors died before their models were loaded."""
    next_start: float = 0.0
    """Earliest time to start an actor, on the monotonic clock."""

    def start_actors(self, count: int) -> None:
        """Request actors until there are `count`; each starts when the cluster has room.

        After an actor died while loading, none starts before `next_start`: the cause (another
        program's memory, a machine that is still starting) would kill an immediate replacement.
        """
        if time.monotonic() < self.next_start:
            return
        while len(self.idle) + len(self.starting) + len(self.running) < count:
            state = ActorState(self.make_actor())
            self.starting[state.actor.facts.remote()] = state

    def wait_ready(self, count: int) -> dict[str, Any]:
        """Wait until `count` actors are ready, and return the facts of their recipe."""
        begun = time.monotonic()
        warned = False
        while len(self.idle) < count:
            self.start_actors(count)
            self._wait()
            if not warned and time.monotonic() - begun > 30:
                free = self.ray.available_resources()
                log.warning(
                    "%d of %d actors are ready; the cluster has %g cores and %g GPUs free",
                    *(len(self.idle), count, free.get("CPU", 0), free.get("GPU", 0)),
                )
                warned = True
        assert self.facts is not None
        return self.facts

    def check(self, shards: Sequence[PairShard], options: CheckOptions) -> TeacherCheck:
        """Return the check of the teachers, made by an actor that is ready.

        Raises:
            PocketclipError: the check failed, or its actor died.
        """
        actor = self.idle[0].actor
        try:
            result = self.ray.get(actor.check.remote(shards, options))
        except self.ray.exceptions.RayError as error:
            raise PocketclipError(
                f"the actor that checked the teachers died ({_reason(error)[0]}): run again, with "
                "fewer pairs (--check-pairs) or none"
            ) from error
        if isinstance(result, Exception):
            raise result
        checked: TeacherCheck = result
        return checked

    def run_shards(self, shards: Sequence[PairShard]) -> Iterator[Report]:
        """Yield the report of each shard when it is finished."""
        pending = deque(shards)
        while pending or self.running:
            self.start_actors(min(self.cluster.max_actors, len(pending) + len(self.running)))
            while pending and self.idle:
                state = self.idle.pop()
                state.shard, state.counted = pending.popleft(), (0, 0)
                self.running[state.actor.run.remote(state.shard)] = state
            for report in self._wait():
                if isinstance(report, PairShard):
                    pending.appendleft(report)
                else:
                    yield report
            self._poll_progress()

    def _wait(self) -> list[Report | PairShard]:
        """Return finished shards' reports, and the shards of actors that died."""
        references = [*self.starting, *self.running]
        if not references:
            time.sleep(0.1)  # until an actor may be started again
            return []
        ready, _ = self.ray.wait(references, num_returns=1, timeout=0.2)
        out: list[Report | PairShard] = []
        for reference in ready:
            starting = reference in self.starting
            state = (self.starting if starting else self.running).pop(reference)
            try:
                result = self.ray.get(reference)
            except (
                self.ray.exceptions.RayActorError,
                self.ray.exceptions.OutOfMemoryError,
            ) as error:
                out += self._handle_death(state, error)
                continue
            if isinstance(result, WorkersDiedError):  # its next shard would fail too
                self.ray.kill(state.actor)
                out += self._handle_death(state, result)
                continue
            if isinstance(result, Exception):
                raise result
            self.idle.append(state)
            if starting:
                self.failed_starts = 0
                self._check_facts(result)
            else:
                self._count(state, result.samples + result.bad, result.bad)
                out.append(result)
        return out

    def _check_facts(self, facts: dict[str, Any]) -> None:
        if self.facts is None:
            self.facts = facts
        elif facts != self.facts:
            changed = [name for name in facts if facts[name] != self.facts.get(name)]
            raise ConfigError(
                f"the machines of the cluster differ in {', '.join(changed)}: set --precision, "
                "and put the same model files on all of them"
            )

    def _handle_death(self, state: ActorState, error: Exception) -> list[PairShard]:
        """Return the shard of a dead actor, if it had one, so that it is retried.

        Raises:
            PocketclipError: the actor could not be created, or the retries are used up.
        """
        self._count(state, 0, 0)
        reason, last = _reason(error)
        if state.shard is None and "creation task" in reason:
            raise PocketclipError(
                f"an actor could not be created: {last}; install the same pocketclip on all "
                "machines, with the same extras"
            )
        if state.shard is None:
            self._backoff(reason)
            return []
        name = state.shard.name
        self.attempts[name] = self.attempts.get(name, 0) + 1
        if self.attempts[name] > self.cluster.retries:
            raise PocketclipError(
                f"shard {name} was started {self.attempts[name]} times and its actor died each "
                f"time ({reason}); finished shards are kept: run again with fewer actors or more "
                "memory per actor"
            )
        log.warning("an actor died while it made shard %s, which is retried (%s)", name, reason)
        return [state.shard]

    def _backoff(self, reason: str) -> None:
        """Delay the next start after an actor died while loading.

        Raises:
            PocketclipError: the retries are used up, and no other actor is working.
        """
        if time.monotonic() < self.next_start:
            return  # died together with another one, from the same cause
        self.failed_starts += 1
        if self.failed_starts > self.cluster.retries and not self.running:
            raise PocketclipError(
                f"actors died before their models were loaded, {self.failed_starts} times in a row "
                f"({reason}): give them more memory (fewer actors, a smaller batch), or look for "
                "the cause in Ray's logs"
            )
        pause = min(_PAUSE * 2 ** (self.failed_starts - 1), _LONGEST_PAUSE)
        self.next_start = time.monotonic() + pause
        log.warning(
            "an actor died before its models were loaded; a new one starts in %g s (%s)",
            *(pause, reason),
        )

    def _poll_progress(self) -> None:
        queries = {state.actor.progress.remote(): state for state in self.running.values()}
        if not queries:
            return
        answered, _ = self.ray.wait(list(queries), num_returns=len(queries), timeout=1.0)
        for reference in answered:
            state = queries[reference]
            with contextlib.suppress(self.ray.exceptions.RayError):  # its shard's result says more
                name, done, bad = self.ray.get(reference)
                if state.shard is not None and name == state.shard.name:
                    self._count(state, done, bad)

    def _count(self, state: ActorState, done: int, bad: int) -> None:
        """Report the change since the last call; it is negative after a death."""
        change = done - state.counted[0], bad - state.counted[1]
        state.counted = done, bad
        if any(change):
            self.on_pairs(*change)

    def stop_actors(self) -> None:
        """Stop all actors; those that run a shard write the list of its bad pairs first."""
        for state in self.running.values():
            state.actor.stop.remote()
        if self.running:
            self.ray.wait(list(self.running), num_returns=len(self.running), timeout=20)
        for state in [*self.idle, *self.starting.values(), *self.running.values()]:
            self.ray.kill(state.actor)


def _reason(error: Exception) -> tuple[str, str]:
    """Return Ray's reason for an actor's death as one line, and the last line of its message."""
    lines = [line.strip() for line in _ANSI.sub("", str(error)).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__, type(error).__name__
    detail = [line.partition("Worker exit detail: ")[2] for line in lines]
    detail = [text.partition(" Some common causes")[0] for text in detail if text]
    return " ".join([lines[0], *detail[:1]]), lines[-1]
