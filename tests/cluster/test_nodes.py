"""The driver on a Ray cluster of several nodes, with workers that load nothing."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from pocketclip import storage
from pocketclip.cluster import Cluster, Worker, driver, open_driver
from tests.cluster.nodes import cluster_of

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.slow]
STEPS = 8


class Task(NamedTuple):
    name: str


class Result(NamedTuple):
    name: str
    samples: int = STEPS
    bad: int = 0


class Writer(Worker):
    """Writes one file per task, slowly."""

    def __init__(self, out: str) -> None:
        super().__init__()
        self.out = out

    def load(self):
        return {"version": 1}

    def work(self, task, count):
        for _ in range(STEPS):
            time.sleep(0.25)
            count(1, 0)
        storage.write_bytes(f"{self.out}/{task.name}", task.name.encode())
        return Result(task.name)


TASKS = [Task(f"{i:03d}") for i in range(6)]


def test_without_any_room_it_says_so_and_waits_for_a_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_NO_ROOM_AFTER", 2.0)
    killed, said, counts = [], [], []
    with cluster_of(1) as nodes:

        class Joins(logging.Handler):
            """A machine joins when the driver has said that there is none."""

            def emit(self, record):
                if killed and "wait for room" in record.getMessage():
                    said.append(record.getMessage())
                    if not nodes.nodes:
                        nodes.add()

        def count(done, bad):
            counts.append((done, bad))
            if done > 0 and not killed:
                killed.append(nodes.kill(0))

        handler = Joins()
        logging.getLogger(driver.__name__).addHandler(handler)
        try:
            cluster = Cluster(address=nodes.address)
            with open_driver(Writer, (str(tmp_path),), cluster, count) as made:
                made.wait_ready(1)
                done = [result.name for result in made.run_tasks(TASKS)]
        finally:
            logging.getLogger(driver.__name__).removeHandler(handler)
    assert killed
    assert said[0].startswith("1 of 1 actors wait for room")
    assert "each needs 1 CPUs and 0 GPUs" in said[0]
    assert sorted(done) == [task.name for task in TASKS]
    assert {path.name for path in Path(tmp_path).iterdir()} == set(done)
    assert [sum(column) for column in zip(*counts, strict=True)] == [len(TASKS) * STEPS, 0]
