"""A teacher is checked before it is paid for: what does it know of a sample of the pairs?

    sample = read_sample(open_pairs("pairs.csv"), 200)
    scores, ensemble = check_teachers([load_teacher("vit-b16")], sample)
    scores[0].line()  # "vit-b16: zero-shot accuracy 61.5 % ± 3.4 (chance 1.2 %; 200 pairs, ...)"

The figure and the rule for "clearly better" are `pocketclip.teacher_score`'s. Images are embedded
as they are, without augmentation. Nothing here imports torch.

Shapes: B batch, N pairs, M distinct texts, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketclip.embeddings import check_scale, image_name, text_name, unit_length
from pocketclip.errors import DataError
from pocketclip.images import ImageSource
from pocketclip.pairs import PairShard
from pocketclip.pairs.sampling import sample_pairs
from pocketclip.prompts import fill_templates
from pocketclip.teacher_score import (
    Metric,
    Rows,
    TeacherScore,
    choose_metric,
    is_clearly_better,
    number_texts,
    score_pairs,
)
from pocketclip.types import Embeddings, Encoder, Pair

__all__ = [
    "CheckSample",
    "TeacherScore",
    "check_teacher",
    "check_teachers",
    "is_clearly_better",
    "read_sample",
]

PAIRS = 200
"""Pairs of a check by default: the standard error is at most 3.6 points. A large teacher takes
about a second per image on a CPU."""
TEMPLATES = ("a photo of a {}.",)
_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSample:
    """The pairs that teachers are checked on."""

    names: list[str]
    """For messages."""
    images: list[ImageSource]
    texts: list[str]
    """Each image's own caption, or its label."""
    is_labelled: bool = False
    """Whether the texts are labels: they are put into prompts, and the metric is the zero-shot
    accuracy; otherwise only if texts repeat, else the recall of retrieval."""

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.images) == len(self.texts):
            raise ValueError(
                f"{len(self.names)} names, {len(self.images)} images, {len(self.texts)} texts"
            )

    def __len__(self) -> int:
        return len(self.images)


def read_sample(
    shards: Sequence[PairShard], count: int = PAIRS, *, label_column: str | None = None
) -> CheckSample:
    """Return about `count` of the pairs, chosen by name; images that cannot be opened are left out.

    Args:
        shards: from `pocketclip.pairs.open_pairs`.
        count: 1 or more.
        label_column: a column of labels, which `PairOptions.meta_columns` must name; pairs without
            a label are left out. None: the first caption of each pair.

    Raises:
        DataError: no pair can be used, or the pairs cannot be read.
        StorageError: they cannot be reached.
    """

    def text_of(pair: Pair) -> str:
        if label_column is None:
            return next(iter(pair.captions.get("text", ())), "")
        label = pair.meta.get(label_column)
        return "" if label is None else str(label).strip()

    pairs = sample_pairs(
        shards, count, purpose="teacher check", accept=lambda pair: bool(text_of(pair))
    )
    if not pairs:
        what = "caption" if label_column is None else f"label in {label_column!r}"
        raise DataError(f"no teacher can be checked: no pair has an image and a {what}")
    return CheckSample(
        names=[pair.uid for pair in pairs],
        images=[pair.image for pair in pairs if pair.image is not None],
        texts=[text_of(pair) for pair in pairs],
        is_labelled=label_column is not None,
    )


def check_teacher(
    encoder: Encoder,
    sample: CheckSample,
    *,
    name: str = "",
    templates: Sequence[str] = TEMPLATES,
) -> TeacherScore:
    """Return what an encoder scores on a sample.

    Args:
        encoder: the teacher, or any other model: a student is scored like one.
        sample: see `read_sample`.
        name: for messages; empty: the encoder's own, or its `space_id`.
        templates: prompts with `{}` for the label, if the sample has labels.

    Raises:
        DataError: the sample has fewer than two pairs or distinct texts.
        EmbeddingError: an embedding is not finite or zero; names its image or text.
        PocketclipError: as the encoder.
    """
    return check_teachers([encoder], sample, names=[name], templates=templates)[0][0]


def check_teachers(
    encoders: Sequence[Encoder],
    sample: CheckSample,
    *,
    names: Sequence[str] = (),
    templates: Sequence[str] = TEMPLATES,
) -> tuple[list[TeacherScore], TeacherScore]:
    """Return what each encoder scores on a sample, and what they score together.

    Args:
        encoders: one or more.
        sample: see `read_sample`.
        names: as `check_teacher`, one per encoder, or none.
        templates: as `check_teacher`.

    Raises:
        PocketclipError: as `check_teacher`.
    """
    text_of, first = number_texts(sample.texts)
    if len(sample) < 2 or len(first) < 2:
        raise DataError(
            f"a teacher cannot be checked on {len(sample)} pairs with {len(first)} distinct "
            f"text{'s' * (len(first) != 1)}: two of each are needed"
        )
    texts = [sample.texts[position] for position in first]
    metric: Metric = "zero_shot_accuracy" if sample.is_labelled else choose_metric(text_of)
    rows: list[Rows] = []
    for encoder in encoders:
        images = _embed_images(encoder, sample)
        by_text = (
            _embed_classes(encoder, texts, templates)
            if sample.is_labelled
            else _embed_texts(encoder, texts)
        )
        rows.append((images, by_text, check_scale(float(encoder.logit_scale))))
    given = [*names] or [""] * len(encoders)
    scores = [
        score_pairs([row], text_of, name=name or _name_of(encoder), metric=metric)
        for row, name, encoder in zip(rows, given, encoders, strict=True)
    ]
    if len(scores) == 1:
        return scores, scores[0]
    return scores, score_pairs(rows, text_of, name="ensemble", metric=metric)


def _name_of(encoder: Encoder) -> str:
    return str(getattr(encoder, "name", "") or encoder.space_id)


def _embed_images(encoder: Encoder, sample: CheckSample) -> Embeddings:
    parts = [
        np.asarray(encoder.encode_image(sample.images[start : start + _BATCH]), np.float32)
        for start in range(0, len(sample), _BATCH)
    ]
    return unit_length(np.concatenate(parts), lambda row: image_name(sample.names[row], row))


def _embed_texts(encoder: Encoder, texts: Sequence[str]) -> Embeddings:
    return unit_length(np.asarray(encoder.encode_text(texts)), lambda row: text_name(texts[row]))


def _embed_classes(encoder: Encoder, labels: Sequence[str], templates: Sequence[str]) -> Embeddings:
    """Return the classifier (M, D): the mean over a label's prompts, at unit length."""
    rows = _embed_texts(encoder, fill_templates(labels, templates))
    means: NDArray[np.float32] = rows.reshape(len(labels), len(templates), -1).mean(1)
    return unit_length(means, lambda row: f"label {labels[row]!r}")
