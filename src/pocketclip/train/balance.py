"""Class-balanced sampling: samples of rare classes are drawn more often.

    order = open_balanced_order(source, "dr", 0.5, seed=0)
    order.at(5_000_000)  # Location(epoch=3787, shard=2, index=17, repeat=1)

A class is the samples with one first ground-truth caption. A class of n samples is drawn in
proportion to `n ** (1 - balance)`: 0 leaves the frequencies as they are, 1 draws every class
equally often, 0.5 is the square root of Mahajan et al. (arXiv 1805.00932), section 2.2.

An epoch has as many draws as there are samples, shuffled as a whole. Each class gets its share of
them, rounded up or down at random so that shares below 1 come true over the epochs. Within an
epoch, no sample of a class is drawn again before all of it were drawn. The sequence is a pure
function of (captions, balance, seed, epoch, world size), as that of `order`.

Cost: every process of a training reads all captions when the data is opened, in about 0.1 ms each
(10 million: a quarter of an hour). Then 8 bytes per sample, and up to 32 in each worker of the
loader, which takes some seconds per 10 million samples to begin an epoch. Consecutive samples come
from any shard.

Shapes: N samples, C classes.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip import storage
from pocketclip.errors import ConfigError, DataError, count_of
from pocketclip.train.order import Location, permutation, words
from pocketclip.train.raw_pairs import PairSource
from pocketclip.train.sources import ShardError, ShardSource

_LEFT_OUT = -1
_CLASSES_KEPT = 4096  # whose permutations a process keeps
log = logging.getLogger(__name__)


class BalancedOrder:
    """The balanced sequence of one rank; takes the place of `order.Order`.

    Args:
        sizes: number of samples of each shard.
        labels: (N,) the class of each sample, in the order of shards; negative: never drawn.
        balance: above 0, up to 1.
        seed: for the random choices.
        rank: this process's number, from 0.
        world_size: the number of processes that share each epoch.

    Raises:
        DataError: there are fewer samples than ranks.
    """

    def __init__(
        self,
        sizes: list[int],
        labels: NDArray[np.integer[Any]],
        *,
        balance: float,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._arguments = (sizes, labels, balance, seed, rank, world_size)
        self._ends = np.cumsum(sizes)
        by_class = np.argsort(labels, kind="stable").astype(np.int32)
        self._members = by_class[int((labels < 0).sum()) :]  # samples, class by class
        self.total = len(self._members)
        self.per_rank = self.total // world_size
        if self.per_rank < 1:
            raise DataError(f"{self.total} samples cannot be shared among {world_size} processes")
        counts = np.unique(labels[self._members], return_counts=True)[1]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        shares = np.cumsum(counts.astype(np.float64) ** (1 - balance))
        self._shares = np.concatenate([[0.0], shares / shares[-1]])
        self._seed, self._rank = seed, rank
        # Instances are pickled for other processes, without these caches.
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)
        self._shuffled = functools.lru_cache(maxsize=_CLASSES_KEPT)(self._shuffle_class)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return _rebuild, self._arguments

    def at(self, position: int, attempt: int = 0) -> Location:
        """Return where the sample at a position is stored, and how often it came before.

        Args:
            position: from 0, without end.
            attempt: 0 for the sample itself; from 1 up, a replacement from the same epoch.
        """
        epoch, offset = divmod(position, self.per_rank)
        draws, firsts = self._epoch(epoch)
        draw = int(draws[self._rank * self.per_rank + offset])
        if attempt:
            # Of any class: all samples of this one may be unusable.
            word = words(1, "balanced again", self._seed, self._rank, position, attempt)
            draw = int(word[0]) % self.total
        label = int(np.searchsorted(firsts, draw, side="right")) - 1
        begin, end = int(self._starts[label]), int(self._starts[label + 1])
        repeat, within = divmod(draw - int(firsts[label]), end - begin)
        chosen = int(self._shuffled(epoch, label, repeat)[within])
        sample = int(self._members[begin + chosen])
        shard = int(np.searchsorted(self._ends, sample, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        return Location(epoch, shard, sample - first, repeat)

    def window(self, position: int) -> range:
        """Return the positions of this one's epoch; a sample may be at several of them."""
        first = position - position % self.per_rank
        return range(first, first + self.per_rank)

    def _make_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the numbers of the draws in their order (N,), and each class's first (C + 1,)."""
        # Systematic sampling: evenly spaced points, all shifted by one random amount, fall into
        # intervals as long as the shares. A class gets its share, rounded up or down.
        shift = int(words(1, "balanced shift", self._seed, epoch)[0]) / 2.0**64
        firsts = np.ceil(self._shares * self.total - shift).astype(np.int64)
        firsts[-1] = self.total
        return permutation(self.total, "balanced", self._seed, epoch), firsts

    def _shuffle_class(self, epoch: int, label: int, repeat: int) -> NDArray[np.int64]:
        count = int(self._starts[label + 1] - self._starts[label])
        return permutation(count, "class", self._seed, epoch, label, repeat)


def _rebuild(
    sizes: list[int], labels: NDArray[Any], balance: float, seed: int, rank: int, world_size: int
) -> BalancedOrder:
    return BalancedOrder(
        sizes, labels, balance=balance, seed=seed, rank=rank, world_size=world_size
    )


def open_balanced_order(
    source: ShardSource | PairSource,
    name: object,
    balance: float,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> BalancedOrder:
    """Read all captions and return the balanced order of a source's samples.

    Samples that cannot be read are left out, with a warning that counts them.

    Args:
        source: the opened data, on a local disk.
        name: its path, for messages.
        balance: above 0, up to 1; see `BalancedOrder`.
        seed: for the random choices.
        rank: this process's number, from 0; the first one logs the classes.
        world_size: the number of processes that share each epoch.

    Raises:
        ConfigError: the shards are in an object store.
        DataError: a sample has no ground-truth caption, or none can be read.
    """
    if isinstance(source, ShardSource) and any(map(storage.is_remote, source.paths)):
        raise ConfigError(
            f"{name}: data.balance reads every caption before the first step, which would fetch "
            "all shards from the store; copy them to a local disk, or set data.balance=0"
        )
    labels = _read_labels(source, name)
    order = BalancedOrder(
        source.sizes, labels, balance=balance, seed=seed, rank=rank, world_size=world_size
    )
    if rank == 0:
        counts = np.unique(labels[labels >= 0], return_counts=True)[1]
        log.info(
            "data.balance %g: %s of %d to %s",
            balance, count_of(len(counts), "class", "classes"), counts.min(),
            count_of(int(counts.max()), "sample"),
        )  # fmt: skip
        if counts.min() == counts.max():
            log.warning(
                "%s: data.balance has no effect: each of the %s has %s", name,
                count_of(len(counts), "caption"), count_of(int(counts.max()), "sample"),
            )  # fmt: skip
    return order


def _read_labels(source: ShardSource | PairSource, name: object) -> NDArray[np.int32]:
    """Return the class of each sample (N,), from 0; samples that cannot be read have -1."""
    # Hashes of 8 bytes: millions of different texts would take gigabytes.
    hashes = np.zeros(sum(source.sizes), np.uint64)
    readable = np.ones(len(hashes), bool)
    number, reason = 0, ""
    for shard, size in enumerate(source.sizes):
        for index in range(size):
            try:
                text = source.first_caption(shard, index)
            except ShardError:
                raise
            except DataError as error:
                readable[number], reason = False, reason or str(error)
            else:
                if text is None:
                    raise DataError(
                        f"{name}: sample {index} of shard {shard} has no ground-truth caption, "
                        "which data.balance sorts samples by; give every sample one, or set "
                        "data.balance=0"
                    )
                digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
                hashes[number] = int.from_bytes(digest.digest(), "little")
            number += 1
    bad = len(readable) - int(readable.sum())
    if bad == len(readable):
        raise DataError(f"{name}: no caption can be read; the first: {reason}")
    if bad:
        log.warning(
            "%s: %s cannot be read and will not be drawn; the first: %s",
            name, count_of(bad, "sample"), reason,
        )  # fmt: skip
    labels = np.full(len(hashes), _LEFT_OUT, np.int32)
    labels[readable] = np.unique(hashes[readable], return_inverse=True)[1]
    return labels
