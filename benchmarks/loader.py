"""Samples per second and core of the training loader, against the published reader's path.

    python benchmarks/loader.py
    python benchmarks/loader.py --size 224 --embeddings float32 --rounds 9

Shards are made of four photographs in their own sizes (451 x 300 to 640 x 427), each with ten
stored augmentations (random resized crop and RandAugment), five synthetic captions and embeddings
of two teachers of 768. Then three ways read the same shards in turn, in one process and on one
thread, to batches of two captions each:

- `published`: what the reference training does, imitated here (its packages are not needed): a
  streamed tar, Pillow, the augmentation replayed on Pillow images as torchvision does, floats,
  normalised; embeddings by `gzip` and `torch.load`, or `numpy.load`.
- `exact`: ours; its pixels are those of `Augmentation.apply` to the bit, which is asserted.
- `fast`: ours with scaled decoding and torch's resize; how far its pixels are off is measured.

All tokenise with our tokenizer, which favours the imitation: the published one is slower. Ours
hand over 8-bit images, which are normalised on the device in training; `exact+floats` and
`fast+floats` include that on the same core. Time is the process's own, as other processes may
share the machine; ratios are medians over rounds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from pocketclip import pixel_ops, zoo
from pocketclip.augment import Augmentation, rng_for
from pocketclip.images import open_image
from pocketclip.shards import Index, ShardWriter, write_index
from pocketclip.tokenizer import Tokenizer
from pocketclip.train.data import DataConfig, Loader, normalise
from pocketclip.train.views import View
from pocketclip.types import Sample

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
TEACHERS = (768, 768)
AUGMENTATIONS, SYNTHETIC, BATCH = 10, 5, 32
MEAN = torch.tensor(zoo.CLIP_MEAN).view(3, 1, 1)
STD = torch.tensor(zoo.CLIP_STD).view(3, 1, 1)
CAPTION = "A photograph, number {}, of a thing on a table near a window in the afternoon light"


def unit(rng: np.random.Generator, rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return rows of unit length per teacher, (rows, 1536)."""
    parts = [rng.standard_normal((rows, d)).astype(np.float32) for d in TEACHERS]
    return np.concatenate([p / np.linalg.norm(p, axis=1, keepdims=True) for p in parts], axis=1)


def make_shards(folder: Path, samples: int, augmentation: Augmentation, dtype: str) -> None:
    """Write two shards of the photographs with everything that training reads."""
    photos = [(path.read_bytes(), path.stem) for path in sorted(PHOTOS.glob("*.jpg"))]
    stats = []
    for shard in range(2):
        with ShardWriter(
            str(folder / f"{shard:08d}.tar"), dtype=dtype, teacher_dims=TEACHERS
        ) as writer:
            for number in range(shard, samples, 2):
                data, name = photos[number // 2 % len(photos)]
                uid, size = f"{number:08d}", open_image(data).size
                drawn = [augmentation.draw(rng_for(0, uid, i), size) for i in range(AUGMENTATIONS)]
                rng = np.random.default_rng(number)
                texts = [CAPTION.format(f"{name} {number} {i}") for i in range(SYNTHETIC)]
                writer.write(
                    Sample(
                        uid=uid,
                        image=data,
                        captions={"text": [f"{name} {number}"], "syn_text": texts},
                        url=f"https://example.com/{name}.jpg",
                        param_aug=[augmentation.pack(params) for params in drawn],
                        embeddings={
                            "image_emb": unit(rng, AUGMENTATIONS),
                            "text_emb": unit(rng, 1),
                            "syn_text_emb": unit(rng, SYNTHETIC),
                        },
                    )
                )
        stats.append(writer.stats)
    index = Index(
        teachers=[{"name": str(k), "embed_dim": d} for k, d in enumerate(TEACHERS)],
        augmentation=augmentation.config,
    )
    index.add(stats)
    write_index(str(folder), index)


# --- the published path, imitated


def streamed(folder: Path) -> Iterator[dict[str, bytes]]:
    """Yield samples as webdataset does: a tar's members in a row, grouped by name."""
    for path in sorted(folder.glob("*.tar")):
        with path.open("rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            current: dict[str, bytes] = {}
            before = ""
            for member in archive:
                uid, _, key = member.name.partition(".")
                if uid != before and current:
                    yield current
                    current = {}
                before = uid
                taken = archive.extractfile(member)
                assert taken is not None
                current[key] = taken.read()
            if current:
                yield current


def operated(image: Image.Image, op: int, magnitude: float) -> Image.Image:
    """Apply an operation of RandAugment as torchvision does to a Pillow image."""
    name = pixel_ops.OP_NAMES[op]
    if name in ("Brightness", "Color", "Contrast", "Sharpness"):
        enhanced: Image.Image = getattr(ImageEnhance, name)(image).enhance(1.0 + magnitude)
        return enhanced
    if name == "Posterize":
        return ImageOps.posterize(image, int(magnitude))
    if name == "Solarize":
        return ImageOps.solarize(image, int(magnitude))
    return pixel_ops.apply_op(image, op, magnitude)


def embeddings(sample: dict[str, bytes]) -> dict[str, Any]:
    """Return all embeddings of a sample, float32."""
    if "npz" in sample:
        with np.load(io.BytesIO(sample["npz"])) as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays}
    with gzip.GzipFile(fileobj=io.BytesIO(sample["pth.gz"])) as stream:
        loaded = torch.load(io.BytesIO(stream.read()), map_location="cpu", weights_only=True)
    return {key: rows.float() for key, rows in loaded.items()}


def published(folder: Path, size: int, chance: random.Random) -> Iterator[list[Any]]:
    """Yield batches by the published path, without end."""
    tokenizer = Tokenizer(warn=False)
    rows: list[list[Any]] = []
    while True:
        for sample in streamed(folder):
            image = Image.open(io.BytesIO(sample["jpg"])).convert("RGB")
            drawn = json.loads(sample["paug.json"])["param_aug"]
            number = chance.randrange(len(drawn))
            (top, left, height, width), ops = drawn[number]
            image = image.crop((left, top, left + width, top + height))
            image = image.resize((size, size), Image.Resampling.BICUBIC)
            for op, magnitude in ops:
                image = operated(image, op, magnitude)
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255
            pixels = (pixels - MEAN) / STD
            stored = embeddings(sample)
            synthetic = json.loads(sample["syn.json"])["syn_text"]
            chosen = chance.randrange(len(synthetic))
            texts = [sample["txt"].decode(), synthetic[chosen]]
            rows.append(
                [
                    pixels,
                    *(torch.from_numpy(tokenizer(text))[0] for text in texts),
                    stored["image_emb"][number],
                    stored["text_emb"][0],
                    stored["syn_text_emb"][chosen],
                ]
            )
            if len(rows) == BATCH:
                yield [torch.stack(column) for column in zip(*rows, strict=True)]
                rows = []


# --- measuring


def ours(
    folder: Path, model: zoo.ModelConfig, *, fast: bool, floats: bool = False
) -> Iterator[list[Any]]:
    """Yield batches by our loader without end, with 8-bit images or normalised ones."""
    config = DataConfig(source=str(folder), captions="both", fast=fast)
    with Loader(config, model=model, batch_size=BATCH, seed=0) as loader:
        for batch in loader.batches():
            assert not batch.skipped
            pixels = normalise(batch.images, model.preprocess) if floats else batch.images
            yield [pixels, *batch.captions, batch.teacher_image, *batch.teacher_captions]


def rate(batches: Iterator[list[Any]], count: int) -> float:
    """Return samples per second of this process's time over `count` batches."""
    start = time.process_time()
    for _ in range(count):
        next(batches)
    return count * BATCH / (time.process_time() - start)


def pixel_error(augmentation: Augmentation, size: int) -> dict[str, float]:
    """Return by how many levels of 255 fast pixels differ, and assert that exact ones do not.

    `resize` is without RandAugment, whose operations stretch differences (Equalize, Contrast).
    """
    exact, fast = View(augmentation, size), View(augmentation, size, fast=True)
    found: dict[str, list[np.ndarray[Any, Any]]] = {"resize": [], "whole": []}
    for path in sorted(PHOTOS.glob("*.jpg")):
        data = path.read_bytes()
        for index in range(25):
            drawn = augmentation.draw(rng_for(1, path.stem, index), open_image(data).size)
            packed = augmentation.pack(drawn)
            right = exact(data, packed)
            assert np.array_equal(right, augmentation.apply(open_image(data), packed))
            bare = [packed[0], None]
            for name, params in (("resize", bare), ("whole", packed)):
                difference = np.abs(fast(data, params).astype(int) - exact(data, params))
                found[name].append(difference.ravel())
    out = {}
    for name, parts in found.items():
        all_ = np.concatenate(parts)
        out[f"{name}_mean"] = round(float(all_.mean()), 3)
        out[f"{name}_p99"] = float(np.percentile(all_, 99))
        out[f"{name}_max"] = int(all_.max())
    return out


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="pixels")
    parser.add_argument("--embeddings", default="bfloat16", choices=("bfloat16", "float32", "int8"))
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=4, help="per round and way")
    options = parser.parse_args()
    torch.set_num_threads(1)
    augmentation = Augmentation.from_config(
        {
            "random_resized_crop": {"size": options.size, "interpolation": "bicubic"},
            "rand_augment": {"p": 1.0},
        }
    )
    model = zoo.override(
        zoo.entry("tiny").config,
        image_size=options.size,
        **{"text.context_length": 77, "preprocess.mean": zoo.CLIP_MEAN},
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_shards(folder, options.samples, augmentation, options.embeddings)
        ways: dict[str, Iterator[list[Any]]] = {
            "exact": ours(folder, model, fast=False),
            "fast": ours(folder, model, fast=True),
            "exact+floats": ours(folder, model, fast=False, floats=True),
            "fast+floats": ours(folder, model, fast=True, floats=True),
        }
        if options.embeddings != "int8":  # which the published reader does not know
            chance = random.Random(0)
            ways = {"published": published(folder, options.size, chance), **ways}
        run: Callable[[str], float] = lambda way: rate(ways[way], options.batches)  # noqa: E731
        for way in ways:
            run(way)  # warm-up
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way in ways:
                rates[way].append(run(way))
        for batches in ways.values():
            batches.close()  # type: ignore[attr-defined]
    medians = {way: round(statistics.median(values), 1) for way, values in rates.items()}
    base = rates.get("published", [])
    ratios = {
        way: round(statistics.median(a / b for a, b in zip(rates[way], base, strict=True)), 2)
        for way in ways
        if base and way != "published"
    }
    error = pixel_error(augmentation, options.size)
    for way, value in medians.items():
        ratio = f"  {ratios[way]:.2f} x the published path" if way in ratios else ""
        print(f"{way:13} {value:7.1f} samples/s/core{ratio}")
    print("fast against exact, levels of 255:", error)
    about = {"size": options.size, "embeddings": options.embeddings, "rounds": options.rounds}
    print(json.dumps({**about, "samples_per_s": medians, "ratio": ratios, "fast_error": error}))


if __name__ == "__main__":
    main()
