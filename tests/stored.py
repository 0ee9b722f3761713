"""What the stored files of an earlier release hold, as plain numbers and hashes.

    python -m tests.stored FOLDER    # with that release's code: writes expected.json and .npz

`tests/golden/landing22/README.md` says how the files were made.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import pocketclip
from pocketclip import checkpoint, shards
from pocketclip.augment import Augmentation
from pocketclip.images import open_image
from pocketclip.reinforce.recipe import digest
from pocketclip.reinforce.recipe import load_recipe as load_reinforce_recipe
from pocketclip.train import load_recipe as load_train_recipe

FOLDER = Path(__file__).parent / "golden" / "landing22"
SHARDS = ("named", "v1", "jsonl")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def pairs(folder: Path) -> tuple[list[str], list[str]]:
    """Return the photographs' paths and the captions of `pairs/pairs.csv`."""
    with (folder / "pairs" / "pairs.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    paths = [str(folder / "pairs" / row["filepath"]) for row in rows]
    return paths, [row["caption"] for row in rows]


def shard_facts(folder: Path) -> dict[str, Any]:
    """Return everything that a reader takes from a reinforced set, each array as a hash."""
    index = shards.read_index(str(folder))
    augmentation = Augmentation.from_config(index.augmentation)
    samples = []
    for sample in shards.read(str(folder)):
        image = open_image(sample.image) if sample.image else None
        views = [augmentation.apply(image, augmentation.unpack(p)) for p in sample.param_aug or ()]
        samples.append(
            {
                "uid": sample.uid,
                "image": sha256(sample.image or b""),
                "captions": {key: list(texts) for key, texts in sample.captions.items()},
                "param_aug": sample.param_aug,
                "views": [sha256(view.tobytes()) for view in views],
                "embeddings": {
                    name: [list(values.shape), sha256(np.asarray(values, np.float32).tobytes())]
                    for name, values in sample.embeddings.items()
                },
            }
        )
    facts = {"teachers": index.teachers, "augmentation": index.augmentation, "samples": samples}
    return json.loads(json.dumps(facts))


def recipe_facts(folder: Path) -> dict[str, Any]:
    """Return both recipes with every field, and the run's own copy."""
    reinforce = load_reinforce_recipe(folder / "reinforce_recipe.yaml").model_dump(mode="json")
    return {
        "reinforce": reinforce,
        "reinforce_digest": digest(reinforce),
        "train": load_train_recipe(str(folder / "train_recipe.yaml")).model_dump(mode="json"),
        "run": load_train_recipe(str(folder / "run" / "recipe.yaml")).model_dump(mode="json"),
    }


def weights_digest(folder: Path) -> str:
    """Return a hash of every name, shape and value of a checkpoint."""
    state = checkpoint.load(str(folder)).state_dict()
    parts = [
        f"{name} {tuple(v.shape)} ".encode() + v.numpy().tobytes() for name, v in state.items()
    ]
    return sha256(b"".join(sorted(parts)))


def embeddings(folder: Path, model: str) -> dict[str, np.ndarray[Any, Any]]:
    """Return the embeddings of the photographs and captions by a model or bundle."""
    encoder = pocketclip.Encoder(str(folder / model))
    photographs, captions = pairs(folder)
    return {
        "image": encoder.encode_image(photographs),
        "text": encoder.encode_text(captions),
        "logit_scale": np.float64(encoder.logit_scale),
    }


def main(folder: Path) -> None:
    facts = {
        "shards": {name: shard_facts(folder / name) for name in SHARDS},
        "recipes": recipe_facts(folder),
        "weights": weights_digest(folder / "model"),
        "space_id": pocketclip.Encoder(str(folder / "model")).space_id,
    }
    (folder / "expected.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    np.savez(folder / "expected.npz", **embeddings(folder, "model"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
