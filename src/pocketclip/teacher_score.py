"""How well a teacher knows some pairs: a figure, its error, and whether one clearly beats another.

    score = score_pairs([(images, texts, scale)], text_of, name="vit-b16")
    score.value, score.chance, score.is_above_chance
    is_clearly_better(score, other)

The figure is the zero-shot accuracy where texts repeat (the distinct texts are the classes), else
the recall@1 of retrieval, the mean of both directions. Equal texts count as one: an image that
finds a text equal to its own is a hit.

Several teachers score together as the distillation loss uses them: their affinities, the softmax
of their scaled similarities, are averaged (MobileCLIP, arXiv 2311.17049, equation 2).

Shapes: N pairs, M distinct texts, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pocketclip.embeddings import softmax
from pocketclip.errors import DataError
from pocketclip.types import Embeddings

Metric = Literal["zero_shot_accuracy", "retrieval_recall@1"]
Rows: TypeAlias = tuple[Embeddings, Embeddings, float]
"""One teacher's image embeddings (N, D), embeddings of the distinct texts (M, D), logit scale."""

_FEW = 2
"""Texts are classes if each occurs this many times or more in the sample, on average."""
_FEWEST = 20
"""Pairs that are needed to say that a teacher knows nothing."""
_CLEARLY = 2.0
"""Standard errors that make a difference clear: about one chance in 44 that it is an accident."""
_METRICS = {
    "zero_shot_accuracy": "zero-shot accuracy",
    "retrieval_recall@1": "retrieval recall@1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherScore:
    """What a teacher, or several together, scored on a sample of pairs."""

    name: str
    metric: Metric
    value: float
    """The metric, 0 to 1."""
    chance: float
    """The metric if the same answers were dealt out at random: a teacher that always gives the
    same answer has exactly this value."""
    n: int
    """N, the number of pairs."""
    texts: int
    """M, the number of distinct texts, which are the classes of a zero-shot accuracy."""
    standard_error: float
    """Of `value`."""
    hits: NDArray[np.float64] = field(compare=False, repr=False)
    """(N,): 1 for a hit, 0 for a miss, 0.5 if one direction of retrieval is a hit."""

    @property
    def is_above_chance(self) -> bool:
        """Whether the value is more than two standard errors above chance."""
        error = math.sqrt(self.chance * (1 - self.chance) / self.n)
        return self.value > self.chance + _CLEARLY * error

    @property
    def is_small(self) -> bool:
        """Whether the sample has fewer than 20 pairs, too few to warn of anything."""
        return self.n < _FEWEST

    @property
    def knows_nothing(self) -> bool:
        """Whether it is no better than chance on a sample that is not small."""
        return not (self.is_small or self.is_above_chance)

    def facts(self) -> dict[str, Any]:
        """Return the score as JSON types, without the hits."""
        return {
            "name": self.name, "metric": self.metric, "value": round(self.value, 4),
            "chance": round(self.chance, 4), "standard_error": round(self.standard_error, 4),
            "pairs": self.n, "texts": self.texts, "above_chance": self.is_above_chance,
        }  # fmt: skip

    def line(self, name: str = "") -> str:
        """Return the score as one line of text; `name` instead of its own."""
        among = f"{self.texts} classes" if self.metric == "zero_shot_accuracy" else "both ways"
        return (
            f"{name or self.name}: {_METRICS[self.metric]} {100 * self.value:.1f} % "
            f"± {100 * self.standard_error:.1f} (chance {100 * self.chance:.1f} %; "
            f"{self.n} pairs, {among})"
        )


def is_clearly_better(a: TeacherScore, b: TeacherScore) -> bool:
    """Return whether `a` is better than `b` by more than an accident of the sample.

    The rule: of the differences of their hits, pair by pair, the sum exceeds two standard errors,
    which are twice the root of the sum of squares. For hits of 0 and 1 this is McNemar's test
    (Psychometrika 12, 1947, page 153) without correction. Two scores of few pairs are never
    clearly different.

    Raises:
        ValueError: they were not scored on the same sample with the same metric.
    """
    if a.metric != b.metric or a.n != b.n or a.texts != b.texts:
        raise ValueError(f"{a.name} and {b.name} were scored on different samples")
    difference = a.hits - b.hits
    return bool(difference.sum() > _CLEARLY * math.sqrt(float((difference**2).sum())))


def number_texts(texts: Sequence[Hashable]) -> tuple[NDArray[np.int64], list[int]]:
    """Return the number of each text among the distinct ones (N,), and where each occurs first."""
    first: dict[Hashable, int] = {}
    numbers: dict[Hashable, int] = {}
    for position, text in enumerate(texts):
        if text not in first:
            first[text] = position
            numbers[text] = len(numbers)
    return np.array([numbers[text] for text in texts], np.int64), list(first.values())


def choose_metric(text_of: NDArray[np.int64]) -> Metric:
    """Return the metric for pairs with these texts (N,): zero-shot accuracy if texts repeat."""
    few = len(text_of) >= _FEW * len(np.unique(text_of))
    return "zero_shot_accuracy" if few else "retrieval_recall@1"


def score_pairs(
    teachers: Sequence[Rows],
    text_of: NDArray[np.int64],
    *,
    name: str,
    metric: Metric | None = None,
) -> TeacherScore:
    """Return the score of one teacher, or of several together.

    Args:
        teachers: the unit embeddings and the logit scale of each.
        text_of: the number of each image's own text (N,), from 0 to M - 1.
        name: for messages and reports.
        metric: None: `choose_metric`.

    Raises:
        DataError: there are fewer than two pairs or texts.
        ValueError: shapes do not fit.
    """
    metric = metric or choose_metric(text_of)
    shapes = {(len(images), len(texts)) for images, texts, _ in teachers}
    if len(shapes) != 1 or shapes != {(len(text_of), max(shapes)[1])}:
        raise ValueError(f"teachers with {sorted(shapes)} images and texts, {len(text_of)} pairs")
    count, texts = shapes.pop()
    if count < 2 or texts < 2:
        raise DataError(
            f"a teacher cannot be checked on {count} pairs with {texts} distinct "
            f"text{'s' * (texts != 1)}: two of each are needed"
        )
    to_text = np.zeros((count, texts))
    to_image = np.zeros((texts, count))
    for images, rows, scale in teachers:
        logits = scale * (images.astype(np.float64) @ rows.astype(np.float64).T)  # (N, M)
        to_text += softmax(logits)
        to_image += softmax(logits.T)
    answers = to_text.argmax(1)  # (N,)
    hits = (answers == text_of).astype(np.float64)
    chance = _agreement(answers, text_of, texts)
    if metric == "retrieval_recall@1":
        found = text_of[to_image.argmax(1)]  # (M,): the text of the image that each text finds
        answers = found[text_of]
        hits = (hits + (answers == text_of)) / 2
        chance = (chance + _agreement(answers, text_of, texts)) / 2
    return TeacherScore(
        name=name, metric=metric, value=float(hits.mean()), chance=chance, n=count, texts=texts,
        standard_error=float(hits.std(ddof=1) / math.sqrt(count)), hits=hits,
    )  # fmt: skip


def _agreement(answers: NDArray[np.int64], truths: NDArray[np.int64], count: int) -> float:
    """Return the share of hits if the same answers were dealt out at random."""
    shares = [np.bincount(x, minlength=count) / len(x) for x in (answers, truths)]
    return float(shares[0] @ shares[1])
