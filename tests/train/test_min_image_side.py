"""`data.min_image_side`: smaller images are left out, counted, the same after resuming."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from pocketclip import images
from pocketclip.errors import DataError
from pocketclip.train import batches
from pocketclip.train.logs import read
from pocketclip.train.loop import train
from pocketclip.train.recipe import load_recipe
from tests.train.making_shards import photo, sample, write_shards
from tests.train.test_loader import open_loader, same, take
from tests.train.test_loop import SMALL

TOTAL = 24


def size_of(number):
    """Two of three images are too small: one in width, one in height; 40 x 32 is just enough."""
    return ((40, 32), (31, 40), (40, 31))[number % 3]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    stored = [
        # Parameters are drawn for 40 x 32; those of the small ones are never replayed.
        replace(sample(k), image=photo(k, size_of(k), "PNG" if k % 2 else "JPEG"))
        for k in range(TOTAL)
    ]
    return write_shards(tmp_path_factory.mktemp("dr"), [stored[:9], stored[9:]])


def test_only_images_that_are_large_enough_come(shards):
    read_batches = take(12, shards, min_image_side=32)
    uids = {int(uid) for batch in read_batches for uid in batch.uids}
    assert uids == set(range(0, TOTAL, 3))
    assert sum(batch.too_small for batch in read_batches) > 48
    assert all(batch.skipped == [] for batch in read_batches)
    every = take(6, shards, reinforced=False, embeddings=False)
    assert {int(uid) for batch in every for uid in batch.uids} == set(range(TOTAL))
    assert all(batch.too_small == 0 for batch in every)


@pytest.mark.parametrize(
    "options", [{}, {"captions": "random"}, {"balance": 1.0}, {"rank": 1, "world": 2}], ids=str
)
def test_resuming_and_workers_change_nothing(shards, options):
    whole = take(6, shards, min_image_side=32, **options)
    after = take(2, shards, min_image_side=32, start=4, workers=1, **options)
    assert all(map(same, whole[4:], after))
    assert [b.too_small for b in whole[4:]] == [b.too_small for b in after]
    assert all(int(uid) % 3 == 0 for batch in whole for uid in batch.uids)


def test_one_large_image_among_many_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "_DRAWS", 1)
    stored = [
        replace(sample(k), image=photo(k, (64, 64) if k == 5 else (40, 32))) for k in range(9)
    ]
    (batch,) = take(1, write_shards(tmp_path, [stored]), min_image_side=64)
    assert batch.uids == ["00000005"] * 4


def test_all_are_too_small(shards):
    with pytest.raises(DataError) as caught:
        open_loader(shards, min_image_side=41)
    message = str(caught.value)
    assert f"none of {TOTAL} images has a shorter side of data.min_image_side=41" in message
    assert "(the largest: 32)" in message
    assert "\n" not in message


def test_raw_pairs_of_a_folder(tmp_path, monkeypatch):
    for number in range(6):
        Image.new("RGB", (40, 40 - 20 * (number % 2))).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"a picture {number}")
    decoded = []
    opened = images.open_image

    def noted(data, *args, **options):
        decoded.append(len(data))
        return opened(data, *args, **options)

    monkeypatch.setattr("pocketclip.train.replay.open_image", noted)
    options = {"reinforced": False, "captions": "truth", "min_image_side": 40}
    read_batches = take(3, str(tmp_path), **options)
    names = {uid for batch in read_batches for uid in batch.uids}
    assert len(names) == 3
    # Of the small ones, only the header was read. The loader looks at one sample first.
    assert sum(batch.too_small for batch in read_batches) > 0
    assert len(decoded) <= 2 * (3 * 4 + 1)


def test_a_run_counts_them_and_so_does_a_resumed_one(shards, tmp_path, caplog):
    caplog.set_level("INFO")
    recipe = load_recipe(
        {
            "model": {"name": "tiny", "overrides": SMALL},
            "data": {"source": shards, "workers": 0, "min_image_side": 32},
            "loss": {"weights": [0.0, 1.0]},
            "schedule": {"warmup": 0},
            "steps": 4,
            "batch_size": 4,
            "log_every": 1,
            "checkpoint": {"every_steps": 2, "every_minutes": None},
            "tensorboard": False,
        }
    )
    whole = train(recipe, tmp_path / "whole", device="cpu")
    counts = [line["too_small"] for line in read(tmp_path / "whole" / "log.jsonl")]
    assert counts == sorted(counts)
    assert counts[-1] == whole.too_small > counts[1] > 0
    assert whole.skipped == 0
    assert "images below data.min_image_side=32 are left out" in caplog.text

    first = tmp_path / "whole" / "checkpoints" / "step-00000002"
    resumed = train(recipe, tmp_path / "resumed", resume=str(first), device="cpu")
    assert resumed.too_small == whole.too_small
    log = read(tmp_path / "resumed" / "log.jsonl")
    assert [line["too_small"] for line in log] == counts[2:]
