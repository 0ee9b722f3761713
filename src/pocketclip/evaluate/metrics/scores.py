"""What comes first among scores: one rule for all metrics.

Shapes: B batch, C classes or candidates, D embedding, N rows, Q queries.

Among equal scores the lowest index comes first, everywhere. Peers that take `torch.topk` have no
rule (it orders equal values as it likes), and agree wherever equal scores do not straddle the
k-th place.
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

_CHUNK = 1 << 22  # scores held at a time: 16 MiB in single precision
_LEAST = 64  # queries at a time: with fewer, a product spends its time on reading the rows


def top_hits(scores: Floats, labels: Integers, k: int) -> Flags:
    """Return whether each label (B,) is among the k best of its row of scores (B, C).

    Of equal scores the lower index is the better. A k above C takes all.

    Raises:
        DataError: scores that are not finite, a label outside 0..C-1; names the position.
        ValueError: arrays that do not fit each other, or k below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    scores, labels = checked(scores, labels)
    hits: Flags = ranks(scores, labels) < k
    return hits


def predictions(scores: Floats) -> NDArray[np.int64]:
    """Return the class (B,) with the highest of the scores (B, C), the first where several are.

    Raises:
        DataError: scores that are not finite; names the position.
    """
    scores, _ = checked(scores, np.zeros(len(scores), np.int64))
    return scores.argmax(axis=1).astype(np.int64)


def ranks(scores: Floats, columns: Integers) -> NDArray[np.int64]:
    """Return how many columns come before the given one (B,) in each row (B, C)."""
    mine = scores[np.arange(len(scores)), columns][:, None]
    before = np.fromiter(map(np.count_nonzero, scores > mine), np.int64, len(scores))
    equal = scores == mine
    many = np.fromiter(map(np.count_nonzero, equal), np.int64, len(scores))
    for row in np.flatnonzero(many > 1):
        before[row] += np.count_nonzero(equal[row, : columns[row]])
    return before


class Candidates:
    """Rows (N, D) to be scored for many queries: equal rows get equal scores.

    A matrix product rounds columns differently by where they stand, so that two copies of one
    caption would differ in the last bit and be ordered by noise. Each is scored once.
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
        doubled = len(first) < len(rows)
        self._count = len(rows)
        self._rows = rows[first] if doubled else rows
        self._copies = copies if doubled else None

    def scored(
        self, what: str, queries: Floats, chunk: int | None = None
    ) -> Iterator[tuple[int, Floats]]:
        """Yield where each chunk of the queries (Q, D) begins, and its scores (chunk, N).

        Args:
            what: a query is called in messages.
            queries: what the rows are scored for.
            chunk: how many at a time; by default as many as 16 MiB of scores hold, and no fewer
                than 64, which are still less than the rows themselves.

        Raises:
            DataError: a score is not finite; names the query's position.
        """
        size = chunk or max(_LEAST, _CHUNK // self._count)
        for begin in range(0, len(queries), size):
            scores = self._scores(queries[begin : begin + size])
            check_finite("score", what, scores, begin)
            yield begin, scores

    def _scores(self, queries: Floats) -> Floats:
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
            found: Floats = queries @ self._rows.T
        return found if self._copies is None else found[:, self._copies]


def checked(scores: Floats, labels: Integers, before: int = 0) -> tuple[Floats, Integers]:
    """Return scores (B, C) and labels (B,) as arrays, if they are what they should be.

    Args:
        scores: what is to be finite.
        labels: what is to be in 0..C-1.
        before: how many samples came earlier, for the position in messages.

    Raises:
        DataError: they are not; names the position.
        ValueError: they do not fit each other.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or not scores.shape[1] or labels.shape != scores.shape[:1]:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape}: not (B, C) and (B,)")
    check_finite("score", "sample", scores, before)
    return scores, check_range("label", "sample", labels, scores.shape[1], before)


def check_integers(what: str, values: NDArray[Any]) -> None:
    """Refuse what are not integers with a ValueError: that is a mistake of the caller."""
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{what} of type {values.dtype}, not integers")


def check_range(
    what: str, of: str, values: Integers, end: int, before: int = 0
) -> NDArray[np.int64]:
    """Return the values (B,), which must be in 0..end-1; else a DataError names the position."""
    check_integers(what, values)
    wrong = np.flatnonzero((values < 0) | (values >= end))
    if len(wrong):
        raise DataError(f"{what} {values[wrong[0]]} of {of} {before + wrong[0]} (counted from 0) "
                        f"is outside 0..{end - 1}")  # fmt: skip
    return values.astype(np.int64, copy=False)


def check_finite(what: str, of: str, rows: Floats, before: int = 0) -> None:
    """Refuse NaN and infinity in rows (B, C) with a DataError that names the position."""
    finite = np.isfinite(rows)
    if not finite.all():
        row, column = np.argwhere(~finite)[0].tolist()
        raise DataError(f"{what} of {of} {before + row} (counted from 0) is {rows[row, column]} in "
                        f"column {column}, not finite: does the model overflow?")  # fmt: skip


def check_some(count: int, what: str = "samples") -> None:
    """Refuse to make a metric of nothing: a DataError rather than NaN."""
    if not count:
        raise DataError(f"no {what}: nothing to evaluate")
