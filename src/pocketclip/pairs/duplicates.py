"""Duplicate uids in a table, found with 8 bytes per row (16 briefly, at the end)."""

from __future__ import annotations

import hashlib
from array import array
from collections import defaultdict

import numpy as np

_AT_ONCE = 1 << 20

Twins = tuple[tuple[int, int], ...]
"""Duplicates in a shard: (index within the shard, number of the first pair with that uid among all
pairs of the table), both counted from 0."""


class SeenUids:
    """The uids of a table in order, each as a 64-bit hash.

    Two different uids share a hash with a probability of 0.0003 among 100 million; a good pair
    would then be reported as a duplicate.
    """

    def __init__(self) -> None:
        self._hashes = array("Q")

    def add(self, uid: str) -> None:
        """Append the uid of the next pair."""
        hashed = hashlib.blake2b(uid.encode(), digest_size=8).digest()
        self._hashes.append(int.from_bytes(hashed, "little"))

    def twins(self, shard_size: int) -> dict[int, Twins]:
        """Return duplicates by shard; each shard but the last has `shard_size` pairs."""
        hashes = np.frombuffer(self._hashes, np.uint64) if self._hashes else np.empty(0, np.uint64)
        ordered = np.sort(hashes)
        repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        del ordered
        if not len(repeated):
            return {}
        first: dict[int, int] = {}
        twins: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for start in range(0, len(hashes), _AT_ONCE):
            block = hashes[start : start + _AT_ONCE]
            # Only repeated hashes, usually few, are visited one by one.
            for number in (start + np.flatnonzero(np.isin(block, repeated))).tolist():
                earlier = first.setdefault(int(hashes[number]), number)
                if earlier != number:
                    twins[number // shard_size].append((number % shard_size, earlier))
        return {shard: tuple(pairs) for shard, pairs in twins.items()}
