"""Image-text retrieval: recall at k in both directions.

    retrieval_metrics(images, texts, image_of)["mean_recall@1"]

Shapes: D embedding, M texts, N images, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pocketclip.evaluate.metrics.scores import (
    Candidates,
    Floats,
    Integers,
    check_finite,
    check_range,
    check_some,
    ranks,
)
from pocketclip.evaluate.tasks import Metrics

_NO_RANK = np.iinfo(np.int64).max


def retrieval_metrics(
    images: Floats,
    texts: Floats,
    image_of: Integers,
    ks: Sequence[int] = (1, 5, 10),
    chunk: int | None = None,
) -> Metrics:
    """Return recall at k, text to image and image to text.

    `image_retrieval_recall@k` is the share of texts whose image is among the k best.
    `text_retrieval_recall@k` is the share of images with any of their texts among the k best; an
    image without texts counts as a miss, as in clip-benchmark. `mean_recall@1` is the mean of both
    for k = 1. A k above the number of candidates takes all.

    Args:
        images: unit embeddings (N, D).
        texts: unit embeddings (M, D).
        image_of: index of each text's image (M,).
        ks: the values of k.
        chunk: queries scored at a time; by default as many as fit in 16 MiB of scores, at least
            64.

    Raises:
        DataError: no images or no texts, embeddings that are not finite, or a text of an image
            that does not exist; the message names the position.
        ValueError: arrays whose shapes do not match, or a k below 1.
    """
    images, texts = _at_least_float32(images), _at_least_float32(texts)
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
    metrics: Metrics = {}
    for k in ks:
        metrics[f"image_retrieval_recall@{k}"] = float((to_image < k).mean())
        metrics[f"text_retrieval_recall@{k}"] = float((to_text < k).mean())
    return metrics | {"mean_recall@1": float((to_image < 1).mean() + (to_text < 1).mean()) / 2}


def _text_ranks(
    images: Floats, texts: Floats, image_of: Integers, chunk: int | None
) -> NDArray[np.int64]:
    """Return the rank (N,) of the best text of each image; the largest integer without texts."""
    text_ranks = np.full(len(images), _NO_RANK)
    order = np.argsort(image_of, kind="stable")  # texts by image, and by index within one
    begins = np.searchsorted(image_of[order], np.arange(len(images) + 1))
    for begin, scores in Candidates(texts).scored("image", images, chunk):
        own = order[begins[begin] : begins[begin + len(scores)]]
        rows = image_of[own] - begin
        own_scores = scores[rows, own]
        highest = np.full(len(scores), -np.inf, scores.dtype)
        np.maximum.at(highest, rows, own_scores)
        best = np.full(len(scores), len(texts))
        at_best = own_scores == highest[rows]
        np.minimum.at(best, rows[at_best], own[at_best])
        has = np.flatnonzero(best < len(texts))
        if len(has):
            with_texts = scores if len(has) == len(scores) else scores[has]
            text_ranks[begin + has] = ranks(with_texts, best[has])
    return text_ranks


def _at_least_float32(rows: Floats) -> Floats:
    rows = np.asarray(rows)
    return rows.astype(np.result_type(rows, np.float32), copy=False)
