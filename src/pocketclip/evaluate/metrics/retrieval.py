"""The metrics of the published tables, on arrays: no model, no files.

    retrieval_metrics(images, texts, image_of)["mean_recall@1"]

Shapes: D embedding, I images and T texts of one puzzle, M texts, N images, Q queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import DataError
from pocketclip.evaluate.metrics.scores import (
    Candidates,
    Flags,
    Floats,
    Integers,
    check_finite,
    check_range,
    check_some,
    ranks,
)
from pocketclip.evaluate.tasks import Metrics

_NOWHERE = np.iinfo(np.int64).max


def retrieval_metrics(
    images: Floats,
    texts: Floats,
    image_of: Integers,
    ks: Sequence[int] = (1, 5, 10),
    chunk: int | None = None,
) -> Metrics:
    """Return how often what belongs together is found among the k best.

    `image_retrieval_recall@k` is over texts, whose image is sought; `text_retrieval_recall@k`
    over images, any one of whose texts is enough; an image without texts counts as not found,
    as in clip-benchmark. `mean_recall@1` is the mean of both for k = 1. A k above the number of
    candidates takes all.

    Args:
        images: unit embeddings (N, D).
        texts: unit embeddings (M, D).
        image_of: the image that each text belongs to (M,).
        ks: how many are retrieved.
        chunk: queries scored at a time; by default as many as 16 MiB of scores hold, at least 64.

    Raises:
        DataError: no images or no texts, embeddings that are not finite, a text of an image that
            does not exist; names the position.
        ValueError: arrays that do not fit each other, a k below 1.
    """
    images, texts = _at_least_single(images), _at_least_single(texts)
    image_of = np.asarray(image_of)
    if images.ndim != 2 or texts.shape[1:] != images.shape[1:] or image_of.shape != texts.shape[:1]:
        raise ValueError(f"images {images.shape}, texts {texts.shape} and image_of "
                         f"{image_of.shape}: not (N, D), (M, D) and (M,)")  # fmt: skip
    if min(ks, default=0) < 1 or (chunk is not None and chunk < 1):
        raise ValueError(f"ks {tuple(ks)} and chunk {chunk}: each must be at least 1")
    check_some(len(images), "images")
    check_some(len(texts), "texts")
    check_finite("embedding", "image", images)
    check_finite("embedding", "text", texts)
    image_of = check_range("image", "text", image_of, len(images))
    to_image = np.concatenate(
        [
            ranks(scores, image_of[begin : begin + len(scores)])
            for begin, scores in Candidates(images).scored("text", texts, chunk)
        ]
    )
    to_text = _text_ranks(images, texts, image_of, chunk)
    found: Metrics = {}
    for k in ks:
        found[f"image_retrieval_recall@{k}"] = float((to_image < k).mean())
        found[f"text_retrieval_recall@{k}"] = float((to_text < k).mean())
    return found | {"mean_recall@1": float((to_image < 1).mean() + (to_text < 1).mean()) / 2}


def _text_ranks(
    images: Floats, texts: Floats, image_of: Integers, chunk: int | None
) -> NDArray[np.int64]:
    """Return the rank (N,) of the best text of each image; beyond all for those without."""
    found = np.full(len(images), _NOWHERE)
    order = np.argsort(image_of, kind="stable")  # texts by image, and by index within one
    begins = np.searchsorted(image_of[order], np.arange(len(images) + 1))
    for begin, scores in Candidates(texts).scored("image", images, chunk):
        own = order[begins[begin] : begins[begin + len(scores)]]
        rows = image_of[own] - begin
        mine = scores[rows, own]
        highest = np.full(len(scores), -np.inf, scores.dtype)
        np.maximum.at(highest, rows, mine)
        best = np.full(len(scores), len(texts))
        at_best = mine == highest[rows]
        np.minimum.at(best, rows[at_best], own[at_best])
        has = np.flatnonzero(best < len(texts))
        if len(has):
            with_texts = scores if len(has) == len(scores) else scores[has]
            found[begin + has] = ranks(with_texts, best[has])
    return found


def _at_least_single(rows: Floats) -> Floats:
    rows = np.asarray(rows)
    return rows.astype(np.result_type(rows, np.float32), copy=False)


def choice_hits(scores: Floats) -> tuple[bool, bool]:
    """Return whether each text found its image, and each image its text, in one puzzle.

    Args:
        scores: (I, T) of images and texts; text i belongs to image i, and texts or images
            beyond min(I, T) only distract. Of equal scores the first is chosen.

    Raises:
        DataError: there are none, or they are not finite.
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
    """Return image_acc, text_acc and acc (both right) of what `choice_hits` gave per puzzle.

    Raises:
        DataError: there is no puzzle.
    """
    found = np.array(list(hits), bool).reshape(-1, 2)
    check_some(len(found), "puzzles")
    image_acc, text_acc = found.mean(axis=0).tolist()
    return {"image_acc": image_acc, "text_acc": text_acc, "acc": float(found.all(axis=1).mean())}


def jaccard(scores: Floats, truth: Flags) -> float:
    """Return intersection over union of the associated images and as many of the best scores.

    Args:
        scores: of the cue with each image (I,).
        truth: whether each image is associated with the cue (I,).

    Raises:
        DataError: no image is associated, or scores that are not finite.
        ValueError: arrays that do not fit each other.
    """
    scores, truth = np.asarray(scores, np.float64), np.asarray(truth)
    if scores.ndim != 1 or scores.shape != truth.shape or truth.dtype != bool:
        raise ValueError(f"scores {scores.shape} and truth {truth.shape} {truth.dtype}")
    check_finite("score", "image", scores[:, None])
    wanted = int(truth.sum())
    check_some(wanted, "associated images")
    chosen = np.argsort(-scores, kind="stable")[:wanted]
    both = int(truth[chosen].sum())
    return both / (2 * wanted - both)


def association_metrics(jaccards: Sequence[float], sizes: Sequence[int]) -> Metrics:
    """Return the mean Jaccard index of all puzzles and by how many images they have.

    `jaccard_score_5-6` is the mean over the puzzles of up to 6 images, `jaccard_score_10-12`
    over those of 10 and more; None where there is no such puzzle.

    Raises:
        DataError: there is no puzzle.
        ValueError: not one size for each index.
    """
    values, counts = np.asarray(jaccards, np.float64), np.asarray(sizes)
    if values.shape != counts.shape:
        raise ValueError(f"{len(values)} indices and {len(counts)} sizes")
    check_some(len(values), "puzzles")
    parts = {str(size): counts == size for size in (5, 6, 10, 12)}
    parts |= {"5-6": counts <= 6, "10-12": counts >= 10}
    found: Metrics = {"avg_jaccard_score": float(values.mean())}
    for name, part in parts.items():
        found[f"jaccard_score_{name}"] = float(values[part].mean()) if part.any() else None
    return found
