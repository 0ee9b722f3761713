from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketclip.errors import DataError
from pocketclip.train.order import Order, permutation, words


def places(order, begin, end):
    return [(sample.shard, sample.index) for sample in map(order.at, range(begin, end))]


def test_the_order_of_a_small_set_is_this():
    # Literal: a run that was stopped years ago goes on in the same order.
    order = Order((3, 2, 4), seed=0)
    assert places(order, 0, 9) == [
        (2, 0), (2, 2), (1, 0), (2, 1), (0, 0), (1, 1), (0, 2), (2, 3), (0, 1),
    ]  # fmt: skip
    assert permutation(6, "x", 1).tolist() == [4, 1, 2, 0, 5, 3]
    assert words(2, "x", 1).tolist() == [16941430754747199654, 9720224481051996935]


def test_the_order_in_windows_is_this():
    order = Order((3, 2, 4), seed=0, window=4)
    assert places(order, 0, 18) == [
        (2, 0), (2, 1), (0, 2), (2, 3), (1, 0), (2, 2), (0, 1), (1, 1), (0, 0),
        (0, 0), (0, 2), (0, 1), (1, 0), (1, 1), (2, 0), (2, 3), (2, 2), (2, 1),
    ]  # fmt: skip


SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(lambda s: sum(s) > 0)


@settings(deadline=None, max_examples=60)
@given(SIZES, st.integers(0, 5), st.integers(1, 12), st.integers(1, 4), st.integers(0, 3))
def test_an_epoch_has_every_sample_at_most_once_over_all_ranks(sizes, seed, window, world, epoch):
    total = sum(sizes)
    if total < world:
        with pytest.raises(DataError):
            Order(sizes, seed=seed, rank=0, world_size=world, window=window)
        return
    each = total // world
    seen = []
    for rank in range(world):
        order = Order(sizes, seed=seed, rank=rank, world_size=world, window=window)
        assert order.per_rank == each
        assert {order.at(p).epoch for p in range(epoch * each, (epoch + 1) * each)} == {epoch}
        seen += places(order, epoch * each, (epoch + 1) * each)
    assert max(Counter(seen).values()) == 1
    assert all(0 <= index < sizes[shard] for shard, index in seen)
    assert len(seen) == each * world  # with one rank: all of them


@settings(deadline=None, max_examples=30)
@given(SIZES, st.integers(0, 5), st.integers(1, 12))
def test_any_position_is_computed_directly(sizes, seed, window):
    order = Order(sizes, seed=seed, window=window)
    ahead = places(order, 0, 3 * order.per_rank)
    again = pickle.loads(pickle.dumps(Order(sizes, seed=seed, window=window)))
    for position in reversed(range(3 * order.per_rank)):
        sample = again.at(position)
        assert (sample.shard, sample.index) == ahead[position]


def test_epochs_seeds_and_ranks_differ():
    order = Order((50, 50), seed=0)
    assert places(order, 0, 100) != places(order, 100, 200)
    assert places(order, 0, 100) != places(Order((50, 50), seed=1), 0, 100)


def test_a_rank_reads_few_shards_and_others_in_the_next_epoch():
    sizes = [100] * 40
    touched = []
    for epoch in range(8):
        order = Order(sizes, seed=3, rank=1, world_size=4, window=100)
        each = order.per_rank
        shards = {order.at(p).shard for p in range(epoch * each, (epoch + 1) * each)}
        assert len(shards) <= 11  # a quarter, and one for where its part begins and ends
        touched.append(shards)
    assert len(set.union(*touched)) > 30
    # A window is read before the next one: few shards at a time.
    first = {order.at(p).shard for p in range(100)}
    assert len(first) <= 2


def test_with_one_shard_a_rank_sees_all_of_it_in_time():
    seen = set()
    for epoch in range(12):
        order = Order((1000,), seed=0, rank=0, world_size=2, window=50)
        seen |= {order.at(p).index for p in range(epoch * 500, (epoch + 1) * 500)}
    assert len(seen) == 1000


def test_samples_move_far_within_a_small_set():
    order = Order((1000,), seed=0)
    moved = [abs(order.at(p).index - p) for p in range(1000)]
    assert 250 < np.mean(moved) < 420  # a third, for a random permutation


def test_stand_ins_are_of_the_same_epoch_and_window():
    order = Order((40, 40, 40), seed=0, window=40)
    for position in (0, 39, 40, 119, 130):
        epoch, number = position // 120, position % 120 // 40
        begin = epoch * 120 + number * 40
        window = set(places(order, begin, begin + 40))
        drawn = [order.at(position, attempt) for attempt in range(1, 10)]
        assert {sample.epoch for sample in drawn} == {epoch}
        assert {(sample.shard, sample.index) for sample in drawn} <= window
        assert len(set(drawn)) > 5
        assert drawn == [order.at(position, attempt) for attempt in range(1, 10)]


def test_a_large_set_costs_little():
    order = Order([10_000] * 1000, seed=0, rank=5, world_size=64)
    assert order.total == 10_000_000
    assert order.at(10**9).epoch == 10**9 // (10**7 // 64)
    assert len(pickle.dumps(order)) < 1 << 16


def test_fewer_samples_than_ranks():
    with pytest.raises(DataError, match="3 samples cannot be shared among 4 processes"):
        Order((3,), seed=0, world_size=4)
