"""The zero-shot likelihood of labelled images over the logit scale.

    fit = best_scale(images @ classifier.T, labels)
    fit.point.scale, fit.low, fit.high, fit.edge

The mean log-likelihood of the right class under softmax(scale * cosines) is concave in the scale,
so that a grid and a golden-section search find its only maximum.

Shapes: N images, C classes, K teachers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pocketclip.embeddings import softmax
from pocketclip.fit.calibration import calibration_error

Doubles: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

LOWEST, HIGHEST = 1.0, 1000.0
"""The scales that are tried; CLIP's training limits its own to 100."""
PER_DECADE = 8
"""Scales of the grid between 1 and 10, and so on."""
_GOLDEN = (math.sqrt(5) - 1) / 2
_PRECISION = 1e-3
"""Relative precision of a scale."""
_INTERVAL = 1.92
"""Half the 95 % quantile of chi-squared with one degree of freedom (Wilks)."""
_ROUNDS = 20
_GAIN = 1e-6
"""Nats per image that a round of the joint search must gain to go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What a scale is worth on the labelled images."""

    scale: float
    log_likelihood: float
    """Mean log-probability of the right class, in nats; 0 is perfect."""
    calibration_error: float
    """Expected calibration error over 15 intervals (Guo et al., arXiv 1706.04599): how far the
    best class's probability is from how often it is right."""

    def facts(self) -> dict[str, float]:
        """Return plain JSON types."""
        return {key: round(value, 6) for key, value in asdict(self).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The scale with the highest likelihood."""

    point: Point
    low: float
    high: float
    """The 95 % interval of the scale by the likelihood ratio, as if the images were independent."""
    edge: Literal["lowest", "highest"] | None = None
    """Which end of the range it is at, if any: the likelihood still rises there."""
    curve: tuple[tuple[float, float], ...] = ()
    """The scales of the grid, the lowest first, each with its mean log-likelihood."""

    def facts(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            **self.point.facts(), "low": round(self.low, 3), "high": round(self.high, 3),
            "edge": self.edge, "curve": [[round(v, 6) for v in point] for point in self.curve],
        }  # fmt: skip


def likelihood_of(cosines: Doubles, labels: Integers) -> Callable[[float], float]:
    """Return the mean log-probability of the labels (N,), in nats, as a function of the scale.

    Args:
        cosines: (N, C).
        labels: (N,).
    """
    below = cosines - cosines.max(axis=1, keepdims=True)  # at most 0: nothing overflows
    own = below[np.arange(len(labels)), labels]

    def value(scale: float) -> float:
        return float((scale * own - np.log(np.exp(scale * below).sum(axis=1))).mean())

    return value


def point_at(cosines: Doubles, labels: Integers, scale: float) -> Point:
    """Return what one scale is worth."""
    return Point(
        scale=scale,
        log_likelihood=likelihood_of(cosines, labels)(scale),
        calibration_error=calibration_error(softmax(scale * cosines), labels),
    )


def grid(lowest: float, highest: float) -> list[float]:
    """Return scales at equal ratios, both ends included."""
    count = max(2, round(PER_DECADE * math.log10(highest / lowest)) + 1)
    return [float(scale) for scale in np.geomspace(lowest, highest, count)]


def best_scale(
    cosines: Doubles, labels: Integers, *, lowest: float = LOWEST, highest: float = HIGHEST
) -> Fit:
    """Return the scale that one teacher's likelihood prefers.

    Args:
        cosines: (N, C), of images and classes.
        labels: (N,), the right classes.
        lowest: the smallest scale to try.
        highest: the largest.
    """
    value = likelihood_of(cosines, labels)
    scales = grid(lowest, highest)
    best = _maximum(value, scales)
    top = value(best)
    edge: Literal["lowest", "highest"] | None = None
    if value(lowest) >= top:
        best, edge = lowest, "lowest"
    elif value(highest) >= top:
        best, edge = highest, "highest"
    least = value(best) - _INTERVAL / len(labels)
    return Fit(
        point=point_at(cosines, labels, best),
        low=_crossing(value, least, best, lowest),
        high=_crossing(value, least, best, highest),
        edge=edge,
        curve=tuple((scale, value(scale)) for scale in scales),
    )


def _maximum(value: Callable[[float], float], scales: Sequence[float]) -> float:
    """Return where a function with one maximum over these scales is highest."""
    values = [value(scale) for scale in scales]
    at = int(np.argmax(values))
    low, high = (math.log(scales[i]) for i in (max(at - 1, 0), min(at + 1, len(scales) - 1)))
    one, two = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_one, at_two = value(math.exp(one)), value(math.exp(two))
    while high - low > _PRECISION:
        if at_one >= at_two:
            high, two, at_two = two, one, at_one
            one = high - _GOLDEN * (high - low)
            at_one = value(math.exp(one))
        else:
            low, one, at_one = one, two, at_two
            two = low + _GOLDEN * (high - low)
            at_two = value(math.exp(two))
    return math.exp((low + high) / 2)


def _crossing(value: Callable[[float], float], least: float, inside: float, end: float) -> float:
    """Return where a function falls below a value on the way to an end; the end if it does not."""
    if value(end) >= least:
        return end
    low, high = math.log(inside), math.log(end)
    while abs(high - low) > _PRECISION:
        middle = (low + high) / 2
        if value(math.exp(middle)) >= least:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Several teachers together: the mean of their probabilities."""

    scales: tuple[float, ...]
    """K scales."""
    log_likelihood: float
    calibration_error: float
    accuracy: float

    def facts(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "scales": [round(scale, 3) for scale in self.scales],
            "log_likelihood": round(self.log_likelihood, 6),
            "calibration_error": round(self.calibration_error, 6),
            "accuracy": round(self.accuracy, 6),
        }


def mixture_at(cosines: Sequence[Doubles], labels: Integers, scales: Sequence[float]) -> Mixture:
    """Return what K scales are worth together.

    The teachers' probabilities are averaged, as the distillation loss averages their affinities
    (MobileCLIP, equation 2).

    Args:
        cosines: of each teacher, (N, C).
        labels: (N,).
        scales: K.
    """
    parts = [softmax(s * c) for s, c in zip(scales, cosines, strict=True)]
    probabilities: Doubles = np.mean(parts, axis=0)
    own = probabilities[np.arange(len(labels)), labels]
    return Mixture(
        scales=tuple(scales),
        log_likelihood=float(np.log(np.maximum(own, 1e-300)).mean()),
        calibration_error=calibration_error(probabilities, labels),
        accuracy=float((probabilities.argmax(axis=1) == labels).mean()),
    )


def best_mixture(
    cosines: Sequence[Doubles],
    labels: Integers,
    start: Sequence[float],
    *,
    lowest: float = LOWEST,
    highest: float = HIGHEST,
) -> Mixture:
    """Return scales that the likelihood of the mixture prefers, one teacher at a time in turn.

    Args:
        cosines: as `mixture_at`.
        labels: (N,).
        start: K scales to begin from, such as each teacher's own best. The likelihood is not
            concave in all scales together, so that a better maximum may exist elsewhere.
        lowest: the smallest scale to try.
        highest: the largest.
    """
    rows = np.arange(len(labels))

    def right(k: int, scale: float) -> Doubles:
        """Return the probabilities (N,) that teacher k gives the right classes."""
        own: Doubles = softmax(scale * cosines[k])[rows, labels]
        return own

    scales, scales_tried = list(start), grid(lowest, highest)
    parts = [right(k, scale) for k, scale in enumerate(scales)]
    before = -math.inf
    for _ in range(_ROUNDS):
        for k in range(len(scales)):
            others = sum(part for j, part in enumerate(parts) if j != k)

            def value(scale: float, k: int = k, others: Any = others) -> float:
                mean = (right(k, scale) + others) / len(parts)
                return float(np.log(np.maximum(mean, 1e-300)).mean())

            found = _maximum(value, scales_tried)
            if value(found) > value(scales[k]):
                scales[k], parts[k] = found, right(k, found)
        now = float(np.log(np.maximum(np.mean(parts, axis=0), 1e-300)).mean())
        if now - before < _GAIN:
            break
        before = now
    return mixture_at(cosines, labels, scales)
