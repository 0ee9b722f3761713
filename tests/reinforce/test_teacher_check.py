from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pocketclip.errors import DataError, EmbeddingError
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.reinforce.teacher_check import (
    CheckSample,
    check_teacher,
    check_teachers,
    is_clearly_better,
    read_sample,
)
from pocketclip.reinforce.teachers import load_teacher

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Colours:
    """Knows the colours: an image's mean colour, and the colour that a text names."""

    embed_dim, logit_scale, space_id = 3, 20.0, "colours-1"

    def __init__(self, noise: float = 0.0) -> None:
        self.noise, self.texts = noise, []

    def encode_image(self, images):
        rng = np.random.default_rng(0)
        rows = [np.asarray(image).mean((0, 1)) / 255 for image in images]
        return np.array(rows) + self.noise * rng.normal(size=(len(rows), 3))

    def encode_text(self, texts):
        self.texts += texts
        return [[name in text for name in COLOURS] for text in texts]


def _sample(count=30, **options):
    names = [list(COLOURS)[i % 3] for i in range(count)]
    images = [Image.new("RGB", (4, 4), COLOURS[name]) for name in names]
    return CheckSample(names=[f"i{i}" for i in range(count)], images=images, texts=names, **options)


def test_a_teacher_that_knows_beats_one_that_guesses():
    sample = _sample()
    knows, guesses = (check_teacher(Colours(noise), sample) for noise in (0, 100))
    assert (knows.value, knows.metric, knows.name) == (1, "zero_shot_accuracy", "colours-1")
    assert knows.chance == pytest.approx(1 / 3)
    assert knows.is_above_chance
    assert not guesses.is_above_chance
    assert is_clearly_better(knows, guesses)
    (first, second), ensemble = check_teachers([Colours(), Colours(100)], sample, names=["a", "b"])
    assert (first.name, second.name, ensemble.name) == ("a", "b", "ensemble")
    assert (first.value, second.value) == (knows.value, guesses.value)


def test_labels_are_put_into_prompts():
    encoder = Colours()
    templates = ("a {}.", "the {c}!")
    score = check_teacher(encoder, _sample(3, is_labelled=True), templates=templates)
    assert score.metric == "zero_shot_accuracy"  # though no label repeats
    assert encoder.texts == [
        "a red.", "the red!", "a green.", "the green!", "a blue.", "the blue!"
    ]  # fmt: skip
    assert check_teacher(Colours(), _sample(3)).metric == "retrieval_recall@1"


def test_a_bad_embedding_names_its_pair():
    broken = _sample()
    broken.images[7] = Image.new("RGB", (4, 4))
    with pytest.raises(EmbeddingError, match="i7: its embedding is zero"):
        check_teacher(Colours(), broken)


def test_a_sample_of_one_text_is_refused():
    sample = CheckSample(names=["a", "b"], images=[b"", b""], texts=["x", "x"])
    with pytest.raises(DataError, match="2 pairs with 1 distinct text: two of each"):
        check_teacher(Colours(), sample)


def test_a_sample_of_the_users_pairs(table):
    path = table(8)
    sample = read_sample(open_pairs(str(path)), 5)
    assert len(sample) == 5
    assert all(text.startswith("photograph number ") for text in sample.texts)
    labelled = open_pairs(str(path), PairOptions(meta_columns=("caption",)))
    assert read_sample(labelled, 5, label_column="caption").is_labelled
    with pytest.raises(DataError, match="no pair has an image and a label in 'other'"):
        read_sample(labelled, 5, label_column="other")
    score = check_teacher(load_teacher("random:tiny"), sample)
    assert score.name == "random-tiny-0"
    assert score.metric == "retrieval_recall@1"
    assert score.n == score.texts == 5
