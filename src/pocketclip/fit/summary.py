"""What held-out predictions say: accuracy per class, confusions, and labels that may be wrong.

Shapes: L classes, M held-out photographs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pocketclip.evaluate.metrics.counts import most_confused
from pocketclip.fit.head import Doubles, Integers

_DOUBTFUL_BEST = 0.5
_DOUBTFUL_OWN = 0.1
"""A label is doubtful if another has at least the first probability, and it at most the second."""
SHOWN = 10


def per_class(
    labels: Integers, predicted: Integers, zero_shot: Integers, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return accuracies per held-out class, the worst first, with the most frequent error.

    Args:
        labels: (M,).
        predicted: (M,), by the head.
        zero_shot: (M,), by the zero-shot classifier.
        classes: L names.
    """
    rows = []
    for label in np.unique(labels).tolist():
        own = labels == label
        wrong = Counter(predicted[own & (predicted != label)].tolist())
        taken_for, times = wrong.most_common(1)[0] if wrong else (None, 0)
        rows.append({
            "label": classes[label],
            "held_out": int(own.sum()),
            "zero_shot": float((zero_shot[own] == label).mean()),
            "head": float((predicted[own] == label).mean()),
            "taken_for": None if taken_for is None else classes[taken_for],
            "times": times,
        })  # fmt: skip
    return sorted(rows, key=lambda row: (row["head"], row["label"]))


def confused(labels: Integers, predicted: Integers, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the most frequent confusions, at most ten that occur twice or more."""
    return [
        {"label": classes[a], "taken_for": classes[b], "times": times}
        for a, b, times in most_confused(labels, predicted, SHOWN)
        if times > 1
    ]


def doubtful(
    probabilities: Doubles, labels: Integers, names: Sequence[str], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the photographs whose label the head contradicts most, the most improbable first.

    Args:
        probabilities: (M, L), of held-out photographs.
        labels: (M,).
        names: M names of the photographs.
        classes: L names.
    """
    own = probabilities[np.arange(len(labels)), labels]
    best = probabilities.argmax(axis=1)
    strong = probabilities[np.arange(len(labels)), best]
    rows = np.flatnonzero((strong >= _DOUBTFUL_BEST) & (own <= _DOUBTFUL_OWN))
    rows = rows[np.argsort(own[rows], kind="stable")]
    return [
        {
            "photo": names[int(row)],
            "label": classes[labels[row]],
            "probability": float(own[row]),
            "rather": classes[best[row]],
            "rather_probability": float(strong[row]),
        }
        for row in rows
    ]
