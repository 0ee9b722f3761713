"""Golden cases: names, shapes and outputs of the reference implementations, without torch.

Weights are filled by name, so that no weight file is needed; the rules are in the README of the
golden values.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "golden" / "models"
# golden tag -> zoo name
TAGS = {
    "apple.mobileclip_s0": "mobileclip-s0",
    "apple.mobileclip_b": "mobileclip-b",
    "openclip.MobileCLIP2-S0": "mobileclip2-s0",
    "openclip.MobileCLIP2-B": "mobileclip2-b",
    "openclip.ViT-B-16": "vit-b16",
    "openclip.MobileCLIP2-S3": "mobileclip2-s3",
    "openclip.MobileCLIP2-L-14": "mobileclip2-l14",
}
COCA = "openclip.coca_ViT-B-32"  # its embeddings have unit length


@dataclass(frozen=True)
class Values:
    shapes: dict[str, tuple[int, ...]]
    pixels: np.ndarray[Any, Any]
    ids: np.ndarray[Any, Any]
    image: np.ndarray[Any, Any]
    text: np.ndarray[Any, Any]

    def weights(self) -> dict[str, np.ndarray[Any, Any]]:
        return {name: fill(name, shape) for name, shape in self.shapes.items()}


def values(tag: str) -> Values:
    facts = json.loads((FOLDER / f"{tag}.json").read_text())
    arrays = np.load(FOLDER / f"{tag}.npz")
    size = facts["image_size"]
    return Values(
        shapes={name: tuple(shape) for name, shape, _ in facts["parameters"]},
        pixels=np.random.RandomState(1234).random_sample((2, 3, size, size)).astype(np.float32),
        ids=arrays["tokens"].astype(np.int64),
        image=arrays["image"],
        text=arrays["text"],
    )


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    leaf = name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.array(7, np.int64)
    n = standard_normal(zlib.crc32(name.encode()), shape)
    if leaf == "running_var":
        value = 1 + 0.25 * np.tanh(n)
    elif leaf == "running_mean":
        value = 0.1 * n
    elif "layer_scale" in name or leaf == "gamma":
        value = 0.3 + 0.1 * np.tanh(n)
    elif leaf == "logit_scale":
        value = np.array(2.6592)
    elif leaf == "bias":
        value = 0.02 * n
    elif len(shape) == 1:
        value = 1 + 0.1 * np.tanh(n)
    elif (
        "pos_embed" in name
        or "positional_embedding" in name
        or leaf in ("cls_token", "class_embedding")
    ):
        value = 0.02 * n
    elif "embedding" in name:
        value = 0.05 * n
    else:
        value = n / math.sqrt(math.prod(shape[1:]) if leaf == "weight" else shape[0])
    return np.asarray(value, np.float32)


def standard_normal(seed: int, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return `RandomState(seed).standard_normal(shape)` in float32, in a third of the time.

    numpy draws one pair after the other by Marsaglia's polar method; here they are drawn in blocks.
    """
    count = math.prod(shape)
    random = np.random.RandomState(seed)
    pairs = np.empty(((count + 1) // 2, 2), np.float32)
    done = 0
    while done < len(pairs):
        missing = len(pairs) - done
        uniform = random.random_sample(2 * min(1 << 14, int(1.3 * missing) + 64))
        uniform *= 2
        uniform -= 1
        x, y = uniform[::2], uniform[1::2]
        squares = x * x + y * y
        accepted = np.flatnonzero((squares < 1) & (squares > 0))[:missing]
        squares = squares.take(accepted)
        factor = np.sqrt(-2 * np.log(squares) / squares)
        pairs[done : done + len(accepted), 0] = y.take(accepted) * factor
        pairs[done : done + len(accepted), 1] = x.take(accepted) * factor
        done += len(accepted)
    return pairs.reshape(-1)[:count].reshape(shape)


def relative_error(out: np.ndarray[Any, Any], ref: np.ndarray[Any, Any]) -> float:
    return float(np.abs(out - ref).max() / np.abs(ref).max())
