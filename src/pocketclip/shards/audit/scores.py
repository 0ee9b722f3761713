"""What the teachers of a finished set know: their score on a sample of it, by stored embeddings.

No teacher runs and no image is needed, so that published sets are scored too. The images are
stored augmented views, one of each sample, which are harder than the images themselves. The
texts are the first caption of each key: `text` (the pairs' own), `syn_text`, ...

Shapes: A augmentations of an image, D width of all teachers together, n captions under one key,
N samples, M distinct texts.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pocketclip.embeddings import row_lengths
from pocketclip.pairs.base import digest_parts
from pocketclip.shards.index import Index
from pocketclip.teacher_score import Rows, TeacherScore, number_texts, score_pairs
from pocketclip.types import Embeddings, Sample

SAMPLES = 500
"""Samples of a score by default: the standard error is at most 2.3 points."""
_SAME = 0.9995
"""The least cosine of the embeddings of one text, where the text itself is not stored: rounding in
bfloat16 and in batches stays above it, and int8 too."""
_ENDING = "_emb"


@dataclass(slots=True, frozen=True)
class Drawn:
    """What is kept of a sample."""

    order: int
    """The samples with the smallest numbers are chosen; a hash of the uid, less than 0."""
    uid: str
    image: Embeddings
    """(D,): the first stored view."""
    texts: dict[str, tuple[Embeddings, str | None]]
    """The first caption's embedding (D,) by key, and the caption if it is stored."""

    def __lt__(self, other: Drawn) -> bool:
        return (self.order, self.uid) < (other.order, other.uid)


@dataclass(slots=True)
class Draw:
    """Chooses samples by their uids, whatever the order and the shards."""

    count: int
    heap: list[Drawn] = field(default_factory=list)
    """The chosen ones, the first to be replaced at the beginning."""

    def offer(self, sample: Sample) -> None:
        """Take a sample if it belongs to the chosen ones so far, and has embeddings."""
        if not self.count:
            return
        order = -int(digest_parts("audit", sample.uid)[:15], 16)
        if len(self.heap) == self.count and (order, sample.uid) <= (
            self.heap[0].order, self.heap[0].uid
        ):  # fmt: skip
            return
        drawn = _drawn(sample, order)
        if drawn is not None:
            self.add([drawn])

    def add(self, drawn: Iterable[Drawn]) -> None:
        """Take the chosen samples of another shard."""
        for one in drawn:
            if len(self.heap) < self.count:
                heapq.heappush(self.heap, one)
            else:
                heapq.heappushpop(self.heap, one)


def _drawn(sample: Sample, order: int) -> Drawn | None:
    images = sample.embeddings.get("image_emb")
    if images is None or images.ndim != 2 or not len(images):
        return None
    texts: dict[str, tuple[Embeddings, str | None]] = {}
    for name, rows in sample.embeddings.items():
        key = name.removesuffix(_ENDING)
        if (
            name != "image_emb"
            and rows.ndim == 2
            and len(rows)
            and rows.shape[1] == images.shape[1]
        ):
            captions = sample.captions.get(key)
            texts[key] = rows[0].copy(), captions[0] if captions else None
    return Drawn(order, sample.uid, images[0].copy(), texts) if texts else None


def score_set(drawn: Sequence[Drawn], index: Index) -> dict[str, list[TeacherScore]]:
    """Return by key of captions the score of each teacher and, of several, their score together.

    A key whose captions are all the same has no score. Without the teachers' widths, all of an
    embedding counts as one teacher. They are scored together only if their logit scales are known.

    Args:
        drawn: N samples.
        index: of the set.
    """
    out = {}
    for key in sorted({key for one in drawn for key in one.texts}, key=_own_first):
        scores = _score_key([one for one in sorted(drawn) if key in one.texts], key, index)
        if scores:
            out[key] = scores
    return out


def _own_first(key: str) -> tuple[bool, str]:
    return key != "text", key


def _score_key(drawn: Sequence[Drawn], key: str, index: Index) -> list[TeacherScore]:
    widths = {len(one.image) for one in drawn}
    dims = index.teacher_dims or tuple(widths)
    if widths != {sum(dims)}:
        return []
    images = np.stack([one.image for one in drawn])
    texts = np.stack([one.texts[key][0] for one in drawn])
    bounds = list(pairwise(np.cumsum([0, *dims]).tolist()))
    images, texts = (np.hstack([_unit(x[:, a:b]) for a, b in bounds]) for x in (images, texts))
    captions = [one.texts[key][1] for one in drawn]
    is_stored = None not in captions
    text_of, first = number_texts(captions) if is_stored else _number_rows(texts, bounds)
    if len(drawn) < 2 or len(first) < 2:
        return []
    # One range of unknown widths is no teacher's alone, unless there is only one.
    known = index.teachers if len(index.teachers) == len(dims) else [{}]
    scales = [teacher.get("logit_scale") for teacher in known]
    rows: list[Rows] = [
        (images[:, a:b], texts[first, a:b], 1.0 if scale is None else float(scale))
        for (a, b), scale in zip(bounds, scales, strict=True)
    ]
    names = [teacher.get("name") or f"teacher {k}" for k, teacher in enumerate(known)]
    scores = [score_pairs([row], text_of, name=name) for row, name in zip(rows, names, strict=True)]
    if len(rows) > 1 and None not in scales:
        scores.append(score_pairs(rows, text_of, name="ensemble"))
    return scores


def _unit(rows: Embeddings) -> Embeddings:
    out: Embeddings = (rows / np.maximum(row_lengths(rows), 1e-12)).astype(np.float32)
    return out


def _number_rows(
    rows: Embeddings, bounds: Sequence[tuple[int, int]]
) -> tuple[NDArray[np.int64], list[int]]:
    """Return, as `number_texts`, which of N embeddings are of the same text for every teacher."""
    same = np.min([rows[:, a:b] @ rows[:, a:b].T for a, b in bounds], axis=0) > _SAME  # (N, N)
    # A row is of the same text as the first row that it equals.
    return number_texts(same.argmax(axis=1).tolist())
