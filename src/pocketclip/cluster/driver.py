"""Keep a cluster's actors busy until no task is left: start them, replace dead ones, count.

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

from pocketclip.cluster.worker import ActorUnusableError, OnProgress, Task
from pocketclip.errors import ConfigError, PocketclipError, count_of

log = logging.getLogger(__name__)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_PAUSE = 2.0
"""Seconds before an actor that died while loading its models is replaced; doubles each time."""
_LONGEST_PAUSE = 60.0
_NO_ROOM_AFTER = 30.0
"""Seconds that an actor may wait for room before the log says so; doubles with each message."""
_LONGEST_SILENCE = 600.0
_ANSWER_WITHIN = 5.0
"""Seconds in which an idle actor should answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The Ray cluster to run on, and the actors to start there."""

    address: str | None = None
    """`auto`, `ray://host:10001`, or None for a cluster on this machine."""
    min_actors: int = 1
    """Number of actors that must be ready before the first task starts."""
    max_actors: int = 1
    """Maximum number of actors; those above `min_actors` start when the cluster has room."""
    cpus: float = 1
    """CPU cores per actor."""
    gpus: float = 0
    """GPUs per actor."""
    retries: int = 3
    """Times a task is retried after its actor died, and times in a row that actors are started
    again after they died while loading their models."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_actors <= self.max_actors:
            raise ConfigError(
                f"--min-actors {self.min_actors} and --max-actors {self.max_actors}: both must be "
                "at least 1, and --min-actors at most --max-actors"
            )
        if self.cpus < 0 or self.gpus < 0:
            raise ConfigError("--cpus-per-actor and --gpus-per-actor: at least 0")


@dataclass(slots=True, eq=False)
class ActorState:
    """One actor, and what the driver knows about it."""

    actor: Any
    since: float
    """When it was requested, on the monotonic clock."""
    placed: Any = None
    """A reference that is ready once the actor has room on a machine."""
    task: Task | None = None
    counted: tuple[int, int] = (0, 0)
    """Samples of this task, and bad ones among them, that were reported so far."""


@dataclass(slots=True)
class Driver:
    """Keeps the actors busy until no task is left."""

    ray: Any
    make_actor: Callable[[], Any]
    cluster: Cluster
    on_progress: OnProgress
    facts: dict[str, Any] | None = None
    """What the actors loaded, see `Worker.load`; all must agree."""
    idle: list[ActorState] = field(default_factory=list)
    starting: dict[Any, ActorState] = field(default_factory=dict)
    running: dict[Any, ActorState] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    failed_starts: int = 0
    """Times in a row that actors died before their models were loaded."""
    next_start: float = 0.0
    """Earliest time to start an actor, on the monotonic clock."""
    silence: float = 0.0
    """Seconds between the last message about missing room and the next; 0: there was none."""
    next_message: float = 0.0

    def start_actors(self, count: int) -> None:
        """Request actors until there are `count`; each starts when the cluster has room.

        After an actor died while loading, none starts before `next_start`: the cause (another
        program's memory, a machine that is still starting) would kill an immediate replacement.
        """
        if time.monotonic() < self.next_start:
            return
        while len(self.idle) + len(self.starting) + len(self.running) < count:
            state = ActorState(self.make_actor(), time.monotonic())
            state.placed = state.actor.progress.remote()
            self.starting[state.actor.facts.remote()] = state

    def wait_ready(self, count: int) -> dict[str, Any]:
        """Wait until `count` actors are ready, and return the facts that they agree on."""
        while len(self.idle) < count:
            self.start_actors(count)
            self._wait()
            self._mention_missing_room(count)
        assert self.facts is not None
        return self.facts

    def ask(self, method: str, *arguments: Any) -> Any:
        """Return what a method of a ready actor returns, outside of a task.

        Raises:
            PocketclipError: the method returned one, or its actor died.
        """
        actor = self.idle[0].actor
        try:
            result = self.ray.get(getattr(actor, method).remote(*arguments))
        except self.ray.exceptions.RayError as error:
            raise ActorUnusableError(_reason(error)[0]) from error
        if isinstance(result, Exception):
            raise result
        return result

    def run_tasks(self, tasks: Sequence[Task]) -> Iterator[Any]:
        """Yield the result of each task when it is finished."""
        pending = deque(tasks)
        while pending or self.running:
            wanted = min(self.cluster.max_actors, len(pending) + len(self.running))
            self.start_actors(wanted)
            while pending and self.idle:
                state = self.idle.pop()
                state.task, state.counted = pending.popleft(), (0, 0)
                self.running[state.actor.run.remote(state.task)] = state
            results, again = self._wait()
            pending.extendleft(again)
            yield from results
            self._poll_progress()
            if pending:
                self._mention_missing_room(wanted)

    def _wait(self) -> tuple[list[Any], list[Task]]:
        """Return finished tasks' results, and the tasks of actors that died."""
        references = [*self.starting, *self.running]
        if not references:
            time.sleep(0.1)  # until an actor may be started again
            return [], []
        ready, _ = self.ray.wait(references, num_returns=1, timeout=0.2)
        results: list[Any] = []
        again: list[Task] = []
        for reference in ready:
            starting = reference in self.starting
            state = (self.starting if starting else self.running).pop(reference)
            try:
                result = self.ray.get(reference)
            except (
                self.ray.exceptions.RayActorError,
                self.ray.exceptions.OutOfMemoryError,
            ) as error:
                again += self._handle_death(state, error)
                continue
            except self.ray.exceptions.RayError as error:
                if not starting:
                    raise
                raise _not_created(error) from error
            if isinstance(result, ActorUnusableError):  # its next task would fail too
                again += self._handle_death(state, result)
                continue
            if isinstance(result, Exception):
                raise result
            self.idle.append(state)
            if starting:
                self.failed_starts = 0
                self._check_facts(result)
            else:
                self._count(state, result.samples + result.bad, result.bad)
                results.append(result)
        return results, again

    def _check_facts(self, facts: dict[str, Any]) -> None:
        if self.facts is None:
            self.facts = facts
        elif facts != self.facts:
            changed = [name for name in facts if facts[name] != self.facts.get(name)]
            raise ConfigError(
                f"the machines of the cluster differ in {', '.join(changed)}: set --precision, "
                "and put the same model files on all of them"
            )

    def _handle_death(self, state: ActorState, error: Exception) -> list[Task]:
        """Return the task of a dead actor, if it had one, so that it is retried.

        Raises:
            PocketclipError: the actor could not be created, or the retries are used up.
        """
        self._count(state, 0, 0)
        # One that is only out of reach would go on with its task, and keep its room.
        self.ray.kill(state.actor)
        reason = _reason(error)[0]
        if state.task is None and "creation task" in reason:
            raise _not_created(error)
        self._drop_dead()
        if state.task is None:
            self._backoff(reason)
            return []
        name = state.task.name
        self.attempts[name] = self.attempts.get(name, 0) + 1
        if self.attempts[name] > self.cluster.retries:
            raise PocketclipError(
                f"shard {name} was started {self.attempts[name]} times and its actor died each "
                f"time ({reason}); finished shards are kept: run again with fewer actors or more "
                "memory per actor"
            )
        log.warning("an actor died while it made shard %s, which is retried (%s)", name, reason)
        return [state.task]

    def _drop_dead(self) -> None:
        """Forget idle actors that died with another one, for example with their machine.

        Otherwise a task would meet them one after the other, and its retries would be used up.
        """
        answers = {state.actor.progress.remote(): state for state in self.idle}
        if not answers:
            return
        answered, _ = self.ray.wait(list(answers), num_returns=len(answers), timeout=_ANSWER_WITHIN)
        for reference in answered:
            try:
                self.ray.get(reference)
            except self.ray.exceptions.RayError:
                self.idle.remove(answers[reference])
                self.ray.kill(answers[reference].actor)  # it may only be out of reach, as above

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

    def _mention_missing_room(self, wanted: int) -> None:
        """Log, at growing intervals, that actors wait for room, with what the cluster has.

        The run waits on: a machine may join, or another job may end.
        """
        now = time.monotonic()
        waiting = [s for s in self.starting.values() if now - s.since >= _NO_ROOM_AFTER]
        if waiting:
            references = [state.placed for state in waiting]
            placed, _ = self.ray.wait(references, num_returns=len(references), timeout=0)
            waiting = [state for state in waiting if state.placed not in placed]
        if not waiting:
            self.silence = 0.0
            return
        if self.silence and now < self.next_message:
            return
        self.silence = min(2 * self.silence or _NO_ROOM_AFTER, _LONGEST_SILENCE)
        self.next_message = now + self.silence
        log.warning(
            "%d of %d actors wait for room on the cluster, or for their process, since %.0f s: "
            "each needs %s, and %s. The run goes on when there is room; fewer or smaller "
            "actors need less",
            *(len(waiting), wanted, now - min(state.since for state in waiting)),
            _amounts([f"{self.cluster.cpus:g}", f"{self.cluster.gpus:g}"]),
            self._room(),
        )

    def _room(self) -> str:
        """Return what the cluster has, and what of it is free."""
        free, total = self.ray.available_resources(), self.ray.cluster_resources()
        parts = [f"{free.get(kind, 0):g} of {total.get(kind, 0):g}" for kind in ("CPU", "GPU")]
        machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        needed = {"CPU": self.cluster.cpus, "GPU": self.cluster.gpus}
        fits = any(all(has.get(k, 0) >= v for k, v in needed.items()) for has in machines)
        small = "" if fits else ", none of which is large enough for one actor"
        machines_text = count_of(len(machines), "machine")
        return f"{_amounts(parts)} are free on {machines_text}{small}"

    def _poll_progress(self) -> None:
        queries = {state.actor.progress.remote(): state for state in self.running.values()}
        if not queries:
            return
        answered, _ = self.ray.wait(list(queries), num_returns=len(queries), timeout=1.0)
        for reference in answered:
            state = queries[reference]
            with contextlib.suppress(self.ray.exceptions.RayError):  # its task's result says more
                name, done, bad = self.ray.get(reference)
                if state.task is not None and name == state.task.name:
                    self._count(state, done, bad)

    def _count(self, state: ActorState, done: int, bad: int) -> None:
        """Report the change since the last call; it is negative after a death."""
        change = done - state.counted[0], bad - state.counted[1]
        state.counted = done, bad
        if any(change):
            self.on_progress(*change)

    def stop_actors(self) -> None:
        """Stop all actors; those that run a task end it in order first."""
        for state in self.running.values():
            state.actor.stop.remote()
        if self.running:
            self.ray.wait(list(self.running), num_returns=len(self.running), timeout=20)
        for state in [*self.idle, *self.starting.values(), *self.running.values()]:
            self.ray.kill(state.actor)


def _amounts(parts: Sequence[str]) -> str:
    return f"{parts[0]} CPUs and {parts[1]} GPUs"


def _not_created(error: Exception) -> PocketclipError:
    return PocketclipError(
        f"an actor could not be created: {_reason(error)[1]}; install the same pocketclip on all "
        "machines, with the same extras"
    )


def _reason(error: Exception) -> tuple[str, str]:
    """Return Ray's reason for an actor's death as one line, and the last line of its message."""
    lines = [line.strip() for line in _ANSI.sub("", str(error)).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__, type(error).__name__
    detail = [line.partition("Worker exit detail: ")[2] for line in lines]
    detail = [text.partition(" Some common causes")[0] for text in detail if text]
    return " ".join([lines[0], *detail[:1]]), lines[-1]
