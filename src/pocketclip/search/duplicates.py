"""Finds duplicates: equal files, copies of another size or quality, and bursts. Changes nothing.

    report = find_duplicates(database)
    [one.path for one in report.of_kind("near")[0].photographs]

Three kinds that are kept apart:

- exact: the same bytes.
- near: the same shot, saved at another size or quality or cropped a little. The perceptual hashes
  are close and the embeddings as well, the sides have the same ratio, and the camera's time is not
  another: two shots of one scene are not near duplicates.
- burst: shots of one camera, each within seconds of the next, whose embeddings are close.

A photograph is in one group of a kind. Groups are made around the best photographs, best first:
what is in a group is alike to its best, so chains do not grow. Blank photographs have no perceptual
hash. Turned, mirrored and heavily cropped copies are not found.

N: contents with a file that is there. U: distinct perceptual hashes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import ConfigError, count_of
from pocketclip.progress import ProgressReporter, as_reporter
from pocketclip.search.close_hashes import MAX_PAIRS, TooManyPairsError, close_pairs
from pocketclip.search.database import Database
from pocketclip.search.duplicate_files import Files
from pocketclip.search.duplicate_records import (
    KINDS,
    Duplicate,
    DuplicateGroup,
    DuplicateReport,
    Kind,
)
from pocketclip.search.duplicate_table import Table, read_table
from pocketclip.search.matrix import Matrix, open_matrix
from pocketclip.search.perceptual_hash import hamming_distances
from pocketclip.search.similar import DEFAULT_LIMITS, DuplicateLimits, may_be_copies

_STEP = 1000  # photographs between reports of progress
_WALK = 64  # photographs of a burst whose vectors are read at a time


def find_duplicates(
    database: Database,
    *,
    kinds: Sequence[Kind] = KINDS,
    limits: DuplicateLimits = DEFAULT_LIMITS,
    folders: Sequence[str | os.PathLike[str]] = (),
    matrix: Matrix | None = None,
    reporter: ProgressReporter | Callable[[str], None] | None = None,
) -> DuplicateReport:
    """Return the duplicates among the photographs of a library that are there now.

    Args:
        database: the library.
        kinds: what to look for: `exact`, `near`, `burst`.
        limits: what counts as a near duplicate and as a burst.
        folders: look only at files in these; see `pocketclip.search.folders`.
        matrix: the library's vectors, if they are open already.
        reporter: receives the stages and the progress.

    Raises:
        ConfigError: a kind does not exist.
        QueryError: a folder is not in the library.
        LibraryError: the library cannot be read.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        named = f"{unknown[0]!r} is no kind of duplicates" if unknown else "no kind is given"
        raise ConfigError(f"{named}: choose from {', '.join(KINDS)}")
    job = as_reporter(reporter)
    job.stage("reading the library")
    table = read_table(database, folders)
    files = Files(database, table, folders)
    finder = _Finder(table, files, limits, job)
    if {"near", "burst"} & set(kinds):
        finder.use(matrix or open_matrix(database))
    groups: list[DuplicateGroup] = []
    if "exact" in kinds:
        job.stage("looking for the files")
        groups += sorted(files.exact_groups(), key=_by_room)
    if "near" in kinds:
        groups += sorted(finder.near(), key=_by_room)
    if "burst" in kinds:
        groups += finder.bursts()
    return DuplicateReport(
        kinds=tuple(kind for kind in KINDS if kind in kinds),
        limits=finder.limits,
        groups=tuple(groups),
        searched=len(table.ids),
        blank=int(np.count_nonzero(~table.hashed)),
        untimed=int(np.count_nonzero(~table.timed)),
        outdated=files.outdated,
        remarks=tuple(finder.remarks),
    )


def _by_room(group: DuplicateGroup) -> tuple[int, bytes]:
    return -group.room, os.fsencode(group.photographs[0].path)


class _Finder:
    """Finds near duplicates and bursts."""

    def __init__(
        self, table: Table, files: Files, limits: DuplicateLimits, job: ProgressReporter
    ) -> None:
        self.table, self.files, self.limits, self.job = table, files, limits, job
        self.remarks: list[str] = []
        self.usable = np.zeros(len(table.ids), np.bool_)  # (N,): with a vector, and a file
        self.row = np.zeros(len(table.ids), np.int64)  # (N,): of the matrix

    def use(self, matrix: Matrix) -> None:
        """Take the vectors of a matrix."""
        self.matrix = matrix
        if len(matrix):
            row = np.searchsorted(matrix.ids, self.table.ids).clip(max=len(matrix) - 1)
            self.usable, self.row = matrix.ids[row] == self.table.ids, row
        missing = int(np.count_nonzero(~self.usable))
        if missing:
            self.remarks.append(
                f"{count_of(missing, 'photograph')} not encoded yet, so compared by bytes only: "
                "run `pocketclip index`"
            )

    def _vectors(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of some contents at unit length: stored ones are rounded."""
        vectors = self.matrix.vectors(self.row[places])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)

    def _settled(
        self, make: Callable[[], list[list[tuple[int, float]]]]
    ) -> list[list[tuple[int, float]]]:
        """Return the groups once the files of all their members are there.

        A member that is gone may be the best one, so groups are made again without it.
        """
        while True:
            groups = make()
            members = (int(self.table.ids[place]) for group in groups for place, _ in group)
            gone = self.files.load(members)
            if not gone:
                return groups
            self.usable[np.searchsorted(self.table.ids, gone)] = False

    # Near duplicates.

    def near(self) -> list[DuplicateGroup]:
        """Return the groups of near duplicates."""
        table = self.table
        places = np.flatnonzero(self.usable & table.hashed)
        distinct, which = np.unique(table.hashes[places], return_inverse=True)
        neighbours = self._neighbours(distinct)
        members = _Lists.by_key(which, np.arange(len(places)), len(distinct))
        several = neighbours.counts + (members.counts > 1)
        order = np.flatnonzero(several[which] > 0)
        order = order[np.argsort(table.rank[places[order]])]

        def make() -> list[list[tuple[int, float]]]:
            self.job.stage("comparing photographs that look alike")
            return self._around_best(places, which, order, neighbours, members)

        return [self._group("near", group) for group in self._settled(make)]

    def _neighbours(self, distinct: NDArray[np.uint64]) -> _Lists:
        """Return the close hashes of each hash (U,)."""
        self.job.stage("comparing perceptual hashes")
        asked = self.limits.near_distance
        while True:
            try:
                first, second = close_pairs(
                    distinct, self.limits.near_distance, progress=self.job.progress
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
    ) -> list[list[tuple[int, float]]]:
        """Return groups of (place, similarity to the first), best first."""
        table, groups = self.table, []
        free = self.usable[places]
        for done, best in enumerate(order.tolist()):
            if done % _STEP == 0:
                self.job.progress(done, len(order), "photographs")
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
            vector = self._vectors(np.array([place]))[0]
            similarities = self._vectors(candidates) @ vector
            alike = similarities >= self.limits.near_similarity
            if not alike.any():
                continue
            free[others[alike]] = False
            found = list(zip(candidates[alike].tolist(), similarities[alike].tolist(), strict=True))
            groups.append([(place, 1.0), *sorted(found, key=lambda one: table.rank[one[0]])])
        return groups

    # Bursts.

    def bursts(self) -> list[DuplicateGroup]:
        """Return the bursts, in the order of time."""
        groups = self._settled(lambda: list(self._bursts()))
        groups.sort(key=lambda group: (self.table.taken[group[0][0]], group[0][0]))
        return [self._group("burst", group) for group in groups]

    def _bursts(self) -> Iterator[list[tuple[int, float]]]:
        table = self.table
        self.job.stage("comparing photographs of the same moments")
        places = np.flatnonzero(self.usable & table.timed)
        places = places[np.lexsort((table.rank[places], table.taken[places], table.camera[places]))]
        time, camera = table.taken[places], table.camera[places]
        parted = (np.diff(camera) != 0) | (np.diff(time) > self.limits.burst_seconds)
        ends = np.append(np.flatnonzero(parted) + 1, len(places))
        begin = 0
        for done, end in enumerate(ends.tolist()):
            if done % _STEP == 0:
                self.job.progress(done, len(ends), "moments")
            if end - begin > 1:
                yield from self._bursts_of(self._different(places[begin:end]))
            begin = end

    def _different(self, run: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the photographs of a run without copies of one shot, which have the same time."""
        table, kept = self.table, np.ones(len(run), np.bool_)
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
                similarities = self._vectors(originals[close]) @ self._vectors(copy)[0]
                kept[at + 1] = not (similarities >= self.limits.near_similarity).any()
        return run[kept]

    def _bursts_of(self, run: NDArray[np.int64]) -> Iterator[list[tuple[int, float]]]:
        """Yield the bursts of photographs that follow each other within seconds.

        The best one and its neighbours as far as they are similar to it; then what is left.
        """
        open_runs = [run]
        while open_runs:
            run = open_runs.pop()
            if len(run) < 2:
                continue
            at = int(np.argmin(self.table.rank[run]))
            vector = self._vectors(run[at : at + 1])[0]
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
            values = self._vectors(run[begin : begin + _WALK]) @ vector
            low = np.flatnonzero(values < self.limits.burst_similarity)
            found += values[: low[0] if len(low) else None].tolist()
            if len(low):
                break
        return found

    def _group(self, kind: Kind, group: list[tuple[int, float]]) -> DuplicateGroup:
        table, (best, _) = self.table, group[0]
        members: list[Duplicate] = []
        for place, similarity in group:
            content = int(table.ids[place])
            distance = None
            if table.hashed[best] and table.hashed[place]:
                distance = (int(table.hashes[best]) ^ int(table.hashes[place])).bit_count()
            first = place == best
            members.append(
                self.files.duplicate(
                    content, None if first else distance, None if first else similarity
                )
            )
        return DuplicateGroup(kind, tuple(members))


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
