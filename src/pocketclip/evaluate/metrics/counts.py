"""Classification metrics, accumulated batch by batch.

    counts = ClassificationCounts(classes=10)
    counts.add(scores, labels)
    counts.metrics()  # {"acc1": ..., "acc5": ..., "mean_per_class_recall": ...}

Shapes: B batch, C classes, F metadata fields.

In the published iWildCam results acc1 and `acc_avg` differ slightly: they come from `torch.topk`
and from the first maximum, which break ties of half-precision scores differently. Here they are
equal.
"""

from __future__ import annotations

import math
from collections import Counter
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


def most_confused(
    labels: Integers, predicted: Integers, most: int = 10
) -> list[tuple[int, int, int]]:
    """Return (label, prediction, times) of the most frequent wrong predictions.

    Args:
        labels: (N,) classes.
        predicted: (N,) classes.
        most: the number to return at most; of equally frequent ones the lower classes come first.
    """
    wrong = labels != predicted
    pairs = Counter(zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True))
    common = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:most]
    return [(label, taken_for, times) for (label, taken_for), times in common]


class ClassificationCounts:
    """Accumulates predictions; `metrics` computes the metrics at the end.

    Args:
        classes: number of classes C.
        confusion: also keep a confusion matrix; memory grows with C * C.
    """

    def __init__(self, classes: int, *, confusion: bool = False) -> None:
        if classes < 1:
            raise ValueError(f"classes must be at least 1, not {classes}")
        self.classes = classes
        self.count = 0
        """Number of samples added."""
        self.confusion = np.zeros((classes, classes), np.int64) if confusion else None
        """Counts (C, C) by true class, then predicted class."""
        self._true = np.zeros(classes, np.int64)
        self._predicted = np.zeros(classes, np.int64)
        self._correct = np.zeros(classes, np.int64)
        self._top5 = 0

    def add(self, scores: Floats, labels: Integers) -> None:
        """Add a batch of scores (B, C) and true labels (B,).

        Raises:
            DataError: scores that are not finite, or a label outside 0..C-1; positions in the
                message count from the first sample added. The batch is not counted.
            ValueError: arrays whose shapes do not match.
        """
        scores, labels = checked(scores, labels, self.count)
        if scores.shape[1] != self.classes:
            raise ValueError(f"scores of {scores.shape[1]} classes, not {self.classes}")
        self.add_predictions(scores.argmax(axis=1), labels, ranks(scores, labels) < 5)

    def add_predictions(self, predicted: Integers, labels: Integers, top5: Flags) -> None:
        """Add a batch of predictions (B,), labels (B,) and top-5 hits (B,).

        Raises:
            DataError: a label or prediction outside 0..C-1; the message names the position.
            ValueError: arrays whose shapes do not match.
        """
        predicted, labels, top5 = np.asarray(predicted), np.asarray(labels), np.asarray(top5)
        if not predicted.shape == labels.shape == top5.shape or top5.dtype != bool:
            raise ValueError(f"predictions {predicted.shape}, labels {labels.shape} and hits "
                             f"{top5.shape} {top5.dtype} do not match")  # fmt: skip
        labels = check_range("label", "sample", labels, self.classes, self.count)
        predicted = check_range("prediction", "sample", predicted, self.classes, self.count)
        self.count += len(labels)
        self._true += np.bincount(labels, minlength=self.classes)
        self._predicted += np.bincount(predicted, minlength=self.classes)
        self._correct += np.bincount(labels[predicted == labels], minlength=self.classes)
        self._top5 += int(np.count_nonzero(top5))
        if self.confusion is not None:
            np.add.at(self.confusion, (labels, predicted), 1)

    def metrics(self) -> Metrics:
        """Return acc1, acc5 and mean_per_class_recall.

        acc5 is None below five classes. The mean is over the classes that occur among the labels,
        as in scikit-learn's `balanced_accuracy_score`.

        Raises:
            DataError: no sample was added.
        """
        check_some(self.count)
        return {
            "acc1": int(self._correct.sum()) / self.count,
            "acc5": self._top5 / self.count if self.classes >= 5 else None,
            "mean_per_class_recall": self._recall(),
        }

    def macro(self) -> Metrics:
        """Return acc_avg, recall-macro_all and F1-macro_all, as WILDS names them.

        Means are over the classes that occur among the labels. A class that is only predicted
        counts through the samples that it was predicted for.

        Raises:
            DataError: no sample was added.
        """
        check_some(self.count)
        occurring = self._true > 0
        support = self._true[occurring] + self._predicted[occurring]
        f1 = 2 * self._correct[occurring] / support
        return {
            "acc_avg": int(self._correct.sum()) / self.count,
            "recall-macro_all": self._recall(),
            "F1-macro_all": float(f1.mean()),
        }

    def _recall(self) -> float:
        occurring = self._true > 0
        return float((self._correct[occurring] / self._true[occurring]).mean())


class GroupCounts:
    """The hit rate over all samples, in each group and in the worst group.

    Groups are all combinations of values of the fields in `by`, whether they occur or not; the
    values of a field run from 0 to its largest, as in WILDS.

    Args:
        fields: names of the F metadata columns, in order.
        by: the fields that define the groups; the last one varies fastest.
        name: name of the hit rate: `acc`, `acc_top5`, `toxicity_crime`, ...
        worst: name of the lowest hit rate of any non-empty group; `NAME_wg` by default.
    """

    def __init__(
        self, fields: Sequence[str], by: Sequence[str], *, name: str = "acc", worst: str = ""
    ) -> None:
        unknown = [field for field in by if field not in fields]
        if unknown or not by:
            raise ValueError(f"no metadata field {(unknown or [''])[0]!r} among {list(fields)}")
        self.fields = tuple(fields)
        self.by = tuple(by)
        self.name = name
        self.worst = worst or f"{name}_wg"
        self.count = 0
        """Number of samples added."""
        self._columns = [self.fields.index(field) for field in self.by]
        self._sizes = [0] * len(self.by)  # values of each field, as seen so far
        self._counts: dict[tuple[int, ...], list[int]] = {}  # by group: hits, samples

    def add(self, hits: Flags, metadata: Integers) -> None:
        """Add a batch of hits (B,) with its metadata (B, F).

        Raises:
            DataError: a negative value, or too many groups; positions in the message count from
                the first sample added.
            ValueError: arrays whose shapes do not match.
        """
        hits, metadata = np.asarray(hits), np.asarray(metadata)
        if metadata.shape != (len(hits), len(self.fields)) or hits.dtype != bool:
            raise ValueError(f"hits {hits.shape} {hits.dtype} and metadata {metadata.shape}; "
                             f"expected (B,) bool and (B, {len(self.fields)})")  # fmt: skip
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
        groups, group_of = np.unique(keys, axis=0, return_inverse=True)
        group_of = group_of.reshape(-1)
        hit_counts = np.bincount(group_of[hits], minlength=len(groups)).tolist()
        totals = np.bincount(group_of, minlength=len(groups)).tolist()
        for group, hit_count, total in zip(groups.tolist(), hit_counts, totals, strict=True):
            count = self._counts.setdefault(tuple(group), [0, 0])
            count[0] += hit_count
            count[1] += total

    def metrics(self) -> Metrics:
        """Return the overall hit rate, each group's hit rate and count, and the worst group's.

        An empty group has None and the count 0.

        Raises:
            DataError: no sample was added.
        """
        check_some(self.count)
        metrics: Metrics = {
            f"{self.name}_avg": sum(hits for hits, _ in self._counts.values()) / self.count
        }
        rates = []
        for group in np.ndindex(*self._sizes):
            title = "_".join(f"{f}:{value}" for f, value in zip(self.by, group, strict=True))
            hits, total = self._counts.get(group, (0, 0))
            if total:
                rates.append(hits / total)
            metrics[f"{self.name}_{title}"] = rates[-1] if total else None
            metrics[f"count_{title}"] = float(total)
        return metrics | {self.worst: min(rates)}
