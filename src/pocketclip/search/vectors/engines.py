"""Exact search in a matrix: the best vectors for each query, in the same order from every engine.

An engine's scores have small errors, which depend on the engine, the processor and the number of
threads. So they only choose candidates: all vectors that could be among the best k within the
bound of these errors. The scores of the candidates are computed again in float64, each by itself,
and equal ones are ordered by content id.

Shapes: N vectors, Q queries, D embedding, K results.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pocketclip.embeddings import check_finite, row_lengths
from pocketclip.errors import LibraryError
from pocketclip.search.vectors.kernels import dot_products, error_bound
from pocketclip.search.vectors.matrix import Matrix

_STEP = 32768  # vectors that are read at once; 64 MB of 512 in float32
_GATHER = 8  # fewer rows than one in so many are picked out instead of reading all
_MOST = 64 << 20  # scores in memory at once
_EXACT = 4096  # vectors whose scores are computed again at once


def search_matrix(
    matrix: Matrix,
    queries: NDArray[np.float32],
    k: int,
    allowed: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the best vectors for each query, the best first; equal ones by content id.

    Args:
        matrix: the vectors.
        queries: (Q, D), or (D,) for one.
        k: the number of results.
        allowed: (N,), the rows that may be found; by default all.

    Returns:
        Rows of the matrix (Q, K), and their dot products with the query (Q, K). K is k, or the
        number of allowed rows if there are fewer.

    Raises:
        EmbeddingError: a query is not finite.
        LibraryError: a query has another width, or k is negative.
    """
    queries = _checked(matrix, queries)
    if k < 0:
        raise LibraryError(f"{k} results cannot be searched for")
    if allowed is not None and allowed.shape != matrix.ids.shape:
        raise ValueError(f"allowed has shape {allowed.shape}, for {len(matrix)} vectors")
    rows = None if allowed is None else np.flatnonzero(allowed)
    k = min(k, len(matrix) if rows is None else len(rows))
    best = np.empty((len(queries), k), np.int64)
    scores = np.empty((len(queries), k), np.float64)
    if not k:
        return best, scores
    for start, unit, found in _scored(matrix, queries, rows):
        bounds = error_bound(unit, matrix.engine, matrix.longest)
        for i, bound in enumerate(bounds):
            least = np.partition(found[i], found.shape[1] - k)[-k] - np.float32(2.1 * bound)
            candidates = np.flatnonzero(found[i] >= least)
            if rows is not None:
                candidates = rows[candidates]
            query = start + i
            best[query], scores[query] = _rank(matrix, queries[query], candidates, k)
    return best, scores


def similarities(
    matrix: Matrix, queries: NDArray[np.float32], rows: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Return the dot products of queries with all vectors, or with those of some rows.

    They are an engine's: right to about 1e-4, and not the same from every engine.

    Args:
        matrix: the vectors.
        queries: (Q, D), or (D,) for one.
        rows: (R,), ascending; by default all N.

    Returns:
        (Q, R), or (R,) for one query of shape (D,).

    Raises:
        EmbeddingError, LibraryError: as `search_matrix`.
    """
    checked = _checked(matrix, queries)
    count = len(matrix) if rows is None else len(rows)
    out = np.empty((len(checked), count), np.float32)
    for start, _, found in _scored(matrix, checked, rows):
        out[start : start + len(found)] = found
    out *= row_lengths(checked).astype(np.float32)
    return out if np.ndim(queries) == 2 else out[0]


def _checked(matrix: Matrix, queries: NDArray[np.float32]) -> NDArray[np.float32]:
    queries = np.atleast_2d(queries)
    if len(matrix) and queries.shape[1] != matrix.width:
        raise LibraryError(
            f"the query has width {queries.shape[1]}, the library's vectors {matrix.width}: it is "
            "of another model"
        )
    return check_finite(queries, lambda i: f"query {i} (counted from 0)")


def _scored(
    matrix: Matrix, queries: NDArray[np.float32], rows: NDArray[np.int64] | None
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32]]]:
    """Yield, for some queries at a time, their start, themselves at unit length, and their scores.

    The scores (q, R) are those of the queries at unit length: float16 has no larger numbers.
    """
    count = len(matrix) if rows is None else len(rows)
    gather = rows is not None and len(rows) * _GATHER < len(matrix)
    step = max(1, _MOST // max(count, 1))
    for start in range(0, len(queries), step):
        some = queries[start : start + step]
        unit = (some / np.maximum(row_lengths(some), 1e-300)).astype(np.float32)
        if rows is not None and gather:
            scores = _score_rows(matrix, unit, rows)
        else:
            scores = _score_all(matrix, unit)
            if rows is not None:
                scores = scores[:, rows]
        yield start, unit, scores


def _score_all(matrix: Matrix, queries: NDArray[np.float32]) -> NDArray[np.float32]:
    out = np.empty((len(queries), sum(len(block.ids) for block in matrix.blocks)), np.float32)
    at = 0
    for block in matrix.blocks:
        for start in range(0, len(block.ids), _STEP):
            part = block.vectors[start : start + _STEP]
            out[:, at : at + len(part)] = dot_products(part, queries, matrix.engine)
            block.release()
            at += len(part)
    return out if matrix.order is None else out[:, matrix.order]


def _score_rows(
    matrix: Matrix, queries: NDArray[np.float32], rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    out = np.empty((len(queries), len(rows)), np.float32)
    for start in range(0, len(rows), _EXACT):
        vectors = matrix.stored_vectors(rows[start : start + _EXACT])
        out[:, start : start + len(vectors)] = dot_products(vectors, queries, matrix.engine)
    return out


def _rank(
    matrix: Matrix, query: NDArray[np.float32], candidates: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the best k of the candidates, which are in ascending order, and their scores."""
    exact = np.empty(len(candidates), np.float64)
    for start in range(0, len(candidates), _EXACT):
        vectors = matrix.vectors(candidates[start : start + _EXACT])
        # Summed row by row: a matrix product may add up the rows of one matrix in different ways,
        # and equal vectors would differ in the last digit.
        products = vectors.astype(np.float64) * query.astype(np.float64)
        exact[start : start + len(vectors)] = products.sum(axis=1)
    order = np.argsort(-exact, kind="stable")[:k]
    return candidates[order], exact[order]
