"""What the report shows beside the scores: accuracy per class, confusions, doubtful labels.

Shapes: N images, L classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.embeddings import softmax
from pocketclip.evaluate.classifier import build_classifier
from pocketclip.finetune.own_images import OwnImages
from pocketclip.finetune.report import class_scores, confusions, doubts
from pocketclip.infer.encoder import Encoder
from pocketclip.nn.clip import CLIP

_MOST = 5000
"""Training images, evenly spread, that are looked at for doubtful labels, besides the validation
images."""


def describe_labels(
    own: OwnImages, held_out: NDArray[np.bool_], start: CLIP, chosen: CLIP
) -> dict[str, Any]:
    """Return `classes` and `confusions` of the validation images, and `doubts` about all labels.

    Args:
        own: images with labels.
        held_out: (N,), which are for validation.
        start: the model before fine-tuning.
        chosen: the model that is handed over.
    """
    assert own.labels is not None
    validation, training = np.flatnonzero(held_out), np.flatnonzero(~held_out)
    if len(training) > _MOST:  # in folders they stand class by class, so not the first ones
        training = training[np.linspace(0, len(training) - 1, _MOST).astype(int)]
    numbers = np.concatenate([validation, training])
    good, probabilities = _probabilities(chosen, own, numbers)
    before_good, before = _probabilities(start, own, validation)
    number_of = {int(i): row for row, i in enumerate(good)}
    rows_before = {int(i): row for row, i in enumerate(before_good)}
    shown = [int(i) for i in validation if int(i) in number_of and int(i) in rows_before]
    truth = own.labels[shown]
    after = probabilities[[number_of[i] for i in shown]].argmax(1)
    counts = np.bincount(own.labels[~held_out], minlength=len(own.classes))
    return {
        "classes": class_scores(
            before[[rows_before[i] for i in shown]].argmax(1), after, truth, own.classes,
            counts.tolist(),
        ),
        "confusions": confusions(after, truth, own.classes),
        "doubts": doubts(
            probabilities, own.labels[good], own.classes, [own.names[i] for i in good],
            [own.images[i] for i in good],
        ),
    }  # fmt: skip


def _probabilities(
    model: CLIP, own: OwnImages, numbers: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return which of some images can be read, and their probabilities (N, L)."""
    encoder = Encoder(model.eval())
    classifier = build_classifier(encoder, own.classes, own.templates)
    good: list[int] = []
    logits = [np.empty((0, len(own.classes)))]
    for positions, embeddings, _ in encoder.encode_stream([own.images[i] for i in numbers]):
        good += [int(numbers[p]) for p in positions]
        logits.append(encoder.logit_scale * (embeddings @ classifier.T).astype(np.float64))
    return np.array(good, np.int64), softmax(np.concatenate(logits))
