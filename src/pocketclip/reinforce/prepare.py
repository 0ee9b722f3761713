"""Preparation without a model: decode an image, augment it, resize each view for each model.

It runs in worker processes, so nothing here imports torch.

Shapes: A augmentations of an image, S side of a square in pixels.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketclip.augment import Augmentation, rng_for
from pocketclip.errors import AugmentationError, ImageError
from pocketclip.images import open_image
from pocketclip.reinforce.teacher_preprocess import SquareTransform, ViewTransform
from pocketclip.types import Bad


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The views to make of each image."""

    augmentation: Augmentation
    augmentations: int
    """A, the number of augmented views."""
    seed: int
    teachers: tuple[ViewTransform, ...]
    captioners: tuple[SquareTransform, ...]


@dataclass(slots=True, kw_only=True)
class Prepared:
    """An image, ready for the models."""

    param_aug: list[Any]
    augmented: dict[Hashable, NDArray[np.uint8]]
    """(A, S, S, 3) by the key of a teacher's transform."""
    whole: dict[Hashable, NDArray[np.uint8]]
    """The whole image without augmentation, (S, S, 3), by the key of a captioner's transform."""


def prepare(uid: str, image: bytes, plan: Plan) -> Prepared | Bad:
    """Decode an image once, augment it A times and resize each view for each model.

    An image that cannot be decoded, or that is too small for a `random_crop`, is a bad pair.
    """
    try:
        return _prepared(uid, open_image(image), plan)
    except (ImageError, AugmentationError) as error:
        return Bad(uid=uid, reason=str(error))


def _prepared(uid: str, picture: Image.Image, plan: Plan) -> Prepared:
    drawn = [
        plan.augmentation.draw(rng_for(plan.seed, uid, k), picture.size)
        for k in range(plan.augmentations)
    ]
    # Each view is made once, and resized for every teacher.
    transforms = {t.key: t for t in plan.teachers}
    views: dict[Hashable, list[NDArray[np.uint8]]] = {key: [] for key in transforms}
    for params in drawn:
        view = plan.augmentation.apply(picture, params)
        for key, transform in transforms.items():
            views[key].append(transform.square(view))
    return Prepared(
        param_aug=[plan.augmentation.pack(params) for params in drawn],
        augmented={key: np.stack(squares) for key, squares in views.items() if squares},
        whole={t.key: t.square(picture) for t in {t.key: t for t in plan.captioners}.values()},
    )
