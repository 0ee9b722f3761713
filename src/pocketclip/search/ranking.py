"""From scores to hits: files that are there, one hit per content, near duplicates as one group.

The order is the same every time: by score, then by the bytes of the path.

Shapes: N contents that have a vector, K candidates, D embedding.
"""

from __future__ import annotations

import datetime
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pocketclip.search.database import Database
from pocketclip.search.filters import Condition, clock_seconds
from pocketclip.search.records import Hit, PhotoFacts

if TYPE_CHECKING:
    from pocketclip.search.matrix import Matrix
    from pocketclip.types import Embeddings

_MARGIN = 4  # candidates per hit at first, for groups and files that are gone
_LEAST = 64
_CHUNK = 500  # ids per question to SQLite
_OF_CONTENT = (
    "c.digest, c.perceptual_hash, c.width, c.height, c.format, c.orientation, c.taken, "
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


@dataclass(slots=True)
class _Candidate:
    """A content that is there."""

    hit: Hit
    row: int
    """Of the matrix."""
    perceptual_hash: int | None


def rank(
    database: Database, matrix: Matrix, query: Embeddings, made: Sequence[Condition], *,
    allowed: NDArray[np.bool_], top: int, min_score: float | None = None,
) -> Ranked:  # fmt: skip
    """Return the best hits of a query.

    Args:
        database: the library.
        matrix: its vectors.
        query: a unit vector (D,).
        made: the filters, which the file of a hit passes; see `filters.conditions`.
        allowed: the contents (N,) to search in.
        top: the number of hits, that is of groups of near duplicates.
        min_score: the least score of a hit.
    """
    from pocketclip.search.engines import search_matrix

    left = int(np.count_nonzero(allowed))
    some = None if left == len(allowed) else allowed
    count = min(left, max(_LEAST, _MARGIN * top))
    least = -np.inf if min_score is None else min_score
    while True:
        found, values = search_matrix(matrix, query[None], count, some)
        rows, scores = found[0], values[0]
        complete = len(rows) >= left
        if not complete:
            # Of equal scores some may be missing: which ones come first, their paths decide.
            keep = int(np.searchsorted(-scores, -scores[-1]))
            rows, scores = rows[:keep], scores[:keep]
        candidates, gone = _candidates(database, matrix, rows, scores, made)
        passing = [one for one in candidates if one.hit.score >= least]
        groups = _groups(matrix, passing)
        cut = bool(len(scores)) and scores[-1] < least
        if len(groups) >= top or complete or cut:
            break
        count = min(left, 4 * count)
    shown = groups[:top]
    last = shown[-1][0].hit.score if len(groups) > top else least
    return Ranked(
        hits=[_grouped(group) for group in shown],
        best=matrix.vectors(np.array([one.row for one in candidates[:_LEAST]], np.int64)),
        gone=sum(score >= last for score in gone),
        below_score=len(groups) < top and cut,
    )


def _candidates(
    database: Database, matrix: Matrix, rows: NDArray[np.int64], scores: NDArray[np.float64],
    made: Sequence[Condition],
) -> tuple[list[_Candidate], list[float]]:  # fmt: skip
    """Return the contents that are there, in their order, and the scores of those that are not."""
    ids = matrix.ids[rows].tolist()
    files, contents = _read(database, ids, made)
    candidates, gone = [], []
    for content, row, score in zip(ids, rows.tolist(), scores.tolist(), strict=True):
        present = [file for file in files.get(content, []) if file.check()]
        accepted = [file for file in present if file.accepted]
        if not accepted:
            gone.append(score)
            continue
        main, about = accepted[0], contents[content]
        facts = PhotoFacts(*about[2:])
        date, date_from = _date(facts, main)
        hit = Hit(
            path=main.path, score=score, content=content, digest=about[0], facts=facts,
            size=main.size, date=date, date_from=date_from, current=main.current,
            copies=tuple(file.path for file in present if file is not main),
        )  # fmt: skip
        candidates.append(_Candidate(hit, row, about[1]))
    candidates.sort(key=lambda one: (-one.hit.score, os.fsencode(one.hit.path)))
    return candidates, gone


@dataclass(slots=True)
class _File:
    """A file of a content, as it was indexed."""

    path: Path
    size: int
    mtime_ns: int
    accepted: bool
    """Whether the filters accept it."""
    current: bool = True

    def check(self) -> bool:
        """Return whether it is there; note whether it is as it was."""
        try:
            now = self.path.stat()
        except (OSError, ValueError):
            return False
        known = self.size, self.mtime_ns
        self.current = known in ((now.st_size, now.st_mtime_ns), (now.st_size, -1))
        self.size, self.mtime_ns = now.st_size, now.st_mtime_ns
        return stat.S_ISREG(now.st_mode)


def _read(
    database: Database, ids: Sequence[int], made: Sequence[Condition]
) -> tuple[dict[int, list[_File]], dict[int, tuple[Any, ...]]]:
    """Return the files of contents that are not absent, by their paths, and the contents' facts."""
    test = " AND ".join(condition.sql for condition in made) or "1"
    values = [value for condition in made for value in condition.values]
    files: dict[int, list[_File]] = {}
    contents: dict[int, tuple[Any, ...]] = {}
    with database.snapshot() as connection:
        for begin in range(0, len(ids), _CHUNK):
            chunk = ids[begin : begin + _CHUNK]
            marks = ", ".join("?" * len(chunk))
            known = connection.execute(
                f"SELECT f.content, r.path, f.path, f.size, f.mtime_ns, {test} FROM files f "
                f"JOIN roots r ON r.id = f.root WHERE f.absent = 0 AND f.content IN ({marks})",
                (*values, *chunk),
            ).fetchall()
            for content, root, path, size, mtime_ns, accepted in sorted(known, key=_whole):
                place = Path(os.fsdecode(root), os.fsdecode(path))
                files.setdefault(content, []).append(_File(place, size, mtime_ns, bool(accepted)))
            rows = connection.execute(
                f"SELECT c.id, {_OF_CONTENT} FROM contents c WHERE c.id IN ({marks})", chunk
            )
            contents |= {row[0]: row[1:] for row in rows}
    return files, contents


def _whole(row: tuple[Any, ...]) -> bytes:
    return bytes(row[1] + b"/" + row[2])


def _date(facts: PhotoFacts, file: _File) -> tuple[float | None, Literal["camera", "file"] | None]:
    if facts.taken is not None:
        return facts.taken, "camera"
    try:
        return clock_seconds(datetime.datetime.fromtimestamp(file.mtime_ns / 1e9)), "file"
    except (ValueError, OverflowError, OSError):
        return None, None


def _groups(matrix: Matrix, candidates: Sequence[_Candidate]) -> list[list[_Candidate]]:
    """Return the candidates in groups of near duplicates, each and all of them best first."""
    del matrix
    return [[one] for one in candidates]


def _grouped(group: Sequence[_Candidate]) -> Hit:
    best, *others = (one.hit for one in group)
    return replace(best, similar=tuple(others))
