"""Like ../shared/data, small: photographs of three products, some of them reinforced."""

from __future__ import annotations

import csv
import json

import numpy as np
from PIL import Image

from pocketclip.shards import ShardWriter
from pocketclip.types import Sample

CONFIG = {
    "model_name": "one,two",
    "teacher_dimension": [4, 4],
    "teacher_logit_scale": [20.0, 10.0],
    "reinforce": {
        "image_augmentation": {"random_resized_crop": {"size": 32, "interpolation": "bicubic"}}
    },
}
PRODUCTS = ("apple", "lime", "milk")
TEXTS = ("A red fruit, crisp.", "A green fruit, sour.", "White, from cows.")


def unit(rng, rows):
    parts = [rng.standard_normal((rows, 4)).astype(np.float32) for _ in range(2)]
    return np.concatenate([p / np.linalg.norm(p, axis=1, keepdims=True) for p in parts], axis=1)


def write_groceries(folder):
    """Write 9 photographs to train, 3 test, 6 val, and one reinforced shard into a folder."""
    photos, shards = folder / "grocery", folder / "grocery-dr"
    photos.mkdir()
    shards.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    with ShardWriter(str(shards / "00000000.tar"), dtype="float32", images=False) as writer:
        for number in range(18):
            kind, name = number % 3, f"{number}.jpg"
            pixels = rng.integers(0, 90, (40, 40, 3), dtype=np.uint8)
            pixels[..., kind] += 120
            Image.fromarray(pixels).save(photos / name)
            split = "train" if number < 9 else "test" if number < 12 else "val"
            product = PRODUCTS[kind]
            rows.append((name, split, product, f"buy {product}", kind, TEXTS[kind]))
            if split == "train":
                writer.write(
                    Sample(
                        uid=f"{number:08d}",
                        captions={"syn_text": [f"a photo of {product}.", f"fresh {product}"]},
                        param_aug=[[[0, 0, 40, 40]], [[4, 2, 30, 30]]],
                        embeddings={
                            "image_emb": unit(rng, 2),
                            "text_emb": unit(rng, 1),
                            "syn_text_emb": unit(rng, 2),
                        },
                    )
                )
    (shards / "config.json").write_text(json.dumps(CONFIG))
    with (photos / "pairs.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["filepath", "split", "caption", "alt_text", "class_id", "description"])
        table.writerows(rows)
