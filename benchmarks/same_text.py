"""Measure whether equal texts of a batch should be positives of each other.

    python benchmarks/same_text.py --photos ../shared/data/grocery --out runs/same_text

The small student of `learning_efficiency.py` is trained from random weights with the plain loss,
with `loss.same_text: negative` and `positive`: the same initial weights, samples, views and order.
Three sets differ in how often a text repeats within a batch of 64:

- **10**: the photographs of the ten largest kinds of groceries, with the kind as caption. The score
  is zero-shot top-1 over the kinds on the test photographs.
- **81**: all photographs of groceries, with the product as caption; top-1 over the products.
- **2000**: the quickstart's drawn scenes, 1,901 distinct captions of 2,000. The score is how often
  a drawing finds its caption among 400.

SigLIP's bias begins at -10, for one positive per row. With ten texts a tenth of a row is positive,
so `siglip, bias -2.2` begins where that is expected.

Results are appended to `OUT/results.jsonl`; runs that it contains are not repeated. The last line
is JSON. Source: UniCL (arXiv 2204.03610).

Shapes: N samples, A views of each, S side, M held-out images.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from learning_efficiency import recipe_of
from learning_student import Set, identity, results, run
from pocketclip.augment import Augmentation, rng_for
from pocketclip.images import open_image
from pocketclip.preprocess import Preprocess
from pocketclip.quickstart.captions import TEMPLATES
from pocketclip.quickstart.collection import Sizes, write_collection
from pocketclip.storage.local import write_whole
from pocketclip.train.recipe import Recipe

SIDE, VIEWS, KINDS = 48, 4, 10
SETS = ("10", "81", "2000")
LOSSES = ("clip", "siglip", "siglip, bias -2.2")
FIRST_BIAS = {"siglip, bias -2.2": -2.2}  # the logarithm of the odds of one positive in ten
CHOICES = ("negative", "positive")


def read_set(name: str, photos: Path, out: Path) -> Set:
    """Return a set with its views, made once and kept in `out`."""
    if name == "2000":
        return _drawings(out)
    with (photos / "pairs.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    column = "coarse_class" if name == "10" else "caption"
    counts = Counter(row[column] for row in rows if row["split"] == "train")
    classes = sorted(label for label, _ in counts.most_common(KINDS if name == "10" else None))
    rows = [row for row in rows if row[column] in classes]
    train = [row for row in rows if row["split"] == "train"]
    test = [row for row in rows if row["split"] == "test"]
    return _make(
        out / name,
        [photos / row["filepath"] for row in train],
        [row[column].lower() for row in train],
        [photos / row["filepath"] for row in test],
        [classes.index(row[column]) for row in test],
        [label.lower() for label in classes],
        crop=0.3,
    )


def _drawings(out: Path) -> Set:
    folder = out / "scenes"
    write_collection(folder, Sizes(), seed=0)
    test = folder / "tests" / "retrieval"
    with (folder / "pairs.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    with (test / "test.csv").open(encoding="utf-8", newline="") as stream:
        held_out = list(csv.DictReader(stream))
    made = _make(
        out / "2000",
        [folder / row["image"] for row in rows],
        [row["truth"] for row in rows],
        [test / row["image"] for row in held_out],
        list(range(len(held_out))),
        [row["caption"] for row in held_out],
        crop=0.8,
    )
    return dataclasses.replace(made, templates=TEMPLATES, mirrored=False)


def _make(
    folder: Path,
    images: list[Path],
    texts: list[str],
    test: list[Path],
    labels: list[int],
    classes: list[str],
    crop: float,
) -> Set:
    operations = {
        "random_resized_crop": {"size": SIDE, "scale": [crop, 1.0], "interpolation": "bilinear"}
    }
    augmentation = Augmentation.from_config(operations)
    model = recipe_of("plain", 1, 0, **_settings("clip", "negative")).model.config()
    whole = Preprocess(dataclasses.replace(model.preprocess, size=SIDE))
    files = folder / "views.npz"
    if not files.exists():
        views = []
        for path in images:
            image = open_image(path)
            draws = (rng_for(view, path.name, 0) for view in range(VIEWS))
            params = [augmentation.draw(rng, image.size) for rng in draws]
            views.append([augmentation.apply(image, one) for one in params])
        folder.mkdir(parents=True, exist_ok=True)
        with write_whole(files) as temporary, temporary.open("wb") as stream:
            held_out = np.stack([whole.to_uint8(path) for path in test])
            np.savez(stream, views=np.array(views), test=held_out)
    arrays = np.load(files, allow_pickle=False)
    count = len(images)
    return Set(
        views=arrays["views"],
        texts=[[[text], []] for text in texts],
        image=np.zeros((count, VIEWS, 1), np.float32),  # there is no teacher
        captions=[[np.zeros((1, 1), np.float32)]] * count,
        dims=(),
        scales=(),
        classes=classes,
        held_out=arrays["test"],
        labels=np.array(labels),
    )


def _settings(loss: str, choice: str) -> dict[str, Any]:
    return {
        "model.overrides.image_size": SIDE,
        "loss.kind": loss.split(",")[0],
        "loss.same_text": choice,
    }


def _recipe(samples: int, seed: int, loss: str, choice: str) -> Recipe:
    return recipe_of("plain", samples, seed, **_settings(loss, choice))


def summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return per set and loss the scores of each choice, and the differences of equal seeds."""
    table: dict[str, Any] = {}
    for name in SETS:
        for loss in LOSSES:
            scores = {
                choice: {
                    r["seed"]: r["top1"]
                    for r in records
                    if (r["set"], r["kind"], r["same_text"]) == (name, loss, choice)
                }
                for choice in CHOICES
            }
            seeds = sorted(set(scores["negative"]) & set(scores["positive"]))
            if not seeds:
                continue
            gains = [scores["positive"][seed] - scores["negative"][seed] for seed in seeds]
            table[f"{name} {loss}"] = {
                **{c: [round(scores[c][seed], 2) for seed in seeds] for c in CHOICES},
                "mean gain": round(statistics.mean(gains), 2),
                "gains": [round(gain, 2) for gain in gains],
            }
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="the folder of the groceries")
    parser.add_argument("--out", type=Path, default=Path("runs/same_text"))
    parser.add_argument("--samples", type=int, default=12_288)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "results.jsonl"
    sets: dict[str, Set] = {}
    runs = [(s, l, n) for s in args.seeds for l in args.losses for n in args.sets]  # noqa: E741
    for seed, loss, name in runs:
        for choice in CHOICES:
            recipe = _recipe(args.samples, seed, loss, choice)
            key = f"{name} {loss} {identity(recipe)}"
            if key in {record["run"] for record in results(file)}:
                continue
            if name not in sets:
                sets[name] = read_set(name, args.photos, args.out)
            result = run(sets[name], recipe, first_bias=FIRST_BIAS.get(loss))
            record = {
                "run": key, "set": name, "kind": loss, "same_text": choice, "seed": seed,
                "samples": args.samples, **result,
            }  # fmt: skip
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
            print(
                f"{name} texts, {loss}, {choice}, seed {seed}: {result['top1']:.2f} %, "
                f"{result['cpu_seconds']:.0f} s",
                flush=True,
            )
    records = [record for record in results(file) if record["samples"] == args.samples]
    table = summary(records)
    for title, line in table.items():
        print(f"{title:12} {line}")
    print(json.dumps(table))


if __name__ == "__main__":
    main()
