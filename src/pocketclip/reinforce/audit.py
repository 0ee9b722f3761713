"""Audit a reinforced set with its teachers: embed stored augmentations again and compare.

    report = audit("dr", recompute=100, teachers=["vit-b16"], workers=4)
    report.drift[0].largest

`pocketclip.shards.audit` checks everything else and needs no teachers.

Shapes: B pairs of a sample and an augmentation, D width of all teachers together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pocketclip import shards
from pocketclip.augment import Augmentation
from pocketclip.errors import ConfigError, EmbeddingError
from pocketclip.images import open_image
from pocketclip.reinforce.own_models import OwnTeacher
from pocketclip.reinforce.teachers import Teacher, load_teacher
from pocketclip.shards.audit.drift import Recompute
from pocketclip.types import Embeddings, Sample


def audit(
    folder: str,
    *,
    recompute: int = 0,
    teachers: Sequence[str | Teacher | OwnTeacher] = (),
    device: str = "auto",
    offline: bool = False,
    **options: Any,
) -> shards.AuditReport:
    """Return a report of all problems in `folder`, including drift of the stored embeddings.

    Args:
        folder: a folder of reinforced shards, or its URL.
        recompute: number of augmented images to embed again, drawn at random; 0: none.
        teachers: the teachers that made the set, in the same order: loaded ones, or specs for
            `load_teacher`.
        device: the device of teachers that are loaded here: `auto`, `cpu`, `cuda`.
        offline: load them from the local cache only.
        options: further arguments of `pocketclip.shards.audit`.

    Raises:
        ConfigError: `recompute` without `teachers` or the reverse, the set's augmentation is
            unknown, or other teachers made it.
        PocketclipError: as `pocketclip.shards.audit` and `load_teacher`.
    """
    if recompute < 0:
        raise ConfigError(f"recompute must be 0 or more, not {recompute}")
    if bool(recompute) != bool(teachers):
        raise ConfigError(
            "recompute (--recompute N) needs teachers (--teacher SPEC), and teachers need recompute"
        )
    function = None
    if recompute:
        index = shards.describe(folder) or shards.Index()
        embed = embed_replayed(teachers, index, device=device, offline=offline)
        function = (recompute, embed)
    return shards.audit(folder, recompute=function, **options)


def embed_replayed(
    teachers: Sequence[str | Teacher | OwnTeacher],
    index: shards.Index,
    *,
    device: str = "auto",
    offline: bool = False,
) -> Recompute:
    """Return a function that replays stored augmentations and embeds them with teachers.

    It maps B samples and B indices of their augmentations to embeddings (B, D).

    Args:
        teachers: as `audit`.
        index: the set's index.
        device: as `audit`.
        offline: as `audit`.

    Raises:
        ConfigError: the index has no augmentation, or names other teachers.
        PocketclipError: as `load_teacher`.
    """
    augmentation = _augmentation(index)
    loaded = [
        load_teacher(teacher, device=device, offline=offline)
        if isinstance(teacher, str)
        else teacher
        for teacher in teachers
    ]
    _check_teachers(loaded, index)

    def embed(samples: list[Sample], indices: list[int]) -> Embeddings:
        arrays = []
        for sample, k in zip(samples, indices, strict=True):
            # `recompute_drift` draws only samples with both.
            assert sample.param_aug is not None
            assert sample.image is not None
            params = augmentation.unpack(sample.param_aug[k])
            arrays.append(augmentation.apply(open_image(sample.image), params))
        by_teacher = []
        for teacher in loaded:
            squares = np.stack([teacher.transform.square(array) for array in arrays])
            try:
                by_teacher.append(teacher.encode_squares(squares))
            except EmbeddingError as error:
                sample, k = samples[error.index], indices[error.index]
                name = f"image {sample.uid!r}, augmentation {k}"
                raise EmbeddingError(name, error.reason, error.index) from error
        embeddings: Embeddings = np.concatenate(by_teacher, axis=1)
        return embeddings

    return embed


def _augmentation(index: shards.Index) -> Augmentation:
    if index.is_captions_only:
        raise ConfigError(
            "the set holds captions alone, without embeddings: audit without recompute "
            "(--recompute)"
        )
    if index.materialised is not None:
        raise ConfigError(
            "the set holds rendered views at the student's size, not what the teachers saw: audit "
            "it without recompute (--recompute), or the set that it was made of"
        )
    if index.augmentation is None:
        raise ConfigError(
            "neither index.json nor config.json names the augmentation, so nothing can be "
            "replayed: audit without recompute (--recompute)"
        )
    return Augmentation.from_config(index.augmentation)


def _check_teachers(teachers: Sequence[Teacher | OwnTeacher], index: shards.Index) -> None:
    known = index.teachers
    if known and len(known) != len(teachers):
        raise ConfigError(
            f"number of teachers of the set: {len(known)}, given: {len(teachers)}; repeat "
            "--teacher for each teacher in index.json, in its order"
        )
    for teacher, stored in zip(teachers, known, strict=False):
        space = stored.get("space_id")
        if space and space != teacher.space_id:
            raise ConfigError(
                f"the set holds embeddings of {stored.get('name')} ({space}), but {teacher.name} "
                f"has the embedding space {teacher.space_id}; pass the teacher that made the set"
            )
