"""Weight files of a very small model: converted in a fraction of a second.

python -m tests.infer.slim FILE.safetensors
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

from pocketclip import checkpoint
from pocketclip.nn.build import random_model
from pocketclip.nn.clip import CLIP
from tests.golden_weights import randomise

SLIM = {
    "image_size": 16, "image.depths": (1, 1, 1, 1), "image.widths": (8, 8, 16, 32),
    "text.layers": 1, "text.context_length": 16, "text.width": 32, "text.heads": 2,
    "text.embedding_buckets": 1024,
}  # fmt: skip
NAME = "open_clip_model.safetensors"


@cache
def model(seed: int = 0) -> CLIP:
    """Return the model; not to be changed."""
    made = random_model("tiny", seed=seed, **SLIM)
    randomise(made, seed)
    return made.eval()


def weight_file(folder: Path, seed: int = 0) -> Path:
    """Return a weight file in open_clip's names that says which model it holds."""
    path = folder / f"{seed}-{NAME}"
    checkpoint.save(model(seed), path, naming="openclip")
    return path


if __name__ == "__main__":
    checkpoint.save(model(), sys.argv[1], naming="openclip")
