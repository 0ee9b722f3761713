"""Whether the teachers still give what reinforced shards hold: an audit that embeds anew.

    report = audit("dr", recompute=100, teachers=["vit-b16"], workers=4)
    report.drift[0].largest

`pocketclip.shards.audit` looks at everything else, and needs no teachers.

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
from pocketclip.reinforce.teachers import Teacher, load_teacher
from pocketclip.shards.audit.drift import Recompute
from pocketclip.types import Embeddings, Sample


def audit(
    folder: str,
    *,
    recompute: int = 0,
    teachers: Sequence[str | Teacher] = (),
    device: str = "auto",
    offline: bool = False,
    **options: Any,
) -> shards.AuditReport:
    """Return a report of everything in `folder`, drift of the stored embeddings included.

    Args:
        folder: of shards.
        recompute: how many augmented images are embedded anew, drawn at random; 0: none.
        teachers: those that made the set, in their order: loaded, or as `load_teacher` takes
            them.
        device: where teachers run that are loaded here: `auto`, `cpu`, `cuda`.
        offline: load them from the local cache only.
        options: as `pocketclip.shards.audit` takes them.

    Raises:
        ConfigError: only one of `recompute` and `teachers` is given, the set has no augmentation,
            or it was made by other teachers.
        PocketclipError: as `pocketclip.shards.audit` and `load_teacher`.
    """
    if recompute < 0:
        raise ConfigError(f"recompute must be 0 or more, not {recompute}")
    if bool(recompute) != bool(teachers):
        raise ConfigError(
            "recompute (--recompute N) needs teachers (--teacher SPEC), and they need it"
        )
    function = None
    if recompute:
        index = shards.describe(folder) or shards.Index()
        embed = replay_through(teachers, index, device=device, offline=offline)
        function = (recompute, embed)
    return shards.audit(folder, recompute=function, **options)


def replay_through(
    teachers: Sequence[str | Teacher],
    index: shards.Index,
    *,
    device: str = "auto",
    offline: bool = False,
) -> Recompute:
    """Return a function that replays stored augmentations and embeds them with teachers.

    It maps B samples, and for each the number of an augmentation, to embeddings (B, D). The
    arguments are those of `audit`; `index` is that of the set.

    Raises:
        ConfigError: the index has no augmentation, or was made by other teachers.
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
            # `recompute_drift` draws only those that have both.
            assert sample.param_aug is not None
            assert sample.image is not None
            params = augmentation.unpack(sample.param_aug[k])
            arrays.append(augmentation.apply(open_image(sample.image), params))
        parts = []
        for teacher in loaded:
            squares = np.stack([teacher.transform.square(array) for array in arrays])
            try:
                parts.append(teacher.encode_squares(squares))
            except EmbeddingError as error:
                sample, k = samples[error.index], indices[error.index]
                name = f"image {sample.uid!r}, augmentation {k}"
                raise EmbeddingError(name, error.reason, error.index) from error
        found: Embeddings = np.concatenate(parts, axis=1)
        return found

    return embed


def _augmentation(index: shards.Index) -> Augmentation:
    if index.augmentation is None:
        raise ConfigError(
            "neither index.json nor config.json has the augmentation; nothing can be replayed"
        )
    return Augmentation.from_config(index.augmentation)


def _check_teachers(teachers: Sequence[Teacher], index: shards.Index) -> None:
    known = index.teachers
    if known and len(known) != len(teachers):
        raise ConfigError(
            f"the set was made by {len(known)} teachers, {len(teachers)} are given: repeat "
            "--teacher for each, in their order"
        )
    for given, stored in zip(teachers, known, strict=False):
        space = stored.get("space_id")
        if space and space != given.space_id:
            raise ConfigError(
                f"the set holds embeddings of {stored.get('name')} ({space}), {given.name} is of "
                f"the space {given.space_id}; give the teacher that made it"
            )
