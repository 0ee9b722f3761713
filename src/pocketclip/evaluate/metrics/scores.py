"""Ranks and top k of scores: one rule for ties in all metrics.

Shapes: B batch, C classes or candidates, D embedding, N rows, Q queries.

Ties go to the lowest index. Implementations based on `torch.topk`, which orders ties arbitrarily,
agree unless tied scores straddle the k-th place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import DataError

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]
Flags = NDArray[np.bool_]

_CHUNK = 1 << 22  # scores per chunk: 16 MiB in single precision
_MIN_QUERIES = 64  # per chunk; with fewer, reading the rows dominates the product


def top_hits(scores: Floats, labels: Integers, k: int) -> Flags:
    """Return whether each label (B,) is among the k best of its row of scores (B, C).

    Ties go to the lower index. A k above C takes all.

    Raises:
        DataError: scores that are not finite, or a label outside 0..C-1; the message names the
            position.
        ValueError: arrays whose shapes do not match, or k below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    scores, labels = checked(scores, labels)
    hits: Flags = ranks(scores, labels) < k
    return hits


def predictions(scores: Floats) -> NDArray[np.int64]:
    """Return the class (B,) with the highest of the scores (B, C); ties go to the first.

    Raises:
        DataError: scores that are not finite; the message names the position.
    """
    scores, _ = checked(scores, np.zeros(len(scores), np.int64))
    return scores.argmax(axis=1).astype(np.int64)


def ranks(scores: Floats, columns: Integers) -> NDArray[np.int64]:
    """Return the rank (B,) of one column per row of scores (B, C): 0 is the best."""
    own = scores[np.arange(len(scores)), columns][:, None]
    before = np.fromiter(map(np.count_nonzero, scores > own), np.int64, len(scores))
    equal = scores == own
    tied = np.fromiter(map(np.count_nonzero, equal), np.int64, len(scores))
    for row in np.flatnonzero(tied > 1):
        before[row] += np.count_nonzero(equal[row, : columns[row]])
    return before


class Candidates:
    """Rows (N, D) to be scored against many queries; equal rows get equal scores.

    A matrix product rounds a column differently depending on its position, so that two copies of
    one caption would differ in the last bit and be ranked by noise. Each distinct row is scored
    once.
    """

    def __init__(self, rows: Floats) -> None:
        seen: dict[bytes, int] = {}
        first: list[int] = []
        copies = np.empty(len(rows), np.int64)
        for position, row in enumerate(rows):
            digest = hashlib.blake2b((row + 0).tobytes(), digest_size=16).digest()  # -0 is 0
            copies[position] = seen.setdefault(digest, len(first))
            if len(seen) > len(first):
                first.append(position)
        duplicates = len(first) < len(rows)
        self._count = len(rows)
        self._rows = rows[first] if duplicates else rows
        self._copies = copies if duplicates else None

    def scored(
        self, what: str, queries: Floats, chunk: int | None = None
    ) -> Iterator[tuple[int, Floats]]:
        """Yield the start of each chunk of the queries (Q, D), and its scores (chunk, N).

        Args:
            what: name of a query in messages.
            queries: the rows are scored against these.
            chunk: queries at a time; by default as many as fit in 16 MiB of scores, at least 64.

        Raises:
            DataError: a score is not finite; the message names the query's position.
        """
        size = chunk or max(_MIN_QUERIES, _CHUNK // self._count)
        for begin in range(0, len(queries), size):
            scores = self._scores(queries[begin : begin + size])
            check_finite("score", what, scores, begin)
            yield begin, scores

    def _scores(self, queries: Floats) -> Floats:
        with np.errstate(over="ignore", invalid="ignore"):  # `scored` refuses non-finite scores
            scores: Floats = queries @ self._rows.T
        return scores if self._copies is None else scores[:, self._copies]


def checked(scores: Floats, labels: Integers, before: int = 0) -> tuple[Floats, Integers]:
    """Return scores (B, C) and labels (B,) as validated arrays.

    Args:
        scores: must be finite.
        labels: must be in 0..C-1.
        before: number of earlier samples, for positions in messages.

    Raises:
        DataError: a value is invalid; the message names the position.
        ValueError: the shapes do not match.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or not scores.shape[1] or labels.shape != scores.shape[:1]:
        raise ValueError(
            f"scores {scores.shape} and labels {labels.shape}; expected (B, C) and (B,)"
        )
    check_finite("score", "sample", scores, before)
    return scores, check_range("label", "sample", labels, scores.shape[1], before)


def check_integers(what: str, values: NDArray[Any]) -> None:
    """Raise a ValueError for arrays of another type than integers."""
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{what} of type {values.dtype}, not integers")


def check_range(
    what: str, of: str, values: Integers, end: int, before: int = 0
) -> NDArray[np.int64]:
    """Return the values (B,); raise a DataError that names the first one outside 0..end-1."""
    check_integers(what, values)
    wrong = np.flatnonzero((values < 0) | (values >= end))
    if len(wrong):
        raise DataError(f"{what} {values[wrong[0]]} of {of} {before + wrong[0]} (counted from 0) "
                        f"is outside 0..{end - 1}")  # fmt: skip
    return values.astype(np.int64, copy=False)


def check_finite(what: str, of: str, rows: Floats, before: int = 0) -> None:
    """Raise a DataError that names the first NaN or infinity in rows (B, C)."""
    finite = np.isfinite(rows)
    if not finite.all():
        row, column = np.argwhere(~finite)[0].tolist()
        raise DataError(f"{what} of {of} {before + row} (counted from 0) is {rows[row, column]} in "
                        f"column {column}, not finite: does the model overflow?")  # fmt: skip


def check_some(count: int, what: str = "samples") -> None:
    """Raise a DataError for 0 samples, whose metric would be NaN."""
    if not count:
        raise DataError(f"no {what}: nothing to evaluate")
