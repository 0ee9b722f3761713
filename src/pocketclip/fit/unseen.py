"""Labels without photographs beside those with: by how much the latter must be lowered.

The logits of fitted and of other labels differ in scale, so that photographs of the ones are taken
for the others. The remedy of generalised zero-shot learning is one number (calibrated stacking,
Chao et al., arXiv 1605.04253). Here it is found by leaving out whole labels, as if they had no
photographs.

Shapes: D embedding, L classes, N photographs, O offsets, S classes with photographs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pocketclip.fit.cross_validation import MAX_HELD_OUT, heads
from pocketclip.fit.folds import FOLDS, folds, same_photographs, spread
from pocketclip.fit.head import Doubles, Head, Integers
from pocketclip.types import Embeddings

_OFFSETS = 80
_FEWEST = 4
"""Classes with photographs; with fewer, none can be left out."""


def unseen_offset(
    method: str,
    classifier: Embeddings,
    scale: float,
    embeddings: Embeddings,
    labels: Integers,
    names: Sequence[str],
    strength: float,
) -> float:
    """Return by how much to lower the logits of the classes with photographs; below 0, to raise.

    In five rounds, some of these classes are left out of the fit, in the same share as classes
    lack photographs. The offset is the one with the highest accuracy where all classes are equally
    frequent, by the photographs of left-out classes and by held-out photographs of the others.

    Args:
        method: `ridge` or `logistic`.
        classifier: (L, D), the zero-shot classifier of all classes.
        scale: the model's multiplier of cosine similarities.
        embeddings: (N, D), of unit length.
        labels: (N,), classes 0 to L-1.
        names: N unique names.
        strength: the pull towards the prior.

    Returns:
        0 if fewer than four classes have photographs, or all do.
    """
    seen, compact = np.unique(labels, return_inverse=True)
    missing = len(classifier) - len(seen)
    if not missing or len(seen) < _FEWEST:
        return 0.0
    chosen = spread(names, labels, max(len(seen), MAX_HELD_OUT // len(seen)))
    embeddings, compact = embeddings[chosen], compact[chosen].astype(np.int64)
    part = folds([names[int(row)] for row in chosen], compact, same_photographs(embeddings))
    leave = round(len(seen) * min(max(missing / len(classifier), 0.2), 0.5))
    gaps: list[tuple[Doubles, Doubles]] = []  # of left-out and other photographs
    for fold in range(FOLDS):
        begin = fold * len(seen) // FOLDS
        left_out = np.zeros(len(seen), bool)
        left_out[(begin + np.arange(leave)) % len(seen)] = True
        is_left_out = left_out[compact]
        fitted = ~is_left_out & (part != fold)
        if len(np.unique(compact[fitted])) < 2:
            continue
        [head] = heads(
            method, classifier[seen], scale, embeddings[fitted], compact[fitted], [strength]
        )
        tested = is_left_out, ~is_left_out & (part == fold)
        gaps.append(
            (
                _gaps(head, embeddings[tested[0]], compact[tested[0]], left_out, own=True),
                _gaps(head, embeddings[tested[1]], compact[tested[1]], left_out, own=False),
            )
        )
    unseen, others = (np.concatenate([pair[side] for pair in gaps]) for side in (0, 1))
    finite = np.concatenate([unseen[np.isfinite(unseen)], others[np.isfinite(others)]])
    if not len(unseen) or not len(others) or not len(finite):
        return 0.0
    offsets = np.append(0.0, np.linspace(float(finite.min()), float(finite.max()), _OFFSETS))
    right = missing * (unseen < offsets[:, None]).mean(axis=1)
    right += len(seen) * (others > offsets[:, None]).mean(axis=1)
    return float(offsets[int(right.argmax())])


def _gaps(
    head: Head, embeddings: Embeddings, labels: Integers, left_out: np.ndarray, *, own: bool
) -> Doubles:
    """Return, per photograph, the offset from which, or up to which, it is right.

    That is by how much the best class with photographs exceeds the best without. A photograph
    whose class is not even the best of its kind is never right.

    Args:
        head: of S classes.
        embeddings: (N, D).
        labels: (N,).
        left_out: (S,), classes without photographs.
        own: whether the photographs are of the classes without.
    """
    logits = head.logits(embeddings)
    with_photographs = np.where(left_out, -np.inf, logits)
    without = np.where(left_out, logits, -np.inf)
    gaps = with_photographs.max(axis=1) - without.max(axis=1)
    best = (without if own else with_photographs).argmax(axis=1)
    return np.where(best == labels, gaps, np.inf if own else -np.inf)
