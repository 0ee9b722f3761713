"""The driver's decisions, on a scripted cluster: when to start actors, to pause and to give up."""

from __future__ import annotations

import types

import pytest

from pocketclip.errors import ConfigError, PocketclipError
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.reinforce import driver as module
from pocketclip.reinforce.driver import Cluster, Driver
from pocketclip.reinforce.resume import Report

FACTS = {"recipe": "abc"}


class ActorDied(Exception):
    pass


DEATH = ActorDied(
    "The actor died unexpectedly before finishing this task.\n\tclass_name: _Worker\n"
    "The actor is dead. Worker exit detail: Worker unexpectedly exits with a connection error code "
    "2. End of file. Some common causes include: (1) the process was killed\n"
    "The actor never ran - it was cancelled before it started running."
)


class Method:
    def __init__(self, answer):
        self.answer = answer

    def remote(self, *arguments):
        return Promise(lambda: self.answer(*arguments))


class Promise:
    def __init__(self, answer):
        self.answer = answer


class Ray:
    """Actors by script: the outcome of each new actor's loading, and of each shard."""

    exceptions = types.SimpleNamespace(
        RayActorError=ActorDied, OutOfMemoryError=ActorDied, RayError=ActorDied
    )

    def __init__(self, loads, shards=()):
        self.loads, self.shards = list(loads), list(shards)
        self.now = 0.0
        self.started: list[float] = []

    def make_actor(self):
        self.started.append(self.now)
        load = self.loads.pop(0)
        return types.SimpleNamespace(
            facts=Method(lambda: load),
            run=Method(lambda shard: self.shards.pop(0) if self.shards else report(shard)),
            progress=Method(lambda: ("", 0, 0)),
            stop=Method(lambda: None),
        )

    def wait(self, references, num_returns, timeout):  # noqa: ARG002
        self.now += 1.0
        return references[:num_returns], references[num_returns:]

    def get(self, reference):
        result = reference.answer()
        if isinstance(result, ActorDied):
            raise result
        return result

    def kill(self, actor):
        pass


def report(shard):
    return Report(
        name=shard.name,
        fingerprint=shard.fingerprint,
        config_hash="",
        samples=2,
        bad=0,
        captions_cut=0,
        stats={},
    )


@pytest.fixture
def shards(table):
    return open_pairs(str(table(6)), PairOptions(shard_size=2))


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch):
    """Return a driver on the scripted cluster, whose clock is that cluster's."""

    def make(ray: Ray, **cluster: int) -> Driver:
        def sleep(seconds: float) -> None:
            ray.now += seconds

        clock = types.SimpleNamespace(monotonic=lambda: ray.now, sleep=sleep)
        monkeypatch.setattr(module, "time", clock)
        return Driver(ray, ray.make_actor, Cluster(**cluster), lambda _done, _bad: None)

    return make


def test_actors_that_die_at_once_are_replaced_together_after_a_pause(drive):
    ray = Ray([DEATH, DEATH, FACTS, FACTS])
    assert drive(ray, min_actors=2, max_actors=2, retries=1).wait_ready(2) == FACTS
    first, second, *later = ray.started
    assert first == second == 0
    assert all(when >= 1 + 2 for when in later)  # the first death is seen after a second


def test_pauses_grow_and_then_it_gives_up_saying_why(drive):
    ray = Ray([DEATH] * 9)
    with pytest.raises(PocketclipError, match=r"4 times in a row.*End of file.*memory") as caught:
        drive(ray, retries=3).wait_ready(1)
    gaps = [b - a for a, b in zip(ray.started, ray.started[1:], strict=False)]
    assert len(ray.started) == 4
    assert all(gap >= pause for gap, pause in zip(gaps, (2, 4, 8), strict=True))
    assert "\n" not in str(caught.value)


def test_an_actor_that_loads_resets_the_count_of_failed_starts(drive, shards):
    ray = Ray([DEATH, FACTS, DEATH, FACTS, DEATH, FACTS], [DEATH, DEATH])
    driver = drive(ray, retries=2)
    driver.wait_ready(1)
    assert [report.name for report in driver.run_shards(shards)] == [shard.name for shard in shards]
    assert driver.failed_starts == 0


def test_other_actors_go_on_while_one_machine_kills_every_actor(drive, shards):
    ray = Ray([FACTS, *[DEATH] * 50])
    driver = drive(ray, max_actors=2, retries=0)
    driver.wait_ready(1)
    assert len(list(driver.run_shards(shards))) == 3


def test_a_shard_whose_actor_always_dies_ends_the_run(drive, shards):
    ray = Ray([FACTS] * 9, [DEATH] * 9)
    driver = drive(ray, retries=2)
    driver.wait_ready(1)
    with pytest.raises(PocketclipError, match=rf"shard {shards[0].name} was started 3 times"):
        list(driver.run_shards(shards))


def test_machines_must_agree_on_the_facts(drive):
    ray = Ray([FACTS, {"recipe": "other"}])
    with pytest.raises(ConfigError, match="differ in recipe"):
        drive(ray, min_actors=2, max_actors=2).wait_ready(2)


def test_an_actor_that_cannot_be_made_ends_the_run_at_once(drive):
    error = ActorDied("The actor died because of an error raised in its creation task\nNo torch")
    ray = Ray([error])
    with pytest.raises(PocketclipError, match="could not be created: No torch"):
        drive(ray).wait_ready(1)
    assert len(ray.started) == 1


def test_an_error_that_an_actor_returns_is_raised(drive, shards):
    with pytest.raises(ConfigError, match="no such model"):
        drive(Ray([ConfigError("no such model")])).wait_ready(1)
    driver = drive(Ray([FACTS], [ConfigError("a bad shard")]))
    driver.wait_ready(1)
    with pytest.raises(ConfigError, match="a bad shard"):
        list(driver.run_shards(shards))
