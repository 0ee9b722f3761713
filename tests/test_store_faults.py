"""Jobs on an object store of whose requests one in ten meets an error, a cut, a reset, a delay."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from pocketclip import checkpoint, storage
from pocketclip.errors import StorageError
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.reinforce import job
from pocketclip.reinforce.recipe import load_recipe as load_reinforce_recipe
from pocketclip.storage import stores
from pocketclip.train.loop import train
from pocketclip.train.recipe import load_recipe
from tests.train.making_shards import photo

COUNT = 24
MODEL = {
    "image_size": 16, "image.depths": [1, 1, 1, 1], "image.widths": [8, 8, 16, 32],
    "text.layers": 1, "text.context_length": 16, "text.embedding_buckets": 1024,
}  # fmt: skip


def reinforce(source, out):
    recipe = load_reinforce_recipe(
        teachers=["random:tiny:0"],
        augmentations=2,
        image_augmentation={"random_resized_crop": {"size": 64}},
        precision="float32",
        batch_size=8,
    )
    return job.run(open_pairs(source, PairOptions(shard_size=6)), recipe, out, workers=0)


def train_on(source, run, cache):
    recipe = load_recipe(
        {
            "model": {"name": "tiny", "overrides": MODEL},
            "data": {"source": source, "workers": 0, "cache_dir": str(cache), "captions": "truth"},
            "loss": {"weights": [0.0, 1.0]},
            "steps": 4,
            "batch_size": 8,
            "precision": "float32",
            "tensorboard": False,
        }
    )
    summary = train(recipe, run, device="cpu")
    assert summary.skipped == 0
    return checkpoint.load(summary.model).state_dict()


def test_reinforce_and_train_end_whole_on_a_store_that_fails(s3, faulty, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "BLOCK_BYTES", 1 << 13)  # several requests per shard
    rows = [[f"{i}.jpg", f"photograph number {i}"] for i in range(COUNT)]
    for i in range(COUNT):
        (tmp_path / f"{i}.jpg").write_bytes(photo(i, (80, 70)))
        s3.put(f"bucket/raw/{i}.jpg", (tmp_path / f"{i}.jpg").read_bytes())
    with (tmp_path / "pairs.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["filepath", "caption"], *rows])
    s3.put("bucket/raw/pairs.csv", (tmp_path / "pairs.csv").read_bytes())

    # Without faults.
    reinforce(str(tmp_path / "pairs.csv"), str(tmp_path / "dr"))
    reinforce("s3://bucket/raw/pairs.csv", "s3://bucket/calm")
    expected = {k.removeprefix("calm/"): s3.get(f"bucket/{k}") for k in s3.keys("bucket")
                if k.startswith("calm/")}  # fmt: skip
    for name in (f"{i:08d}.tar" for i in range(4)):
        assert expected[name] == (tmp_path / "dr" / name).read_bytes()
    weights = train_on(str(tmp_path / "dr"), tmp_path / "run", tmp_path / "cache")

    # With them.
    with faulty(seed=106) as proxy:
        summary = reinforce("s3://bucket/raw/pairs.csv", "s3://bucket/dr")
        assert [report.bad for report in summary.reports] == [0] * 4
        found = {k.removeprefix("dr/"): s3.get(f"bucket/{k}") for k in s3.keys("bucket")
                 if k.startswith("dr/")}  # fmt: skip
        assert found == expected
        assert s3.unfinished("bucket") == 0
        assert len(storage.list_files("s3://bucket/dr", (".tar",))) == 4
        again = train_on("s3://bucket/dr", tmp_path / "again", tmp_path / "cache")
    assert len(proxy.injected) >= 4, proxy.injected  # kinds
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_store_that_fails_for_good_is_one_clear_error(s3, faulty, tmp_path):
    s3.put("bucket/dr/00000000.tar", bytes(1 << 20))
    s3.put("bucket/dr/index.json", json.dumps({"shards": []}).encode())
    with (
        faulty(choose=lambda *_: "503") as proxy,
        pytest.raises(StorageError) as caught,
    ):
        train_on("s3://bucket/dr", tmp_path / "run", tmp_path / "cache")
    assert str(caught.value).startswith("s3://bucket/dr")
    assert "\n" not in str(caught.value)
    assert "temporarily unavailable" in str(caught.value)
    assert proxy.requests <= 10  # five attempts, each of which botocore makes twice
