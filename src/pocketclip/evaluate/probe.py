"""Probes on frozen features: nearest neighbours and logistic regression.

    knn(train, train_labels, test, test_labels)["knn_acc1"]
    linear_probe(train, train_labels, test, test_labels)["lp_acc1"]

Shapes: C classes, D embedding, M test samples, N training samples, Q queries.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.embeddings import row_lengths
from pocketclip.errors import (
    ConfigError,
    DataError,
    MissingDependencyError,
    first_line,
    how_to_install,
)
from pocketclip.evaluate.metrics.counts import ClassificationCounts
from pocketclip.evaluate.metrics.scores import (
    Candidates,
    Flags,
    Floats,
    Integers,
    check_finite,
    check_range,
    check_some,
    ranks,
)
from pocketclip.evaluate.tasks import Metrics

log = logging.getLogger(__name__)

_ITERATIONS = 1000
_COARSE = np.arange(-6.0, 7.0, 2.0)  # log10 of C
_FINEST = 0.125  # smallest step in log10 of C: 96 steps from 1e-6 to 1e6, as in CLIP, A.3


def knn(
    train: Floats,
    train_labels: Integers,
    test: Floats,
    test_labels: Integers,
    *,
    k: int = 20,
    temperature: float = 0.07,
    classes: int | None = None,
) -> Metrics:
    """Return the accuracy of a weighted vote of the k nearest training samples.

    A neighbour's vote has weight exp(cosine similarity / temperature) (Wu et al., arXiv 1805.01978;
    DINO, arXiv 2104.14294). Ties of similarity or votes go to the lower index. A class without
    votes never counts as a top-5 hit.

    Args:
        train: features (N, D); scaled to unit length here.
        train_labels: classes (N,).
        test: features (M, D); scaled to unit length here.
        test_labels: classes (M,).
        k: number of neighbours; all if there are fewer.
        temperature: lower values give the nearest neighbours more weight.
        classes: number of classes C; by default the highest label plus one.

    Returns:
        knn_acc1, knn_acc5 (None below five classes) and knn_mean_per_class_recall.

    Raises:
        ConfigError: k or temperature is not above 0.
        DataError: no samples, features that are zero or not finite, or labels out of range; the
            message names the position.
    """
    if k < 1 or not temperature > 0:
        raise ConfigError(f"k is {k} and temperature {temperature}: both must be above 0")
    classes = _classes(classes, train_labels, test_labels)
    train, train_labels = _checked("training sample", train, train_labels, classes)
    test, test_labels = _checked("test sample", test, test_labels, classes)
    _check_width(train, test)
    counts = ClassificationCounts(classes)
    for begin, similar in Candidates(train).scored("test sample", test):  # (Q, N)
        votes = _votes(similar, train_labels, min(k, len(train)), temperature, classes)
        labels = test_labels[begin : begin + len(votes)]
        has_votes = votes[np.arange(len(labels)), labels] > 0
        counts.add_predictions(votes.argmax(axis=1), labels, (ranks(votes, labels) < 5) & has_votes)
    return _named("knn", counts)


def _votes(
    similar: Floats, labels: Integers, k: int, temperature: float, classes: int
) -> NDArray[np.float64]:
    """Return the votes (Q, C) of the k most similar samples per row of (Q, N)."""
    lowest = np.partition(similar, -k, axis=1)[:, -k, None]  # similarity of the k-th neighbour
    chosen = similar >= lowest
    for row in np.flatnonzero(np.count_nonzero(chosen, axis=1) > k):
        ties = np.flatnonzero(similar[row] == lowest[row])
        chosen[row, ties[k - np.count_nonzero(chosen[row]) :]] = False
    columns = np.nonzero(chosen)[1].reshape(-1, k)
    nearest = np.take_along_axis(similar, columns, axis=1).astype(np.float64)
    # Relative to the highest, so that no temperature overflows.
    weights = np.exp((nearest - nearest.max(axis=1, keepdims=True)) / temperature)
    votes = np.zeros((len(similar), classes))
    np.add.at(votes, (np.arange(len(similar))[:, None], labels[columns]), weights)
    return votes


def linear_probe(
    train: Floats,
    train_labels: Integers,
    test: Floats,
    test_labels: Integers,
    *,
    val: Floats | None = None,
    val_labels: Integers | None = None,
    classes: int | None = None,
    seed: int = 0,
) -> Metrics:
    """Return the accuracy of logistic regression on frozen features, as in CLIP (A.3).

    L-BFGS with at most 1000 iterations. The L2 penalty is chosen on validation samples, searched
    from C = 1e-6 to 1e6 in ever smaller steps; ties go to the stronger penalty. The classifier is
    then fitted to training and validation samples together.

    Args:
        train: features (N, D); scaled to unit length here.
        train_labels: classes (N,).
        test: features (M, D); scaled to unit length here.
        test_labels: classes (M,). A class without training samples counts as wrong.
        val: features for choosing the penalty; by default a fifth of each training class, at least
            one sample of classes with two or more. If no class has two, C is 1.
        val_labels: classes of `val`.
        classes: number of classes; by default the highest label plus one.
        seed: selects that fifth.

    Returns:
        lp_acc1, lp_acc5 (None below five classes), lp_mean_per_class_recall and lp_C, the inverse
        penalty (None with a single training class).

    Raises:
        DataError: no samples, features that are zero or not finite, or labels out of range; the
            message names the position.
        MissingDependencyError: scikit-learn is not installed.
        ValueError: only one of `val` and `val_labels` is given.
    """
    scikit_learn()
    if (val is None) != (val_labels is None):
        raise ValueError("pass both val and val_labels, or neither")
    all_labels = [
        labels for labels in (train_labels, test_labels, val_labels) if labels is not None
    ]
    classes = _classes(classes, *all_labels)
    train, train_labels = _checked("training sample", train, train_labels, classes)
    test, test_labels = _checked("test sample", test, test_labels, classes)
    _check_width(train, test)
    fit_on, fit_labels = train, train_labels
    if val is not None and val_labels is not None:
        val, val_labels = _checked("validation sample", val, val_labels, classes)
        _check_width(train, val)
        fit_on = np.concatenate([train, val])
        fit_labels = np.concatenate([train_labels, val_labels])
    else:
        held_out = _held_out(train_labels, seed)
        val, val_labels = train[held_out], train_labels[held_out]
        train, train_labels = train[~held_out], train_labels[~held_out]
    strength = _best_strength(train, train_labels, val, val_labels)
    counts = ClassificationCounts(classes)
    trained, scores = _fit(fit_on, fit_labels, strength, test, warn=True)
    column = np.searchsorted(trained, test_labels).clip(max=len(trained) - 1)
    learned = trained[column] == test_labels
    top5 = (ranks(scores, column) < 5) & learned
    counts.add_predictions(trained[scores.argmax(axis=1)], test_labels, top5)
    return _named("lp", counts) | {"lp_C": strength if len(trained) > 1 else None}


def _held_out(labels: Integers, seed: int) -> Flags:
    """Return a mask (N,): a fifth of each class, at least one of classes with two or more."""
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), bool)
    for value in np.unique(labels):
        samples = rng.permutation(np.flatnonzero(labels == value))
        held_out[samples[: max(len(samples) // 5, int(len(samples) > 1))]] = True
    return held_out


def _best_strength(
    train: Floats, labels: NDArray[np.int64], val: Floats, val_labels: Integers
) -> float:
    """Return the C with the best validation accuracy; ties go to the smallest.

    A coarse grid first, then the neighbours of the best value at half the step, and so on.
    """
    if not len(val) or len(np.unique(labels)) < 2:
        return 1.0
    correct: dict[float, int] = {}

    def consider(powers: Iterable[float]) -> float:
        for power in powers:
            if power not in correct and _COARSE[0] <= power <= _COARSE[-1]:
                trained, scores = _fit(train, labels, 10.0**power, val)
                correct[power] = int((trained[scores.argmax(axis=1)] == val_labels).sum())
        return min(correct, key=lambda power: (-correct[power], power))

    best = consider(_COARSE.tolist())
    step = float(_COARSE[1] - _COARSE[0])
    while step > _FINEST:
        step /= 2
        best = consider((best - step, best + step))
    return float(10.0**best)


def _fit(
    train: Floats, labels: NDArray[np.int64], strength: float, test: Floats, *, warn: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the sorted training classes, and the test samples' scores for them."""
    trained = np.unique(labels)
    if len(trained) == 1:
        return trained, np.zeros((len(test), 1))
    model = scikit_learn().LogisticRegression(C=strength, max_iter=_ITERATIONS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(train, labels)
    if caught and warn:
        log.warning("the linear probe did not converge (C = %g): %s", strength,
                    first_line(caught[0].message))  # fmt: skip
    scores = np.asarray(model.decision_function(test), np.float64)
    return trained, np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores


def scikit_learn() -> Any:
    """Return scikit-learn's `linear_model`.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn import linear_model
    except ImportError as error:
        raise MissingDependencyError(
            f"the linear probe needs scikit-learn: {how_to_install('evaluate')}"
        ) from error
    return linear_model


def _classes(classes: int | None, *labels: Integers) -> int:
    if classes is not None:
        return classes
    return max((0, *(int(np.max(array)) for array in labels if len(array)))) + 1


def _checked(
    what: str, features: Floats, labels: Integers, classes: int
) -> tuple[Floats, NDArray[np.int64]]:
    """Return validated unit features and labels."""
    features, labels = np.asarray(features), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"features {features.shape} and labels {labels.shape} of {what}s; "
                         "expected (N, D) and (N,)")  # fmt: skip
    check_some(len(features), f"{what}s")
    check_finite("embedding", what, features)
    labels = check_range("label", what, labels, classes)
    lengths = row_lengths(features)
    if not lengths.all():
        raise DataError(f"embedding of {what} {np.flatnonzero(lengths == 0)[0]} (counted from 0) "
                        "is zero")  # fmt: skip
    return (features / lengths).astype(np.result_type(features, np.float32)), labels


def _check_width(train: Floats, other: Floats) -> None:
    if train.shape[1] != other.shape[1]:
        raise ValueError(f"features of width {train.shape[1]} and {other.shape[1]}")


def _named(prefix: str, counts: ClassificationCounts) -> Metrics:
    return {f"{prefix}_{name}": value for name, value in counts.metrics().items()}
