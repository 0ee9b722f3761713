"""`data.captions: random`: each sample gets the synthetic caption of another one."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch

from pocketclip.errors import ConfigError, DataError
from pocketclip.train.distributed import World
from pocketclip.train.initial_model import initial_model
from pocketclip.train.losses import distillation_loss
from pocketclip.train.recipe import load_recipe
from pocketclip.train.setup import build_run, check_batch_size
from pocketclip.train.setup import open_loader as open_loader_of
from tests.train.making_shards import DIMS, sample, write_shards
from tests.train.test_loader import open_loader, row, same, take
from tests.train.test_loop import SMALL

TOTAL = 21


@pytest.fixture(scope="module")
def stored():
    return [sample(number) for number in range(TOTAL)]


@pytest.fixture(scope="module")
def shards(stored, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dr")
    return write_shards(folder, [stored[:7], stored[7:14], stored[14:]])


def owner(text):
    return int(text.split()[1])


@pytest.mark.parametrize(
    "options",
    [{}, {"rank": 1, "world": 2}, {"shuffle_window": 5}, {"balance": 1.0}, {"batch_size": TOTAL}],
    ids=str,
)
def test_captions_are_those_of_another_sample_with_its_embeddings(shards, stored, options):
    for batch in take(12, shards, captions="random", **options):
        assert batch.kinds == ["random"]
        assert batch.skipped == []
        for i, uid in enumerate(batch.uids):
            text = batch.texts[0][i]
            other = stored[owner(text)]
            assert other.uid != uid
            (key, number) = next(
                (key, other.captions[key].index(text))
                for key in ("syn_text", "syn_other")
                if text in other.captions[key]
            )
            assert torch.equal(batch.teacher_captions[0][i], row(other, key, number))
            views = torch.from_numpy(stored[int(uid)].embeddings["image_emb"])
            assert bool((views == batch.teacher_image[i]).all(1).any())


def test_an_epoch_has_the_same_captions_at_other_images(shards):
    def epoch(captions):
        (batch,) = take(1, shards, start=2, batch_size=TOTAL, captions=captions)
        return batch

    own, others = epoch("synthetic"), epoch("random")
    assert own.uids == others.uids
    assert torch.equal(own.images, others.images)
    assert Counter(own.texts[0]) == Counter(others.texts[0])
    # The next epoch pairs them anew.
    (later,) = take(1, shards, start=3, batch_size=TOTAL, captions="random")
    first, second = (
        dict(zip(b.uids, map(owner, b.texts[0]), strict=True)) for b in (others, later)
    )
    assert sum(first[uid] != second[uid] for uid in first) > TOTAL // 2


def test_a_batch_holds_none_of_the_captions_of_its_images(shards):
    # Exchanged within the batch, they would leave the distillation loss as it is.
    for batch in take(2, shards, batch_size=10, captions="random"):
        assert not {int(uid) for uid in batch.uids} & set(map(owner, batch.texts[0]))
    own = take(1, shards, batch_size=10, captions="synthetic")[0]

    def loss(rows):
        student = torch.nn.functional.normalize(own.teacher_image[:, :5], dim=1)
        texts = torch.nn.functional.normalize(rows[:, :5], dim=1)
        return distillation_loss(student, texts, 10.0, own.teacher_image, rows, DIMS, (20.0, 20.0))

    rows = own.teacher_captions[0]
    assert torch.allclose(loss(rows), loss(rows.roll(1, 0)), rtol=1e-5)
    (batch,) = take(1, shards, batch_size=10, captions="random")
    assert abs(loss(batch.teacher_captions[0]) - loss(rows)) > 0.01


def test_resuming_and_workers_change_nothing(shards):
    whole = take(9, shards, captions="random")
    assert all(map(same, whole[6:], take(3, shards, captions="random", start=6)))
    assert all(map(same, whole[6:], take(3, shards, captions="random", start=6, workers=2)))
    assert not same(whole[0], take(1, shards, captions="random", seed=1)[0])


def test_captions_that_are_missing(stored, tmp_path):
    def without(one):
        keys = {key: texts for key, texts in one.captions.items() if key == "text"}
        return replace(one, captions=keys)

    (some := tmp_path / "some").mkdir()
    source = write_shards(some, [[*map(without, stored[:4]), *stored[4:12]]])
    batches = take(6, source, captions="random", batch_size=6)
    assert {owner(text) for batch in batches for text in batch.texts[0]} <= set(range(4, 12))
    named = [entry for batch in batches for entry in batch.skipped]
    assert {int(uid) for uid, _ in named} == set(range(4))
    assert all("no synthetic caption's key" in reason for _, reason in named)

    (none := tmp_path / "none").mkdir()
    source = write_shards(none, [[without(one) for one in stored[:4]]])
    with pytest.raises(DataError, match="no synthetic caption's key matches"):
        take(1, source, captions="random")
    (one := tmp_path / "one").mkdir()
    source = write_shards(one, [stored[:1]])
    with pytest.raises(ConfigError, match="captions=random takes the caption of another"):
        open_loader(source, captions="random")


def recipe_of(source, **fields):
    base = {
        "model": {"name": "tiny", "overrides": SMALL},
        "data": {"source": source, "workers": 0, "captions": "random"},
        "schedule": {"warmup": 0},
        "steps": 2,
        "batch_size": 8,
    }
    return load_recipe(base, fields)


def world_of(size=1):
    return World(rank=0, size=size, local_rank=0, device=torch.device("cpu"))


def test_a_step_with_each_term(shards, tmp_path):
    recipe = recipe_of(shards, **{"loss.weights": [0.5, 0.5]})
    with open_loader_of(recipe, world_of(), 8, None) as loader:
        run = build_run(
            recipe, tmp_path, world_of(), model=initial_model(recipe), loader=loader,
            teachers=(), step=0, trainer_state={},
        )  # fmt: skip
        terms = run.stepper.backward(list(itertools.islice(loader.batches(), 1)))
    assert terms["contrastive_loss"] > 0
    assert terms["distill_loss"] > 0
    for refused in ("contrastive", "distill"):
        with pytest.raises(ConfigError, match="gives no synthetic captions of their own"):
            load_recipe(recipe.model_dump(), {f"loss.{refused}_captions": "synthetic"})
    with pytest.raises(ConfigError, match="a captioner learns one caption of each image"):
        load_recipe("coca-finetune", ["data.captions=random"])


@pytest.mark.parametrize(
    ("size", "fields", "most"),
    [
        (1, {"batch_size": TOTAL}, 10),
        (1, {"batch_size": 11}, 10),
        # The loss is that of the whole batch.
        (1, {"batch_size": 12, "accumulate": 3}, 10),
        (2, {"batch_size": 12}, 10),
        (1, {"batch_size": 10}, None),
        (2, {"batch_size": 10}, None),
        (1, {"batch_size": TOTAL, "data.captions": "synthetic"}, None),
        (1, {"batch_size": TOTAL, "loss.weights": [1.0, 0.0]}, None),
    ],
    ids=str,
)
def test_a_batch_with_the_captions_of_its_own_images(size, fields, most, shards, caplog):
    world = world_of(size)

    def opened(**changes):
        recipe = recipe_of(shards, **{"loss.weights": [0.0, 1.0], **fields, **changes})
        micro_batch = check_batch_size(recipe, world)
        open_loader_of(recipe, world, micro_batch, None).close()

    if most is None:
        opened()
        assert not caplog.text
        return
    with pytest.raises(ConfigError, match=f"own images.* set batch_size to {most} or less"):
        opened()
    assert not caplog.text
    opened(**{"loss.weights": [0.5, 0.5]})
    assert caplog.text.count(f"set batch_size to {most} or less, or give more data") == 1
