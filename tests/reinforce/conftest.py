from __future__ import annotations

import csv
import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pocketclip.reinforce import engine, teachers

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """Write a table of `count` small photographs with captions, and return its path."""

    def make(count: int, folder: str = "raw") -> Path:
        home = tmp_path / folder
        home.mkdir(exist_ok=True)
        photos = itertools.cycle(sorted(PHOTOS.glob("*.jpg")))
        with (home / "pairs.csv").open("w", newline="") as handle:
            rows = csv.writer(handle)
            rows.writerow(["filepath", "caption"])
            for i in range(count):
                image = Image.open(next(photos))
                image = image.resize((90 + i, 100))
                image.save(home / f"{i}.jpg")
                rows.writerow([f"{i}.jpg", f"photograph number {i}"])
        return home / "pairs.csv"

    return make


_load_teacher = functools.lru_cache(teachers.load_teacher)


@pytest.fixture
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let engines share the teachers of one spec."""
    monkeypatch.setattr(engine, "load_teacher", _load_teacher)
