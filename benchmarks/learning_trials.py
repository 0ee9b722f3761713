"""Choose the settings of `learning_efficiency.py` on the validation photographs, and vary them.

    python benchmarks/learning_trials.py --data ../shared/data --out runs/learning

The learning rate is chosen for each arm; then the reinforced arm is trained with one setting
changed at a time: loss weights, sharpness of the teachers, initial logit scale, captions, batch
size, weight decay, weight averaging, number of views, image size, width and depth. The score is
computed on the 296 photographs of the split `val`; the test photographs are not used. With so few
photographs the mean reciprocal rank of the right product is less noisy than top-1, so it decides.
Trials are appended to `OUT/trials.jsonl`; those that it contains are not repeated. A table is
printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learning_efficiency import ARMS, prepare, recipe_of
from learning_student import results, run

RATES = (1.5e-3, 3e-3, 6e-3)
RATE_SAMPLES = 8192
VARIED_SAMPLES = 20_480
VARIATIONS: tuple[dict[str, Any], ...] = (
    {},
    {"loss.weights": (0.25, 0.75)},
    {"loss.weights": (0.5, 0.5)},
    {"teacher_factor": 0.5},
    {"teacher_factor": 2.0},
    {"first_scale": 7.0},
    {"first_scale": 30.0},
    {"data.captions": "truth"},
    {"data.captions": "synthetic"},
    {"batch_size": 32},
    {"batch_size": 128},
    {"optimizer.weight_decay": 0.02},
    {"optimizer.weight_decay": 0.5},
    {"ema": 0.98},
    {"views": 1},
    {"views": 2},
    {"model.overrides.image_size": 48},
    {"model.overrides.image_size": 96},
    {"model.overrides.image.widths": [32, 128, 256]},
    {"model.overrides.image.depths": [1, 2, 2]},
    {"model.overrides.text.layers": 2},
)
OWN = (
    "first_scale",
    "teacher_factor",
    "views",
)  # arguments of `run`; the others are keys of recipes
Trial = tuple[str, int, dict[str, Any]]


def trials() -> list[Trial]:
    """Return arm, samples and changes of each trial, in order."""
    rates = [(arm, RATE_SAMPLES, {"optimizer.lr": rate}) for rate in RATES for arm in ARMS]
    return rates + [("reinforced", VARIED_SAMPLES, changes) for changes in VARIATIONS]


def label(changes: dict[str, Any]) -> str:
    """Return changes as a short text."""
    words = [f"{key.rsplit('.', 1)[-1]} {value}" for key, value in changes.items()]
    return ", ".join(words) or "as it stands"


def show(records: Sequence[dict[str, Any]]) -> None:
    """Print a table of all trials."""
    print("| arm | samples | setting | top-1, % | mean 1 / rank |")
    print("|---|---|---|---|---|")
    for record in records:
        name = label(record["changes"])
        score = f"{record['top1']:.1f} | {record['mrr']:.3f}"
        print(f"| {record['arm']} | {record['samples']} | {name} | {score} |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the trials that are missing and print all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="holds grocery/ and grocery-dr/")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "trials.jsonl"
    for arm, samples, changes in trials():
        key = json.loads(json.dumps({"arm": arm, "changes": changes, "samples": samples}))
        if any(all(r[k] == v for k, v in key.items()) for r in results(file)):
            continue
        own = {name: value for name, value in changes.items() if name in OWN}
        rest = {name: value for name, value in changes.items() if name not in OWN}
        recipe = recipe_of(arm, samples, 0, **rest)
        photos = prepare(args.data, args.out, recipe.model.config().image_size, "val")
        result = run(photos, recipe, **own)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({**key, **result}) + "\n")
        print(f"{arm}, {label(changes)}: {result['top1']:.1f} %", flush=True)
    show(results(file))


if __name__ == "__main__":
    main()
