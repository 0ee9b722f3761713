"""Keeps a cluster's actors busy until no shard is left: hires, replaces the dead, counts.

It is given Ray as an object and imports nothing of it, so that its decisions can be tested
without a cluster.
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
from pocketclip.reinforce.job import OnPairs, Report
from pocketclip.reinforce.local import WorkersDiedError

log = logging.getLogger(__name__)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_PAUSE = 2.0
"""Seconds until an actor that died while it was loading is replaced; doubled each time."""
_LONGEST_PAUSE = 60.0


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
    """How often a shard is begun again after its actor died, and how often actors are asked for
    again when all died while they were loading."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_actors <= self.max_actors:
            raise ConfigError(
                f"--min-actors {self.min_actors}, --max-actors {self.max_actors}: at least 1, and "
                "the first not above the second"
            )


@dataclass(slots=True, eq=False)
class Hand:
    """The driver's view of one actor."""

    actor: Any
    shard: PairShard | None = None
    counted: tuple[int, int] = (0, 0)
    """Pairs of this shard, and bad ones, that the driver has passed on."""


@dataclass(slots=True)
class Driver:
    """Keeps the actors busy until no shard is left."""

    ray: Any
    make: Callable[[], Any]
    cluster: Cluster
    count: OnPairs
    facts: dict[str, Any] | None = None
    idle: list[Hand] = field(default_factory=list)
    starting: dict[Any, Hand] = field(default_factory=dict)
    running: dict[Any, Hand] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    rounds: int = 0
    """How often in a row actors died before their models were loaded."""
    next_hire: float = 0.0
    """When an actor may be asked for again, on the monotonic clock."""

    def hire(self, wanted: int) -> None:
        """Ask for actors up to `wanted`; they come when the cluster has room.

        After a death during loading there is a pause first: what kills one actor there (another
        program's memory, a machine that is just starting) kills its successor as well if that
        comes at once.
        """
        if time.monotonic() < self.next_hire:
            return
        while len(self.idle) + len(self.starting) + len(self.running) < wanted:
            hand = Hand(self.make())
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
        if not references:
            time.sleep(0.1)  # until the next may be hired
            return []
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
                self.rounds = 0
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

    def _bury(self, hand: Hand, error: Exception) -> list[PairShard]:
        """Return the shard of a dead actor, if it had one, to be begun again."""
        self._count(hand, 0, 0)
        reason, last = _reason(error)
        if hand.shard is None and "creation task" in reason:
            raise PocketclipError(
                f"an actor could not be made: {last}; give all machines the same pocketclip, "
                "with the same extras"
            )
        if hand.shard is None:
            self._mourn(reason)
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

    def _mourn(self, reason: str) -> None:
        """An actor died while it was loading: pause, or give up when none is at work."""
        if time.monotonic() < self.next_hire:
            return  # with another one, from the same cause
        self.rounds += 1
        if self.rounds > self.cluster.retries and not self.running:
            raise PocketclipError(
                f"actors died before their models were loaded, {self.rounds} times in a row "
                f"({reason}): give them more memory (fewer actors, a smaller batch), or see why in "
                "the logs of Ray"
            )
        pause = min(_PAUSE * 2 ** (self.rounds - 1), _LONGEST_PAUSE)
        self.next_hire = time.monotonic() + pause
        log.warning(
            "an actor died before its models were loaded; another one in %g s (%s)", pause, reason
        )

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

    def _count(self, hand: Hand, done: int, bad: int) -> None:
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


def _reason(error: Exception) -> tuple[str, str]:
    """Return why an actor died in one line, as far as Ray knows it, and its message's last line."""
    lines = [line.strip() for line in _ANSI.sub("", str(error)).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__, type(error).__name__
    detail = [line.partition("Worker exit detail: ")[2] for line in lines]
    detail = [text.partition(" Some common causes")[0] for text in detail if text]
    return " ".join([lines[0], *detail[:1]]), lines[-1]
