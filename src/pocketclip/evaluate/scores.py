"""What comes first among scores: one rule for all metrics.

Shapes: B batch, C classes or candidates, D embedding, N rows, Q queries.

Among equal scores the lowest index comes first, everywhere. Peers that take `torch.topk` have no
rule (it orders equal values as it likes), and agree wherever equal scores do not straddle the
k-th place.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import DataError

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]
Flags = NDArray[np.bool_]


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
    ranks = np.fromiter(map(np.count_nonzero, scores > mine), np.int64, len(scores))
    equal = scores == mine
    many = np.fromiter(map(np.count_nonzero, equal), np.int64, len(scores))
    for row in np.flatnonzero(many > 1):
        ranks[row] += np.count_nonzero(equal[row, : columns[row]])
    return ranks


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
        self._rows = rows[first] if doubled else rows
        self._copies = copies if doubled else None

    def scores(self, queries: Floats) -> Floats:
        """Return the scores (Q, N) of queries (Q, D)."""
        found: Floats = queries @ self._rows.T
        return found if self._copies is None else found[:, self._copies]


def checked(scores: Floats, labels: Integers, before: int = 0) -> tuple[Floats, Integers]:
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or not scores.shape[1] or labels.shape != scores.shape[:1]:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape}: not (B, C) and (B,)")
    check_finite("score of sample", scores, before)
    check_range("label", labels, scores.shape[1], before)
    return scores, labels


def check_integers(what: str, values: NDArray[Any]) -> None:
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{what} of type {values.dtype}, not integers")


def check_range(what: str, values: Integers, end: int, before: int = 0) -> None:
    check_integers(what, values)
    wrong = np.flatnonzero((values < 0) | (values >= end))
    if len(wrong):
        raise DataError(f"{what} {values[wrong[0]]} of sample {before + wrong[0]} (from 0) is "
                        f"outside 0..{end - 1}")  # fmt: skip


def check_finite(what: str, rows: Floats, before: int = 0) -> None:
    finite = np.isfinite(rows)
    if not finite.all():
        row = int(np.flatnonzero(~finite.all(axis=1))[0])
        raise DataError(f"{what} {before + row} (from 0) is not finite: {rows[row]}")


def check_some(count: int, what: str = "samples") -> None:
    if not count:
        raise DataError(f"no {what}: nothing to evaluate")
