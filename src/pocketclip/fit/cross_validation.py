"""How strongly the head is pulled towards the zero-shot classifier, chosen by cross-validation.

A strength is good if the log loss of held-out photographs is low, at the best temperature: for
few photographs this is less noisy than the accuracy.

Shapes: D embedding, L classes, M photographs that are held out once, N photographs, T temperatures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pocketclip.embeddings import softmax
from pocketclip.fit.calibration import fit_temperature
from pocketclip.fit.folds import FOLDS, folds, same_photographs, spread
from pocketclip.fit.head import (
    Doubles,
    Head,
    Integers,
    fit_logistic,
    fit_ridge,
    zero_shot_head,
)
from pocketclip.types import Embeddings

METHODS = ("ridge", "logistic")
STRENGTHS = {
    "ridge": (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001),
    "logistic": (3.0, 1.0, 0.3, 0.1, 0.03),
}
FIXED = {"ridge": 1.0, "logistic": 0.1}
"""The strengths if nothing can be held out; see docs/how-to/fit.md."""
MAX_HELD_OUT = 4_000_000
"""Held-out photographs times classes."""
_FEWEST = 10
"""With fewer held-out photographs nothing is chosen by them."""
_STEPS = 25
_TEMPERATURES = {"ridge": (-6.0, 2.0), "logistic": (-3.0, 3.0)}
"""Logarithms of the lowest and the highest temperature that is tried: of ridge times the model's
multiplier, which is its margin; logistic regression has probabilities of its own."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Predictions of photographs by classifiers that have not seen them."""

    rows: Integers
    """(M,), positions among the N photographs."""
    part: Integers
    """(M,), the fold of each."""
    logits: Doubles
    """(M, L), of the head."""
    zero_shot: Doubles
    """(M, L), of the zero-shot classifier."""


def heads(
    method: str,
    classifier: Embeddings,
    scale: float,
    embeddings: Embeddings,
    labels: Integers,
    strengths: Sequence[float],
) -> Iterator[Head]:
    """Yield the head of each strength; the arguments are those of `choose_strength`."""
    prior = zero_shot_head(classifier, scale)
    if method == "ridge":
        # All of the head is proportional to the scale, so that only the label set's temperature
        # need calibrate it. The same scale in each fold makes their logits comparable.
        yield from (head for *_, head in fit_ridge(prior, embeddings, labels, strengths, (scale,)))
        return
    temperature = fit_temperature_of_some(prior, embeddings, labels)
    prior = zero_shot_head(classifier, scale / temperature)
    head = None
    for strength in strengths:
        head = fit_logistic(prior, embeddings, labels, strength, head)
        yield head


def fit_temperature_of_some(head: Head, embeddings: Embeddings, labels: Integers) -> float:
    """Return the temperature of a head by as many photographs as `MAX_HELD_OUT` allows."""
    most = max(1, MAX_HELD_OUT // len(head.biases))
    rows = np.linspace(0, len(labels) - 1, min(most, len(labels))).astype(int)
    return fit_temperature(head.logits(embeddings[rows]), labels[rows])


def choose_strength(
    method: str,
    classifier: Embeddings,
    scale: float,
    embeddings: Embeddings,
    labels: Integers,
    names: Sequence[str],
    strengths: Sequence[float],
    advance: Callable[[int, int], None] = lambda _done, _of: None,
) -> tuple[float, HeldOut] | None:
    """Return the best strength, and the held-out predictions with it.

    Args:
        method: `ridge` or `logistic`.
        classifier: (L, D), the zero-shot classifier of unit rows.
        scale: the model's multiplier of cosine similarities.
        embeddings: (N, D), of unit length.
        labels: (N,), classes 0 to L-1.
        names: N unique names, which decide the folds.
        strengths: to choose from, the strongest first; see `STRENGTHS`.
        advance: called with the number of finished folds, and of all.

    Returns:
        None if hardly a class has two photographs: then there is nothing to hold out.
    """
    part = folds(names, labels, same_photographs(embeddings))
    part = _at_most(part, names, labels, max(_FEWEST, MAX_HELD_OUT // len(classifier)))
    if (part >= 0).sum() < _FEWEST:
        return None
    temperatures = np.exp(np.linspace(*_TEMPERATURES[method], _STEPS))
    temperatures *= scale if method == "ridge" else 1.0
    losses = np.zeros((len(strengths), len(temperatures)))
    present = [fold for fold in range(FOLDS) if (part == fold).any()]
    for fold in present:
        out = part == fold
        trained = heads(method, classifier, scale, embeddings[~out], labels[~out], strengths)
        for row, head in enumerate(trained):
            losses[row] += _losses(head.logits(embeddings[out]), labels[out], temperatures)
        advance(fold + 1, 2 * FOLDS)
    best = int(losses.min(axis=1).argmin())  # of equal ones the strongest
    rows = np.flatnonzero(part >= 0)
    logits = np.empty((len(rows), len(classifier)))
    for fold in present:
        out = part == fold
        # Logistic regression begins with the stronger ones.
        path = strengths[best if method == "ridge" else 0 : best + 1]
        *_, head = heads(method, classifier, scale, embeddings[~out], labels[~out], path)
        logits[part[rows] == fold] = head.logits(embeddings[out])
        advance(FOLDS + fold + 1, 2 * FOLDS)
    zero_shot = zero_shot_head(classifier, scale).logits(embeddings[rows])
    return strengths[best], HeldOut(rows, part[rows], logits, zero_shot)


def _at_most(part: Integers, names: Sequence[str], labels: Integers, most: int) -> Integers:
    """Return the folds with at most `most` photographs held out in all."""
    rows = np.flatnonzero(part >= 0)
    kept = rows[spread([names[int(row)] for row in rows], labels[rows], most)]
    limited = np.full(len(part), -1, np.int64)
    limited[kept] = part[kept]
    return limited


def _losses(logits: Doubles, labels: Integers, temperatures: Doubles) -> Doubles:
    """Return the summed log loss at each temperature (T,)."""
    own = np.arange(len(labels)), labels
    return np.array(
        [-np.log(np.maximum(softmax(logits / t)[own], 1e-12)).sum() for t in temperatures]
    )
