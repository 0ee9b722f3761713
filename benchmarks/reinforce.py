"""Measure the time of reinforcing relative to the forward time of its teacher alone.

    python benchmarks/reinforce.py --teacher random:vit-b16 --pairs 24

Reinforces photographs (those in `examples/photos`, or those of a folder) with one teacher, and runs
the same teacher over the same number of prepared squares and captions. The aim is that decoding,
augmenting and writing add at most 10 %. The last line is JSON.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; before torch

import numpy as np
import torch

from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.reinforce.engine import Engine
from pocketclip.reinforce.job import run
from pocketclip.reinforce.recipe import load_recipe

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
CAPTION = "a photograph of number {} on a table beside a window"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="random:vit-b16")
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--augmentations", type=int, default=10)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    recipe = load_recipe(teachers=[args.teacher], augmentations=args.augmentations)
    engine = Engine(recipe)
    teacher = engine.teachers[0]
    side = teacher.transform.square(np.zeros((64, 64, 3), np.uint8)).shape[0]
    noise = np.random.default_rng(0)
    squares = noise.integers(0, 256, (recipe.batch_size, side, side, 3), np.uint8)
    captions = [CAPTION.format(i) for i in range(args.pairs)]
    whole, forward = [], []
    for _ in range(args.rounds):
        forward.append(_forward(teacher, squares, args.pairs * args.augmentations, captions))
        whole.append(_job(recipe, args))
    ratios = [w / f for w, f in zip(whole, forward, strict=True)]
    result = {
        "benchmark": "reinforce",
        "teacher": args.teacher,
        "precision": teacher.dtype,
        "threads": torch.get_num_threads(),
        "pairs": args.pairs,
        "augmentations": args.augmentations,
        "forward_s": round(statistics.median(forward), 3),
        "job_s": round(statistics.median(whole), 3),
        "over_forward": round(statistics.median(ratios) - 1, 4),
        "aim": 0.10,
    }
    for key, value in result.items():
        print(f"{key:16} {value}")
    print(json.dumps(result))


def _forward(teacher, squares, count: int, captions: list[str]) -> float:  # type: ignore[no-untyped-def]
    """Return the seconds of the teacher alone."""
    begun = time.perf_counter()
    remaining = count
    while remaining > 0:
        teacher.encode_squares(squares[: min(remaining, len(squares))])
        remaining -= len(squares)
    for start in range(0, len(captions), len(squares)):
        teacher.encode_text(captions[start : start + len(squares)])
    return time.perf_counter() - begun


def _job(recipe, args: argparse.Namespace) -> float:  # type: ignore[no-untyped-def]
    """Return the seconds of a whole run, without loading the model."""
    photos = itertools.cycle(sorted(p for p in args.photos.iterdir() if p.suffix == ".jpg"))
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "pairs.csv"
        with table.open("w", newline="") as handle:
            rows = csv.writer(handle)
            rows.writerow(["filepath", "caption"])
            for i in range(args.pairs):
                rows.writerow([str(next(photos).resolve()), CAPTION.format(i)])
        shards = open_pairs(str(table), PairOptions())
        begun = 0.0

        def start(*_: int) -> None:
            nonlocal begun
            begun = time.perf_counter()

        run(shards, recipe, str(Path(folder) / "out"), workers=args.workers, on_start=start)
        return time.perf_counter() - begun


if __name__ == "__main__":
    main()
