"""Metrics of multiple choice (SugarCrepe) and association (WinoGAViL).

    association_metrics([jaccard(scores, truth)], [len(truth)])["avg_jaccard_score"]

Shapes: I images and T texts of one puzzle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from pocketclip.errors import DataError
from pocketclip.evaluate.metrics.scores import Flags, Floats, check_finite, check_some
from pocketclip.evaluate.tasks import Metrics


def choice_hits(scores: Floats) -> tuple[bool, bool]:
    """Return whether all texts retrieve their image, and all images their text, in one puzzle.

    Args:
        scores: (I, T) of images and texts; text i belongs to image i, and texts or images
            beyond min(I, T) are distractors. Ties go to the first.

    Raises:
        DataError: no scores, or scores that are not finite.
    """
    scores = np.asarray(scores)
    if scores.ndim != 2 or not scores.size:
        raise DataError(f"scores {scores.shape} of a puzzle: it needs an image and a text")
    check_finite("score", "image", scores)
    pairs = np.arange(min(scores.shape))
    image_ok = bool((scores.argmax(axis=0)[pairs] == pairs).all())
    text_ok = bool((scores.argmax(axis=1)[pairs] == pairs).all())
    return image_ok, text_ok


def choice_metrics(hits: Iterable[tuple[bool, bool]]) -> Metrics:
    """Return image_acc, text_acc and acc (both correct) over the results of `choice_hits`.

    Raises:
        DataError: there is no puzzle.
    """
    correct = np.array(list(hits), bool).reshape(-1, 2)
    check_some(len(correct), "puzzles")
    image_acc, text_acc = correct.mean(axis=0).tolist()
    acc = float(correct.all(axis=1).mean())
    return {"image_acc": image_acc, "text_acc": text_acc, "acc": acc}


def jaccard(scores: Floats, truth: Flags) -> float:
    """Return the Jaccard index of the associated images and the equally many best-scored ones.

    Args:
        scores: scores of the cue with each image (I,).
        truth: whether each image is associated with the cue (I,).

    Raises:
        DataError: no image is associated, or scores that are not finite.
        ValueError: arrays that do not fit each other.
    """
    scores, truth = np.asarray(scores, np.float64), np.asarray(truth)
    if scores.ndim != 1 or scores.shape != truth.shape or truth.dtype != bool:
        raise ValueError(f"scores {scores.shape} and truth {truth.shape} {truth.dtype}")
    check_finite("score", "image", scores[:, None])
    count = int(truth.sum())
    check_some(count, "associated images")
    chosen = np.argsort(-scores, kind="stable")[:count]
    both = int(truth[chosen].sum())
    return both / (2 * count - both)


def association_metrics(jaccards: Sequence[float], sizes: Sequence[int]) -> Metrics:
    """Return the mean Jaccard index of all puzzles and by the number of images.

    `jaccard_score_5-6` is the mean over puzzles of up to 6 images, `jaccard_score_10-12` over
    those of 10 and more; None if there is no such puzzle.

    Raises:
        DataError: there is no puzzle.
        ValueError: the number of sizes is not that of the indices.
    """
    values, counts = np.asarray(jaccards, np.float64), np.asarray(sizes)
    if values.shape != counts.shape:
        raise ValueError(f"{len(values)} indices and {len(counts)} sizes")
    check_some(len(values), "puzzles")
    groups = {str(size): counts == size for size in (5, 6, 10, 12)}
    groups |= {"5-6": counts <= 6, "10-12": counts >= 10}
    metrics: Metrics = {"avg_jaccard_score": float(values.mean())}
    for name, members in groups.items():
        mean = float(values[members].mean()) if members.any() else None
        metrics[f"jaccard_score_{name}"] = mean
    return metrics
