"""Samples per second and core of the training loader, against the published reader's path.

    python benchmarks/loader.py
    python benchmarks/loader.py --size 224 --embeddings float32 --rounds 9

Shards are made of four photographs in their own sizes (451 x 300 to 640 x 427), each with ten
stored augmentations (random resized crop and RandAugment), five synthetic captions and embeddings
of two teachers of 768. Three readers then read the same shards in turn, in one process on one
thread. All return the same batches: normalised float32 images, the ids of two captions each, and
float32 embeddings of the image and both captions.

- `published`: the reference training's reader, see `published_reader`. It uses webdataset,
  torchvision and open_clip's tokenizer if installed, else imitates them; the JSON says which.
- `exact`: ours; its pixels equal those of `Augmentation.apply` to the bit, which is asserted.
- `fast`: ours with torch's resize and scaled decoding; the difference of its pixels is measured.
- `device`: the workers' part of `data.replay: device`, cropped images and parameters. What is left
  to the device is measured apart, on the CPU; so are the bytes that are copied there.
- `materialised`: ours on the set that `pocketclip materialise` makes of these shards at `--size`
  with its defaults.

Rows with `uint8` are our loader's output in training, where images are normalised on the device.
Times are processor times, as other processes may share the machine; ratios are medians over rounds.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pocketclip import zoo
from pocketclip.augment import Augmentation, rng_for
from pocketclip.images import open_image
from pocketclip.shards import Index, ShardWriter, write_index
from pocketclip.train.device_views import Views
from pocketclip.train.loader import DataConfig, Loader, normalise
from pocketclip.train.materialise import materialise
from pocketclip.train.replay import AugmentationReplay
from pocketclip.train.sections import ReplayMode
from pocketclip.types import Sample
from published_reader import Replay, read_published

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
TEACHERS = (768, 768)
AUGMENTATIONS, SYNTHETIC, BATCH = 10, 5, 32
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


# --- measuring


def ours(
    folder: Path, model: zoo.ModelConfig, *, replay: ReplayMode = "exact", floats: bool = True
) -> Iterator[list[Any]]:
    """Yield batches by our loader without end, with normalised images or 8-bit ones."""
    config = DataConfig(source=str(folder), captions="both", replay=replay)
    with Loader(config, model=model, batch_size=BATCH, seed=0) as loader:
        for batch in loader.batches():
            assert not batch.skipped
            pixels: Any = batch.views or batch.images
            if floats:
                pixels = normalise(batch.images, model.preprocess)
            yield [pixels, *batch.captions, batch.teacher_image, *batch.teacher_captions]


def rate(batches: Iterator[list[Any]], count: int) -> float:
    """Return samples per second of this process's time over `count` batches."""
    start = time.process_time()
    for _ in range(count):
        next(batches)
    return count * BATCH / (time.process_time() - start)


def device_cost(views: Views) -> dict[str, float]:
    """Return what the device has to do for a batch of `device`, on this CPU."""
    start = time.process_time()
    views.images()
    seconds = time.process_time() - start
    return {
        "ms_per_sample_on_cpu": round(1000 * seconds / BATCH, 2),
        "bytes_per_sample": round(views.pixels.nbytes / BATCH),
    }


def difference(replay: Replay, augmentation: Augmentation, model: zoo.ModelConfig) -> float:
    """Return by how much normalised floats of the published replay and of ours differ at most."""
    view, largest = AugmentationReplay(augmentation, model.image_size), 0.0
    for path in sorted(PHOTOS.glob("*.jpg")):
        data = path.read_bytes()
        image = open_image(data)
        for index in range(10):
            packed = augmentation.pack(augmentation.draw(rng_for(1, path.stem, index), image.size))
            pixels = torch.from_numpy(view(data, packed).copy()).permute(2, 0, 1)
            ours = normalise(pixels[None], model.preprocess)[0]
            largest = max(largest, float((replay(image, packed) - ours).abs().max()))
    return largest


def pixel_error(augmentation: Augmentation, size: int) -> dict[str, float]:
    """Return by how many levels of 255 fast pixels differ, and assert that exact ones do not.

    `resize` is without RandAugment, whose operations stretch differences (Equalize, Contrast).
    """
    exact, fast = (
        AugmentationReplay(augmentation, size),
        AugmentationReplay(augmentation, size, fast=True),
    )
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
    parser.add_argument("--imitated", action="store_true", help="even if its packages are there")
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
        **{
            "text.context_length": 77,
            "preprocess.mean": zoo.CLIP_MEAN,
            "preprocess.std": zoo.CLIP_STD,
        },
    )
    with tempfile.TemporaryDirectory() as name:
        folder, rendered = Path(name) / "dr", Path(name) / "rendered"
        folder.mkdir()
        make_shards(folder, options.samples, augmentation, options.embeddings)
        ways: dict[str, Iterator[list[Any]]] = {
            "exact": ours(folder, model),
            "fast": ours(folder, model, replay="fast"),
            "materialised": ours(rendered, model),
            "exact, uint8": ours(folder, model, floats=False),
            "fast, uint8": ours(folder, model, replay="fast", floats=False),
            "device": ours(folder, model, replay="device", floats=False),
            "materialised, uint8": ours(rendered, model, floats=False),
        }
        made = materialise(str(folder), str(rendered), size=options.size, workers=0)
        used: dict[str, str] = {}
        alike = None
        if options.embeddings != "int8":  # which the published reader does not know
            batches, replay, used = read_published(
                folder,
                size=options.size,
                batch_size=BATCH,
                seed=0,
                imitated=options.imitated,
            )
            ways = {"published": batches, **ways}
            alike = difference(replay, augmentation, model)
        run: Callable[[str], float] = lambda way: rate(ways[way], options.batches)  # noqa: E731
        for way in ways:
            run(way)  # warm-up
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way in ways:
                rates[way].append(run(way))
        device_part = device_cost(next(ways["device"])[0])
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
        print(f"{way:19} {value:7.1f} samples/s/core{ratio}")
    print("fast against exact, levels of 255:", error)
    print("device, what is left to it:", device_part)
    about: dict[str, Any] = {
        "size": options.size,
        "embeddings": options.embeddings,
        "rounds": options.rounds,
    }
    about["materialised"] = {
        "encoding": made.encoding,
        "quality": made.quality,
        "bytes_per_sample": round(made.bytes / made.samples),
        "bytes_per_sample_before": round(made.source_bytes / made.samples),
        "psnr_mean": round(made.psnr_mean, 1),
        "psnr_lowest": round(made.psnr_lowest, 1),
    }
    about |= {"published": used, "published_against_exact_max": alike}
    print(
        json.dumps(
            {
                **about,
                "samples_per_s": medians,
                "ratio": ratios,
                "fast_error": error,
                "device_part": device_part,
            }
        )
    )


if __name__ == "__main__":
    main()
