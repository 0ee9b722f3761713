"""Uids that come twice in a table, found in 8 bytes per row (16 for a moment, at the end)."""

from __future__ import annotations

import hashlib
from array import array
from collections import defaultdict

import numpy as np

_AT_ONCE = 1 << 20

Twins = tuple[tuple[int, int], ...]
"""Pairs of a shard whose uid another pair of the table has already: (index within the shard,
number of the first one among all pairs of the table), both from 0."""


class SeenUids:
    """The uids of a table, in order, as 64 bits of a hash each.

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
        """Return the twins by shard, if each but the last has `shard_size` pairs."""
        every = np.frombuffer(self._hashes, np.uint64) if self._hashes else np.empty(0, np.uint64)
        ordered = np.sort(every)
        repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        del ordered
        if not len(repeated):
            return {}
        first: dict[int, int] = {}
        found: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for start in range(0, len(every), _AT_ONCE):
            part = every[start : start + _AT_ONCE]
            # Only those that come twice are looked at one by one: few, one hopes.
            for place in (start + np.flatnonzero(np.isin(part, repeated))).tolist():
                earlier = first.setdefault(int(every[place]), place)
                if earlier != place:
                    found[place // shard_size].append((place % shard_size, earlier))
        return {shard: tuple(pairs) for shard, pairs in found.items()}
