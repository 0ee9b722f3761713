"""A tiny start with random weights, and coloured squares by class: what fine-tuning takes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image

COLOURS = {"red thing": (220, 30, 30), "green thing": (30, 200, 40), "grey": (120, 120, 120)}


def draw_square(path: Path, colour: tuple[int, int, int], seed: int) -> None:
    """Write a picture of a square on another colour."""
    rng = random.Random(seed)
    picture = Image.new("RGB", (40, 36), tuple(rng.randrange(256) for _ in range(3)))
    shade = tuple(max(0, min(255, value + rng.randrange(-20, 20))) for value in colour)
    left, top = rng.randrange(12), rng.randrange(8)
    picture.paste(Image.new("RGB", (26, 26), shade), (left, top))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def draw_folder(folder: Path, per_class: int = 6) -> Path:
    """Write a folder with one sub-folder per colour."""
    for number, (name, colour) in enumerate(COLOURS.items()):
        for index in range(per_class):
            draw_square(folder / name / f"{index}.png", colour, 100 * number + index)
    return folder


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a model with random weights that takes milliseconds per image."""
    import torch

    from pocketclip import checkpoint, zoo
    from pocketclip.license import License
    from pocketclip.nn.build import build

    config = zoo.override(
        zoo.entry("tiny").config,
        **{"image_size": 32, "text.layers": 1, "text.context_length": 16},
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("start") / "model"
    model = build(config).eval()
    model.license = License(name="birds", text="For birds only.\n")
    checkpoint.save(model, folder)
    return folder


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of each of three colours, by class."""
    return draw_folder(tmp_path_factory.mktemp("squares") / "shelf")
