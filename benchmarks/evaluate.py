"""Measure the time of an evaluation relative to decoding and encoding its images alone.

    python benchmarks/evaluate.py --model mobileclip2-s0 --images 96 --classes 1000

Classifies photographs (those in `examples/photos`, repeated, or those of a folder) zero-shot as
`pocketclip eval` does, from the table to the results. In the same rounds the same files are only
decoded and encoded: one after the other, and overlapping as in `Encoder.encode_stream`. Weights are
random, which does not change the times. The classifier comes from the cache; its time is reported
separately. The aim is a ratio of at most 1.1. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; before torch

import numpy as np
import torch

from pocketclip.evaluate import DataOptions, RunOptions, Task, evaluate, find
from pocketclip.evaluate.zeroshot import build_classifier
from pocketclip.infer.encoder import Encoder
from pocketclip.nn.build import random_model
from pocketclip.nn.reparam import fuse

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"


def seconds(run: Callable[[], object]) -> float:
    """Return how long one call takes."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def decode_then_encode(encoder: Encoder, paths: list[str]) -> None:
    """Decode a batch, then encode it, and so on."""
    for begin in range(0, len(paths), encoder.batch_size):
        pixels = [encoder.preprocess(path) for path in paths[begin : begin + encoder.batch_size]]
        encoder.encode_pixels(np.stack(pixels))


def overlapping(encoder: Encoder, paths: list[str]) -> None:
    """Decode the next batch while this one is encoded."""
    for _ in encoder.encode_stream(paths):
        pass


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mobileclip2-s0")
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    photos = sorted(args.photos.rglob("*.jpg"))
    paths = [str(photos[i % len(photos)].resolve()) for i in range(args.images)]
    encoder = Encoder(fuse(random_model(args.model, seed=0)), batch_size=args.batch_size)
    task = Task(key="photos", dataset="photos")
    names = [f"class number {i}" for i in range(args.classes)]
    times: dict[str, list[float]] = {"evaluation": [], "overlapping": [], "one after the other": []}
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "photos.csv"
        rows = [f"{path},{i % args.classes}" for i, path in enumerate(paths)]
        table.write_text("image,label\n" + "\n".join(rows) + "\n")
        (Path(folder) / "classnames.txt").write_text("\n".join(names) + "\n")
        options = RunOptions(batch_size=args.batch_size, cache=Path(folder) / "cache")
        data = find(task, str(table), DataOptions())

        def whole() -> None:
            evaluate(encoder, task, find(task, str(table), DataOptions()), options)

        assert data.classes is not None
        assert data.templates is not None
        classifier = seconds(
            lambda: build_classifier(
                encoder, data.classes or (), data.templates or (), cache=options.cache
            )
        )
        overlapping(encoder, paths[: args.batch_size])  # warm-up
        for _ in range(args.rounds):
            times["evaluation"].append(seconds(whole))
            times["overlapping"].append(seconds(lambda: overlapping(encoder, paths)))
            times["one after the other"].append(seconds(lambda: decode_then_encode(encoder, paths)))
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "benchmark": "evaluate",
        "model": args.model,
        "images": args.images,
        "classes": args.classes,
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "threads": torch.get_num_threads(),
        "seconds": {name: round(value, 2) for name, value in medians.items()},
        "classifier_seconds": round(classifier, 2),
        "over_one_after_the_other": round(
            medians["evaluation"] / medians["one after the other"], 3
        ),
        "over_overlapping": round(medians["evaluation"] / medians["overlapping"], 3),
    }
    for name, value in medians.items():
        print(f"{name:20} {value:6.2f} s  {args.images / value:6.1f} images/s")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
