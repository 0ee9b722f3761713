"""One search, from a query to its hits.

The model loads while the vectors are opened and filtered. The order of the steps matters: filters
come before ranking, and whether anything fits is judged among what they left.

Shapes: N contents that have a vector, P parts of the query, D embedding.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pocketclip.embeddings import image_name, unit_length
from pocketclip.search import background
from pocketclip.search import filters as filtering
from pocketclip.search.filters import Condition, Filters, Present
from pocketclip.search.indexing.roots import has_entries
from pocketclip.search.model import check_space, count_unencoded
from pocketclip.search.query import Part, combine, embed_parts
from pocketclip.search.ranking import rank
from pocketclip.search.records import SearchResult
from pocketclip.search.store.database import Database, chunks_of_ids

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder
    from pocketclip.search.vectors.matrix import Matrix
    from pocketclip.types import Embeddings


def search(
    database: Database, parts: Sequence[Part], filters: Filters, *, encoder: Encoder,
    matrix: Callable[[], Matrix], top: int, min_score: float | None = None,
    present: Present | None = None, neutral: Embeddings | None = None, following: int = 0,
) -> SearchResult:  # fmt: skip
    """Return the photographs that fit a query best; see `Library.search`.

    Args:
        database: the library.
        parts: what to look for, see `query.make_parts`.
        filters: where to look.
        encoder: the library's model.
        matrix: opens the library's vectors.
        top: the number of hits.
        min_score: the least score of a hit.
        present: remembers from search to search which photographs are there.
        neutral: what `background.load_neutral` returned for this embedding space; None: it is
            called when it is needed, and may run the model.
        following: the number of photographs to name by their ids after the hits.
    """
    made = filtering.conditions(database, filters)
    away, there = roots_away(database)
    opened = matrix()
    check_space(database, encoder)  # now: another process may have changed the model meanwhile
    if made or there:
        allowed = filtering.allowed_by(database, [*made, *there], opened.ids)
    else:
        allowed = (present or Present())(database, opened.ids)
    searched = int(np.count_nonzero(allowed))
    if not searched:
        return _nothing_left(database, [*there, *made], opened, away)
    parts = with_known_vectors(database, parts)
    vectors = embed_parts(parts, encoder)
    query = combine(vectors, [part.weight for part in parts])
    ranked = rank(
        database, opened, query, [*made, *there], allowed=allowed, top=top, min_score=min_score,
        following=following,
    )  # fmt: skip
    verdict = background.NOT_TEXT
    wanted = [row for row, part in enumerate(parts) if part.weight > 0]
    if all(parts[row].text is not None for row in wanted):
        # What is to be avoided has no part in whether the rest is found.
        verdict = background.judge(
            combine(vectors[wanted], [parts[row].weight for row in wanted]),
            ranked.best,
            opened.vectors(background.sample_rows(len(opened.ids), allowed)),
            background.load_neutral(database, encoder) if neutral is None else neutral,
            logit_scale=encoder.logit_scale,
            searched=searched,
        )
    return SearchResult(
        hits=tuple(ranked.hits), fits=verdict.fits, reason=verdict.reason, lead=verdict.lead,
        searched=searched, gone=ranked.gone, below_score=ranked.below_score, away=tuple(away),
        unencoded=count_unencoded(database), following=tuple(ranked.following),
    )  # fmt: skip


def with_known_vectors(database: Database, parts: Sequence[Part]) -> list[Part]:
    """Return the parts of a query; photographs that the library has come with their vectors.

    These need no encoding. Only photographs given by path are looked up.
    """
    return [_with_known_vector(database, part) for part in parts]


def _with_known_vector(database: Database, part: Part) -> Part:
    if part.vector is not None or not isinstance(part.photo, (str, os.PathLike)):
        return part
    from pocketclip.images import MAX_FILE
    from pocketclip.search.indexing.reading import content_digest

    try:
        state = os.stat(part.photo)  # noqa: PTH116
        if not stat.S_ISREG(state.st_mode) or state.st_size > MAX_FILE:
            return part
        digest = content_digest(Path(part.photo).read_bytes())
    except (OSError, ValueError):
        return part  # opening it reports the problem
    with database.reading() as connection:
        row = connection.execute(
            "SELECT vector FROM contents WHERE digest = ? AND vector IS NOT NULL", (digest,)
        ).fetchone()
    if row is None:
        return part
    return replace(part, vector=_unit_vector(row[0], image_name(part.photo, 0)))


def _unit_vector(stored: bytes, name: str) -> Embeddings:
    vector = np.frombuffer(stored, "<f2").astype(np.float32)
    return unit_length(vector[None], lambda _: name)[0]


def known_vectors(database: Database, contents: Sequence[int]) -> dict[int, Embeddings]:
    """Return the unit vectors (D,) of contents by id: those that have one, and a file there now."""
    found: dict[int, Embeddings] = {}
    with database.reading() as connection:
        for marks, chunk in chunks_of_ids(contents):
            sql = (
                f"SELECT id, vector FROM contents WHERE id IN ({marks}) AND vector IS NOT NULL "
                "AND EXISTS (SELECT 1 FROM files WHERE content = contents.id AND absent = 0)"
            )
            for row, vector in connection.execute(sql, chunk).fetchall():
                found[row] = _unit_vector(vector, f"photograph {row}")
    return found


def is_unencoded(database: Database, content: int) -> bool:
    """Return whether a content is a photograph that has no vector yet, as during a rebuild."""
    with database.reading() as connection:
        sql = (
            "SELECT 1 FROM contents WHERE id = ? AND vector IS NULL AND error IS NULL "
            "AND EXISTS (SELECT 1 FROM files WHERE content = contents.id AND absent = 0)"
        )
        return connection.execute(sql, (content,)).fetchone() is not None


def roots_away(database: Database) -> tuple[list[Path], list[Condition]]:
    """Return the roots that are not there now, and the condition that leaves their files out.

    A root that is an empty folder counts too: a drive that is not mounted leaves one.
    """
    with database.reading() as connection:
        roots = connection.execute("SELECT id, path FROM roots ORDER BY path").fetchall()
        away = [
            (root, path)
            for root, path in roots
            if not has_entries(path)
            and connection.execute(
                "SELECT 1 FROM files WHERE root = ? AND absent = 0 LIMIT 1", (root,)
            ).fetchone()
        ]
    if not away:
        return [], []
    sql = f"f.root NOT IN ({', '.join('?' * len(away))})"
    condition = Condition("away", sql, tuple(root for root, _ in away))
    return [Path(os.fsdecode(path)) for _, path in away], [condition]


def _nothing_left(
    database: Database, made: Sequence[Condition], matrix: Matrix, away: Sequence[Path]
) -> SearchResult:
    removed = filtering.removed_by(database, made, matrix.ids)
    return SearchResult(
        hits=(), fits=None, reason="the filters leave no photograph to search in", searched=0,
        removed=removed, away=tuple(away),
    )  # fmt: skip
