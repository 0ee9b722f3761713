"""What the tests of the exporters for phones share: a small model, and its gates."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import nn

from pocketclip.export.mobile import embeddings, rows
from pocketclip.export.sensitivity import cosines
from pocketclip.export.towers import Towers, prepare
from pocketclip.infer.comparison import CAPTIONS, own_photos
from pocketclip.nn.build import random_model
from pocketclip.nn.clip import CLIP
from pocketclip.nn.moe import moe_layers
from pocketclip.nn.upcycle import upcycle
from pocketclip.preprocess import Preprocess
from pocketclip.tokenizer import Tokenizer
from tests.golden_weights import randomise

SMALLER = {"image.depths": (1, 1, 1, 1), "text.layers": 1}
CUTS = {
    "tiny": {},
    "mobileclip2-s0": {"image.depths": (1, 1, 1, 1), "text.layers": 1},
    "mobileclip-b": {"image.layers": 2, "text.layers": 2},
    # Blocks 1 of both towers are mixtures of three experts.
    "sparse": {
        "image_size": 32, "embed_dim": 32, "image.width": 32, "image.layers": 2, "image.heads": 4,
        "text.width": 32, "text.layers": 2, "text.heads": 4, "text.embedding_buckets": 256,
    },
}  # fmt: skip
GATES = {"fp32": 0.99999, "fp16": 0.9995, "int8": 0.99, "pal6": 0.99}


@cache
def towers(name: str = "tiny", smaller: bool = True) -> Towers:
    if name == "sparse":
        return prepare(sparse_model())
    model = random_model(name, seed=0, **(SMALLER if smaller else CUTS[name]))
    randomise(model)
    return prepare(model)


def sparse_model() -> CLIP:
    """Return a model whose inputs choose different experts, which compute different things."""
    dense = random_model("vit-b16", seed=0, **CUTS["sparse"])
    randomise(dense)
    model = upcycle(dense, experts=3, noise=0.5)
    for layer in moe_layers(model).values():
        nn.init.normal_(layer.router.weight, generator=torch.Generator().manual_seed(1))
    return model


def of(made: Towers, kind: str) -> tuple[nn.Module, torch.Tensor]:
    return (made.image, made.image_example) if kind == "image" else (made.text, made.text_example)


def inputs(made: Towers, kind: str) -> list[np.ndarray]:
    if kind == "image":
        preprocess = Preprocess(made.config.preprocess)
        return [preprocess(photo)[None] for photo in own_photos()]
    ids = Tokenizer(warn=False)(list(CAPTIONS), made.config.text.context_length)
    return [row[None] for row in ids]


def figures(run, made: Towers, kind: str) -> tuple[float, float]:
    """Return the smallest cosine and the largest error of unit embeddings to the tower's."""
    tower, example = of(made, kind)
    given = rows(inputs(made, kind), example)
    wanted, found = embeddings(tower, given), np.concatenate([run(row) for row in given])
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (wanted, found)]
    return float(cosines(found, wanted).min()), float(np.abs(unit[0] - unit[1]).max())


class Lacking(nn.Module):
    """A tower with an operation that no phone has, in a layer with a name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.odd = nn.Sequential(nn.ReLU(), Spectrum())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.odd(self.first(x))


class Spectrum(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(x.unsqueeze(-1) * x.unsqueeze(-2))
