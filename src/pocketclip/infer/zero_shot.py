"""Zero-shot classification: classifiers from labels, and labels ranked for image embeddings.

Source: CLIP (arXiv 2103.00020), section 3.1.4, for the ensemble of prompts.

Shapes: B images, L labels, P templates, D embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from pocketclip.embeddings import (
    check_finite,
    image_name,
    rank_probabilities,
    softmax,
    text_name,
    unit_length,
)
from pocketclip.errors import PocketclipError
from pocketclip.prompts import fill_templates
from pocketclip.types import Embeddings


def build_classifier(
    encode_text: Callable[[Sequence[str]], Embeddings],
    labels: Sequence[str],
    templates: str | Sequence[str],
) -> Embeddings:
    """Return one unit embedding (L, D) per label; see `pocketclip.infer.encoder.Encoder`.

    Args:
        encode_text: maps texts to unit embeddings.
        labels: the classes.
        templates: prompts with `{}` or `{c}` in place of the label.
    """
    return average_prompts(encode_text(label_prompts(labels, templates)), labels)


def label_prompts(labels: Sequence[str], templates: str | Sequence[str]) -> list[str]:
    """Return the L x P prompts of labels, grouped by label.

    Args:
        labels: the classes.
        templates: prompts with `{}` or `{c}` in place of the label.

    Raises:
        PocketclipError: no label, a repeated label, no template, or one without `{}`.
    """
    if isinstance(labels, str):
        raise PocketclipError(f"labels is the text {labels!r}: pass a list of labels")
    labels = list(labels)
    templates = [templates] if isinstance(templates, str) else list(templates)
    if not labels:
        raise PocketclipError("no labels: pass at least one")
    repeated = sorted(label for label, count in Counter(labels).items() if count > 1)
    if repeated:
        raise PocketclipError(f"label {repeated[0]!r} is given twice: remove one of them")
    return fill_templates(labels, templates)


def average_prompts(embeddings: Embeddings, labels: Sequence[str]) -> Embeddings:
    """Return one unit embedding (L, D) per label, the mean of its prompts.

    Args:
        embeddings: (L x P, D), of unit length, of what `label_prompts` returned.
        labels: the classes.
    """
    mean = embeddings.reshape(len(labels), -1, embeddings.shape[-1]).mean(1)  # (L, P, D)
    return unit_length(mean, lambda row: text_name(labels[row]))


def rank_labels(
    images: Embeddings, classifier: Embeddings, labels: Sequence[str], logit_scale: float,
    top: int | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """Return, per image embedding (B, D), each label's probability, the highest first.

    Args:
        images: (B, D), of unit length.
        classifier: (L, D), one unit embedding per label.
        labels: the L labels.
        logit_scale: the multiplier of cosine similarities before the softmax.
        top: the number of labels to return per image; None for all.

    Raises:
        EmbeddingError: an embedding is not finite.
    """
    images = check_finite(images, lambda row: image_name(None, row))
    classifier = check_finite(classifier, lambda row: text_name(labels[row]))
    logits = logit_scale * images.astype(np.float64) @ classifier.T.astype(np.float64)
    return rank_probabilities(softmax(logits), labels, top)
