"""The parts of cross-validation: by name, stratified, and the same in every run.

    part = folds(names, labels)
    for fold in range(FOLDS):
        train, held_out = part != fold, part == fold

Shapes: N photographs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from pocketclip.fit.head import Integers

FOLDS = 5


def folds(names: Sequence[str], labels: Integers) -> Integers:
    """Return the fold (N,) in which each photograph is held out, 0 to 4.

    Photographs of one class are spread evenly. The only photograph of a class is never held out,
    and has -1: without it, nothing would be known of its class.

    Args:
        names: unique names, relative to their folder.
        labels: one class per name.
    """
    part = np.full(len(names), -1, np.int64)
    order = sorted(range(len(names)), key=lambda row: draw("folds", names[row]))
    members: dict[int, list[int]] = {}
    for row in order:
        members.setdefault(int(labels[row]), []).append(row)
    begin = 0  # the next class goes on where the last one ended: the folds are equally large
    for label in sorted(members):
        rows = members[label]
        if len(rows) > 1:
            part[rows] = (begin + np.arange(len(rows))) % FOLDS
            begin += len(rows)
    return part


def spread(names: Sequence[str], labels: Integers, most: int) -> Integers:
    """Return the rows of at most `most` photographs, as many of each class as possible, sorted."""
    if len(names) <= most:
        return np.arange(len(names))
    order = sorted(range(len(names)), key=lambda row: draw("spread", names[row]))
    rank = np.empty(len(names), np.int64)  # of a photograph among those of its class
    seen: dict[int, int] = {}
    for row in order:
        label = int(labels[row])
        rank[row] = seen.get(label, 0)
        seen[label] = rank[row] + 1
    place = np.empty(len(names), np.int64)
    place[order] = np.arange(len(names))
    return np.sort(np.lexsort((place, rank))[:most])


def draw(purpose: str, name: str) -> bytes:
    """Return what a name is sorted by; orders of different purposes are independent."""
    # File names may be any bytes, hence surrogates.
    return hashlib.sha256(f"{purpose}\0{name}".encode("utf-8", "surrogatepass")).digest()
