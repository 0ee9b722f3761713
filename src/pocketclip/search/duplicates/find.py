"""Finds duplicates: equal files, copies of another size or quality, and bursts. Changes nothing.

    report = find_duplicates(database)
    [one.path for one in report.of_kind("near")[0].photographs]

Three kinds that are kept apart:

- exact: the same bytes.
- near: the same shot, saved at another size or quality or cropped a little. The perceptual hashes
  are close and the embeddings as well, the sides have nearly the same ratio, and the camera's time
  is not another. Where all that is so, the pixels are compared. So two shots of one scene are not
  near duplicates.
- burst: shots of one camera, each within seconds of the next, whose embeddings are close.

A photograph is in one group of a kind. Groups are made around the best photographs, best first:
what is in a group is alike to its best, so chains do not grow. Blank photographs have no perceptual
hash. Turned, mirrored and heavily cropped copies are not found.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np

from pocketclip.errors import ConfigError
from pocketclip.progress import ProgressReporter, as_reporter
from pocketclip.search.duplicates.bursts import Bursts
from pocketclip.search.duplicates.candidates import Candidates
from pocketclip.search.duplicates.files import Files
from pocketclip.search.duplicates.near import NearDuplicates
from pocketclip.search.duplicates.records import KINDS, DuplicateGroup, DuplicateReport, Kind
from pocketclip.search.duplicates.table import read_table
from pocketclip.search.similar import DEFAULT_LIMITS, DuplicateLimits
from pocketclip.search.store.database import Database
from pocketclip.search.vectors.matrix import Matrix, open_matrix


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
    groups: list[DuplicateGroup] = []
    remarks: list[str] = []
    if "exact" in kinds:
        job.stage("looking for the files")
        groups += sorted(files.exact_groups(), key=_by_room)
    if "near" in kinds or "burst" in kinds:
        matrix = open_matrix(database) if matrix is None else matrix
        candidates = Candidates(table, files, matrix, job)
        remarks += candidates.remarks
    if "near" in kinds:
        near = NearDuplicates(candidates, limits)
        groups += sorted(near.find(), key=_by_room)
        limits, remarks = near.limits, remarks + near.remarks
    if "burst" in kinds:
        groups += Bursts(candidates, limits).find()
    return DuplicateReport(
        kinds=tuple(kind for kind in KINDS if kind in kinds),
        limits=limits,
        groups=tuple(groups),
        searched=len(table.ids),
        blank=int(np.count_nonzero(table.readable & ~table.hashed)),
        untimed=int(np.count_nonzero(table.readable & ~table.timed)),
        outdated=files.outdated,
        remarks=tuple(remarks),
    )


def _by_room(group: DuplicateGroup) -> tuple[int, bytes]:
    return -group.room, os.fsencode(group.photographs[0].path)
