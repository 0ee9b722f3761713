"""A small model as a bundle, generated photographs, and an empty library."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from pocketclip.search.library import Library

if TYPE_CHECKING:
    pass


def draw_photo(
    path: Path, seed: int, *, size: tuple[int, int] = (96, 72), exif: Image.Exif | None = None,
    quality: int = 85,
) -> Path:  # fmt: skip
    """Write a photograph whose content depends on the seed only: coloured blobs on a gradient.

    Args:
        path: its file; the suffix decides on the format.
        seed: of the content, which is the same at every size.
        size: width and height in pixels.
        exif: tags to write.
        quality: of a JPEG.
    """
    rng = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    low, high = rng.uniform(0, 255, (2, 3))
    pixels = low + (high - low) * (x * rng.uniform() + y * rng.uniform())[..., None]
    for _ in range(6):
        column, row, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.05, 0.3)
        inside = (x - column) ** 2 + (y - row) ** 2 < radius**2
        pixels[inside] = rng.uniform(0, 255, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    options = {} if exif is None else {"exif": exif}
    image.save(path, quality=quality, **options)
    # Of a file that was just written, the time is not trusted: the next run would read it again.
    os.utime(path, (1.6e9 + seed, 1.6e9 + seed))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of six photographs, two of them in a subfolder."""
    folder = tmp_path / "photos"
    for seed, name in enumerate(["a.jpg", "b.jpg", "c.png", "d.webp", "trip/e.jpg", "trip/f.jpg"]):
        draw_photo(folder / name, seed)
    return folder


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    """An empty library."""
    with Library.open(tmp_path / "library" / "photos.sqlite", create=True) as opened:
        yield opened


@pytest.fixture(autouse=True)
def user_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the user's data."""
    monkeypatch.setenv("POCKETCLIP_DATA", str(tmp_path / "data"))
    return tmp_path / "data"
