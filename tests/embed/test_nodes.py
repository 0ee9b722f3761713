"""Embedding on a Ray cluster: the files of one process, also if a node dies in the middle."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pocketclip import storage
from pocketclip.cluster import Cluster
from pocketclip.embed.job import Settings, run
from pocketclip.pairs import PairOptions
from pocketclip.pairs.photographs import open_image_shards
from tests.cli import inside
from tests.cluster.nodes import cluster_of

pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.slow]
PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
MODEL = Settings(model="random:tiny", batch_size=2)


def contents(folder):
    return {
        path.rpartition("/")[2]: storage.read_bytes(path) for path in storage.list_files(folder)
    }


def test_a_node_dies_and_the_files_in_the_store_are_those_of_one_process(s3, caplog):
    photos = sorted(PHOTOS.glob("*.jpg"))
    for i in range(24):
        data = photos[i % len(photos)].read_bytes() if i != 13 else b"no picture"
        s3.put(f"bucket/photos/{i:03d}.jpg", data)
    shards = open_image_shards(["s3://bucket/photos"], PairOptions(shard_size=6))[0]
    run(shards, MODEL, "s3://bucket/local")
    counts = []
    with cluster_of(2) as nodes, caplog.at_level(logging.WARNING):

        def count(done, bad):
            counts.append((done, bad))
            if len(nodes.nodes) == 2 and done > 0:
                nodes.kill(0)
                nodes.add()
                nodes.add()

        cluster = Cluster(address=nodes.address, min_actors=2, max_actors=3)
        summary = run(shards, MODEL, "s3://bucket/cluster", cluster, on_progress=count)
    assert [(r.samples, r.bad) for r in summary.reports] == [(6, 0), (6, 0), (5, 1), (6, 0)]
    assert any("died" in record.message for record in caplog.records)
    assert contents("s3://bucket/cluster") == contents("s3://bucket/local")
    assert [sum(column) for column in zip(*counts, strict=True)] == [24, 1]


def test_the_verb_writes_the_same_files_with_ray(tmp_path):
    arguments = ["embed", PHOTOS, "-m", "random:tiny", "--shard-size", 1]
    assert inside.run(*arguments, "-o", tmp_path / "local").returncode == 0
    done = inside.run(*arguments, "-o", tmp_path / "ray", "--ray", "--min-actors", 2)
    assert done.returncode == 0, done.stderr
    assert "4 embeddings of width 64 in 4 files" in done.stdout
    assert contents(str(tmp_path / "ray")) == contents(str(tmp_path / "local"))
    large = inside.run(*arguments, "-o", tmp_path / "x", "--ray", "--gpus-per-actor", 99)
    assert large.returncode == 2
    assert "--gpus-per-actor 99: this machine has" in large.stderr
