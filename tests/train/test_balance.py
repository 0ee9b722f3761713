"""Class-balanced sampling: its frequencies, and that any position is a pure function."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketclip import storage
from pocketclip.errors import ConfigError, DataError
from pocketclip.shards import read
from pocketclip.train.balance import BalancedOrder
from pocketclip.train.sources import ShardSource
from tests.train.making_shards import rewrite_member, sample, write_shards
from tests.train.test_loader import failure, open_loader, same, take

SIZES, LABELS = [5, 8, 3], np.array([0] * 11 + [2] + [1] * 3 + [-1])  # 11, 3 and 1 samples


def places(order, begin, end):
    return [order.at(position) for position in range(begin, end)]


def label_of(location):
    return int(LABELS[sum(SIZES[: location.shard]) + location.index])


def test_the_balanced_order_is_this():
    # Literal: a run that was stopped years ago goes on in the same order.
    order = BalancedOrder([2, 3], np.array([0, 0, 0, 1, -1]), balance=1.0, seed=0)
    found = [(p.epoch, p.shard, p.index, p.repeat) for p in places(order, 0, 8)]
    assert found == [
        (0, 1, 1, 0), (0, 1, 1, 1), (0, 0, 1, 0), (0, 1, 0, 0),
        (1, 1, 1, 0), (1, 0, 0, 0), (1, 0, 1, 0), (1, 1, 1, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("balance", [0.25, 0.5, 1.0])
def test_classes_come_as_often_as_their_shares(balance):
    order = BalancedOrder(SIZES, LABELS, balance=balance, seed=0)
    assert (order.total, order.per_rank) == (15, 15)
    shares = np.array([11, 3, 1]) ** (1 - balance)
    expected = 15 * shares / shares.sum()
    totals = np.zeros(3)
    for epoch in range(40):
        drawn = places(order, 15 * epoch, 15 * epoch + 15)
        assert {p.epoch for p in drawn} == {epoch}
        counts = np.array([Counter(map(label_of, drawn))[label] for label in range(3)])
        assert (np.abs(counts - expected) < 1).all()  # rounded up or down
        totals += counts
        # All samples of a class come before one of them comes again.
        for label in range(3):
            times = Counter((p.shard, p.index) for p in drawn if label_of(p) == label)
            assert not times or max(times.values()) - min(times.values()) <= 1
            repeats = [(p.shard, p.index, p.repeat) for p in drawn if label_of(p) == label]
            assert len(set(repeats)) == len(repeats)
    assert totals / 40 == pytest.approx(expected, abs=0.2)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(-1, 3), min_size=4, max_size=30).filter(lambda x: max(x) >= 0),
    st.floats(0.01, 1), st.integers(1, 3), st.integers(0, 3),
)  # fmt: skip
def test_ranks_share_an_epoch_and_any_position_is_computed_directly(found, balance, world, epoch):
    labels, sizes = np.array(found), [2, len(found) - 2]
    if (labels >= 0).sum() < world:
        with pytest.raises(DataError, match="cannot be shared"):
            BalancedOrder(sizes, labels, balance=balance, seed=3, world_size=world)
        return

    def order(rank, world):
        return BalancedOrder(sizes, labels, balance=balance, seed=3, rank=rank, world_size=world)

    alone = order(0, 1)
    whole = places(alone, epoch * alone.total, (epoch + 1) * alone.total)
    assert all(labels[2 * p.shard + p.index] >= 0 for p in whole)
    shared = []
    for rank in range(world):
        one = pickle.loads(pickle.dumps(order(rank, world)))
        each = one.per_rank
        shared += reversed([one.at(p) for p in reversed(range(epoch * each, epoch * each + each))])
    assert shared == whole[: len(shared)]
    assert len(shared) == alone.total // world * world


def test_replacements_are_of_any_class():
    order = BalancedOrder(SIZES, LABELS, balance=1.0, seed=0)
    for position in (3, 17):
        drawn = [order.at(position, attempt) for attempt in range(1, 16)]
        assert {p.epoch for p in drawn} == {position // 15}
        assert {label_of(p) for p in drawn} == {0, 1, 2}
        assert drawn == [order.at(position, attempt) for attempt in range(1, 16)]


@pytest.fixture(scope="module")
def long_tail(tmp_path_factory):
    """Twelve samples of one class and two of another, in two shards, with three views each."""
    folder = tmp_path_factory.mktemp("tail")
    samples = [
        sample(i, captions={"text": ["rare" if i in (3, 8) else "common"], "syn_text": ["a", "b"]})
        for i in range(14)
    ]
    return write_shards(folder, [samples[:9], samples[9:]])


def test_rare_classes_repeat_with_other_views(long_tail):
    stored = {one.uid: one for one in read(long_tail)}
    for kind in ("random", "sequential"):
        options = {"balance": 1.0, "augmentation": kind, "captions": "both", "batch_size": 14}
        for batch in take(3, long_tail, **options):  # an epoch each
            assert Counter(batch.texts[0]) == {"rare": 7, "common": 7}
            views = [
                (uid, int((stored[uid].embeddings["image_emb"] == row.numpy()).all(1).argmax()))
                for uid, row in zip(batch.uids, batch.teacher_image, strict=True)
                if uid in ("00000003", "00000008")
            ]
            # Seven draws of two samples with three views: only one view comes twice.
            assert len(set(views)) == 6
            texts = set(zip(batch.uids, batch.texts[1], strict=True))
            assert {("00000003", "a"), ("00000003", "b")} <= texts


def test_without_balance_nothing_changes(long_tail):
    for one, other in zip(take(6, long_tail), take(6, long_tail, balance=0.0), strict=True):
        assert same(one, other)


def test_balanced_batches_resume_and_do_not_depend_on_workers(long_tail):
    through = take(9, long_tail, balance=0.7)
    for ours, theirs in zip(
        through[3:], take(6, long_tail, balance=0.7, start=3, workers=2), strict=True
    ):
        assert same(ours, theirs)
    ranks = [take(2, long_tail, balance=0.7, rank=r, world=2, batch_size=7) for r in (0, 1)]
    uids = [uid for part in ranks for uid in part[0].uids]
    (whole,) = take(1, long_tail, balance=0.7, batch_size=14)
    assert uids == whole.uids


def test_plain_training_draws_other_crops_for_repeats(long_tail):
    options = {"reinforced": False, "captions": "truth", "batch_size": 14, "balance": 1.0}
    crop = {"random_resized_crop": {"size": 16}}
    (batch,) = take(1, long_tail, image_augmentation=crop, **options)
    images = [image for image, uid in zip(batch.images, batch.uids, strict=True) if uid[-1] in "38"]
    rare = {image.numpy().tobytes() for image in images}
    assert len(rare) == len(images) >= 7


def test_captions_of_other_tools_are_found(tmp_path):
    # Without `txt`, the ground truth may stand in `syn.json`.
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name, data in {"a.syn.json": b'{"text": ["x", "y"]}', "b.txt": b"x"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    source = ShardSource(str(tmp_path), None)
    assert [source.first_caption(0, i) for i in (0, 1)] == ["x", "x"]
    source.close()


def test_what_cannot_be_balanced(tmp_path, long_tail, monkeypatch, caplog):
    bare = tmp_path / "bare"
    bare.mkdir()
    untitled = sample(1)
    del untitled.captions["text"], untitled.embeddings["text_emb"]
    write_shards(bare, [[sample(0), untitled]])
    message = failure(open_loader, str(bare), balance=0.5, captions="synthetic")
    assert "sample 1 of shard 0 has no ground-truth caption" in message
    assert "set data.balance=0" in message

    monkeypatch.setattr(storage, "is_remote", lambda path: "tail" in path)
    message = failure(open_loader, long_tail, balance=0.5, kind=ConfigError)
    assert "copy them to a local disk" in message
    monkeypatch.undo()

    alike = tmp_path / "alike"
    alike.mkdir()
    write_shards(alike, [[sample(i) for i in range(4)]])
    open_loader(str(alike), balance=0.5).close()
    assert "data.balance has no effect: each of the 4 captions has 1 sample" in caplog.text


def test_damaged_captions_are_left_out_and_counted(tmp_path, caplog):
    write_shards(tmp_path, [[sample(i) for i in range(5)]])
    rewrite_member(tmp_path / "00000000.tar", ".txt", b"\xff\xfe\xff", nth=2)
    batches = take(4, str(tmp_path), balance=1.0)
    assert "00000002" not in {uid for batch in batches for uid in batch.uids}
    assert "1 sample cannot be read and will not be drawn" in caplog.text
