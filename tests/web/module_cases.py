"""Cases that the tests of the web pages' modules compare with: what Python makes of the same input.

Each function fills a folder, which `node --test` finds by the variable `POCKETCLIP_CASES`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from pocketclip.infer.zero_shot import average_prompts, rank_labels
from pocketclip.preprocess import Preprocess
from pocketclip.zoo import CLIP_MEAN, CLIP_STD, PreprocessConfig

# width, height, side: smaller and larger than the side, one axis as it is, halves of both kinds,
# tall ones (heights first), and lines of which only the crop is computed.
_PIXELS = (
    *((1, 1, 16), (7, 1, 16), (1, 7, 16), (31, 33, 64), (64, 64, 64), (64, 65, 64), (67, 64, 64)),
    *((97, 65, 64), (300, 256, 256), (640, 480, 256), (480, 640, 256), (127, 383, 64)),
    *((383, 127, 64), (100, 200, 50), (100, 201, 50), (117, 253, 64), (20, 900, 64)),
    *((3, 2000, 256), (2000, 3, 256), (2, 9000, 64)),
)


def write_pixels(folder: Path) -> None:
    """Write images, and the square of each as `Preprocess` makes it."""
    random = np.random.RandomState(0)
    cases: list[dict[str, Any]] = []
    for width, height, side in _PIXELS:
        for interpolation in ("bilinear", "bicubic"):
            config = PreprocessConfig(
                size=side, interpolation=interpolation, mean=CLIP_MEAN, std=CLIP_STD
            )
            rgba = random.randint(0, 256, (height, width, 4)).astype(np.uint8)
            half = rgba[: height // 2, : width // 2]  # black and white, where bicubic overshoots
            half[...] = (half > 127) * np.uint8(255)
            preprocess = Preprocess(config)
            name = str(len(cases))
            rgba.tofile(folder / f"{name}.rgba")
            preprocess.to_uint8(rgba[..., :3]).tofile(folder / f"{name}.square")
            preprocess(rgba[..., :3]).tofile(folder / f"{name}.tensor")
            cases.append(
                {
                    **{"name": name, "width": width, "height": height, "size": side},
                    **{"interpolation": interpolation, "mean": CLIP_MEAN, "std": CLIP_STD},
                }
            )
    (folder / "pixels.json").write_text(json.dumps(cases), "utf-8")


def write_zero_shot(folder: Path) -> None:
    """Write unit embeddings of prompts and images, classifiers and ranked labels."""
    random = np.random.RandomState(1)
    cases = []
    for labels, prompts, width, scale in ((1, 1, 8, 100.0), (9, 3, 512, 100.0), (200, 7, 64, 13.4)):
        texts, images = (
            rows / np.linalg.norm(rows, axis=1, keepdims=True)
            for rows in (random.randn(labels * prompts, width), random.randn(5, width))
        )
        texts, images = texts.astype(np.float32), images.astype(np.float32)
        names = [f"label {position}" for position in range(labels)]
        classifier = average_prompts(texts, names)
        ranked = rank_labels(images, classifier, names, scale)
        cases.append(
            {
                **{"labels": names, "prompts": prompts, "scale": scale, "texts": texts.tolist()},
                **{"images": images.tolist(), "classifier": classifier.tolist()},
                "ranked": [[[label, p] for label, p in one.items()] for one in ranked],
            }
        )
    (folder / "zero_shot.json").write_text(json.dumps(cases), "utf-8")


WRITERS = (write_pixels, write_zero_shot)
