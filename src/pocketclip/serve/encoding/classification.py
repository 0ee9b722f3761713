"""Classification for requests: labels and templates checked, then all through the engine.

Shapes: B images, L labels, D embedding.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pocketclip.infer.zero_shot import average_prompts, label_prompts
from pocketclip.serve.encoding.both_towers import embed_both, embed_images
from pocketclip.serve.errors import RequestError
from pocketclip.serve.inputs.image_inputs import read_images
from pocketclip.serve.services import Services
from pocketclip.serve.settings import Limits

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder
    from pocketclip.label_set import LabelSet


class Ranked(NamedTuple):
    """The labels of one image."""

    probabilities: dict[str, float]
    """By label, the highest first."""
    cosines: dict[str, float] | None
    """The cosine similarities of the same labels; None for a label set, which has no texts."""
    is_none: bool | None
    """Whether the image is none of the labels; None for labels in words, which cannot tell."""


def check_labels(
    labels: Any, templates: Sequence[Any], limits: Limits, *,
    label_name: str = "labels", template_name: str = "templates",
) -> tuple[list[str], list[str]]:  # fmt: skip
    """Return the labels and the templates of a request.

    Args:
        labels: of the request.
        templates: of the request.
        limits: all prompts, labels x templates, count as its texts.
        label_name: of the field, for messages.
        template_name: of the field, for messages.

    Raises:
        RequestError: 400, something is no label or template, is repeated, or there are too many.
    """
    labels = _texts(labels, label_name)
    templates = _texts(templates, template_name)
    seen = dict[str, int]()
    for position, label in enumerate(labels):
        first = seen.setdefault(label, position)
        if first != position:
            raise RequestError(
                400, f"{label_name}[{position}] is the same as {label_name}[{first}]: remove one",
                param=label_name,
            )  # fmt: skip
    _check_prompts(labels, templates, limits, label_name, template_name)
    return labels, templates


def _texts(values: Any, name: str) -> list[str]:
    if not isinstance(values, (list, tuple)) or not values:
        raise RequestError(400, f"{name} must be a list with at least one text", param=name)
    for position, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            raise RequestError(400, f"{name}[{position}] is not a text, or empty", param=name)
    return list(values)


def _check_prompts(
    labels: list[str], templates: list[str], limits: Limits, label_name: str, template_name: str
) -> None:
    """Check the prompts before they are made: a short template can make very long ones."""
    if len(labels) * len(templates) > limits.texts:
        raise RequestError(
            400, f"{len(labels):,} labels x {len(templates):,} templates are more than "
            f"{limits.texts:,} texts: send fewer", param=label_name,
        )  # fmt: skip
    longest, all_labels, characters = max(map(len, labels)), sum(map(len, labels)), 0
    for position, template in enumerate(templates):
        places = template.count("{}") + template.count("{c}")
        if not places:
            raise RequestError(
                400, f"{template_name}[{position}] has no {{}} for the label: write "
                "a photo of {}.", param=template_name,
            )  # fmt: skip
        if len(template) + places * longest > limits.text_characters:
            raise RequestError(
                400, f"{template_name}[{position}] makes prompts of more than "
                f"{limits.text_characters:,} characters: shorten it, or the labels",
                param=template_name,
            )  # fmt: skip
        characters += len(labels) * len(template) + places * all_labels
    if characters > limits.body_bytes:
        raise RequestError(
            400, f"all prompts together have {characters:,} characters, more than "
            f"{limits.body_bytes:,}: shorten the templates, or send fewer labels",
            param=template_name,
        )  # fmt: skip


async def classify(
    images: Mapping[str, Any], labels: Sequence[str], templates: Sequence[str],
    services: Services, encoder: Encoder, *, top: int | None = None,
) -> list[Ranked]:  # fmt: skip
    """Return the labels of images, as `Encoder.classify` ranks them.

    Args:
        images: files, or texts that `read_images` takes, by the names of their fields.
        labels: that `check_labels` returned.
        templates: the same.
        services: the engine and the rest.
        encoder: the model.
        top: the number of labels to return per image; None for all.

    Raises:
        RequestError: as `read_images` and `embed_both`.
    """
    files = dict(zip(images, await read_images(images, services), strict=True))
    of_texts, rows = await embed_both(
        label_prompts(labels, templates), files, services.engine, encoder
    )

    def rank() -> list[Ranked]:
        classifier = average_prompts(of_texts.embeddings, labels)
        ranked = encoder.rank(rows, classifier, labels, top=top)
        cosines = rows.astype(np.float64) @ classifier.T.astype(np.float64)
        at = {label: position for position, label in enumerate(labels)}
        return [
            Ranked(one, {label: float(row[at[label]]) for label in one}, None)
            for one, row in zip(ranked, cosines, strict=True)
        ]

    return await asyncio.to_thread(rank)


async def classify_by_set(
    images: Mapping[str, Any], label_set: LabelSet, services: Services, encoder: Encoder, *,
    top: int | None = None,
) -> list[Ranked]:  # fmt: skip
    """Return the labels of images, as `LabelSet.rank` ranks them; arguments as for `classify`.

    Raises:
        RequestError: as `read_images` and `embed_both`.
        DataError: the label set has another embedding space than the model.
    """
    label_set.check_space(encoder.space_id, embed_dim=encoder.embed_dim)
    files = dict(zip(images, await read_images(images, services), strict=True))
    rows = await embed_images(files, services.engine, encoder)

    def rank() -> list[Ranked]:
        ranked = encoder.rank(rows, label_set, top=top)
        none = label_set.is_none(rows).tolist()
        return [Ranked(one, None, is_none) for one, is_none in zip(ranked, none, strict=True)]

    return await asyncio.to_thread(rank)
