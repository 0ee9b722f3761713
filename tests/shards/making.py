"""Small samples and shards for the tests of shards."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketclip.errors import PocketclipError
from pocketclip.shards import Index, ShardWriter, write_index
from pocketclip.types import Sample

GOLDEN = Path(__file__).parents[1] / "golden" / "shards"
SHARED = Path(__file__).parents[3] / "shared" / "data"
CONFIG = {"random_resized_crop": {"size": 8, "interpolation": "bicubic"}}
TEACHERS = [
    {"name": "one", "embed_dim": 8, "logit_scale": 100.0, "space_id": "a"},
    {"name": "two", "embed_dim": 4, "logit_scale": 50.0, "space_id": "b"},
]


def unit(rng, rows, dims=(8, 4)):
    """Rows of unit length per teacher."""
    parts = [rng.standard_normal((rows, d)).astype(np.float32) for d in dims]
    return np.concatenate([p / np.linalg.norm(p, axis=1, keepdims=True) for p in parts], axis=1)


def photo(colour=0, size=(16, 12), kind="JPEG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, (colour % 256, 80, 160)).save(buffer, kind)
    return buffer.getvalue()


def sample(number=0, *, dims=(8, 4), image=True, captions=3):
    rng = np.random.default_rng(number)
    return Sample(
        uid=f"{number:08d}",
        image=photo(number) if image else None,
        captions={
            "text": [f"caption {number}"],
            "syn_text": [f"synthetic {number} {i}" for i in range(captions)],
        },
        url=f"https://example.com/{number}.jpg",
        meta={"width": 16},
        param_aug=[[[0, 0, 8, 8]], [[2, 1, 9, 10]]],
        embeddings={
            "image_emb": unit(rng, 2, dims),
            "text_emb": unit(rng, 1, dims),
            "syn_text_emb": unit(rng, captions, dims),
        },
    )


def write(path, samples, **options):
    options.setdefault("dtype", "float32")
    with ShardWriter(str(path), **options) as writer:
        for one in samples:
            writer.write(one)
    return writer.stats


def folder(path, shards, *, index=True, **options):
    """Write lists of samples as shards of a folder, with an index."""
    stats = [
        write(path / f"{number:08d}.tar", samples, **options)
        for number, samples in enumerate(shards)
    ]
    if index:
        about = Index(teachers=TEACHERS, augmentation=CONFIG, config_hash="0")
        about.add(stats)
        write_index(str(path), about)
    return path


def tar(path, files, **options):
    """Write a tar by the standard library: names and bytes, in this order."""
    with tarfile.open(path, "w", **options) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def same(a, b, tolerance=0.0):
    """Whether two samples are equal, embeddings within a tolerance."""
    plain = all(
        getattr(a, name) == getattr(b, name)
        for name in ("uid", "image", "captions", "url", "meta", "param_aug")
    )
    return (
        plain
        and set(a.embeddings) == set(b.embeddings)
        and all(
            np.abs(a.embeddings[key] - b.embeddings[key]).max() <= tolerance for key in a.embeddings
        )
    )


def failure(function, *args, kind=PocketclipError, **options):
    """Call what has to fail, and return its one line."""
    with pytest.raises(kind) as caught:
        function(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message
