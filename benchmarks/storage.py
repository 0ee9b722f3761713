"""Measure the bytes per sample, and the effect of each embedding dtype on a teacher's affinities.

    python benchmarks/storage.py ../shared/data/grocery-dr

For each dtype: the bytes per sample by kind of content, written anew; the raw bytes of the
embeddings relative to bfloat16's; and the mean KL divergence from the softmax of the float32
affinities (logit scale 100, batches of 256 in random order) to the coded ones, from images to texts
and from texts to images, for the worst teacher and captions. `sorted` is the same in the dataset's
own order, where neighbours are of one class and similar. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip import shards
from pocketclip.shards import codec, quantise
from pocketclip.shards.quantise import QUANTISED, pack
from pocketclip.types import Sample

Floats = NDArray[np.float32]
Code = Callable[[Floats], Floats]
LOGIT_SCALE, BATCH = 100.0, 256


def through(dtype: str, dims: Sequence[int]) -> Code:
    """Return a function that stores embeddings and reads them back."""
    return lambda x: codec.decode(*codec.encode({"x": x}, dtype, dims))[0]["x"]


def four_bits(dims: Sequence[int]) -> Code:
    """Return a 4-bit code with int6's rotation and a scale per vector: measured, not offered."""
    normal = NormalDist()
    grid = np.array([normal.inv_cdf((i + 0.5) / 20_000) for i in range(20_000)])
    levels = np.linspace(-2.5, 2.5, 16)
    for _ in range(200):  # Lloyd's iteration: the best 16 levels for a normal distribution
        nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, grid)
        levels = np.array([grid[nearest == i].mean() for i in range(16)])
    between = (levels[1:] + levels[:-1]) / 2

    def code(x: Floats) -> Floats:
        parts = []
        for part in np.split(x, np.cumsum(dims)[:-1], axis=1):
            turned = quantise._rotate(part)
            scale = np.sqrt(np.mean(turned**2, axis=1, keepdims=True))
            for _ in range(3):
                chosen = levels[np.searchsorted(between, turned / scale)]
                scale = (turned * chosen).sum(1, keepdims=True) / (chosen**2).sum(1, keepdims=True)
            chosen = levels[np.searchsorted(between, turned / scale)]
            parts.append(quantise._unrotate((chosen * scale).astype(np.float32)))
        return np.concatenate(parts, axis=1)

    return code


def mean_kl(before: Floats, after: Floats) -> float:
    """Return the mean over rows of KL(softmax(before) || softmax(after)), in nats."""
    logs = []
    for logits in (before, after):
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        logs.append(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1).mean())


def worst_kl(
    image: Floats, texts: Sequence[Floats], dims: Sequence[int], code: Code, order: NDArray[Any]
) -> tuple[float, float]:
    """Return the KL image to text and text to image, each of the worst teacher and captions."""
    worst = np.zeros(2)
    starts = [0, *np.cumsum(dims).tolist()]
    coded_image = code(image)
    for text in texts:
        coded_text = code(text)
        for k in range(len(dims)):
            part = slice(starts[k], starts[k + 1])
            moved = []
            for begin in range(0, len(order) - BATCH + 1, BATCH):
                rows = order[begin : begin + BATCH]
                before = LOGIT_SCALE * image[rows, part] @ text[rows, part].T
                after = LOGIT_SCALE * coded_image[rows, part] @ coded_text[rows, part].T
                moved.append((mean_kl(before, after), mean_kl(before.T, after.T)))
            worst = np.maximum(worst, np.mean(moved, axis=0))
    return float(worst[0]), float(worst[1])


def raw_share(dtype: str, dims: Sequence[int]) -> float:
    """Return the bytes of an embedding, scales included, relative to bfloat16's."""
    width = sum(dims)
    if dtype in QUANTISED:
        return pack(np.zeros((1, width), np.float32), dtype, dims).dtype.itemsize / (2 * width)
    return {"float32": 2.0, "float16": 1.0, "bfloat16": 1.0}[dtype]


def cost(samples: Sequence[Sample], dtype: str, dims: Sequence[int]) -> dict[str, float]:
    """Return bytes per sample by part."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "0.tar")
        with shards.ShardWriter(path, dtype=dtype, teacher_dims=dims) as writer:
            for sample in samples:
                writer.write(sample)
    parts = {part: count / len(samples) for part, count in writer.stats.parts.items()}
    return {**parts, "all": writer.stats.bytes / len(samples)}


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default="../shared/data/grocery-dr")
    parser.add_argument("--samples", type=int, default=1000, help="written anew for their bytes")
    options = parser.parse_args()
    if not Path(options.folder).is_dir():
        print(json.dumps({"skipped": f"{options.folder} is not there"}))
        return
    samples = list(shards.read(options.folder))
    index = shards.describe(options.folder) or shards.Index()
    dims = index.teacher_dims or (samples[0].embeddings["image_emb"].shape[1],)
    image = np.stack([s.embeddings["image_emb"][0] for s in samples])
    texts = [
        np.stack([s.embeddings[key][0] for s in samples])
        for key in ("text_emb", "syn_text_emb")
        if all(len(s.embeddings.get(key, ())) for s in samples)
    ]
    mixed = np.random.default_rng(0).permutation(len(samples))
    rows: dict[str, Any] = {}
    codes = {dtype: through(dtype, dims) for dtype in shards.DTYPES}
    for name, code in {**codes, "(int4)": four_bits(dims)}.items():
        kl = worst_kl(image, texts, dims, code, mixed)
        in_order = worst_kl(image, texts, dims, code, np.arange(len(samples)))
        row: dict[str, Any] = {
            "kl": [round(value, 6) for value in kl],
            "kl_sorted": [round(value, 6) for value in in_order],
        }
        if name in codes:
            row["raw_share_of_bfloat16"] = round(raw_share(name, dims), 4)
            costs = cost(samples[: options.samples], name, dims)
            row["bytes_per_sample"] = {part: round(count) for part, count in costs.items()}
        rows[name] = row
        figures = f"KL {kl[0]:.5f} {kl[1]:.5f}, sorted {in_order[0]:.5f} {in_order[1]:.5f}"
        print(f"{name:9} {figures}, {row.get('bytes_per_sample', 'not offered')}")
    print(json.dumps({"set": Path(options.folder).name, "samples": len(samples), "codes": rows}))


if __name__ == "__main__":
    main()
