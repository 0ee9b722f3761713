"""From scores to hits: files that are there, one hit per content, near duplicates as one group.

The order is the same every time: by score, then by the bytes of the path.

Shapes: N contents that have a vector, K candidates, D embedding.
"""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pocketclip.search.filters import Condition, clock_seconds
from pocketclip.search.indexing.walk import is_current, look_up
from pocketclip.search.records import Hit, PhotoFacts
from pocketclip.search.similar import group_similar
from pocketclip.search.store.database import Database, chunks_of_ids

if TYPE_CHECKING:
    from pocketclip.search.vectors.matrix import Matrix
    from pocketclip.types import Embeddings

_MARGIN = 4  # candidates per hit at first, for groups and files that are gone
_LEAST = 64
_SPARE = 2000  # candidates, at most, beyond the number of hits
_MOST = 4000  # photographs that are looked through for groups: of a time-lapse it would be all
_MOST_JUDGED = 10
_MOST_GROUPED = 2000  # hits that are looked through for groups; further ones follow one by one
_OF_CONTENT = (
    "c.digest, c.width, c.height, c.format, c.orientation, c.taken, "
    "c.taken_offset, c.camera, c.latitude, c.longitude"
)


@dataclass(frozen=True, slots=True)
class Ranked:
    """The best hits."""

    hits: list[Hit]
    best: Embeddings
    """Vectors (K, D) of the best contents that are there, groups not collapsed."""
    gone: int
    """Contents that would be among the hits, and whose files are not there."""
    below_score: bool
    """Whether hits were left out because of their score."""
    following: list[tuple[int, float]]
    """The contents that come after the hits, each with its score."""


@dataclass(slots=True)
class _File:
    """A file of a content, as it was indexed."""

    id: int
    root: bytes
    path: bytes
    size: int
    mtime_ns: int
    current: bool = True

    def check(self) -> bool:
        """Return whether it is there; note whether it is as it was."""
        now = look_up(self.root, self.path)
        if now is None:
            return False
        self.current = is_current(now, self.size, self.mtime_ns)
        self.size, self.mtime_ns = now.st_size, now.st_mtime_ns
        return True


@dataclass(slots=True)
class _Candidate:
    """A content with a file that is there and that the filters accept."""

    content: int
    row: int
    """Of the matrix."""
    score: float
    main: _File
    copies: list[_File]


def rank(
    database: Database, matrix: Matrix, query: Embeddings, made: Sequence[Condition], *,
    allowed: NDArray[np.bool_], top: int, min_score: float | None = None, following: int = 0,
) -> Ranked:  # fmt: skip
    """Return the best hits of a query.

    Args:
        database: the library.
        matrix: its vectors.
        query: a unit vector (D,).
        made: the filters, which the file of a hit passes; see `filters.conditions`.
        allowed: the contents (N,) to search in.
        top: the number of hits, that is of groups of near duplicates; fewer where thousands are
            alike.
        min_score: the least score of a hit.
        following: the number of contents to name after the hits. Near duplicates are left out of
            them, and files looked for, among the first ones, about `_MOST_GROUPED`.
    """
    from pocketclip.search.vectors.engines import search_matrix

    left = int(np.count_nonzero(allowed))
    some = None if left == len(allowed) else allowed
    wanted = max(top, min(top + following, _MOST_GROUPED))
    count = min(left, max(_LEAST, min(_MARGIN * wanted, wanted + _SPARE)))
    least = -np.inf if min_score is None else min_score
    while True:
        found, values = search_matrix(matrix, query[None], count, some)
        rows, scores = found[0], values[0]
        complete = len(rows) >= left
        if not complete:
            # Of equal scores some may be missing: which ones come first, their paths decide.
            keep = int(np.searchsorted(-scores, -scores[-1]))
            if keep or len(rows) < _MOST:
                rows, scores = rows[:keep], scores[:keep]
        candidates, gone = _candidates(database, matrix, rows, scores, made)
        passing = [one for one in candidates if one.score >= least]
        groups = _groups(database, matrix, passing)
        cut = bool(len(scores) and scores[-1] < least)
        enough = len(candidates) >= max(_MOST, 2 * top)
        if len(groups) >= top or complete or cut or enough:
            break
        count = min(left, (4 if count < _MOST else 2) * count)
    shown = groups[:top]
    last = shown[-1][0].score if len(groups) > top else least
    after = [(group[0].content, group[0].score) for group in groups[top:]]
    if len(after) < following and not complete and not cut:
        found, values = search_matrix(
            matrix, query[None], min(left, len(rows) + following - len(after)), some
        )
        ids, scores = matrix.ids[found[0][len(rows) :]], values[0][len(rows) :]
        ids, scores = ids[scores >= least], scores[scores >= least]
        after += zip(ids.tolist(), scores.tolist(), strict=True)
    return Ranked(
        hits=_hits(database, shown),
        best=_vectors(matrix, candidates[:_MOST_JUDGED]),
        gone=sum(score >= last for score in gone),
        below_score=len(groups) < top and cut,
        following=[(content, _in_range(score)) for content, score in after[:following]],
    )


def look_up_photos(database: Database, contents: Sequence[int]) -> list[Hit]:
    """Return photographs by their ids, in this order; those without a file there are left out.

    Their score is NaN: they were not searched for.
    """
    files, _ = _files_of(database, contents, ())
    there = []
    for content in dict.fromkeys(contents):
        present = [file for file in files.get(content, ()) if file.check()]
        if present:
            there.append([_Candidate(content, -1, math.nan, present[0], present[1:])])
    return _hits(database, there)


def _candidates(
    database: Database, matrix: Matrix, rows: NDArray[np.int64], scores: NDArray[np.float64],
    made: Sequence[Condition],
) -> tuple[list[_Candidate], list[float]]:  # fmt: skip
    """Return the contents that are there, in their order, and the scores of those that are not."""
    ids = matrix.ids[rows].tolist()
    files, accepted = _files_of(database, ids, made)
    candidates, gone = [], []
    for content, row, score in zip(ids, rows.tolist(), scores.tolist(), strict=True):
        present = [file for file in files.get(content, ()) if file.check()]
        main = next((file for file in present if file.id in accepted), None)
        if main is None:
            gone.append(score)
        else:
            copies = [file for file in present if file is not main]
            candidates.append(_Candidate(content, row, score, main, copies))
    candidates.sort(key=lambda one: (-one.score, one.main.path))
    return candidates, gone


def _files_of(
    database: Database, ids: Sequence[int], made: Sequence[Condition]
) -> tuple[dict[int, list[_File]], set[int]]:
    """Return the files of contents that are not absent, and the ids of those that pass."""
    files: dict[int, list[_File]] = {}
    test = "".join(f" AND {condition.sql}" for condition in made)
    values = [value for condition in made for value in condition.values]
    accepted = set[int]()
    with database.snapshot() as connection:
        for marks, chunk in chunks_of_ids(ids):
            rows = connection.execute(
                "SELECT f.content, f.id, (SELECT path FROM roots WHERE id = f.root), f.path, "
                f"f.size, f.mtime_ns FROM files f WHERE f.absent = 0 AND f.content IN ({marks})",
                chunk,
            ).fetchall()
            for content, row, root, path, size, mtime_ns in rows:
                root = root.rstrip(b"/") + b"/"
                file = _File(row, root, root + path, size, mtime_ns)
                files.setdefault(content, []).append(file)
        # The only file of a content that the filters left is accepted.
        several = [content for content, own in files.items() if len(own) > 1] if made else []
        for marks, chunk in chunks_of_ids(several):
            sql = f"SELECT f.id FROM files f WHERE f.absent = 0 AND f.content IN ({marks}){test}"
            accepted.update(row for (row,) in connection.execute(sql, (*chunk, *values)))
    for own in files.values():
        own.sort(key=lambda file: file.path)
        if not made or len(own) == 1:
            accepted.update(file.id for file in own)
    return files, accepted


def _vectors(matrix: Matrix, candidates: Sequence[_Candidate]) -> Embeddings:
    return matrix.vectors(np.array([one.row for one in candidates], np.int64))


def _groups(
    database: Database, matrix: Matrix, candidates: Sequence[_Candidate]
) -> list[list[_Candidate]]:
    """Return the candidates in groups of near duplicates, each and all of them best first."""
    hashes: dict[int, int | None] = {}
    with database.reading() as connection:
        for marks, chunk in chunks_of_ids([one.content for one in candidates]):
            sql = f"SELECT id, perceptual_hash FROM contents WHERE id IN ({marks})"
            hashes |= dict(connection.execute(sql, chunk).fetchall())
    groups = group_similar(
        _vectors(matrix, candidates), [hashes.get(one.content) for one in candidates]
    )
    return [[candidates[at] for at in group] for group in groups]


def _hits(database: Database, groups: Sequence[Sequence[_Candidate]]) -> list[Hit]:
    """Return the best of each group as a hit, with the others below it."""
    known: dict[int, tuple[Any, ...]] = {}
    with database.reading() as connection:
        for marks, chunk in chunks_of_ids([one.content for group in groups for one in group]):
            sql = f"SELECT c.id, {_OF_CONTENT} FROM contents c WHERE c.id IN ({marks})"
            known |= {row[0]: row[1:] for row in connection.execute(sql, chunk).fetchall()}
    hits = []
    for group in groups:
        # A content that another process has just forgotten is no hit any more.
        own = [_hit(one, known[one.content]) for one in group if one.content in known]
        if own:
            hits.append(replace(own[0], similar=tuple(own[1:])) if own[1:] else own[0])
    return hits


def _hit(one: _Candidate, about: tuple[Any, ...]) -> Hit:
    digest, *facts = about
    read = PhotoFacts(*facts)
    date, date_from = _date(read, one.main)
    return Hit(
        path=_path(one.main), score=_in_range(one.score), content=one.content, digest=digest,
        facts=read, size=one.main.size, date=date, date_from=date_from, current=one.main.current,
        copies=tuple(map(_path, one.copies)),
    )  # fmt: skip


def _in_range(score: float) -> float:
    """Return a cosine similarity: stored vectors are rounded, and may give 1.00003."""
    return score if math.isnan(score) else min(1.0, max(-1.0, score))


def _path(file: _File) -> Path:
    return Path(os.fsdecode(file.path))


def _date(facts: PhotoFacts, file: _File) -> tuple[float | None, Literal["camera", "file"] | None]:
    if facts.taken is not None:
        return facts.taken, "camera"
    try:
        return clock_seconds(datetime.datetime.fromtimestamp(file.mtime_ns / 1e9)), "file"
    except (ValueError, OverflowError, OSError):
        return None, None
