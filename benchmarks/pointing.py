"""How often the hottest point of `pocketclip explain` lies in the object that the text names.

    python benchmarks/pointing.py MODEL                        # drawn scenes with known places
    python benchmarks/pointing.py MODEL --grocery pairs.csv    # four photographs side by side

Chance is the objects' share of the picture. The last line is JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from pocketclip.attribution.explain import explain_image
from pocketclip.infer.encoder import Encoder, load
from pocketclip.preprocess import Preprocess
from pocketclip.quickstart.captions import class_name
from pocketclip.quickstart.drawing import render
from pocketclip.quickstart.replay_rng import ReplayRNG
from pocketclip.quickstart.scenes import draw_scene
from pocketclip.zoo import PreprocessConfig

Case = tuple[Image.Image, list[str], list[tuple[float, float, float, float]]]


def scenes(count: int) -> Iterator[Case]:
    """Yield drawn scenes of two or three objects, their names and boxes (0 to 1)."""
    index = 0
    while count:
        scene = draw_scene("test", seed=5, index=index)
        if scene.kind in ("two", "three"):
            pixels = render(scene, side=192, rng=ReplayRNG(5, 21, 4, index))
            boxes = [
                (t.x - t.radius, t.y - t.radius, t.x + t.radius, t.y + t.radius)
                for t in scene.things
            ]
            yield (
                Image.fromarray(pixels),
                [class_name(t.colour, t.shape) for t in scene.things],
                boxes,
            )
            count -= 1
        index += 1


def mosaics(count: int, table: Path, side: int) -> Iterator[Case]:
    """Yield four test photographs of different kinds as quarters of one picture."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    cut = Preprocess(PreprocessConfig(size=side, mean=(0, 0, 0), std=(1, 1, 1)))
    draw = random.Random(3)
    while count:
        chosen = draw.sample(rows, 4)
        if len({row["coarse_class"] for row in chosen}) < 4:
            continue
        page = np.zeros((2 * side, 2 * side, 3), np.uint8)
        for place, row in enumerate(chosen):
            y, x = (side * n for n in divmod(place, 2))
            page[y : y + side, x : x + side] = cut.to_uint8(table.parent / row["filepath"])
        boxes = [(x / 2, y / 2, x / 2 + 0.5, y / 2 + 0.5) for y in (0, 1) for x in (0, 1)]
        yield Image.fromarray(page), [f"a photo of {r['class_name']}." for r in chosen], boxes
        count -= 1


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a model, or teacher-a, teacher-b of the quickstart")
    parser.add_argument("--grocery", type=Path, help="pairs.csv of the grocery photographs")
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--scale", type=int, default=1, help="of the model's side, in pixels")
    options = parser.parse_args()
    own = resources.files("pocketclip") / "data" / "quickstart" / options.model
    encoder: Encoder = load(str(own) if own.is_dir() else options.model, device="cpu")
    side = encoder.config.image_size * options.scale
    # A larger square: image towers take any size.
    encoder.preprocess = Preprocess(replace(encoder.config.preprocess, size=side))
    cases = (
        scenes(options.pictures)
        if options.grocery is None
        else mosaics(options.pictures, options.grocery, side // 2)
    )
    hits, areas = [], []
    for photo, texts, boxes in cases:
        for found, (left, top, right, bottom) in zip(
            explain_image(encoder, photo, texts), boxes, strict=True
        ):
            x, y = found.peak[0] / photo.width, found.peak[1] / photo.height
            hits.append(left <= x <= right and top <= y <= bottom)
            areas.append((min(right, 1) - max(left, 0)) * (min(bottom, 1) - max(top, 0)))
    print(json.dumps({"model": options.model, "side": side, "texts": len(hits),
                      "hit": round(float(np.mean(hits)), 3),
                      "chance": round(float(np.mean(areas)), 3)}))  # fmt: skip


if __name__ == "__main__":
    main()
