"""Bursts: shots of one camera, each within seconds of the next, that look alike."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pocketclip.search.duplicates.candidates import Candidates, Members
from pocketclip.search.duplicates.records import DuplicateGroup
from pocketclip.search.indexing.perceptual_hash import hamming_distances
from pocketclip.search.similar import DuplicateLimits

_STEP = 1000  # moments between reports of progress
_WALK = 64  # photographs whose vectors are read at a time


class Bursts:
    """Finds bursts."""

    def __init__(self, candidates: Candidates, limits: DuplicateLimits) -> None:
        self._all, self.limits = candidates, limits

    def find(self) -> list[DuplicateGroup]:
        """Return the bursts, in the order of time."""
        groups = self._all.settled(lambda: list(self._bursts()))
        groups.sort(key=lambda group: (self._all.table.taken[group[0][0]], group[0][0]))
        return [self._all.group("burst", group) for group in groups]

    def _bursts(self) -> Iterator[Members]:
        table = self._all.table
        self._all.job.stage("comparing photographs of the same moments")
        places = np.flatnonzero(self._all.usable & table.timed)
        places = places[np.lexsort((table.rank[places], table.taken[places], table.camera[places]))]
        time, camera = table.taken[places], table.camera[places]
        parted = (np.diff(camera) != 0) | (np.diff(time) > self.limits.burst_seconds)
        ends = np.append(np.flatnonzero(parted) + 1, len(places))
        begin = 0
        for done, end in enumerate(ends.tolist()):
            if done % _STEP == 0:
                self._all.job.progress(done, len(ends), "moments")
            if end - begin > 1:
                yield from self._bursts_of(self._different(places[begin:end]))
            begin = end

    def _different(self, run: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the photographs of a run without copies of one shot, which have the same time."""
        table, kept = self._all.table, np.ones(len(run), np.bool_)
        times = table.taken[run]
        for at in np.flatnonzero(np.diff(times) == 0).tolist():
            # The better ones of a time come first, so a copy follows what it is a copy of.
            same = np.flatnonzero(kept[: at + 1] & (times[: at + 1] == times[at + 1]))[-_WALK:]
            originals, copy = run[same], run[at + 1 : at + 2]
            close = table.hashed[originals] & table.hashed[copy] & (
                hamming_distances(table.hashes[originals], table.hashes[copy])
                <= self.limits.near_distance
            )  # fmt: skip
            if close.any():
                similarities = self._all.vectors(originals[close]) @ self._all.vectors(copy)[0]
                kept[at + 1] = not (similarities >= self.limits.near_similarity).any()
        return run[kept]

    def _bursts_of(self, run: NDArray[np.int64]) -> Iterator[Members]:
        """Yield the bursts of photographs that follow each other within seconds.

        The best one and its neighbours as far as they are similar to it; then what is left.
        """
        open_runs = [run]
        while open_runs:
            run = open_runs.pop()
            if len(run) < 2:
                continue
            at = int(np.argmin(self._all.table.rank[run]))
            vector = self._all.vectors(run[at : at + 1])[0]
            before = self._similar(run[:at][::-1], vector)
            after = self._similar(run[at + 1 :], vector)
            if before or after:
                # In the order of time.
                around = list(zip(run[at - len(before) : at].tolist(), before[::-1], strict=True))
                around += zip(run[at + 1 : at + 1 + len(after)].tolist(), after, strict=True)
                yield [(int(run[at]), 1.0), *around]
            open_runs += [run[: at - len(before)], run[at + 1 + len(after) :]]

    def _similar(self, run: NDArray[np.int64], vector: NDArray[np.float32]) -> list[float]:
        """Return the similarities of the first photographs of a run, as far as they suffice."""
        found: list[float] = []
        for begin in range(0, len(run), _WALK):
            values = self._all.vectors(run[begin : begin + _WALK]) @ vector
            low = np.flatnonzero(values < self.limits.burst_similarity)
            found += values[: low[0] if len(low) else None].tolist()
            if len(low):
                break
        return found
