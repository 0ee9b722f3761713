from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pocketclip.augment import Augmentation
from pocketclip.shards.sheet import sheet
from pocketclip.types import Sample


def _sample(colour, captions):
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), colour).save(buffer, "PNG")
    crop = [[0, 0, 40, 60]]  # the whole image
    return Sample(
        uid="a",
        image=buffer.getvalue(),
        captions={"text": captions},
        param_aug=[crop, crop, crop],
    )


def test_a_row_per_sample_with_its_views():
    augmentation = Augmentation.from_config({"random_resized_crop": {"size": 32}})
    page = sheet([_sample("red", ["one"]), _sample("blue", ["two"] * 9)], augmentation)
    pixels = np.asarray(page)
    red = (pixels == (255, 0, 0)).all(-1)
    blue = (pixels == (0, 0, 255)).all(-1)
    assert red.any()
    assert blue.any()
    assert np.flatnonzero(red.any(1)).max() < np.flatnonzero(blue.any(1)).min()
    # The original is 3 : 2 and 160 wide, each of the three views 160 square.
    assert abs(red.sum() - (160 * 107 + 3 * 160 * 160)) < 1000


def test_samples_without_images_still_show_their_captions():
    bare = Sample(uid="b", image=None, captions={"text": ["words " * 100]})
    page = np.asarray(sheet([bare], None))
    assert (page < 128).any()


def test_a_caption_of_a_megabyte_is_cut():
    long = Sample(uid="c", image=None, captions={"text": ["x" * 1_000_000]})
    assert sheet([long], None).height == sheet([_sample("red", ["x"])], None).height
