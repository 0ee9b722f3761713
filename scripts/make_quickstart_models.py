"""Train the models that ship with the package for the quickstart; about an hour of one core.

    python scripts/make_quickstart_models.py --out models [--only teacher-a]

Prints one line of JSON per model: its scores and its size.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from quickstart_models.dataset import draw_dataset
from quickstart_models.make import PLANS, save_half_precision, train_model


def main() -> None:
    """Train all three models, or those named by --only."""
    parser = argparse.ArgumentParser(description="Train the models that ship with the package.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=list(PLANS), action="append")
    options = parser.parse_args()
    dataset = draw_dataset(16000)
    for name in options.only or PLANS:
        model, facts = train_model(name, dataset)
        save_half_precision(model, options.out / name)
        size = sum(path.stat().st_size for path in (options.out / name).iterdir())
        print(json.dumps({"model": name, **facts, "bytes": size}), flush=True)


if __name__ == "__main__":
    main()
