"""What near duplicates and bursts have in common: vectors, files that are there, groups.

N: contents with a file that is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import count_of
from pocketclip.progress import ProgressReporter
from pocketclip.search.duplicates.files import Files
from pocketclip.search.duplicates.records import DuplicateGroup, Kind
from pocketclip.search.duplicates.table import Table
from pocketclip.search.vectors.matrix import Matrix

Members: TypeAlias = list[tuple[int, float]]
"""Places in the table, each with its similarity to the first, which is the best."""


class Candidates:
    """The photographs of a library, as far as they have vectors and files."""

    def __init__(self, table: Table, files: Files, matrix: Matrix, job: ProgressReporter) -> None:
        self.table, self.files, self.job = table, files, job
        self.usable = np.zeros(len(table.ids), np.bool_)
        """(N,): whether there is a vector and, as far as is known, a file."""
        self.remarks: list[str] = []
        self._matrix, self._row = matrix, np.zeros(len(table.ids), np.int64)
        if len(matrix):
            row = np.searchsorted(matrix.ids, table.ids).clip(max=len(matrix) - 1)
            self.usable, self._row = matrix.ids[row] == table.ids, row
        missing = int(np.count_nonzero(table.readable & ~self.usable))
        if missing:
            self.remarks.append(
                f"{count_of(missing, 'photograph')} not encoded yet, so compared by bytes only: "
                "run `pocketclip index`"
            )

    def vectors(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of some contents at unit length: stored ones are rounded."""
        vectors = self._matrix.vectors(self._row[places])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)

    def settled(self, make: Callable[[], list[Members]]) -> list[Members]:
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

    def group(
        self, kind: Kind, members: Members, pixels: dict[tuple[int, int], float] | None = None
    ) -> DuplicateGroup:
        """Return a group as it is given back.

        Args:
            kind: its kind.
            members: the best one first.
            pixels: correlations of pixels, by the places of the best and the other.
        """
        table, files, (best, _) = self.table, self.files, members[0]
        found = [files.duplicate(int(table.ids[best]))]
        for place, similarity in members[1:]:
            distance = None
            if table.hashed[best] and table.hashed[place]:
                distance = (int(table.hashes[best]) ^ int(table.hashes[place])).bit_count()
            agreement = pixels.get((best, place)) if pixels else None
            found.append(files.duplicate(int(table.ids[place]), distance, similarity, agreement))
        return DuplicateGroup(kind, tuple(found))
