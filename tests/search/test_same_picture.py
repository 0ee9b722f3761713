"""Copies and crops lie over each other, other pictures do not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pocketclip.search.duplicates.same_picture import grey, overlap


@pytest.fixture(scope="module")
def picture():
    """Small things of all sizes, as on photographs."""
    rng = np.random.default_rng(3)
    total = np.zeros((240, 320))
    for cells in (4, 8, 16, 32):
        coarse = Image.fromarray(rng.normal(128, 40, (cells, cells)).clip(0, 255).astype(np.uint8))
        total += np.asarray(coarse.resize((320, 240), Image.Resampling.BICUBIC), float)
    return Image.fromarray((total / 4).astype(np.uint8)).convert("RGB")


def test_copies_and_crops(picture, tmp_path):
    picture.save(tmp_path / "whole.png")
    whole = grey(tmp_path / "whole.png")
    assert whole.size == (256, 192)
    for name, copy in {
        "small.jpg": picture.resize((80, 60)),
        "crop.jpg": picture.crop((10, 6, 312, 233)),
        "side.jpg": picture.crop((0, 0, 300, 240)),
        "dark.jpg": picture.point(lambda value: value // 2),
    }.items():
        copy.save(tmp_path / name)
        assert overlap(whole, grey(tmp_path / name)) > 0.97
        assert overlap(grey(tmp_path / name), whole) > 0.97


def test_others(picture):
    whole = picture.convert("L")
    for other in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180):
        assert overlap(whole, whole.transpose(other)) < 0.9
    assert overlap(whole, Image.new("L", (64, 64))) == 0
