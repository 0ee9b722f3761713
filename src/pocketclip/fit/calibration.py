"""Calibration on held-out predictions: temperature, expected calibration error, and "none".

Shapes: L classes, N photographs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pocketclip.embeddings import softmax
from pocketclip.fit.head import Doubles, Integers

_HALVINGS = 30
_WIDEST = 8.0
"""Temperatures from exp(-8) to exp(8) are considered."""
_BINS = 15


def fit_temperature(logits: Doubles, labels: Integers) -> float:
    """Return the temperature that minimises the log loss (Guo et al., arXiv 1706.04599).

    The loss is convex in the inverse temperature; the zero of its derivative is found by halving.

    Args:
        logits: (N, L), of photographs that the classifier has not seen.
        labels: (N,).
    """
    own = logits[np.arange(len(labels)), labels]
    low, high = -_WIDEST, _WIDEST  # log of the inverse temperature
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        expected = (softmax(np.exp(middle) * logits) * logits).sum(axis=1)
        if float((expected - own).sum()) < 0:  # the loss falls on
            low = middle
        else:
            high = middle
    return float(np.exp(-(low + high) / 2))


def log_loss(probabilities: Doubles, labels: Integers) -> float:
    """Return the mean negative log of the labels' probabilities (N, L)."""
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, 1e-12)).mean())


def calibration_error(probabilities: Doubles, labels: Integers) -> float:
    """Return the expected calibration error (Guo et al., section 2): 0 is perfect.

    The mean distance between the best label's probability and how often it is right, over 15
    intervals of the probability.
    """
    best = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    interval = np.minimum((best * _BINS).astype(int), _BINS - 1)
    gaps = np.zeros(_BINS)
    np.add.at(gaps, interval, right - best)
    return float(np.abs(gaps).sum() / len(labels))


def lowest_score(scores: NDArray[np.floating], error: float) -> float | None:
    """Return the score below which an image counts as none of the labels.

    Of new images with one of the labels, at most the share `error` is expected to score lower:
    with the k-th lowest of N held-out scores, k / (N + 1) (split conformal prediction, Vovk et
    al.).

    Args:
        scores: (N,), of held-out images with one of the labels.
        error: the share, above 0 and below 1.

    Returns:
        None if there are too few images for the error.
    """
    k = int(error * (len(scores) + 1) + 1e-9)
    return float(np.sort(scores)[k - 1]) if k else None
