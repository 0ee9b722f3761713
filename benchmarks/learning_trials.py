"""Choose the settings of `learning_efficiency.py` on the validation photographs.

    python benchmarks/learning_trials.py --data ../shared/data --out runs/learning

Each arm is trained once per trial at one budget and scored on the 296 photographs of the split
`val`; the test photographs are not looked at. Among so few the mean of 1 / rank of the right
product is less a matter of luck than top-1, so it decides. Trials are appended to
`OUT/trials.jsonl`, and those that stand there are not repeated. A table is printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learning_efficiency import ARMS, prepare, recipe_of, results, run

BUDGET = 8192
RATES = (1.5e-3, 3e-3, 6e-3)
OWN = ("first_scale", "teacher_factor")  # what `run` takes; the rest are keys of recipes


def trials() -> list[tuple[str, dict[str, Any]]]:
    """Return arm and changes of each trial, in order."""
    return [(arm, {"optimizer.lr": rate}) for rate in RATES for arm in ARMS]


def label(changes: dict[str, Any]) -> str:
    """Return changes as a reader's words."""
    return ", ".join(f"{key.rsplit('.', 1)[-1]} {value}" for key, value in changes.items())


def show(records: Sequence[dict[str, Any]]) -> None:
    """Print a table of all trials."""
    print("| arm | setting | top-1, % | mean 1 / rank |")
    print("|---|---|---|---|")
    for record in records:
        name = label(record["changes"])
        print(f"| {record['arm']} | {name} | {record['top1']:.1f} | {record['mrr']:.3f} |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the trials that are missing and print all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="holds grocery/ and grocery-dr/")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument("--budget", type=int, default=BUDGET)
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "trials.jsonl"
    size = recipe_of("plain", 1, 0).model.config().image_size
    photos = prepare(args.data, args.out, size, "val")
    for arm, changes in trials():
        key = {"arm": arm, "changes": changes, "samples": args.budget}
        if any(all(r[k] == v for k, v in key.items()) for r in results(file)):
            continue
        own = {name: value for name, value in changes.items() if name in OWN}
        rest = {name: value for name, value in changes.items() if name not in OWN}
        found = run(photos, recipe_of(arm, args.budget, 0, **rest), **own)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({**key, **found}) + "\n")
        print(f"{arm}, {label(changes)}: {found['top1']:.1f} %", flush=True)
    show(results(file))


if __name__ == "__main__":
    main()
