"""Finds the pairs of hashes that differ in few bits, without comparing each with each.

    first, second = close_pairs(hashes, 8)

The bits are divided into d + k blocks. Two hashes that differ in at most d bits differ in at most d
blocks, so at least k blocks are equal. For each choice of k blocks the hashes are sorted by these,
and compared where all k are equal: the more blocks, the more sortings, and the fewer comparisons.
(The idea of Manku, Jain and Das Sarma, "Detecting near-duplicates for web crawling", WWW 2007.)

U: distinct hashes. P: pairs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from pocketclip.search.indexing.perceptual_hash import BITS, hamming_distances

MAX_PAIRS = 20_000_000
"""Limit on P: 160 MB. More are found only where thousands of photographs look alike."""
_MOST_EQUAL = 4  # blocks
_SORTED, _COMPARED = 100.0, 12.0  # nanoseconds for one hash, measured


class TooManyPairsError(Exception):
    """More than `MAX_PAIRS` pairs."""


def close_pairs(
    hashes: NDArray[np.uint64],
    distance: int,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the positions (P,) and (P,) of all pairs that differ in at most `distance` bits.

    Args:
        hashes: distinct hashes (U,) of `BITS` bits.
        distance: the largest number of different bits.
        progress: called with the number of sortings done and needed.

    Returns:
        Every pair once, the smaller position first, in no particular order.

    Raises:
        TooManyPairsError: there are more than `MAX_PAIRS`.
    """
    firsts, seconds = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    if distance < 1 or len(hashes) < 2:
        return firsts[0], seconds[0]
    equal = _equal_blocks(len(hashes), distance)
    mixed, masks = _blocks(hashes, distance + equal)
    choices = list(itertools.combinations(range(len(masks)), equal))
    found = 0
    for done, chosen in enumerate(choices, 1):
        mask = np.bitwise_or.reduce(masks[list(chosen)])
        # A pair that agrees in more blocks is counted where the chosen ones are its first.
        others = [masks[block] for block in range(chosen[-1]) if block not in chosen]
        order = np.argsort(mixed & mask).astype(np.int32)
        ordered = mixed[order]
        for a, b in _close_neighbours(ordered, mask, distance):
            different = ordered[a] ^ ordered[b]
            for other in others:
                first_here = different & other != 0
                a, b, different = a[first_here], b[first_here], different[first_here]
            firsts.append(np.minimum(order[a], order[b]))
            seconds.append(np.maximum(order[a], order[b]))
            found += len(a)
            if found > MAX_PAIRS:
                raise TooManyPairsError
        if progress is not None:
            progress(done, len(choices))
    return np.concatenate(firsts), np.concatenate(seconds)


def _equal_blocks(count: int, distance: int) -> int:
    """Return the number of equal blocks that makes the search quickest."""

    def cost(equal: int) -> float:
        blocks = distance + equal
        pairs = count * count / 2 / 2 ** (BITS * equal / blocks)
        return math.comb(blocks, equal) * (count * _SORTED + pairs * _COMPARED)

    return min(range(1, _MOST_EQUAL + 1), key=cost)


def _blocks(
    hashes: NDArray[np.uint64], count: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the hashes with their bits in another order, and the masks of blocks of bits.

    Each block gets bits of all frequencies: neighbouring ones depend on each other.
    """
    order = [bit for block in range(count) for bit in range(block, BITS, count)]
    mixed = np.zeros_like(hashes)
    for place, bit in enumerate(order):
        mixed |= (hashes >> np.uint64(bit) & np.uint64(1)) << np.uint64(place)
    sizes = [len(range(block, BITS, count)) for block in range(count)]
    ends = list(itertools.accumulate(sizes))
    masks = [(1 << end) - (1 << end - size) for size, end in zip(sizes, ends, strict=True)]
    return mixed, np.array(masks, np.uint64)


def _close_neighbours(
    ordered: NDArray[np.uint64], mask: np.uint64, distance: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield pairs of positions whose hashes agree in `mask` and are close, some at a time.

    `ordered` is sorted by the bits of `mask`.
    """
    keys = ordered & mask
    ends = np.append(np.flatnonzero(keys[1:] != keys[:-1]) + 1, len(keys))
    # Of each position: how many with the same key follow.
    following = np.repeat(ends, np.diff(ends, prepend=0)) - np.arange(len(keys)) - 1
    # Pairs of neighbours first, then those with one between them, and so on.
    position = np.flatnonzero(following)
    for step in itertools.count(1):
        position = position[following[position] >= step]
        if not len(position):
            return
        close = hamming_distances(ordered[position], ordered[position + step]) <= distance
        yield position[close], position[close] + step
