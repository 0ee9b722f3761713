"""The order of training samples: an endless sequence that can be computed at any position.

    order = Order((1000, 1000, 640), seed=0, rank=1, world_size=2)
    order.at(5_000_000)  # Location(epoch=3787, shard=2, index=17)

An epoch is a permutation of all samples, a pure function of (shard sizes, seed, epoch, world size).
The shards are permuted and concatenated, the result is rotated by a random amount, and each rank
takes a contiguous share, so that a rank reads few of the shards. Within its share, samples are
shuffled in windows. A set no larger than a window is shuffled as a whole before it is shared out.

Permutations are rankings of Philox's raw random words, which numpy keeps stable;
`Generator.permutation` may change between versions of numpy.

Shapes: N samples of an epoch, W ranks; each rank has n = N // W positions per epoch. The remainder
is not seen in that epoch; the rotation decides which samples these are.
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
"""Default number of samples that a rank shuffles together."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a sample of the sequence is stored."""

    epoch: int
    shard: int
    index: int
    """The sample's number within its shard."""
    repeat: int = 0
    """How many times the sample came before in this epoch, with `balance`."""


def words(count: int, *identity: int | str) -> NDArray[np.uint64]:
    """Return `count` random 64-bit words, a pure function of `identity`."""
    digest = hashlib.sha256(json.dumps(identity).encode("ascii")).digest()
    philox = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    return philox.random_raw(count).astype(np.uint64)


def permutation(count: int, *identity: int | str) -> NDArray[np.int64]:
    """Return a permutation of the integers below `count`, a pure function of `identity`."""
    return np.argsort(words(count, *identity), kind="stable").astype(np.int64)


class Order:
    """The sequence of one rank. Memory: at most two windows.

    Args:
        sizes: number of samples of each shard.
        seed: for the permutations.
        rank: this process's number, from 0.
        world_size: the number of processes that share each epoch.
        window: number of samples to shuffle together.

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
            raise DataError(f"{self.total} samples cannot be shared among {world_size} processes")
        self._sizes = np.asarray(sizes, np.int64)
        self._seed, self._rank, self._world = seed, rank, world_size
        self._window = max(1, window)
        self._whole = self.total <= self._window
        self._blocks = -(-self.per_rank // self._window)
        # Instances are pickled for other processes, without these caches.
        self._arrangement = functools.lru_cache(maxsize=2)(self._arrange_shards)
        self._block = functools.lru_cache(maxsize=2)(self._make_block)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        sizes = tuple(self._sizes.tolist())
        return _rebuild, (sizes, self._seed, self._rank, self._world, self._window)

    def at(self, position: int, attempt: int = 0) -> Location:
        """Return where the sample at a position is stored.

        Args:
            position: from 0, without end.
            attempt: 0 for the sample itself; from 1 up, a replacement from the same window.
        """
        epoch, offset = divmod(position, self.per_rank)
        number = offset * self._blocks // self.per_rank
        begin, end = self._bounds(number), self._bounds(number + 1)
        within = offset - begin
        if attempt:
            word = int(words(1, "again", self._seed, self._rank, position, attempt)[0])
            within = word % (end - begin)
        if self._whole:
            first = self._rank * self.per_rank
            return self._locate(epoch, int(self._block(epoch, -1)[first + begin + within]))
        return self._locate(epoch, begin + int(self._block(epoch, number)[within]))

    def window(self, position: int) -> range:
        """Return the positions that are shuffled together with this one, itself included.

        They belong to one epoch, and each holds another sample.
        """
        epoch, offset = divmod(position, self.per_rank)
        number = offset * self._blocks // self.per_rank
        first = epoch * self.per_rank
        return range(first + self._bounds(number), first + self._bounds(number + 1))

    def _bounds(self, number: int) -> int:
        """Return the first offset of window `number`; window sizes differ by at most one."""
        return -(-number * self.per_rank // self._blocks)

    def _make_block(self, epoch: int, number: int) -> NDArray[np.int64]:
        if number < 0:  # the whole set
            return permutation(self.total, "samples", self._seed, epoch)
        count = self._bounds(number + 1) - self._bounds(number)
        return permutation(count, "window", self._seed, epoch, self._world, self._rank, number)

    def _arrange_shards(self, epoch: int) -> tuple[NDArray[np.int64], list[int], int]:
        """Return the shards in this epoch's order, the end of each, and the rotation."""
        if self._whole:  # the set is shuffled as a whole, so the order of shards is irrelevant
            shards = np.arange(len(self._sizes))
            return shards, np.cumsum(self._sizes).tolist(), 0
        shards = permutation(len(self._sizes), "shards", self._seed, epoch)
        rotation = int(words(1, "turn", self._seed, epoch)[0]) % self.total
        return shards, np.cumsum(self._sizes[shards]).tolist(), rotation

    def _locate(self, epoch: int, offset: int) -> Location:
        shards, ends, rotation = self._arrangement(epoch)
        if not self._whole:
            offset = (offset + self._rank * self.per_rank + rotation) % self.total
        number = bisect.bisect_right(ends, offset)
        return Location(epoch, int(shards[number]), offset - (ends[number - 1] if number else 0))


def _rebuild(sizes: Sequence[int], seed: int, rank: int, world_size: int, window: int) -> Order:
    return Order(sizes, seed=seed, rank=rank, world_size=world_size, window=window)
