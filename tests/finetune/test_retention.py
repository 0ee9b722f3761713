"""The retention score: 1 for the start, about 0 for an unrelated model, falling along a line."""

from __future__ import annotations

import copy
import csv
import functools

import numpy as np
import pytest
import torch
from PIL import Image

from pocketclip.errors import DataError
from pocketclip.finetune.retention import agreement, keep_retention, own_retention, pictures
from pocketclip.infer.encoder import Encoder
from pocketclip.nn.build import random_model


@functools.cache
def _start():
    return random_model("tiny", seed=0)


@functools.cache
def _own():
    return own_retention(Encoder(_start()))


def _changed(share):
    """Return the start with weights that lie `share` of the way to an unrelated model's."""
    model, other = copy.deepcopy(_start()), random_model("tiny", seed=1)
    with torch.no_grad():
        for value, target in zip(model.parameters(), other.parameters(), strict=True):
            value.lerp_(target, share)
    return Encoder(model)


def test_the_start_keeps_all_and_an_unrelated_model_nothing():
    assert _own().score(Encoder(copy.deepcopy(_start()))) == pytest.approx(1)
    assert _own().score(_changed(1)) < 0.25


def test_the_score_falls_with_the_distance():
    scores = [_own().score(_changed(share)) for share in (0, 0.1, 0.3)]
    assert scores[0] > scores[1] + 0.01 > scores[2] + 0.02


def test_agreement_is_the_correlation_of_doubly_centred_affinities():
    rng = np.random.default_rng(0)
    start, other = rng.random((7, 5)), rng.random((7, 5))
    assert agreement(start, 3 * start + rng.random((7, 1)) + rng.random(5)) == pytest.approx(1)
    assert agreement(start, -start) == pytest.approx(-1)
    assert agreement(start, np.ones((7, 5))) == 0
    rows, columns = (np.eye(n) - 1 / n for n in (7, 5))
    centred = [(rows @ x @ columns).ravel() for x in (start, other)]
    assert agreement(start, other) == pytest.approx(np.corrcoef(*centred)[0, 1])


def test_the_pictures_are_always_the_same_and_differ():
    assert pictures()[3].tobytes() == pictures.__wrapped__()[3].tobytes()
    assert len({picture.tobytes() for picture in pictures()}) == len(pictures()) > 100


class _Guess:
    """An encoder that knows the colour of some images, the first `right` of each colour."""

    embed_dim, logit_scale, space_id = 2, 100.0, "guess"

    def __init__(self, right):
        self.right = right

    def encode_image(self, images):
        out = []
        for image in images:
            red, number, _ = np.asarray(image)[0, 0]
            is_red = red > 128
            out.append([1, 0] if is_red == (number < self.right) else [0, 1])
        return np.array(out, np.float32)

    def encode_text(self, texts):
        return np.array([[1, 0] if "red" in text else [0, 1] for text in texts], np.float32)


@pytest.fixture
def kept(tmp_path):
    with (tmp_path / "kept.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["image", "label"])
        for colour, red in (("red", 255), ("blue", 0)):
            for number in range(4):
                Image.new("RGB", (8, 8), (red, number, 255 - red)).save(
                    tmp_path / f"{colour}-{number}.png"
                )
                table.writerow([f"{colour}-{number}.png", colour])
    return str(tmp_path / "kept.csv")


def test_data_to_keep_gives_the_metric_relative_to_the_start(kept):
    retention = keep_retention(kept, _Guess(3))
    assert retention.score(_Guess(3)) == 1
    assert retention.score(_Guess(2)) == pytest.approx(2 / 3)
    assert retention.score(_Guess(4)) == 1  # better than the start: nothing is lost
    assert retention.name == f"acc1 on {kept}"
    assert retention.about == {"start": 0.75, "samples": 8}


def test_data_that_the_start_does_not_know_is_refused(kept, tmp_path):
    with pytest.raises(DataError, match=r"the start scores 0 on .*nothing to keep"):
        keep_retention(kept, _Guess(0))
    with pytest.raises(DataError, match="--keep"):
        keep_retention(str(tmp_path / "nothing"), _Guess(3))
