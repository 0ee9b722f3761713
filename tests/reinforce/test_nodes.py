"""The job on a Ray cluster of several nodes, of which one dies in the middle and another joins."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

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
