"""Counts of right and wrong answers, batch after batch, and the metrics made of them.

    counts = ClassificationCounts(classes=10)
    counts.add(scores, labels)
    counts.metrics()  # {"acc1": ..., "acc5": ..., "mean_per_class_recall": ...}

Shapes: B batch, C classes, F metadata fields.

In the published iWildCam results acc1 and `acc_avg` differ a little, since peers take the one from
`torch.topk` and the other from the first maximum, and scores in half precision tie. Here the two
are one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pocketclip.errors import DataError
from pocketclip.evaluate.metrics.scores import (
    Flags,
    Floats,
    Integers,
    check_integers,
    check_range,
    check_some,
    checked,
    ranks,
)
from pocketclip.evaluate.tasks import Metrics

_MAX_GROUPS = 100_000


class ClassificationCounts:
    """Counts of right and wrong answers, from which the metrics are made at the end.

    Args:
        classes: C, how many there are.
        confusion: also count which class was taken for which; memory grows with C * C.
    """

    def __init__(self, classes: int, *, confusion: bool = False) -> None:
        if classes < 1:
            raise ValueError(f"classes must be at least 1, not {classes}")
        self.classes = classes
        self.count = 0
        """How many samples were added."""
        self.confusion = np.zeros((classes, classes), np.int64) if confusion else None
        """Counts (C, C) by true class, then predicted class."""
        self._true = np.zeros(classes, np.int64)
        self._predicted = np.zeros(classes, np.int64)
        self._right = np.zeros(classes, np.int64)
        self._top5 = 0

    def add(self, scores: Floats, labels: Integers) -> None:
        """Count a batch of scores (B, C) and true labels (B,).

        Raises:
            DataError: scores that are not finite, a label outside 0..C-1; the message counts
                positions from the first sample ever added. Nothing of the batch is counted.
            ValueError: arrays that do not fit.
        """
        scores, labels = checked(scores, labels, self.count)
        if scores.shape[1] != self.classes:
            raise ValueError(f"scores of {scores.shape[1]} classes, not {self.classes}")
        self.add_predictions(scores.argmax(axis=1), labels, ranks(scores, labels) < 5)

    def add_predictions(self, predicted: Integers, labels: Integers, top5: Flags) -> None:
        """Count a batch by its predictions (B,), labels (B,) and hits among the five best (B,).

        Raises:
            DataError: a label or prediction outside 0..C-1; names the position.
            ValueError: arrays that do not fit each other.
        """
        predicted, labels, top5 = np.asarray(predicted), np.asarray(labels), np.asarray(top5)
        if not predicted.shape == labels.shape == top5.shape or top5.dtype != bool:
            raise ValueError(f"predictions {predicted.shape}, labels {labels.shape} and hits "
                             f"{top5.shape} {top5.dtype} are not one of each")  # fmt: skip
        labels = check_range("label", "sample", labels, self.classes, self.count)
        predicted = check_range("prediction", "sample", predicted, self.classes, self.count)
        self.count += len(labels)
        self._true += np.bincount(labels, minlength=self.classes)
        self._predicted += np.bincount(predicted, minlength=self.classes)
        self._right += np.bincount(labels[predicted == labels], minlength=self.classes)
        self._top5 += int(np.count_nonzero(top5))
        if self.confusion is not None:
            np.add.at(self.confusion, (labels, predicted), 1)

    def metrics(self) -> Metrics:
        """Return acc1, acc5 and mean_per_class_recall.

        acc5 is None where there are fewer than five classes. The mean is over the classes that
        occur among the labels, as scikit-learn's `balanced_accuracy_score` has it.

        Raises:
            DataError: no sample was added.
        """
        check_some(self.count)
        return {
            "acc1": int(self._right.sum()) / self.count,
            "acc5": self._top5 / self.count if self.classes >= 5 else None,
            "mean_per_class_recall": self._recall(),
        }

    def macro(self) -> Metrics:
        """Return acc_avg, recall-macro_all and F1-macro_all, as WILDS names them.

        Means are over the classes that occur among the labels; a class that does not, but is
        predicted, counts only through the samples that it was predicted for.

        Raises:
            DataError: no sample was added.
        """
        check_some(self.count)
        there = self._true > 0
        f1 = 2 * self._right[there] / (self._true[there] + self._predicted[there])
        return {
            "acc_avg": int(self._right.sum()) / self.count,
            "recall-macro_all": self._recall(),
            "F1-macro_all": float(f1.mean()),
        }

    def _recall(self) -> float:
        there = self._true > 0
        return float((self._right[there] / self._true[there]).mean())


class GroupCounts:
    """The share of hits in all samples, in each group of them and in the worst group.

    Groups are all combinations of values of the fields in `by`, whether they occur or not; a
    field has as many values as its largest says, as in WILDS.

    Args:
        fields: what the metadata's columns are, in order; F of them.
        by: the fields that make the groups; the last one varies fastest.
        name: what the share of hits is called: `acc`, `acc_top5`, `toxicity_crime`, ...
        worst: what the lowest share of any group that occurs is called; `NAME_wg` by default.
    """

    def __init__(
        self, fields: Sequence[str], by: Sequence[str], *, name: str = "acc", worst: str = ""
    ) -> None:
        absent = [field for field in by if field not in fields]
        if absent or not by:
            raise ValueError(f"no metadata field {(absent or [''])[0]!r} among {list(fields)}")
        self.fields = tuple(fields)
        self.by = tuple(by)
        self.name = name
        self.worst = worst or f"{name}_wg"
        self.count = 0
        """How many samples were added."""
        self._columns = [self.fields.index(field) for field in self.by]
        self._sizes = [0] * len(self.by)  # values of each field, as seen so far
        self._counts: dict[tuple[int, ...], list[int]] = {}  # by group: hits, samples

    def add(self, hits: Flags, metadata: Integers) -> None:
        """Count a batch of hits (B,) with its metadata (B, F).

        Raises:
            DataError: a value below zero, or too many groups; the message counts positions from
                the first sample ever added.
            ValueError: arrays that do not fit.
        """
        hits, metadata = np.asarray(hits), np.asarray(metadata)
        if metadata.shape != (len(hits), len(self.fields)) or hits.dtype != bool:
            raise ValueError(f"hits {hits.shape} {hits.dtype} and metadata {metadata.shape}, not "
                             f"(B,) bool and (B, {len(self.fields)})")  # fmt: skip
        check_integers("metadata", metadata)
        if not len(hits):
            return
        keys = metadata[:, self._columns]
        for column, field in enumerate(self.by):
            check_range(field, "sample", keys[:, column], _MAX_GROUPS, self.count)
        sizes = [max(int(n) + 1, old) for n, old in zip(keys.max(0), self._sizes, strict=True)]
        if math.prod(sizes) > _MAX_GROUPS:
            raise DataError(f"{' x '.join(map(str, sizes))} groups by {' and '.join(self.by)}: "
                            f"is the metadata in the order {', '.join(self.fields)}?")  # fmt: skip
        self._sizes = sizes
        self.count += len(hits)
        groups, of = np.unique(keys, axis=0, return_inverse=True)
        of = of.reshape(-1)
        right = np.bincount(of[hits], minlength=len(groups)).tolist()
        total = np.bincount(of, minlength=len(groups)).tolist()
        for group, add_right, add_total in zip(groups.tolist(), right, total, strict=True):
            count = self._counts.setdefault(tuple(group), [0, 0])
            count[0] += add_right
            count[1] += add_total

    def metrics(self) -> Metrics:
        """Return the shares and counts: all, then each group's, then the worst group's.

        A group without samples has None and the count 0.

        Raises:
            DataError: no sample was added.
        """
        check_some(self.count)
        found: Metrics = {
            f"{self.name}_avg": sum(right for right, _ in self._counts.values()) / self.count
        }
        shares = []
        for group in np.ndindex(*self._sizes):
            title = "_".join(f"{f}:{value}" for f, value in zip(self.by, group, strict=True))
            right, total = self._counts.get(group, (0, 0))
            if total:
                shares.append(right / total)
            found[f"{self.name}_{title}"] = shares[-1] if total else None
            found[f"count_{title}"] = float(total)
        return found | {self.worst: min(shares)}
