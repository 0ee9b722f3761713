"""The job on a Ray cluster of several nodes, of which one dies in the middle and another joins."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pocketclip.cluster import driver
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.reinforce import job
from pocketclip.reinforce.cluster import Cluster, run
from pocketclip.reinforce.recipe import load_recipe
from tests.cluster.nodes import cluster_of

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.slow]


def recipe():
    return load_recipe(
        teachers=["random:tiny:0"],
        augmentations=12,
        image_augmentation={"random_resized_crop": {"size": 64}},
        precision="float32",
        batch_size=4,
    )


def pairs(path):
    return open_pairs(str(path), PairOptions(shard_size=8))


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


def test_a_node_dies_and_another_joins(table, tmp_path, caplog):
    path, out = table(48), tmp_path / "cluster"
    job.run(pairs(path), recipe(), str(tmp_path / "local"), workers=0)
    counts = []
    with cluster_of(2) as nodes, caplog.at_level(logging.WARNING):

        def count(done, bad):
            counts.append((done, bad))
            if len(nodes.nodes) == 2 and done > 0:  # at work in the first shards
                nodes.kill(0)
                nodes.add()
                nodes.add()

        cluster = Cluster(address=nodes.address, min_actors=2, max_actors=3)
        summary = run(pairs(path), recipe(), str(out), cluster, workers=0, on_pairs=count)
    assert any("died while it made shard" in record.message for record in caplog.records)
    assert contents(out) == contents(tmp_path / "local")
    assert summary.skipped == 0
    assert [sum(column) for column in zip(*counts, strict=True)] == [48, 0]


def test_without_any_room_it_says_so_and_waits_for_a_machine(table, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_NO_ROOM_AFTER", 2.0)
    path, out = table(24), tmp_path / "cluster"
    job.run(pairs(path), recipe(), str(tmp_path / "local"), workers=0)
    killed, said = [], []
    with cluster_of(1) as nodes:

        class Joins(logging.Handler):
            """A machine joins when the driver has said that there is none."""

            def emit(self, record):
                if killed and "wait for room" in record.getMessage():
                    said.append(record.getMessage())
                    if not nodes.nodes:
                        nodes.add()

        def count(done, _bad):
            if done > 0 and not killed:
                killed.append(nodes.kill(0))

        handler = Joins()
        logging.getLogger(driver.__name__).addHandler(handler)
        try:
            cluster = Cluster(address=nodes.address)
            run(pairs(path), recipe(), str(out), cluster, workers=0, on_pairs=count)
        finally:
            logging.getLogger(driver.__name__).removeHandler(handler)
    assert killed
    assert "1 of 1 actors wait for room" in said[0]
    assert "each needs 1 CPUs and 0 GPUs" in said[0]
    assert contents(out) == contents(tmp_path / "local")
