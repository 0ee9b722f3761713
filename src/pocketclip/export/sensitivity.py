"""The search for the layers that int8 must leave in higher precision, by measurement.

    result = search(layers, build, inputs, reference, min_cosine=0.995)
    result.kept, result.before.min_cosine, result.after.min_cosine

The errors of single layers say little about the error of all of them together, so groups of
neighbouring layers are measured with all other layers quantised. The groups that help most are kept
in higher precision until the smallest cosine reaches the threshold. Then as many of their layers
return to int8 as the threshold allows. The threshold is stricter than the int8 gate of an export
(`gates.py`).

Shapes: N rows to compare, D embedding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import ExportError
from pocketclip.types import Embeddings

Run = Callable[[NDArray[Any]], Embeddings]
Build = Callable[[frozenset[str]], Run]

GROUPS = 8
MAX_BUILDS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How far a quantised model is from the reference."""

    min_cosine: float
    mean_cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The outcome of `search`."""

    kept: tuple[str, ...]
    """Layers to leave in higher precision, in the order of the model."""
    before: Score
    """With every layer quantised."""
    after: Score
    """With `kept` in higher precision."""
    tried: int
    """Number of models built."""


def search(
    layers: Sequence[str],
    build: Build,
    inputs: Sequence[NDArray[Any]],
    reference: Embeddings,
    min_cosine: float,
    *,
    max_builds: int = MAX_BUILDS,
) -> SearchResult:
    """Return a small set of layers to keep in higher precision to reach `min_cosine`.

    The same arguments give the same result.

    Args:
        layers: names of all layers that can be quantised, in the order of the model.
        build: builds the model with the named layers in higher precision and all others
            quantised; returns its forward function.
        inputs: batches for the forward function, N rows together.
        reference: the embeddings (N, D) of the model that is quantised.
        min_cosine: the threshold: the smallest cosine that a row may have to its reference.
        max_builds: number of models after which the set is no longer made smaller; at least 24.
            (The set is found with at most one model with nothing kept, one per group, and one per
            step of a bisection.)

    Raises:
        ExportError: the threshold is not reached even with every layer kept.
    """
    if max_builds < 3 * GROUPS:
        raise ValueError(f"max_builds is {max_builds}; the search needs {3 * GROUPS}")
    trials = _Trials(build, inputs, reference, min_cosine)
    before = trials.score(frozenset())
    if trials.passes(frozenset()):
        return SearchResult(kept=(), before=before, after=before, tried=trials.built)
    groups = _split(list(layers), GROUPS)
    # The error that remains when a group is kept. A stable sort: ties stay in the model's order.
    groups.sort(key=lambda group: -_finite(trials.score(frozenset(group)).mean_cosine))
    kept = _grow(groups, trials)
    kept = _shrink([name for name in layers if name in kept], trials, max_builds)
    return SearchResult(
        kept=tuple(name for name in layers if name in kept),
        before=before,
        after=trials.score(kept),
        tried=trials.built,
    )


class _Trials:
    """Builds and measures models; each set of kept layers once."""

    def __init__(
        self, build: Build, inputs: Sequence[NDArray[Any]], reference: Embeddings, min_cosine: float
    ) -> None:
        self.build, self.inputs, self.reference = build, inputs, reference
        self.min_cosine = min_cosine
        self.known: dict[frozenset[str], Score] = {}

    @property
    def built(self) -> int:
        return len(self.known)

    def score(self, keep: frozenset[str]) -> Score:
        if keep not in self.known:
            self.known[keep] = measure(self.build(keep), self.inputs, self.reference)
        return self.known[keep]

    def passes(self, keep: frozenset[str]) -> bool:
        return self.score(keep).min_cosine >= self.min_cosine  # NaN fails


def measure(run: Run, inputs: Sequence[NDArray[Any]], reference: Embeddings) -> Score:
    """Return the cosines of a model's embeddings to the reference's (N, D)."""
    cosine = cosines(np.concatenate([run(batch) for batch in inputs]), reference)
    return Score(min_cosine=float(cosine.min()), mean_cosine=float(cosine.mean()))


def cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Return the cosines (N,) of the rows of two arrays (N, D)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):  # NaN fails the threshold
        return np.asarray((a * b).sum(-1) / norms)


def _finite(value: float) -> float:
    return value if np.isfinite(value) else -1.0


def _split(names: Sequence[str], parts: int) -> list[list[str]]:
    """Return contiguous parts whose lengths differ by at most one; none is empty."""
    parts = min(parts, len(names))
    ends = [len(names) * i // parts for i in range(parts + 1)] if parts else []
    return [list(names[a:b]) for a, b in itertools.pairwise(ends)]


def _grow(groups: Sequence[Sequence[str]], trials: _Trials) -> frozenset[str]:
    """Return the union of the smallest number of first groups that passes."""

    def union(count: int) -> frozenset[str]:
        return frozenset(name for group in groups[:count] for name in group)

    low, high = 0, len(groups)  # `low` fails; `high` has to pass
    if not trials.passes(union(high)):
        score = trials.score(union(high))
        raise ExportError(
            "even with every layer kept in higher precision the smallest cosine is "
            f"{score.min_cosine:.6f} (the search needs {trials.min_cosine}): int8 is not the "
            "cause; check the model that is quantised"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if trials.passes(union(middle)) else (middle, high)
    return union(high)


def _shrink(names: Sequence[str], trials: _Trials, max_builds: int) -> frozenset[str]:
    """Return `names` without the layers that can be quantised after all, found by halving."""
    kept, waiting = frozenset(names), _split(names, 2)
    while waiting and trials.built < max_builds:
        group = waiting.pop()
        smaller = kept - frozenset(group)
        if trials.passes(smaller):
            kept = smaller
        elif len(group) > 1:
            waiting += _split(group, 2)
    return kept
