"""Measure how many samples a student needs with and without reinforcement, on photographs.

    python benchmarks/learning_efficiency.py --data ../shared/data --out runs/learning

One student is trained from the same initial weights, with samples and views in the same order, on
the 2,640 training photographs of the grocery set: (plain) with CLIP's loss on the noisy alt-texts,
(captions) with the synthetic captions added, (reinforced) distilled from the stored embeddings of
the teachers. Each budget is a separate run with its own learning-rate schedule. The score is the
zero-shot top-1 over the 81 products on the 2,485 test photographs.

Results are appended to `OUT/results.jsonl`; runs that it contains are not repeated. So the
benchmark can be stopped, and after `--prepare` it can run twice at the same time with different
`--seeds` or `--arms`. The last line is JSON.

Sources: MobileCLIP (arXiv 2311.17049), section 5.1 and figure 5; ../shared/data/README.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; before torch

import numpy as np

from learning_report import averages, plot, show, summary
from learning_student import (
    Set,
    identity,
    numbered,
    recipe_for,
    reinforced_views,
    results,
    run,
    whole_images,
)
from pocketclip.pairs import PairOptions
from pocketclip.shards import join
from pocketclip.storage.local import write_whole
from pocketclip.train.recipe import Recipe

ARMS: dict[str, dict[str, Any]] = {
    "plain": {"loss.weights": (1.0, 0.0), "data.captions": "truth"},
    "captions": {"loss.weights": (1.0, 0.0), "data.captions": "both"},
    "reinforced": {"loss.weights": (0.0, 1.0), "data.captions": "both"},
}
BUDGETS = (4096, 8192, 10240, 20480, 40960, 81920)


def prepare(data: Path, out: Path, size: int, split: str = "test") -> Set:
    """Join photographs and reinforcements, and replay every stored view once, at `size` pixels.

    The score is of the photographs of `split`: `val` to choose settings, `test` for the result.
    """
    pairs = data / "grocery" / "pairs.csv"
    options = PairOptions(caption_columns=("alt_text",), where={"split": "train"})
    join(str(data / "grocery-dr"), str(pairs), str(out / "joined"), options=options)
    with pairs.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    held_out = [row for row in rows if row["split"] == split]
    names = {int(row["class_id"]): row["caption"] for row in rows}
    described, descriptions = numbered([row.get("description", "") for row in held_out])
    return Set(
        **reinforced_views(out / "joined", out, size),
        classes=[names[number] for number in range(len(names))],
        held_out=whole_images(
            out / f"{split}-{size}.npy",
            [data / "grocery" / row["filepath"] for row in held_out],
            size,
        ),
        labels=np.array([int(row["class_id"]) for row in held_out]),
        descriptions=descriptions,
        described=described,
    )


def recipe_of(arm: str, samples: int, seed: int, **changes: Any) -> Recipe:
    """Return the recipe of a run; its schedule ends with its budget. `changes` are of its keys."""
    return recipe_for(samples, seed, {**ARMS[arm], **changes})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="holds grocery/ and grocery-dr/")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE",
        help="of the recipe, as in model.overrides.image.widths=[32,128,256]; runs so changed are "
        "kept and shown apart",
    )  # fmt: skip
    parser.add_argument("--prepare", action="store_true", help="only make the views")
    parser.add_argument("--plot", type=Path, help="write an SVG")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "results.jsonl"
    changes = {key: json.loads(value) for key, _, value in (s.partition("=") for s in args.set)}
    size = recipe_of("plain", 1, 0, **changes).model.config().image_size
    photos = prepare(args.data, args.out, size)
    if args.prepare:
        return
    runs = [(b, s, a) for b in sorted(args.budgets) for s in args.seeds for a in args.arms]
    for budget, seed, arm in runs:
        recipe = recipe_of(arm, budget, seed, **changes)
        done = {record["recipe"] for record in results(file)}
        if identity(recipe) in done:
            continue
        print(f"{arm}, {budget} samples, seed {seed} ...", flush=True)
        result = run(photos, recipe)
        record = {"arm": arm, "samples": budget, "seed": seed, "recipe": identity(recipe), **result}
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        print(f"  top-1 {result['top1']:.2f} %, {result['cpu_seconds']:.0f} s", flush=True)
    table = averages(
        ARMS,
        [
            record
            for record in results(file)
            if record["recipe"]
            == identity(recipe_of(record["arm"], record["samples"], record["seed"], **changes))
        ],
    )
    show(table)
    if args.plot:
        with write_whole(args.plot) as temporary:
            temporary.write_text(plot(table), "utf-8")
    print(json.dumps(summary(table)))


if __name__ == "__main__":
    main()
