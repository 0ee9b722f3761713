"""Reinforced shards of small textured images, for the tests of training data."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pocketclip import zoo
from pocketclip.augment import Augmentation, rng_for
from pocketclip.shards import Index, ShardWriter, write_index
from pocketclip.types import Sample

SIZE = 16
MODEL = zoo.override(zoo.entry("tiny").config, image_size=SIZE)
AUGMENTATION = Augmentation.from_config(
    {
        "random_resized_crop": {"size": SIZE, "interpolation": "bicubic"},
        "rand_augment": {"p": 1.0},
    }
)
DIMS = (8, 4)
TEACHERS = [
    {"name": "one", "embed_dim": 8, "logit_scale": 100.0, "space_id": "a"},
    {"name": "two", "embed_dim": 4, "logit_scale": 50.0, "space_id": "b"},
]


def photo(number, size=(40, 32), kind="JPEG"):
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def unit(rng, rows):
    parts = [rng.standard_normal((rows, d)).astype(np.float32) for d in DIMS]
    return np.concatenate([p / np.linalg.norm(p, axis=1, keepdims=True) for p in parts], axis=1)


def sample(number, *, augmentation=AUGMENTATION, views=3, synthetic=2, **changed):
    """A sample whose embeddings tell what they are of; fields may be given otherwise."""
    uid = f"{number:08d}"
    rng = np.random.default_rng(number)
    drawn = [augmentation.draw(rng_for(0, uid, i), (40, 32)) for i in range(views)]
    fields = {
        "uid": uid,
        "image": photo(number),
        "captions": {
            "text": [f"truth {number}"],
            "syn_text": [f"synthetic {number} {i}" for i in range(synthetic)],
            "syn_other": [f"other {number}"],
        },
        "param_aug": [augmentation.pack(params) for params in drawn],
        "embeddings": {
            "image_emb": unit(rng, views),
            "text_emb": unit(rng, 1),
            "syn_text_emb": unit(rng, synthetic),
            "syn_other_emb": unit(rng, 1),
        },
    }
    return Sample(**{**fields, **changed})


def write_shards(folder, shards, *, augmentation=AUGMENTATION, index=True, dtype="float32"):
    """Write lists of samples as shards of a folder, with an index; return the folder's name."""
    stats = []
    for number, samples in enumerate(shards):
        path = folder / f"{number:08d}.tar"
        with ShardWriter(str(path), dtype=dtype, teacher_dims=DIMS) as writer:
            for one in samples:
                writer.write(one)
        stats.append(writer.stats)
    if index:
        about = Index(teachers=TEACHERS, augmentation=augmentation.config)
        about.add(stats)
        write_index(str(folder), about)
    return str(folder)


def rewrite_member(path, key, data, *, nth=0):
    """Overwrite the bytes of the n-th member whose name ends in `key`, in place: same length."""
    import tarfile

    with tarfile.open(path) as archive:
        member = [m for m in archive if m.name.endswith(key)][nth]
    raw = bytearray(path.read_bytes())
    filled = data[: member.size] + bytes(member.size - len(data[: member.size]))
    raw[member.offset_data : member.offset_data + member.size] = filled
    path.write_bytes(raw)
