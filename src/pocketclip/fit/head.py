"""A linear head on frozen embeddings, pulled towards the zero-shot classifier.

    prior = zero_shot_head(classifier, encoder.logit_scale)
    head = fit_logistic(prior, embeddings, labels, strength=1.0)
    logits = head.logits(embeddings)

Both methods minimise a loss plus `strength / 2` times the squared distance of the weights from
those of the zero-shot classifier. With an infinite strength the head is that classifier. The
zero-shot weights as the mean of a Gaussian prior: compare CLAP (arXiv 2312.12730), section 4.

Classes without photographs keep the weights of their prompt. The others are fitted among each
other, and their mean change is zero: on average they neither rise nor fall against the classes
that were left as they are.

Shapes: D embedding, L classes, N photographs, S classes with photographs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketclip.embeddings import softmax
from pocketclip.types import Embeddings

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

_CHUNK = 1 << 22
"""Logits computed at a time: 32 MiB."""
_STEPS = 100
_SMALL_STEP = 2e-3
"""A step that changes no logit by more than this is the last."""


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A linear classifier: logits are `embeddings @ weights.T + biases`."""

    weights: Doubles
    """(L, D)."""
    biases: Doubles
    """(L,)."""

    def logits(self, embeddings: Embeddings | Doubles) -> Doubles:
        """Return the logits (N, L) of unit embeddings (N, D)."""
        return embeddings.astype(np.float64) @ self.weights.T + self.biases


def zero_shot_head(classifier: Embeddings, scale: float) -> Head:
    """Return the zero-shot classifier (L, D) as a head; `scale` multiplies cosine similarities."""
    weights = scale * classifier.astype(np.float64)
    return Head(weights, np.zeros(len(weights)))


def fit_logistic(
    prior: Head,
    embeddings: Embeddings,
    labels: Integers,
    strength: float,
    start: Head | None = None,
) -> Head:
    """Return the head of multinomial logistic regression.

    The loss is the sum of the photographs' log losses. Each step minimises an upper bound of it
    (Böhning, 1992), accelerated as by Nesterov; an increase restarts the acceleration.

    Args:
        prior: the zero-shot classifier; its scale should be calibrated, see
            `pocketclip.fit.calibration.fit_temperature`.
        embeddings: (N, D), of unit length.
        labels: (N,), classes 0 to L-1.
        strength: the pull towards the prior, above 0.
        start: a head to begin with, such as that of another strength; None for the prior.
    """
    seen, rows = np.unique(labels, return_inverse=True)
    centre = embeddings.mean(axis=0, dtype=np.float64)
    centred = np.append(embeddings - centre, np.ones((len(labels), 1)), axis=1).astype(np.float64)
    base = embeddings.astype(np.float64) @ prior.weights[seen].T + prior.biases[seen]  # (N, S)
    # Half the second moment bounds the curvature of each class's logit.
    curvature = centred.T @ centred / 2 + strength * np.eye(centred.shape[1])
    inverse = np.linalg.inv(curvature)
    change = np.zeros((len(seen), centred.shape[1]))
    if start is not None:
        change[:, :-1] = start.weights[seen] - prior.weights[seen]
        change[:, -1] = start.biases[seen] - prior.biases[seen] + change[:, :-1] @ centre
    ahead, before, momentum = change, np.inf, 1.0
    for _ in range(_STEPS):
        loss, gradient = _loss(ahead, base, centred, rows, strength)
        if loss > before and momentum > 1:
            ahead, momentum = change, 1.0
            continue
        before = loss
        new = ahead - gradient @ inverse
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + (momentum - 1) / following * (new - change)
        step = np.abs(new - change).sum(axis=1).max()
        change, momentum = new, following
        if step < _SMALL_STEP:
            break
    return _changed(prior, seen, change, centre)


def _loss(
    change: Doubles, base: Doubles, centred: Doubles, rows: Integers, strength: float
) -> tuple[float, Doubles]:
    """Return the loss and its gradient (S, D + 1)."""
    loss = strength / 2 * float((change**2).sum())
    gradient = strength * change
    for part in _parts(len(rows), len(change)):
        probabilities = softmax(base[part] + centred[part] @ change.T)
        own = np.arange(len(probabilities)), rows[part]
        loss -= float(np.log(np.maximum(probabilities[own], 1e-300)).sum())
        probabilities[own] -= 1
        gradient += probabilities.T @ centred[part]
    return loss, gradient


def fit_ridge(
    prior: Head,
    embeddings: Embeddings,
    labels: Integers,
    strengths: Sequence[float],
    margins: Sequence[float],
) -> Iterator[tuple[float, float, Head]]:
    """Yield (strength, margin, head) of ridge regression for all pairs of them.

    A photograph's own logit should exceed the others by the margin. The regression is of what the
    prior's logits lack. One eigendecomposition serves all pairs.
    """
    seen, rows = np.unique(labels, return_inverse=True)
    centre = embeddings.mean(axis=0, dtype=np.float64)
    count, width = len(labels), len(seen)
    moment = np.zeros((len(centre), len(centre)))
    sums = np.zeros((width, len(centre)))  # of each class
    for part in _parts(count, len(centre)):
        centred = embeddings[part] - centre
        moment += centred.T @ centred
        np.add.at(sums, rows[part], centred)
    own = sums.T
    values, vectors = np.linalg.eigh(moment)
    values = np.maximum(values, 0)
    prior_weights = prior.weights[seen] - prior.weights[seen].mean(axis=0)
    prior_biases = prior.biases[seen] - prior.biases[seen].mean()
    covered = moment @ prior_weights.T  # (D, S)
    share = np.bincount(rows, minlength=width) / count
    mean_prior = prior_weights @ centre + prior_biases
    for margin in margins:
        lacking = vectors.T @ (margin * own - covered)
        bias = margin * (share - 1 / width) - mean_prior
        for strength in strengths:
            weights = (vectors @ (lacking / (values + strength)[:, None])).T
            change = np.append(weights, bias[:, None] * count / (count + strength), axis=1)
            yield strength, margin, _changed(prior, seen, change - change.mean(axis=0), centre)


def _changed(prior: Head, seen: Integers, change: Doubles, centre: Doubles) -> Head:
    """Return the prior with changed weights and biases (S, D + 1) of the classes `seen`."""
    weights, biases = prior.weights.copy(), prior.biases.copy()
    weights[seen] += change[:, :-1]
    biases[seen] += change[:, -1] - change[:, :-1] @ centre
    return Head(weights, biases)


def _parts(count: int, width: int) -> Iterator[slice]:
    size = max(1, _CHUNK // width)
    return (slice(begin, begin + size) for begin in range(0, count, size))
