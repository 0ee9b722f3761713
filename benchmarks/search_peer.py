"""rclip, the peer of `pocketclip search`, with our towers in place of its own.

    PYTHON benchmarks/search_peer.py BUNDLE --timing times.json -- "a red car" --top 5

PYTHON is that of an environment with rclip 4 (which needs Python 3.12) and pocketclip. What is
changed, so that both programs do the same work on the same model:

- its towers are called through our `Encoder`, one photograph per call of the image tower as ours
  are, which is faster than its batches of eight;
- its tokenizer is ours, since the texts are for our tower;
- its pixels have our tower's mean and standard deviation;
- it does not look for its own model on the hub.

All else is rclip's own: the walk, the hash of the first MiB, reading and decoding at a fraction of
the size, its threads, its database and its search. After `--` follow rclip's arguments.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from pocketclip.infer.encoder import Encoder


def put_in(encoder: Encoder, timing: dict[str, float]) -> Any:
    """Replace rclip's towers, and note what indexing takes; return its module `main`."""
    # The package has a function of the same name as this module.
    pixels: Any = importlib.import_module("rclip.utils.preprocess")
    config = encoder.config.preprocess
    assert config.size == pixels.IMAGE_SIZE, "rclip's pixels are 256 x 256"
    pixels.MEAN = np.array(config.mean, np.float32)
    pixels.STD = np.array(config.std, np.float32)
    model: Any = importlib.import_module("rclip.model")
    assert encoder.embed_dim == model.Model.VECTOR_SIZE
    model.model_download.ensure_downloaded = lambda: None

    def run_visual(_self: Any, batch: Any, **_options: Any) -> Any:
        return encoder.encode_prepared(list(batch), normalize=False)

    def compute_text_features(_self: Any, text: list[str]) -> Any:
        return encoder.encode_text(text)

    model.Model._run_visual = run_visual
    model.Model.compute_text_features = compute_text_features
    main: Any = importlib.import_module("rclip.main")
    own = main.RClip.ensure_index

    def ensure_index(self: Any, directory: str) -> None:
        encoder.preload("image")  # loading is not indexing
        begin = time.perf_counter()
        own(self, directory)
        timing["index"] = time.perf_counter() - begin

    main.RClip.ensure_index = ensure_index
    return main


def fill(folder: Path) -> None:
    """Write all files below a folder into rclip's database, each with a random vector."""
    db: Any = importlib.import_module("rclip.db")
    helpers: Any = importlib.import_module("rclip.utils.helpers")
    database = db.DB(helpers.get_app_datadir() / "db.sqlite3")
    rng = np.random.default_rng(0)
    for number, path in enumerate(folder.rglob("*.jpg")):
        known = path.stat()
        vector = rng.standard_normal(512, np.float32)
        database.upsert_image(
            {
                "filepath": str(path), "modified_at": known.st_mtime, "size": known.st_size,
                "vector": (vector / np.linalg.norm(vector)).tobytes(), "hash": str(number),
            },
            commit=False,
        )  # fmt: skip
    database.close()


def main() -> None:
    """Run rclip with its arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--fill", action="store_true", help="index by random vectors")
    parser.add_argument("--timing", type=Path, help="the seconds of indexing, as JSON")
    here = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:here])
    sys.argv = ["rclip", *sys.argv[here + 1 :]]
    if options.fill:
        fill(Path.cwd())
        return
    quick = "-n" in sys.argv or "--no-indexing" in sys.argv
    timing: dict[str, float] = {}
    rclip = put_in(
        Encoder(str(options.bundle), backend="onnxruntime", low_latency_start=quick), timing
    )
    rclip.main()
    if options.timing:
        options.timing.write_text(json.dumps(timing))


if __name__ == "__main__":
    main()
