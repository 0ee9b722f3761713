"""Reinforced shards as the user's own images: split by sample, stored teachers used as they are.

The validation samples must not be trained on, so the training samples are copied into new shards,
their embeddings unchanged; images of the validation samples become files.

Shapes: N samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.finetune.own_images import OwnImages, with_repeated_captions
from pocketclip.shards.index import Index, describe, refuse_materialised, write_index
from pocketclip.shards.layout import MORE
from pocketclip.shards.reader import home_of, load_packed, name_of, read, shard_paths
from pocketclip.shards.tar import groups, members
from pocketclip.shards.writer import ShardWriter
from pocketclip.storage.local import write_whole
from pocketclip.types import Sample

_TARS = (".tar",)


def is_reinforced(source: str) -> bool:
    """Return whether a source is a folder of reinforced shards, one of them, or a pattern of them.

    Raises:
        DataError: its index is damaged.
    """
    if not source.lower().endswith(_TARS) and not (
        storage.is_folder(source) and storage.list_files(source, _TARS)
    ):
        return False
    return _reinforcement(source) is not None


def _reinforcement(source: str) -> Index | None:
    home = home_of(source)
    index = describe(home) if home is not None else None
    return index if index is not None and (index.teachers or index.augmentation) else None


def read_shards(source: str) -> OwnImages:
    """Return the samples of reinforced shards: names and captions, without their images.

    Raises:
        DataError: a sample has no image, no caption or no augmentation, a shard is damaged, or
            the set is materialised.
    """
    home = home_of(source)
    if home is not None:
        refuse_materialised(home, "fine-tuning")
    names, captions = [], []
    for sample in read(source):
        texts = [" ".join(text.split()) for text in sample.captions.get("text", [])]
        problem = (
            "image: join them with `pocketclip join` first"
            if sample.image is None
            else "caption" if not any(texts) else "stored augmentation"
        )  # fmt: skip
        if sample.image is None or not any(texts) or not sample.param_aug:
            raise DataError(f"{source}: sample {sample.uid} has no {problem}")
        names.append(sample.uid)
        captions.append([text for text in texts if text])
    own = OwnImages(
        source=source, kind="captions", names=names, images=[""] * len(names), captions=captions,
        is_shards=True,
    )  # fmt: skip
    return with_repeated_captions(own)


def split_shards(
    own: OwnImages, held_out: NDArray[np.bool_], shards: Path, images: Path
) -> dict[str, Any]:
    """Copy the training samples into `shards` and the validation images into `images`.

    Args:
        own: from `read_shards`.
        held_out: (N,), whether each sample is for validation.
        shards: the folder of the training shards, with their index.
        images: the folder of the validation images, one file per sample.

    Returns:
        `samples`, `bytes`, the stored `teachers`, and whether all have synthetic captions.

    Raises:
        DataError: an embedding's width is not what the index says, or a shard is damaged.
    """
    index = _reinforcement(own.source)
    assert index is not None
    validation = {own.names[i] for i in np.flatnonzero(held_out)}
    shards.mkdir(parents=True, exist_ok=True)
    images.mkdir(parents=True, exist_ok=True)
    synthetic = True
    new = Index(
        teachers=index.teachers, captioners=index.captioners, augmentation=index.augmentation
    )
    for path in shard_paths(own.source):
        target = str(shards / name_of(path))
        dtype = next(iter(index.dtypes), "bfloat16")
        with ShardWriter(target, dtype=dtype, teacher_dims=index.teacher_dims) as writer:
            for sample, packed, stored in _samples(path):
                if sample.uid in validation:
                    _copy_image(sample, images)
                    continue
                synthetic &= any(key not in ("text", MORE) for key in sample.captions)
                try:
                    writer.write(sample, packed=packed, packed_dtype=stored)
                except DataError as error:
                    raise DataError(
                        f"{path}: {error}; run `pocketclip audit` on the folder"
                    ) from error
        if writer.stats.samples:
            new.add([writer.stats])
        else:
            storage.remove(target)
    write_index(str(shards), new)
    return {
        "samples": new.samples,
        "bytes": sum(stats.bytes for stats in new.shards),
        "teachers": [str(teacher.get("name", "")) for teacher in index.teachers],
        "embeddings": {"image_emb", "text_emb"} <= set(new.columns),
        "synthetic": synthetic,
    }


def with_validation_images(own: OwnImages, held_out: NDArray[np.bool_], images: Path) -> OwnImages:
    """Return the samples with the files of the validation images as `split_shards` names them."""
    files: list[bytes | str] = [
        str(image_file(images, name)) if held_out[i] else "" for i, name in enumerate(own.names)
    ]
    return dataclasses.replace(own, images=files)


def image_file(images: Path, uid: str) -> Path:
    """Return the file of a validation image."""
    return images / f"{uid}.img"


def _samples(path: str) -> Iterator[tuple[Sample, tuple[str, bytes] | None, str]]:
    """Yield each sample with the member of its embeddings, and their stored dtype."""
    with storage.open_read(path) as stream:
        for group in groups(members(stream, path)):
            yield load_packed(group, path)


def _copy_image(sample: Sample, images: Path) -> None:
    assert sample.image is not None
    with write_whole(image_file(images, sample.uid)) as temporary:
        temporary.write_bytes(sample.image)
