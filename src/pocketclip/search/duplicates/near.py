"""Near duplicates: one shot, saved at another size or quality, or cropped a little.

N: contents with a file that is there. U: distinct perceptual hashes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import ImageError
from pocketclip.search.duplicates.candidates import Candidates, Members
from pocketclip.search.duplicates.close_hashes import MAX_PAIRS, TooManyPairsError, close_pairs
from pocketclip.search.duplicates.records import DuplicateGroup
from pocketclip.search.duplicates.same_picture import grey, overlap
from pocketclip.search.similar import DuplicateLimits, may_be_copies

if TYPE_CHECKING:
    from PIL.Image import Image

_THREADS = 4
_MOST_TRIES = 3  # photographs whose pixels one may be compared with in vain
_STEP = 1000  # photographs between reports of progress


class NearDuplicates:
    """Finds near duplicates; `limits` are what counted in the end."""

    def __init__(self, candidates: Candidates, limits: DuplicateLimits) -> None:
        self.limits = limits
        self.remarks: list[str] = []
        self._all = candidates
        # Of pairs (best, other); -1 if a file cannot be read. And how often it was too low (N,).
        self._pixels: dict[tuple[int, int], float] = {}
        self._tries = np.zeros(len(candidates.table.ids), np.int64)
        self._unread: dict[int, str] = {}

    def find(self) -> list[DuplicateGroup]:
        """Return the groups of near duplicates."""
        table = self._all.table
        places = np.flatnonzero(self._all.usable & table.hashed)
        distinct, which = np.unique(table.hashes[places], return_inverse=True)
        neighbours = self._neighbours(distinct)
        members = _Lists.by_key(which, np.arange(len(places)), len(distinct))
        several = neighbours.counts + (members.counts > 1)
        order = np.flatnonzero(several[which] > 0)
        order = order[np.argsort(table.rank[places[order]])]

        def make() -> list[Members]:
            self._all.job.stage("comparing photographs that look alike")
            return self._around_best(places, which, order, neighbours, members)

        while True:
            groups = self._all.settled(make)
            pairs = [
                (group[0][0], place)
                for group in groups
                for place, _ in group[1:]
                if (group[0][0], place) not in self._pixels
            ]
            if not pairs or self.limits.near_pixels <= -1:
                self.remarks += [
                    f"not a near duplicate, as it cannot be read now: {reason}"
                    for reason in self._unread.values()
                ]
                return [self._all.group("near", group, self._pixels) for group in groups]
            self._compare_pixels(pairs)

    def _compare_pixels(self, pairs: list[tuple[int, int]]) -> None:
        """Note how far the pixels of pairs (best, other) agree."""
        self._all.job.stage("comparing pixels")
        by_best: dict[int, list[int]] = {}
        for best, other in pairs:
            by_best.setdefault(best, []).append(other)

        def compare(best: int) -> list[float]:
            first = self._grey(best)
            return [self._overlap(first, self._grey(other)) for other in by_best[best]]

        done = 0
        with ThreadPoolExecutor(_THREADS) as pool:
            for (best, others), values in zip(
                by_best.items(), pool.map(compare, by_best), strict=True
            ):
                for other, value in zip(others, values, strict=True):
                    self._pixels[best, other] = value
                    self._tries[other] += value < self.limits.near_pixels
                done += len(others)
                self._all.job.progress(done, len(pairs), "pairs")

    def _grey(self, place: int) -> Image | None:
        try:
            return grey(self._all.files.path(int(self._all.table.ids[place])))
        except ImageError as error:  # it could be read when it was indexed
            self._unread[place] = str(error)
            return None

    @staticmethod
    def _overlap(first: Image | None, second: Image | None) -> float:
        return -1.0 if first is None or second is None else overlap(first, second)

    def _neighbours(self, distinct: NDArray[np.uint64]) -> _Lists:
        """Return the close hashes of each hash (U,)."""
        self._all.job.stage("comparing perceptual hashes")
        asked = self.limits.near_distance
        while True:
            try:
                first, second = close_pairs(
                    distinct, self.limits.near_distance, progress=self._all.job.progress
                )
                break
            except TooManyPairsError:
                fewer = self.limits.near_distance // 2
                self.limits = replace(self.limits, near_distance=fewer)
        if self.limits.near_distance != asked:
            self.remarks.append(
                f"more than {MAX_PAIRS:,} pairs of photographs look alike, so the hashes of near "
                f"duplicates may differ in {self.limits.near_distance} bits here, not {asked}"
            )
        both = np.concatenate([first, second]), np.concatenate([second, first])
        return _Lists.by_key(*both, len(distinct))

    def _around_best(
        self,
        places: NDArray[np.int64],
        which: NDArray[np.int64],
        order: NDArray[np.int64],
        neighbours: _Lists,
        members: _Lists,
    ) -> list[Members]:
        """Return groups of (place, similarity to the first), best first."""
        table, groups = self._all.table, []
        free = self._all.usable[places]
        for done, best in enumerate(order.tolist()):
            if done % _STEP == 0:
                self._all.job.progress(done, len(order), "photographs")
            if not free[best]:
                continue
            free[best] = False
            own = which[best]
            others = np.concatenate(
                [members.of(own), *(members.of(one) for one in neighbours.of(own).tolist())]
            )
            others = others[free[others]]
            if not len(others):
                continue
            place, candidates = int(places[best]), places[others]
            fits = may_be_copies(
                (table.taken[place], table.ratio[place]),
                (table.taken[candidates], table.ratio[candidates]),
            )
            others, candidates = others[fits], candidates[fits]
            if not len(others):
                continue
            vector = self._all.vectors(np.array([place]))[0]
            similarities = self._all.vectors(candidates) @ vector
            alike = similarities >= self.limits.near_similarity
            alike &= self._may_agree(place, candidates)
            if not alike.any():
                continue
            free[others[alike]] = False
            found = list(zip(candidates[alike].tolist(), similarities[alike].tolist(), strict=True))
            groups.append([(place, 1.0), *sorted(found, key=lambda one: table.rank[one[0]])])
        return groups

    def _may_agree(self, best: int, others: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whose pixels agree with the best one's, or were not compared yet."""
        known = np.array([self._pixels.get((best, other), np.nan) for other in others.tolist()])
        agree: NDArray[np.bool_] = known >= self.limits.near_pixels
        # Of thousands of shots of one scene each would be compared with each.
        return agree | (np.isnan(known) & (self._tries[others] < _MOST_TRIES))


class _Lists:
    """A list of numbers for each of several keys."""

    def __init__(self, starts: NDArray[np.int64], values: NDArray[np.int64]) -> None:
        self.starts, self.values = starts, values
        self.counts = np.diff(starts)

    @classmethod
    def by_key(
        cls, keys: NDArray[np.integer[Any]], values: NDArray[np.integer[Any]], count: int
    ) -> _Lists:
        """Return the values of each key from 0 to `count`."""
        starts = np.append(0, np.cumsum(np.bincount(keys, minlength=count)))
        return cls(
            starts.astype(np.int64), values[np.argsort(keys, kind="stable")].astype(np.int64)
        )

    def of(self, key: int) -> NDArray[np.int64]:
        """Return the values of one key."""
        return self.values[self.starts[key] : self.starts[key + 1]]
