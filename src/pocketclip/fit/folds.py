"""The parts of cross-validation: by name, stratified, and the same in every run.

    part = folds(names, labels, same_photographs(embeddings))
    for fold in range(FOLDS):
        train, held_out = part != fold, part == fold

Shapes: D embedding, N photographs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pocketclip.fit.head import Integers
from pocketclip.pairs.split import draw
from pocketclip.types import Embeddings

FOLDS = 5
_SAME = 1e-5
"""Unit embeddings at most so far apart are of one photograph: they differ by rounding only."""
_NEIGHBOURS = 4


def same_photographs(embeddings: Embeddings) -> Integers:
    """Return, per unit embedding (N, D), the row of the first photograph that it is a copy of.

    Copies have equal embeddings but for rounding, so they are neighbours along any direction.
    """
    direction = np.random.default_rng(0).standard_normal(embeddings.shape[1])
    along = embeddings @ direction
    order = np.argsort(along, kind="stable")
    along, nearest = along[order], _SAME * float(np.linalg.norm(direction))
    first = list(range(len(order)))

    def root(row: int) -> int:
        while first[row] != row:
            first[row] = row = first[first[row]]
        return row

    for step in range(1, _NEIGHBOURS + 1):
        close = np.flatnonzero(along[step:] - along[:-step] <= nearest)
        one, other = order[close], order[close + step]
        same = np.linalg.norm(embeddings[one] - embeddings[other], axis=1) <= _SAME
        for a, b in zip(one[same].tolist(), other[same].tolist(), strict=True):
            a, b = sorted((root(a), root(b)))
            first[b] = a
    return np.array([root(row) for row in range(len(first))], np.int64)


def folds(names: Sequence[str], labels: Integers, same: Integers | None = None) -> Integers:
    """Return the fold (N,) in which each photograph is held out, 0 to 4.

    Photographs of one class are spread evenly, and copies of one are held out together. The only
    photograph of a class is never held out, and has -1: without it, nothing would be known of its
    class.

    Args:
        names: unique names, relative to their folder.
        labels: one class per name.
        same: (N,), see `same_photographs`; None: all are different.
    """
    same = np.arange(len(names)) if same is None else same
    part = np.full(len(names), -1, np.int64)
    order = sorted(range(len(names)), key=lambda row: draw("folds", names[row]))
    members: dict[int, dict[int, list[int]]] = {}
    for row in order:
        members.setdefault(int(labels[row]), {}).setdefault(int(same[row]), []).append(row)
    begin = 0  # the next class goes on where the last one ended: the folds are equally large
    for label in sorted(members):
        copies = members[label].values()
        if len(copies) > 1:
            for fold, rows in enumerate(copies, begin):
                part[rows] = fold % FOLDS
            begin += len(copies)
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
