"""The driver's decisions, on a scripted cluster: when to start actors, to pause and to give up."""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys
import types
from typing import NamedTuple

import pytest

from pocketclip.cluster import driver as module
from pocketclip.cluster.driver import Cluster, Driver
from pocketclip.errors import ConfigError, PocketclipError

FACTS = {"recipe": "abc"}


class ActorDied(Exception):
    pass


class Task(NamedTuple):
    name: str


class Result(NamedTuple):
    name: str
    samples: int = 2
    bad: int = 0


TASKS = [Task(f"{i:08d}") for i in range(3)]


DEATH = ActorDied(
    "The actor died unexpectedly before finishing this task.\n\tclass_name: _Worker\n"
    "The actor is dead. Worker exit detail: Worker unexpectedly exits with a connection error code "
    "2. End of file. Some common causes include: (1) the process was killed\n"
    "The actor never ran - it was cancelled before it started running."
)


class Method:
    def __init__(self, number, answer):
        self.number, self.answer = number, answer

    def remote(self, *arguments):
        return Promise(self.number, lambda: self.answer(*arguments))


class Promise:
    def __init__(self, number, answer):
        self.number, self.answer = number, answer


class Ray:
    """Actors by script: the outcome of each new actor's loading, and of each task."""

    exceptions = types.SimpleNamespace(
        RayActorError=ActorDied, OutOfMemoryError=ActorDied, RayError=ActorDied
    )

    def __init__(self, loads, shards=(), room=lambda _now: 99):
        self.loads, self.shards, self.room = list(loads), list(shards), room
        self.now = 0.0
        self.started: list[float] = []
        self.killed: list[object] = []

    def make_actor(self):
        number = len(self.started)
        self.started.append(self.now)
        load = self.loads.pop(0)
        return types.SimpleNamespace(
            facts=Method(number, lambda: load),
            run=Method(
                number, lambda task: self.shards.pop(0) if self.shards else Result(task.name)
            ),
            progress=Method(number, lambda: ("", 0, 0)),
            stop=Method(number, lambda: None),
        )

    def wait(self, references, num_returns, timeout):
        if timeout:
            self.now += 1.0
        ready = [one for one in references if one.number < self.room(self.now)][:num_returns]
        return ready, [one for one in references if one not in ready]

    def get(self, reference):
        result = reference.answer()
        if isinstance(result, ActorDied):
            raise result
        return result

    def kill(self, actor):
        self.killed.append(actor)

    def available_resources(self):
        return {"CPU": 0.5}

    def cluster_resources(self):
        return {"CPU": 4.0, "GPU": 1.0}

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}}, {"Alive": False}]


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch):
    """Return a driver on the scripted cluster, whose clock is that cluster's."""

    def make(ray: Ray, **cluster: float) -> Driver:
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


def test_an_actor_that_loads_resets_the_count_of_failed_starts(drive):
    ray = Ray([DEATH, FACTS, DEATH, FACTS, DEATH, FACTS], [DEATH, DEATH])
    driver = drive(ray, retries=2)
    driver.wait_ready(1)
    assert [result.name for result in driver.run_tasks(TASKS)] == [task.name for task in TASKS]
    assert driver.failed_starts == 0


def test_other_actors_go_on_while_one_machine_kills_every_actor(drive):
    ray = Ray([FACTS, *[DEATH] * 50])
    driver = drive(ray, max_actors=2, retries=0)
    driver.wait_ready(1)
    assert len(list(driver.run_tasks(TASKS))) == 3


def test_a_task_whose_actor_always_dies_ends_the_run(drive):
    ray = Ray([FACTS] * 9, [DEATH] * 9)
    driver = drive(ray, retries=2)
    driver.wait_ready(1)
    with pytest.raises(PocketclipError, match=rf"shard {TASKS[0].name} was started 3 times"):
        list(driver.run_tasks(TASKS))


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


def test_an_error_that_an_actor_returns_is_raised(drive):
    with pytest.raises(ConfigError, match="no such model"):
        drive(Ray([ConfigError("no such model")])).wait_ready(1)
    driver = drive(Ray([FACTS], [ConfigError("a bad shard")]))
    driver.wait_ready(1)
    with pytest.raises(ConfigError, match="a bad shard"):
        list(driver.run_tasks(TASKS))


def messages(caplog):
    return [record.message for record in caplog.records if "wait for room" in record.message]


def test_it_says_again_and_again_that_there_is_no_room(drive, caplog):
    ray = Ray([FACTS], room=lambda now: now // 400)  # after 400 s a machine joins
    with caplog.at_level(logging.WARNING):
        drive(ray, min_actors=1, cpus=2).wait_ready(1)
    said = messages(caplog)
    assert 3 <= len(said) <= 5  # after 30, 60, 120, 240 s
    assert said[0].startswith(
        "1 of 1 actors wait for room on the cluster, or for their process, since 30 s: each needs "
        "2 CPUs and 0 GPUs, and 0.5 of 4 CPUs and 0 of 1 GPUs are free on 1 machine. "
    )


def test_an_actor_that_no_machine_can_hold(drive, caplog):
    ray = Ray([FACTS], room=lambda now: now // 100)
    with caplog.at_level(logging.WARNING):
        drive(ray, gpus=2).wait_ready(1)
    assert "on 1 machine, none of which is large enough for one actor" in messages(caplog)[0]


def test_it_says_so_while_tasks_wait_and_fewer_actors_run_than_could(drive, caplog):
    ray = Ray([FACTS] * 2, room=lambda _: 1)
    driver = drive(ray, max_actors=2)
    driver.wait_ready(1)
    tasks = [Task(f"{i:08d}") for i in range(200)]
    with caplog.at_level(logging.WARNING):
        assert len(list(driver.run_tasks(tasks))) == 200
    assert "1 of 2 actors wait for room" in messages(caplog)[0]


def test_an_actor_that_loads_for_long_is_not_said_to_lack_room(drive, caplog):
    ray = Ray([FACTS])
    driver = drive(ray)
    get, loading = ray.wait, itertools.count()

    def wait(references, num_returns, timeout):
        ready, rest = get(references, num_returns, timeout)
        slow = [one for one in references if one.answer() == FACTS]
        return ([], references) if slow and next(loading) < 100 else (ready, rest)

    ray.wait = wait
    with caplog.at_level(logging.WARNING):
        driver.wait_ready(1)
    assert ray.now >= 100
    assert not messages(caplog)


def test_idle_actors_that_died_with_their_machine_use_up_no_retries(drive):
    """Four idle actors die together with the one that works: the task meets none of them."""
    ray = Ray([FACTS] * 9, [DEATH])
    driver = drive(ray, min_actors=5, max_actors=5, retries=1)
    driver.wait_ready(5)
    gone = [state.actor for state in driver.idle[:4]]
    for actor in gone:
        actor.progress = actor.run = Method(0, lambda *_: DEATH)
    assert [result.name for result in driver.run_tasks(TASKS[:1])] == [TASKS[0].name]
    # One that was only out of reach would keep its room.
    assert all(actor in ray.killed for actor in gone)


def test_it_needs_neither_torch_nor_ray_to_be_imported():
    blocked = "import sys; sys.modules.update(torch=None, ray=None)"
    code = f"{blocked}; import pocketclip.cluster as c; c.Driver, c.Worker, c.open_driver"
    subprocess.run([sys.executable, "-c", code], check=True)
