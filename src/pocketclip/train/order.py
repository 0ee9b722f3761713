"""The order of training samples: an endless sequence that anyone can compute at any point.

    order = Order((1000, 1000, 640), seed=0, rank=1, world_size=2)
    order.at(5_000_000)  # Place(epoch=3787, shard=2, index=17)

An epoch is a permutation of all samples, a pure function of (shard sizes, seed, epoch, world size).
The shards are permuted and laid end to end, the line is turned by a random amount, and each rank
takes its part of it, so that a rank reads few of the shards; within its part, samples are shuffled
in windows. A set that is no larger than a window is shuffled as a whole before it is parted.

The random words are Philox's own, which numpy keeps for good, and an order is their ranking: what
`Generator.permutation` makes of them may change between versions of numpy.

Shapes: N samples of an epoch, W ranks; each rank has n = N // W positions an epoch. What the
division leaves over is not seen in that epoch; the turn decides which these are.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import DataError

WINDOW = 1 << 17
"""Samples among which a rank shuffles, unless it is told otherwise."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sample of the sequence lies."""

    epoch: int
    shard: int
    index: int
    """Within its shard."""


def words(count: int, *identity: int | str) -> NDArray[np.uint64]:
    """Return `count` random words, a pure function of `identity`."""
    digest = hashlib.sha256(json.dumps(identity).encode("ascii")).digest()
    philox = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    return philox.random_raw(count).astype(np.uint64)


def permutation(count: int, *identity: int | str) -> NDArray[np.int64]:
    """Return the numbers below `count` in a random order, a pure function of `identity`."""
    return np.argsort(words(count, *identity), kind="stable").astype(np.int64)


class Order:
    """The sequence of one rank. Instances hold a few windows at most.

    Args:
        sizes: samples per shard.
        seed: of the permutations.
        rank, world_size: which part of each epoch.
        window: samples among which to shuffle.

    Raises:
        DataError: there are fewer samples than ranks.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        window: int = WINDOW,
    ) -> None:
        self.total = sum(sizes)
        self.per_rank = self.total // world_size
        if self.per_rank < 1:
            raise DataError(f"{self.total} samples cannot be shared out to {world_size} processes")
        self._sizes = np.asarray(sizes, np.int64)
        self._seed, self._rank, self._world = seed, rank, world_size
        self._window = max(1, window)
        self._whole = self.total <= self._window
        self._blocks = -(-self.per_rank // self._window)
        # Instances go to other processes: what is remembered stays behind.
        self._line = functools.lru_cache(maxsize=2)(self._make_line)
        self._block = functools.lru_cache(maxsize=2)(self._make_block)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        sizes = tuple(self._sizes.tolist())
        return _rebuilt, (sizes, self._seed, self._rank, self._world, self._window)

    def at(self, position: int, attempt: int = 0) -> Place:
        """Return where the sample at `position`, from 0 without end, lies.

        With an `attempt` from 1 up: a sample to take in its place, of the same window.
        """
        epoch, offset = divmod(position, self.per_rank)
        number = offset * self._blocks // self.per_rank
        begin, end = self._bounds(number), self._bounds(number + 1)
        place = offset - begin
        if attempt:
            drawn = int(words(1, "again", self._seed, self._rank, position, attempt)[0])
            place = drawn % (end - begin)
        if self._whole:
            first = self._rank * self.per_rank
            return self._place(epoch, int(self._block(epoch, -1)[first + begin + place]))
        return self._place(epoch, begin + int(self._block(epoch, number)[place]))

    def _bounds(self, number: int) -> int:
        """Return the first offset of window `number`; the windows are all but equally long."""
        return -(-number * self.per_rank // self._blocks)

    def _make_block(self, epoch: int, number: int) -> NDArray[np.int64]:
        if number < 0:  # the whole set
            return permutation(self.total, "samples", self._seed, epoch)
        count = self._bounds(number + 1) - self._bounds(number)
        return permutation(count, "window", self._seed, epoch, self._world, self._rank, number)

    def _make_line(self, epoch: int) -> tuple[NDArray[np.int64], list[int], int]:
        """Return the shards in this epoch's order, where each ends, and the turn."""
        if self._whole:  # nothing to be won by moving shards
            shards = np.arange(len(self._sizes))
            return shards, np.cumsum(self._sizes).tolist(), 0
        shards = permutation(len(self._sizes), "shards", self._seed, epoch)
        turn = int(words(1, "turn", self._seed, epoch)[0]) % self.total
        return shards, np.cumsum(self._sizes[shards]).tolist(), turn

    def _place(self, epoch: int, offset: int) -> Place:
        shards, ends, turn = self._line(epoch)
        if not self._whole:
            offset = (offset + self._rank * self.per_rank + turn) % self.total
        number = bisect.bisect_right(ends, offset)
        return Place(epoch, int(shards[number]), offset - (ends[number - 1] if number else 0))


def _rebuilt(sizes: Sequence[int], seed: int, rank: int, world_size: int, window: int) -> Order:
    return Order(sizes, seed=seed, rank=rank, world_size=world_size, window=window)
