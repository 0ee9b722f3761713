from __future__ import annotations

import csv
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pocketclip import storage, zoo
from pocketclip.augment import Augmentation, rng_for
from pocketclip.errors import ConfigError, DataError, PocketclipError, StorageError
from pocketclip.images import open_image
from pocketclip.pairs import PairOptions
from pocketclip.shards import read
from pocketclip.tokenizer import Tokenizer
from pocketclip.train import batches, raw_pairs, shard_cache
from pocketclip.train.loader import DataConfig, Loader, normalise
from pocketclip.train.order import Location, Order
from pocketclip.train.replay import AugmentationReplay, decode
from pocketclip.train.sources import open_source
from tests.train.making_shards import (
    AUGMENTATION,
    MODEL,
    SIZE,
    photo,
    rewrite_member,
    sample,
    unit,
    write_shards,
)

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
GOLDEN = Path(__file__).parents[1] / "golden" / "shards"
SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dr")
    return write_shards(folder, [[sample(i) for i in range(s, s + 7)] for s in (0, 7, 14)])


def open_loader(source, *, batch_size=4, seed=0, model=MODEL, rank=0, world=1, workers=0, **config):
    return Loader(
        DataConfig(source=source, **config),
        model=model, batch_size=batch_size, seed=seed, rank=rank, world_size=world, workers=workers,
    )  # fmt: skip


def take(count, source, *, start=0, **options):
    with open_loader(source, **options) as loader:
        return list(itertools.islice(loader.batches(start), count))


def same(a, b):
    return (
        a.uids == b.uids
        and a.texts == b.texts
        and a.skipped == b.skipped
        and torch.equal(a.images, b.images)
        and all(map(torch.equal, a.captions, b.captions))
        and torch.equal(a.teacher_image, b.teacher_image)
        and all(map(torch.equal, a.teacher_captions, b.teacher_captions))
    )


def failure(function, *args, kind=DataError, **options):
    with pytest.raises(kind) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is in a batch


def test_a_batch_holds_what_was_stored(shards):
    stored = {one.uid: one for one in read(shards)}
    views, captions = set(), set()
    for batch in take(40, shards):
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (4, 3, SIZE, SIZE)
        assert [ids.shape for ids in batch.captions] == [(4, MODEL.text.context_length)] * 2
        assert batch.skipped == []
        for i, uid in enumerate(batch.uids):
            one = stored[uid]
            # Which view it is, its embedding tells; its pixels are exactly that view's.
            rows = torch.from_numpy(one.embeddings["image_emb"])
            (view,) = (rows == batch.teacher_image[i]).all(dim=1).nonzero().flatten().tolist()
            views.add(view)
            right = AUGMENTATION.apply(open_image(one.image), one.param_aug[view])
            assert np.array_equal(batch.images[i].permute(1, 2, 0).numpy(), right)
            truth, synthetic = batch.texts[0][i], batch.texts[1][i]
            assert truth == one.captions["text"][0]
            assert torch.equal(batch.teacher_captions[0][i], row(one, "text", 0))
            key = "syn_text" if synthetic.startswith("synthetic") else "syn_other"
            number = one.captions[key].index(synthetic)
            captions.add((key, number))
            assert torch.equal(batch.teacher_captions[1][i], row(one, key, number))
        for ids, texts in zip(batch.captions, batch.texts, strict=True):
            assert np.array_equal(ids.numpy(), Tokenizer()(texts, MODEL.text.context_length))
    assert views == {0, 1, 2}
    assert captions == {("syn_text", 0), ("syn_text", 1), ("syn_other", 0)}


def row(one, key, number):
    return torch.from_numpy(one.embeddings[f"{key}_emb"][number])


def test_what_the_loader_knows_of_the_set(shards):
    with open_loader(shards) as loader:
        assert loader.samples == 21
        assert loader.teacher_dims == (8, 4)
        assert loader.teacher_scales == (100.0, 50.0)
        assert len(loader.index_hash) >= 16


def test_the_caption_that_is_asked_for(shards):
    for batch in take(3, shards, captions="truth"):
        assert len(batch.captions) == len(batch.teacher_captions) == 1
        assert all(text.startswith("truth") for text in batch.texts[0])
    for batch in take(3, shards, captions="synthetic", caption_pattern="^syn_other$"):
        assert all(text.startswith("other") for text in batch.texts[0])
    for batch in take(3, shards, captions="both", caption_pattern="^syn_text"):
        assert all(text.startswith("synthetic") for text in batch.texts[1])


def test_captions_that_are_not_distilled_need_no_embeddings(tmp_path):
    stored = [sample(i) for i in range(4)]
    without = [
        replace(one, embeddings={k: v for k, v in one.embeddings.items() if k != "text_emb"})
        for one in stored
    ]
    source = write_shards(tmp_path, [without])
    (batch,) = take(1, source, distill_captions="synthetic")
    assert batch.kinds == ["truth", "synthetic"]
    assert batch.teacher_captions[0] is None
    by_uid = {one.uid: one for one in stored}
    for i, uid in enumerate(batch.uids):
        one, text = by_uid[uid], batch.texts[1][i]
        key = "syn_text" if text.startswith("synthetic") else "syn_other"
        right = row(one, key, one.captions[key].index(text))
        assert torch.equal(batch.teacher_captions[1][i], right)
    message = failure(take, 1, source)
    assert "no embedding 0 under text_emb" in message


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_mixed_captions_by_their_ratio(shards, ratio):
    batches = take(100, shards, captions="mix", truth_ratio=ratio)
    texts = [text for batch in batches for text in batch.texts[0]]
    share = np.mean([text.startswith("truth") for text in texts])
    assert abs(share - ratio) < 0.08  # of 400: three standard deviations at most
    assert ratio in (0.25,) or share == ratio


def test_sequential_augmentations_go_by_the_epoch(shards):
    stored = {one.uid: one for one in read(shards)}
    for epoch in range(4):
        (batch,) = take(1, shards, batch_size=21, start=epoch, augmentation="sequential")
        for uid, taught in zip(batch.uids, batch.teacher_image, strict=True):
            assert torch.equal(
                taught, torch.from_numpy(stored[uid].embeddings["image_emb"][epoch % 3])
            )


def test_pixels_as_the_image_tower_takes_them():
    config = zoo.PreprocessConfig(size=SIZE, mean=zoo.CLIP_MEAN, std=zoo.CLIP_STD)
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        out = normalise(given, config)
        mean, std = torch.tensor(zoo.CLIP_MEAN), torch.tensor(zoo.CLIP_STD)
        right = (images / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
        assert torch.equal(out, right)
        assert out.is_contiguous()
    plain = normalise(images, zoo.PreprocessConfig(size=SIZE))
    assert torch.equal(plain, images / 255)


# --- order and resuming


def test_batches_cross_epochs_and_drop_nothing(shards):
    uids = [uid for batch in take(21, shards) for uid in batch.uids]  # four epochs
    for epoch in range(4):
        assert sorted(uids[epoch * 21 : epoch * 21 + 21]) == [f"{i:08d}" for i in range(21)]


def test_resuming_gives_the_very_next_batch(shards):
    through = take(12, shards)
    for start in (1, 5, 11):
        (batch,) = take(1, shards, start=start)
        assert same(batch, through[start])


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_workers_change_nothing(shards, workers):
    # Four workers are more than there are shards.
    for ours, theirs in zip(
        take(9, shards, start=2), take(9, shards, start=2, workers=workers), strict=True
    ):
        assert same(ours, theirs)


def test_starting_workers_draws_no_random_number_of_others(shards):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(2, shards, workers=1)
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_ranks_and_windows(shards):
    def uids(**options):
        return [uid for batch in take(5, shards, batch_size=2, **options) for uid in batch.uids]

    assert uids() != uids(seed=1)
    ranks = [uids(rank=rank, world=2) for rank in (0, 1)]
    assert len({*ranks[0], *ranks[1]}) == 20  # N // W each, none twice
    order = Order((7, 7, 7), seed=0, window=5)
    places = [order.at(p) for p in range(10)]
    assert uids(shuffle_window=5) == [f"{p.shard * 7 + p.index:08d}" for p in places]


# --- other forms of data


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_embeddings_of_any_form(tmp_path, dtype):
    source = write_shards(tmp_path, [[sample(i) for i in range(5)]], dtype=dtype)
    stored = {one.uid: one for one in read(source)}
    (batch,) = take(1, source, captions="truth", augmentation="sequential")
    for i, uid in enumerate(batch.uids):
        assert torch.equal(batch.teacher_image[i], row(stored[uid], "image", 0))
        assert torch.equal(batch.teacher_captions[0][i], row(stored[uid], "text", 0))


def test_shards_of_the_reference_writer(tmp_path):
    config = '{"reinforce": {"image_augmentation": {"random_resized_crop": {"size": 256, '
    config += '"interpolation": "bicubic"}, "rand_augment": {"enable": true, "p": 1.0}}}}'
    for name in ("v1_bfloat16", "v2_float32"):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(GOLDEN / f"{name}.tar", folder)
        (folder / "config.json").write_text(config)
        stored = {one.uid: one for one in read(str(folder))}
        (batch,) = take(1, str(folder), captions="both", augmentation="sequential")
        assert sorted(batch.uids) == sorted(stored)
        assert batch.skipped == []
        for i, uid in enumerate(batch.uids):
            assert torch.equal(batch.teacher_image[i], row(stored[uid], "image", 0))
            assert torch.equal(batch.teacher_captions[0][i], row(stored[uid], "text", 0))


def test_plain_training_draws_anew_each_epoch(shards):
    config = {"random_resized_crop": {"size": 8, "scale": [0.3, 0.8], "interpolation": "bilinear"}}
    stored = {one.uid: one for one in read(shards)}
    resized = {"random_resized_crop": {**config["random_resized_crop"], "size": SIZE}}
    augmentation = Augmentation.from_config(resized)
    seen = []
    for epoch in range(2):
        (batch,) = take(
            1, shards, batch_size=21, start=epoch, reinforced=False, image_augmentation=config
        )
        assert batch.teacher_image is None
        assert batch.teacher_captions == []
        assert len(batch.captions) == 2
        actual = {}
        for uid, image in zip(batch.uids, batch.images, strict=True):
            params = augmentation.draw(rng_for(0, uid, epoch), (40, 32))
            right = augmentation.apply(open_image(stored[uid].image), params)
            assert np.array_equal(image.permute(1, 2, 0).numpy(), right)
            actual[uid] = right
        seen.append(actual)
    assert any(not np.array_equal(seen[0][uid], seen[1][uid]) for uid in stored)


@pytest.fixture
def table(tmp_path):
    rows = []
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(photo(i, kind="PNG"))
        rows.append([f"{i}.png", "train" if i < 5 else "test", f"title {i}", f"noise {i}"])
    path = tmp_path / "pairs.csv"
    with path.open("w", newline="") as out:
        csv.writer(out).writerows([["filepath", "split", "caption", "alt_text"], *rows])
    return str(path)


def test_raw_pairs_of_a_table(table):
    options = {"reinforced": False, "where": {"split": "train"}}
    for workers in (0, 2):
        batches = take(
            5, table, caption_columns=("alt_text",), captions="truth", workers=workers, **options
        )
        uids = [uid for batch in batches for uid in batch.uids]
        assert sorted(uids[:5]) == [f"{i:08d}" for i in range(5)]
        texts = [text for batch in batches for text in batch.texts[0]]
        assert texts == [f"noise {int(uid)}" for uid in uids]
    (batch,) = take(1, table, caption_columns=("alt_text", "caption"), captions="both", **options)
    assert [text.split()[0] for text in batch.texts[1]] == ["title"] * 4


def test_raw_pairs_whose_image_is_missing(table):
    (Path(table).parent / "2.png").unlink()
    batches = take(3, table, reinforced=False, captions="truth", caption_columns=("alt_text",))
    skipped = [item for batch in batches for item in batch.skipped]
    assert {uid for uid, _ in skipped} == {"00000002"}
    assert "2.png" in skipped[0][1]


def test_raw_pairs_of_a_folder_and_of_a_tar(tmp_path):
    (tmp_path / "plain").mkdir()
    for i in range(5):
        (tmp_path / "plain" / f"{i}.jpg").write_bytes(photo(i))
        (tmp_path / "plain" / f"{i}.txt").write_text(f"folder {i}")
    (batch,) = take(1, str(tmp_path / "plain"), reinforced=False, captions="truth")
    assert all(text.startswith("folder") for text in batch.texts[0])
    bare = [sample(i, embeddings={}, param_aug=None) for i in range(5)]
    (tmp_path / "tars").mkdir()
    source = write_shards(tmp_path / "tars", [bare], index=False)
    (batch,) = take(1, source, reinforced=False, captions="truth")
    assert batch.skipped == []


def test_several_folders_reinforced_alike(tmp_path):
    for number in (0, 1):
        (tmp_path / str(number)).mkdir()
        write_shards(tmp_path / str(number), [[sample(10 * number + i) for i in range(4)]])
    both = (str(tmp_path / "0"), str(tmp_path / "1"))
    (batch,) = take(1, both, batch_size=8)
    assert sorted(batch.uids) == [f"{n:08d}" for n in (0, 1, 2, 3, 10, 11, 12, 13)]
    other = Augmentation.from_config({"random_resized_crop": {"size": 8}})
    (tmp_path / "2").mkdir()
    write_shards(tmp_path / "2", [[sample(20, augmentation=other)]], augmentation=other)
    message = failure(open_loader, (*both, str(tmp_path / "2")))
    assert "with the same reinforcement" in message


def test_shards_of_an_object_store(s3, tmp_path, shards):
    for path in Path(shards).iterdir():
        s3.put(f"bucket/dr/{path.name}", path.read_bytes())
    cache = tmp_path / "cache"
    remote_batches = take(4, "s3://bucket/dr", cache_dir=str(cache), workers=2)
    for ours, theirs in zip(take(4, shards), remote_batches, strict=True):
        assert same(ours, theirs)
    assert len(list(cache.glob("*.tar"))) == 3


def test_the_cache_keeps_to_its_size(tmp_path, monkeypatch):
    fetched = []

    def fetch(path, target, size):
        fetched.append(path)
        target.write_bytes(bytes(size))

    monkeypatch.setattr(shard_cache, "_fetch", fetch)
    cache = shard_cache.ShardCache(str(tmp_path), max_bytes=250)
    paths = [f"s3://bucket/{i}.tar" for i in range(3)]
    assert all(cache.local(path, 100).stat().st_size == 100 for path in paths)
    assert len(list(tmp_path.glob("*.tar"))) == 2
    cache.local(paths[2], 100)
    assert fetched == paths
    cache.local(paths[0], 100)  # was the one used longest ago
    assert fetched == [*paths, paths[0]]


@pytest.fixture
def store(tmp_path):
    """A store in memory, and a function that reinforces into it: the seed decides the content."""
    import fsspec

    fs = fsspec.filesystem("memory")
    made = itertools.count()

    def put(seed, *, index=True):
        folder = tmp_path / f"made{next(made)}"
        folder.mkdir()
        rng = np.random.default_rng(seed)
        rows = [{"image_emb": unit(rng, 3), "text_emb": unit(rng, 1)} for _ in range(6)]
        changed = {"captions": {"text": ["truth"]}}
        shard = [sample(i, embeddings=row, **changed) for i, row in enumerate(rows)]
        write_shards(folder, [shard], index=index)
        # Without an index, this says what the training wants to know of the set.
        about = {"image_augmentation": AUGMENTATION.config, "teacher_dimension": [8, 4]}
        (folder / "config.json").write_text(json.dumps(about))
        for path in folder.iterdir():
            fs.pipe(f"/dr/{path.name}", path.read_bytes())
        return (folder / "00000000.tar").stat().st_size

    yield put
    fs.rm("/dr", recursive=True)


def of_the_store(tmp_path):
    fields = {"cache_dir": str(tmp_path / "cache"), "captions": "truth"}
    (batch,) = take(1, "memory://dr", batch_size=6, **fields)
    return batch


@pytest.mark.parametrize("index", [True, False])
def test_a_set_made_again_at_the_same_address_is_fetched_again(store, tmp_path, index):
    sizes, batches = [], []
    for seed in (1, 2):
        sizes.append(store(seed, index=index))
        batches.append(of_the_store(tmp_path))
    assert sizes[0] == sizes[1]
    assert batches[0].uids == batches[1].uids
    assert not torch.equal(batches[0].teacher_image, batches[1].teacher_image)
    assert same(batches[1], of_the_store(tmp_path))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "note"])
def test_a_damaged_cache_is_fetched_again(store, tmp_path, damage, monkeypatch):
    store(1)
    batch = of_the_store(tmp_path)
    (file,) = (tmp_path / "cache").glob("*.tar")
    whole = file.read_bytes()
    fetched = []
    real = shard_cache._fetch
    monkeypatch.setattr(shard_cache, "_fetch", lambda *args: (fetched.append(args[0]), real(*args)))
    if damage == "cut":
        file.write_bytes(whole[:1000])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "flipped":
        half = len(whole) // 2
        file.write_bytes(whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :])
    else:
        file.with_suffix(".lock").write_text("[]")
    assert same(batch, of_the_store(tmp_path))
    assert file.read_bytes() == whole
    assert len(fetched) == (damage != "note")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_shard_that_is_not_the_one_of_its_index_is_refused(store, tmp_path):
    import fsspec

    store(1)
    index = fsspec.filesystem("memory").cat("/dr/index.json")
    store(2)
    fsspec.filesystem("memory").pipe("/dr/index.json", index)
    message = failure(of_the_store, tmp_path)
    assert "its hash differs" in message
    assert not list((tmp_path / "cache").glob("*.tar"))


def test_a_store_that_does_not_answer_is_reported(store, tmp_path, monkeypatch, caplog):
    store(1, index=False)
    monkeypatch.setattr(storage, "version", lambda _: None)
    of_the_store(tmp_path)
    assert "empty data.cache_dir" in caplog.text


def test_what_a_killed_fetch_left_goes_with_the_next(store, tmp_path):
    store(1)
    cache = tmp_path / "cache"
    cache.mkdir()
    killed = (
        "import os, sys, signal; from pocketclip.storage.local import write_whole\n"
        "with write_whole(sys.argv[1]) as part:\n"
        "    part.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", killed, str(cache / "other.tar")], check=False)
    assert len(list(cache.iterdir())) == 1
    of_the_store(tmp_path)
    assert not list(cache.glob(".*"))


@pytest.mark.parametrize("raw", [True, False])
def test_a_killed_loader_leaves_nothing_that_the_next_does_not_remove(
    shards, tmp_path, monkeypatch, raw
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    (tmp_path / "a.png").write_bytes(photo(1, kind="PNG"))
    (tmp_path / "pairs.csv").write_text("image,caption\na.png,one\n")
    source = str(tmp_path / "pairs.csv") if raw else shards
    pid = os.fork()
    if pid == 0:
        kept = open_source(source, reinforced=not raw, options=PairOptions(), cache_dir=None)
        assert kept.sizes
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    (left,) = (tmp_path / "t").iterdir()
    living = open_source(source, reinforced=not raw, options=PairOptions(), cache_dir=None)
    assert len(list((tmp_path / "t").iterdir())) == 1
    assert not left.exists()
    living.close()
    assert not list((tmp_path / "t").iterdir())


# --- the identity of the data


def test_the_hash_changes_with_the_data(tmp_path, shards):
    def hash_of(source):
        with open_loader(source) as loader:
            return loader.index_hash

    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    assert hash_of(str(copy)) == hash_of(shards)
    other = tmp_path / "other"
    other.mkdir()
    write_shards(other, [[sample(i, synthetic=3) for i in range(s, s + 7)] for s in (0, 7, 14)])
    assert hash_of(str(other)) != hash_of(shards)


# --- samples that cannot be used


def test_bad_samples_are_replaced_counted_and_named(tmp_path):
    rows = sample(5).embeddings
    bad = {
        1: sample(1, image=b"\xff\xd8\xff no image"),
        3: sample(3, captions={"text": ["truth 3"]}),
        5: sample(5, embeddings={key: rows[key] for key in rows if key != "image_emb"}),
        7: sample(7, param_aug=[[[0, 0, 400, 400], [[0, 0.0], [0, 0.0]]]] * 3),
    }
    good = [i for i in range(12) if i not in bad]
    source = write_shards(tmp_path, [[bad.get(i) or sample(i) for i in range(12)]], index=False)
    write_config(tmp_path)
    batches = take(6, source, batch_size=6)
    reasons: dict[str, str] = {}
    for batch in batches:
        assert {int(uid) for uid in batch.uids} <= set(good)
        reasons.update(batch.skipped)
    assert sorted(map(int, reasons)) == sorted(bad)
    assert "image" in reasons["00000001"]
    assert "no synthetic caption" in reasons["00000003"]
    assert "image_emb" in reasons["00000005"]
    assert "does not fit" in reasons["00000007"]
    for ours, theirs in zip(batches, take(6, source, batch_size=6, workers=2), strict=True):
        assert same(ours, theirs)


def write_config(folder):
    about = {
        "teacher_dimension": [8, 4],
        "teacher_logit_scale": [100.0, 50.0],
        "reinforce": {"image_augmentation": AUGMENTATION.config},
    }
    (folder / "config.json").write_text(json.dumps(about))


def test_a_pattern_that_matches_no_key(shards):
    message = failure(open_loader, shards, caption_pattern="^syn_text_dfn$")
    assert "'^syn_text_dfn$'" in message
    assert "syn_other, syn_text" in message
    message = failure(open_loader, shards, caption_pattern="(", kind=ConfigError)
    assert "caption_pattern" in message


def test_shards_without_images(tmp_path):
    source = write_shards(tmp_path, [[sample(i, image=None) for i in range(4)]])
    assert "pocketclip join" in failure(open_loader, source)


def test_a_folder_that_is_missing_or_empty(tmp_path):
    message = failure(open_loader, str(tmp_path / "none"))
    assert str(tmp_path / "none") in message
    assert "no shards" in failure(open_loader, str(tmp_path))
    failure(open_loader, str(tmp_path / "no.csv"), reinforced=False, kind=PocketclipError)


def test_nothing_says_how_augmentations_were_drawn(tmp_path):
    source = write_shards(tmp_path, [[sample(0)]], index=False)
    assert "config.json" in failure(open_loader, source)


@pytest.mark.parametrize("index", [True, False])
def test_a_truncated_shard_is_an_error(tmp_path, index):
    source = write_shards(tmp_path, [[sample(i) for i in range(4)]] * 2, index=index)
    write_config(tmp_path)
    path = tmp_path / "00000001.tar"
    path.write_bytes(path.read_bytes()[:-9000])
    message = failure(open_loader, source)
    assert "00000001.tar" in message
    assert "truncated" in message


def test_a_shard_that_changes_during_training_is_an_error_not_a_bad_sample(tmp_path):
    source = write_shards(tmp_path, [[sample(i)] for i in range(30)])
    loader = open_loader(source, workers=1)
    for path in sorted(tmp_path.glob("*.tar")):
        path.write_bytes(path.read_bytes()[:1024])
    with loader:
        message = failure(lambda: list(itertools.islice(loader.batches(), 8)))
    assert ".tar" in message


def test_a_shard_with_fewer_samples_than_its_index_says(tmp_path):
    source = write_shards(tmp_path, [[sample(i) for i in range(4)]])
    about = json.loads((tmp_path / "index.json").read_text())
    about["shards"][0]["samples"] = 5
    (tmp_path / "index.json").write_text(json.dumps(about))
    assert "pocketclip audit" in failure(open_loader, source)


def test_a_damaged_member_is_a_bad_sample(tmp_path):
    source = write_shards(tmp_path, [[sample(i) for i in range(6)]])
    rewrite_member(tmp_path / "00000000.tar", "paug.json", b"{", nth=2)
    batches = take(3, source)
    skipped = dict(item for batch in batches for item in batch.skipped)
    assert len(skipped) == 1
    assert "paug.json" in next(iter(skipped.values()))


def test_embeddings_of_another_width_or_not_finite(tmp_path):
    wrong = sample(1)
    wrong.embeddings["image_emb"] = wrong.embeddings["image_emb"][:, :5]
    source = write_shards(tmp_path, [[sample(0), sample(2), sample(3)]])
    with pytest.raises(PocketclipError):  # the writer does not let it in; another's may
        write_shards(tmp_path / "x", [[wrong]])
    with open_loader(source) as loader:
        batches = loader._batches
        batches.width = 13
        assert "12 dimensions" in failure(lambda: batches.sample(0, []))
        batches.width = 12
        one = sample(0)
        one.embeddings["image_emb"] = np.full((3, 12), np.nan, np.float32)
        assert "non-finite" in failure(batches._make_row, one, Location(0, 0, 0))


def test_jsonl_shards_are_refused(tmp_path):
    (tmp_path / "0.jsonl").write_text("{}\n")
    assert "pocketclip join" in failure(open_loader, str(tmp_path / "0.jsonl"))


def test_a_store_that_cannot_be_reached_is_no_bad_sample(table, monkeypatch):
    def unreachable(path, **_limits):
        raise StorageError(f"{path}: cannot be reached")

    with open_loader(
        table, reinforced=False, captions="truth", caption_columns=("caption",)
    ) as one:
        monkeypatch.setattr(raw_pairs.storage, "read_bytes", unreachable)
        monkeypatch.setattr(raw_pairs.storage, "is_remote", lambda _: True)
        failure(lambda: next(one.batches()), kind=StorageError)


def test_a_worker_that_dies_is_reported_in_one_line(shards, monkeypatch):
    loader = open_loader(shards, workers=1)
    monkeypatch.setattr(batches.Batches, "_batch", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with loader:
        assert "a worker of the data loader died" in failure(lambda: next(loader.batches()))


# --- pixels


def test_decoding_equals_pillow():
    photos = sorted(PHOTOS.glob("*.jpg"))
    assert len(photos) == 4
    for path in photos:
        data = path.read_bytes()
        right = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(np.asarray(decode(data)), right)


def jpeg(mode="RGB", orientation=None, **options):
    image = Image.open(PHOTOS / "chelsea.jpg").resize((61, 47)).convert(mode)
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        *(jpeg(orientation=turn) for turn in (1, 3, 6, 8)),
        *(jpeg(subsampling=s) for s in (0, 1, 2)),
        jpeg("L"),
        jpeg("CMYK"),
        jpeg(progressive=True),
        jpeg(quality=5),
        photo(0, kind="PNG"),
        photo(0, kind="WEBP"),
        jpeg() + b"trailing bytes",
    ],
)
def test_decoding_equals_open_image(data):
    assert np.array_equal(np.asarray(decode(data)), np.asarray(open_image(data)))


def test_views_equal_the_augmentation_where_sizes_agree():
    config = {
        "random_resized_crop": {"size": 96, "interpolation": "bicubic"},
        "random_horizontal_flip": {"p": 0.5},
        "rand_augment": {"p": 0.9},
        "random_erase": {"p": 0.5},
    }
    for extra in ({}, {"resize": {"size": 200}}, {"range_augment": {}}):
        augmentation = Augmentation.from_config({**config, **extra})
        view = AugmentationReplay(augmentation, 96)
        for path in sorted(PHOTOS.glob("*.jpg"))[:2]:
            data = path.read_bytes()
            image = open_image(data)
            for index in range(8):
                params = augmentation.draw(rng_for(0, path.stem, index), image.size)
                packed = augmentation.pack(params)
                assert np.array_equal(view(data, packed), augmentation.apply(image, packed))


def test_views_at_another_size_scale_what_is_in_pixels_of_the_result():
    stored = Augmentation.from_config(
        {
            "random_resized_crop": {"size": 64},
            "rand_augment": {"num_ops": 2},
            "random_erase": {"p": 1.0},
        }
    )
    student = Augmentation.from_config({**stored.config, "random_resized_crop": {"size": 32}})
    data = (PHOTOS / "coffee.jpg").read_bytes()
    packed = [[10, 20, 200, 300], [[3, 21.0], [4, -9.0]], [8, 4, 20, 30]]
    halved = [[10, 20, 200, 300], [[3, 10.5], [4, -4.5]], [4, 2, 10, 15]]
    assert np.array_equal(
        AugmentationReplay(stored, 32)(data, packed), student.apply(open_image(data), halved)
    )
    # Rotations, shears and colours have no size.
    packed = [[10, 20, 200, 300], [[5, 9.0], [6, 0.27]], None]
    assert np.array_equal(
        AugmentationReplay(stored, 32)(data, packed), student.apply(open_image(data), packed)
    )


def test_fast_views_are_near_the_exact_ones():
    augmentation = Augmentation.from_config(
        {"random_resized_crop": {"size": 96, "interpolation": "bicubic", "scale": [0.5, 1]}}
    )
    for path in sorted(PHOTOS.glob("*.jpg")):
        data = path.read_bytes()
        for index in range(4):
            packed = augmentation.pack(
                augmentation.draw(rng_for(0, path.stem, index), open_image(data).size)
            )
            exact = AugmentationReplay(augmentation, 96)(data, packed).astype(int)
            fast = AugmentationReplay(augmentation, 96, fast=True)(data, packed).astype(int)
            assert fast.shape == exact.shape
            assert np.abs(fast - exact).mean() < 6  # fur, decoded at a fraction; 1 is usual
            assert not np.array_equal(fast, exact)


def test_fast_views_of_what_is_no_plain_jpeg_are_exact():
    augmentation = Augmentation.from_config({"random_resized_crop": {"size": 16}})
    for data in (photo(1, kind="PNG"), photo(1, kind="WEBP")):
        packed = [[2, 3, 20, 22]]
        right = augmentation.apply(open_image(data), packed)
        assert np.array_equal(AugmentationReplay(augmentation, 16, fast=True)(data, packed), right)


# --- real data


@pytest.mark.skipif(not (SHARED / "grocery-dr").is_dir(), reason="needs ../shared/data")
def test_the_grocery_set_joined_with_its_photographs(tmp_path):
    from pocketclip.pairs import PairOptions
    from pocketclip.shards import join

    with (SHARED / "grocery" / "pairs.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    pairs = tmp_path / "pairs.csv"
    few = [rows[0], *rows[1:41]]
    for one in few[1:]:
        one[0] = str(SHARED / "grocery" / one[0])
    with pairs.open("w", newline="") as out:
        csv.writer(out).writerows(few)
    options = PairOptions(caption_columns=("alt_text",), where={"split": "train"})
    report = join(str(SHARED / "grocery-dr"), str(pairs), str(tmp_path / "out"), options=options)
    batches = take(3, str(tmp_path / "out"), batch_size=16, model=zoo.entry("tiny").config)
    assert report.samples >= 16
    for batch in batches:
        assert batch.skipped == []
        halves = batch.teacher_image.split([256, 256], dim=1)
        for half in halves:
            assert torch.allclose(half.norm(dim=1), torch.ones(16), atol=0.02)
