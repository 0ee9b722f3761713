"""Bytes per sample of a reinforced set: of a dataset that exists, or of samples made in memory.

The samples are written by the writer of shards itself, so that headers, padding and coding count.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pocketclip import storage
from pocketclip.augment import Augmentation, rng_for
from pocketclip.errors import DataError
from pocketclip.reinforce.recipe import Recipe
from pocketclip.shards import ShardWriter, describe
from pocketclip.shards.layout import PART_OF
from pocketclip.shards.reader import Folders, folder_shards
from pocketclip.shards.tar import groups, members
from pocketclip.shards.writer import JsonlWriter, ShardStats
from pocketclip.types import Sample

_SAMPLES = 24
_SIDES = (500, 375)  # of an image, for drawing augmentations: about DataComp's mean
IMAGE_BYTES = 35_000
"""450 TB of DataComp's pool of 12.8 billion pairs (arXiv 2304.14108), mostly images."""
IMAGE_RANGE = (3, 20_000_000)
"""The fewest and the most bytes of an image that is measured."""
MAX_WIDTH = 16_384
"""The largest width of a teacher's embeddings that is measured."""
CAPTION_BYTES, SYNTHETIC_BYTES = 60, 50
_META = {"filepath": "train/00042/000420042.jpg", "license": "CC-BY"}
_WORDS = "a red bicycle leans against the old wall of a house beside a narrow street in the sun "


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes per sample by part, as `ShardStats.parts` names them, and where they come from."""

    parts: Mapping[str, float]
    sources: Mapping[str, str]
    """By part."""
    index: int
    """Bytes of a shard in `index.json`."""
    report: int
    """Bytes of a shard's report."""

    @property
    def sample(self) -> float:
        """Bytes of a sample, all parts together."""
        return sum(self.parts.values())


def measure_recipe(recipe: Recipe, dims: Sequence[int], image_bytes: int | None) -> Sizes:
    """Return the sizes of what a recipe writes, from samples with random embeddings.

    Args:
        recipe: the recipe.
        dims: the width of each teacher's embeddings.
        image_bytes: of one image; None: `IMAGE_BYTES`, which the sources call assumed.

    Raises:
        MissingDependencyError: the dtype needs torch, and it is not installed.
    """
    image = bytes([0xFF, 0xD8, 0xFF]) + bytes((image_bytes or IMAGE_BYTES) - 3)
    with tempfile.TemporaryDirectory() as folder:
        jsonl = recipe.format == "jsonl"
        path = str(Path(folder, "00000000.jsonl.gz" if jsonl else "00000000.tar"))
        writer: Any = (
            JsonlWriter(path, images=recipe.images)
            if jsonl
            else ShardWriter(path, dtype=recipe.dtype, layout=recipe.layout, images=recipe.images,
                             teacher_dims=dims)
        )  # fmt: skip
        with writer:
            for sample in _samples(recipe, dims, image):
                writer.write(sample)
            whole = dict(writer.stats.parts)  # without the zeros that end an archive
    stats: ShardStats = writer.stats
    parts = {part: count / _SAMPLES for part, count in (whole or stats.parts).items()}
    coding = f"{recipe.dtype} of random vectors, encoded" if not jsonl else "jsonl, compressed"
    said = "--image-bytes" if image_bytes else "assumed: DataComp's 450 TB for 12.8 B pairs"
    texts = f"assumed: {CAPTION_BYTES} and {SYNTHETIC_BYTES} bytes per text"
    sources = {
        "image": f"{image_bytes or IMAGE_BYTES:,} bytes per image ({said})",
        "captions": f"{recipe.captions} for each of {len(recipe.captioners)} captioners; {texts}",
        "augmentations": f"{recipe.augmentations} drawn from the recipe, written as JSON",
        "embeddings": f"{_rows(recipe)} rows of {'+'.join(map(str, dims))}, {coding}",
        "meta": "assumed: a member with the name of the file and a licence",
        "tar": "headers and padding, measured",
        "lines": f"{coding}; {texts}; {image_bytes or IMAGE_BYTES:,} bytes per image ({said})",
    }
    return Sizes(parts=parts, sources={part: sources[part] for part in parts}, **_files(stats))


def _rows(recipe: Recipe) -> int:
    """Return the number of embeddings that a sample stores: views, the truth, synthetic texts."""
    return recipe.augmentations + 1 + recipe.captions * len(recipe.captioners)


def _samples(recipe: Recipe, dims: Sequence[int], image: bytes) -> list[Sample]:
    noise = np.random.default_rng(0)
    augmentation = Augmentation.from_config(recipe.image_augmentation)
    letters = itertools.cycle(_WORDS)

    def text(length: int) -> str:
        return "".join(itertools.islice(letters, length)).strip().ljust(length, "s")

    def unit(rows: int) -> Any:
        drawn = [noise.standard_normal((rows, width)).astype(np.float32) for width in dims]
        parts = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in drawn]
        return np.concatenate(parts, axis=1)

    out = []
    for number in range(_SAMPLES):
        uid = f"{number:08d}"
        keys = [f"syn_text_{k}" if k else "syn_text" for k in range(len(recipe.captioners))]
        rows = {"image": recipe.augmentations, "text": 1} | dict.fromkeys(keys, recipe.captions)
        views = range(recipe.augmentations)
        drawn = [augmentation.draw(rng_for(0, uid, view), _SIDES) for view in views]
        out.append(
            Sample(
                uid=uid,
                image=image if recipe.images else None,
                meta=dict(_META),
                captions={"text": [text(CAPTION_BYTES)]}
                | {key: [text(SYNTHETIC_BYTES) for _ in range(recipe.captions)] for key in keys},
                param_aug=[augmentation.pack(one) for one in drawn] if dims and drawn else None,
                embeddings={f"{k}_emb": unit(n) for k, n in rows.items() if n} if dims else {},
            )
        )
    return out


def _files(stats: ShardStats) -> dict[str, int]:
    """Return the bytes of a shard in the index, and of its report."""
    facts = dataclasses.asdict(stats)
    report = {"name": stats.name, "fingerprint": "0" * 64, "config_hash": "0" * 16,
              "samples": 10_000, "bad": 0, "captions_cut": 0, "stats": facts}  # fmt: skip
    return {"index": len(json.dumps(facts)) + 4, "report": len(json.dumps(report, indent=1)) + 1}


def measure_dataset(folder: str) -> tuple[Sizes, list[int], int]:
    """Return the sizes of a dataset, the widths of its teachers, and its samples that were counted.

    Its index says them; without one the first shard is read.

    Raises:
        DataError: there are no tar shards, or they are damaged.
        StorageError: they cannot be reached.
    """
    folders = Folders()
    paths = folder_shards(folder, folders)
    index = folders.index(folder)
    if index is not None and index.samples:
        stats, count, source = index.parts, index.samples, f"measured: index of {folder}"
        example = index.shards[0]
    else:
        example = _read_shard(paths[0])
        stats, count, source = example.parts, example.samples, f"measured: {paths[0]}"
    described = index or describe(folder)
    parts = {part: total / count for part, total in stats.items()}
    text = f"{source}, {count:,} samples"
    dims = list(described.teacher_dims) if described is not None else []
    return Sizes(parts=parts, sources=dict.fromkeys(parts, text), **_files(example)), dims, count


def _read_shard(path: str) -> ShardStats:
    if not path.lower().endswith(".tar"):
        raise DataError(f"{path}: without an index, --like takes tar shards")
    stats = ShardStats(name=path.rpartition("/")[2], bytes=storage.size(path))
    with storage.open_read(path) as stream:
        for group in groups(members(stream, path)):
            stats.samples += 1
            for key, size in group.sizes.items():
                part = PART_OF.get(key, "tar")
                stats.parts[part] = stats.parts.get(part, 0) + size
    stats.parts["tar"] = stats.bytes - sum(n for p, n in stats.parts.items() if p != "tar")
    return stats
