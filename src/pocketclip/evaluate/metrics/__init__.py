"""The metrics of the published tables, on arrays: no model, no files.

    retrieval_metrics(images, texts, image_of)["mean_recall@1"]

| module | holds |
|---|---|
| `retrieval` | recall, multiple choice and association |
| `counts` | metrics that are summed batch by batch |
| `scores` | top k, ranks, and the rule for equal scores: the lowest index comes first |
"""

from pocketclip.evaluate.metrics.counts import ClassificationCounts, GroupCounts
from pocketclip.evaluate.metrics.retrieval import (
    association_metrics,
    choice_hits,
    choice_metrics,
    jaccard,
    retrieval_metrics,
)
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
