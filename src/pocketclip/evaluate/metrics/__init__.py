"""The metrics of the published tables, as functions of arrays: no model, no files.

    retrieval_metrics(images, texts, image_of)["mean_recall@1"]

| module | holds |
|---|---|
| `retrieval` | recall at k in both directions |
| `puzzles` | multiple choice and association |
| `counts` | classification metrics, summed batch by batch |
| `scores` | top k, ranks, and the rule for ties: the lowest index comes first |
"""

from pocketclip.evaluate.metrics.counts import ClassificationCounts, GroupCounts
from pocketclip.evaluate.metrics.puzzles import (
    association_metrics,
    choice_hits,
    choice_metrics,
    jaccard,
)
from pocketclip.evaluate.metrics.retrieval import retrieval_metrics
from pocketclip.evaluate.metrics.scores import predictions, top_hits

__all__ = [
    "ClassificationCounts",
    "GroupCounts",
    "association_metrics",
    "choice_hits",
    "choice_metrics",
    "jaccard",
    "predictions",
    "retrieval_metrics",
    "top_hits",
]
