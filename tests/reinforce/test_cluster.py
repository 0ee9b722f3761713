"""The job on a Ray cluster of this machine; the tests of a process share one session.

Other processes may run these tests at the same time: pytest-xdist 3.8 with pytest 9.2 does not
keep groups together (pytest-xdist issue 1386). So actors are killed by their ancestry only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketclip.cluster import driver
from pocketclip.errors import ConfigError, DataError, PocketclipError
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.reinforce import job
from pocketclip.reinforce.check_report import CheckOptions
from pocketclip.reinforce.cluster import Cluster, _Worker, run
from pocketclip.reinforce.recipe import load_recipe

ray = pytest.importorskip("ray", reason="ray is not installed")
pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module", autouse=True)
def _session():
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80_000_000,
    )
    yield
    ray.shutdown()


def recipe(**changes):
    facts = {
        "teachers": ["random:tiny:0"],
        "augmentations": 2,
        "image_augmentation": {"random_resized_crop": {"size": 64}},
        "precision": "float32",
        "batch_size": 4,
    }
    return load_recipe(**{**facts, **changes})


def pairs(path, size=4):
    return open_pairs(str(path), PairOptions(shard_size=size))


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


def _actors() -> list[int]:
    """Processes of this session's actors, not of other tests or programs on this machine.

    The raylet is a child of this process and the actors are its children.
    """
    parents, actors = {}, []
    for home in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            stat = (home / "stat").read_text()
            parents[int(home.name)] = int(stat.rpartition(")")[2].split()[1])
            if (home / "cmdline").read_bytes().startswith(b"ray::_Worker"):
                actors.append(int(home.name))

    def ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return [pid for pid in actors if ours(pid)]


@contextlib.contextmanager
def killing(most: int | None = None) -> Iterator[set[int]]:
    """Kill actors as soon as they are seen, all or the first `most`; yields their processes."""
    stop = threading.Event()
    killed: set[int] = set()

    def kill() -> None:
        while not stop.is_set() and (most is None or len(killed) < most):
            for pid in _actors():
                if most is None or len(killed) < most:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


OWN = """
import numpy as np
class Own:
    embed_dim, logit_scale, space_id = 2, 10.0, "own 1"
    def encode_image(self, images):
        return [[1, np.asarray(image).mean()] for image in images]
    def encode_text(self, texts):
        return [[1, len(text)] for text in texts]
"""


def test_it_makes_what_one_machine_makes(table, tmp_path, monkeypatch):
    """Also with a model of the user's own in the working directory, and the teachers' check."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("own_on_cluster.py").write_text(OWN)
    path = table(10)
    made = recipe(teachers=["random:tiny:0", "python:own_on_cluster:Own"])
    options = {"workers": 0, "check": CheckOptions(pairs=8)}
    job.run(pairs(path), made, str(tmp_path / "local"), **options)
    counts, checks = [], []
    summary = run(
        pairs(path),
        made,
        str(tmp_path / "ray"),
        Cluster(min_actors=2, max_actors=2),
        on_pairs=lambda done, bad: counts.append((done, bad)),
        on_check=checks.append,
        **options,
    )
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    [check] = checks
    assert [score.name for score in check.teachers] == ["random-tiny-0", "own_on_cluster:Own"]
    assert summary.teacher_check["ensemble"]["pairs"] == 8
    assert summary.skipped == 0
    assert [sum(column) for column in zip(*counts, strict=True)] == [10, 0]


def test_a_killed_actors_shard_is_made_again(table, tmp_path):
    path = table(24)
    job.run(pairs(path, 12), recipe(augmentations=12), str(tmp_path / "uninterrupted"), workers=0)
    out = tmp_path / "killed"
    killed: list[int] = []
    counts = []

    def count(done, bad):
        counts.append((done, bad))
        if not killed and done > 0:  # at work in its first shard
            killed.extend(_actors()[:1])
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    run(pairs(path, 12), recipe(augmentations=12), str(out), Cluster(), workers=0, on_pairs=count)
    assert killed
    assert contents(out) == contents(tmp_path / "uninterrupted")
    assert [sum(column) for column in zip(*counts, strict=True)] == [24, 0]


@pytest.mark.slow  # the rule itself is tested without a cluster
def test_a_burst_of_deaths_during_loading_does_not_end_the_run(table, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_PAUSE", 0.5)
    path = table(8)
    with killing(4) as killed:
        summary = run(
            pairs(path),
            recipe(),
            str(tmp_path / "out"),
            Cluster(min_actors=2, max_actors=2, retries=3),
            workers=0,
        )
    assert len(killed) == 4
    assert [report.samples for report in summary.reports] == [4, 4]
    assert run(pairs(path), recipe(), str(tmp_path / "out"), Cluster(), workers=0).skipped == 2


@pytest.mark.slow  # as above
def test_an_actor_that_always_dies_ends_the_run(table, tmp_path):
    path = table(4)
    with (
        killing() as killed,
        pytest.raises(PocketclipError, match=r"died before their models|died each time"),
    ):
        run(pairs(path), recipe(), str(tmp_path / "out"), Cluster(retries=1), workers=0)
    assert len(killed) >= 2
    assert not list((tmp_path).glob("out/*.tar"))


def test_an_actor_returns_expected_errors(tmp_path):
    error = _Worker(recipe(teachers=["nothing-like-this"]), str(tmp_path), 0).facts()
    assert isinstance(error, PocketclipError)
    assert "nothing-like-this" in str(error)


def test_expected_errors_arrive_as_they_are(table, tmp_path):
    path = table(2)
    for i in range(2):
        (tmp_path / "raw" / f"{i}.jpg").write_bytes(b"broken")
    with pytest.raises(DataError, match="--max-bad"):
        run(
            pairs(path),
            recipe(),
            str(tmp_path / "b"),
            Cluster(),
            limit=job.Limit(count=1),
            workers=0,
        )
    [bad] = (tmp_path / "b").glob("*.bad.jsonl")
    assert len(bad.read_text().splitlines()) == 2
    assert not list((tmp_path / "b").glob(".*"))


def test_numbers_of_actors_are_checked():
    with pytest.raises(ConfigError, match="--min-actors 3"):
        Cluster(min_actors=3, max_actors=2)
