from __future__ import annotations

import itertools

import numpy as np
import pytest

from pocketclip.errors import DataError
from pocketclip.teacher_score import (
    TeacherScore,
    choose_metric,
    is_clearly_better,
    number_texts,
    score_pairs,
)


def _unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _random(rng, *shape):
    return _unit(rng.normal(size=shape))


def _score(hits, metric="zero_shot_accuracy", texts=5):
    hits = np.array(hits, float)
    return TeacherScore(
        name="x", metric=metric, value=hits.mean(), chance=0.2, n=len(hits), texts=texts,
        standard_error=0.1, hits=hits,
    )  # fmt: skip


def test_texts_that_repeat_are_classes():
    text_of, first = number_texts(["a", "b", "a", "c", "b", "a"])
    assert text_of.tolist() == [0, 1, 0, 2, 1, 0]
    assert first == [0, 1, 3]
    assert choose_metric(text_of) == "zero_shot_accuracy"
    assert choose_metric(np.array([0, 1, 0, 2, 3])) == "retrieval_recall@1"


def test_zero_shot_accuracy_by_hand():
    images = _unit(np.array([[1, 0], [1, 0.2], [0, 1], [1, 0.1]]))
    texts = _unit(np.array([[1, 0], [0, 1]]))
    score = score_pairs([(images, texts, 10.0)], np.array([0, 0, 1, 1]), name="t")
    assert score.metric == "zero_shot_accuracy"
    assert score.hits.tolist() == [1, 1, 1, 0]
    assert score.value == 0.75
    # The answers are 0, 0, 1, 0 and the truths 0, 0, 1, 1: 3/4 * 1/2 + 1/4 * 1/2.
    assert score.chance == pytest.approx(0.5)
    assert score.standard_error == pytest.approx(np.std([1, 1, 1, 0], ddof=1) / 2)


def test_equal_texts_are_hits_of_retrieval():
    """Against the definition, pair by pair, with a text that occurs twice."""
    rng = np.random.default_rng(0)
    text_of = np.array([0, 1, 2, 0, 3, 4, 5])
    images, texts = _random(rng, 7, 4), _random(rng, 6, 4)
    score = score_pairs([(images, texts, 30.0)], text_of, name="t")
    hits = []
    for image, own in zip(images, text_of, strict=True):
        finds_text = (texts @ image).argmax() == own
        finds_image = text_of[(images @ texts[own]).argmax()] == own
        hits.append((int(finds_text) + int(finds_image)) / 2)
    assert score.metric == "retrieval_recall@1"
    np.testing.assert_array_equal(score.hits, hits)
    assert 0 < score.value < 1


def test_chance_is_what_dealt_answers_score():
    """The mean over all permutations of the truths."""
    rng = np.random.default_rng(1)
    text_of = np.array([0, 0, 0, 1, 2, 2])
    images, texts = _random(rng, 6, 3), _random(rng, 3, 3)
    score = score_pairs([(images, texts, 1.0)], text_of, name="t")
    answers = (images @ texts.T).argmax(1)
    dealt = [(answers == np.array(p)).mean() for p in itertools.permutations(text_of.tolist())]
    assert score.chance == pytest.approx(np.mean(dealt))


def test_a_collapsed_teacher_is_not_above_chance():
    """It always gives the same answer, which is right for three quarters of the pairs."""
    text_of = np.array([0] * 75 + [1] * 25)
    images, texts = np.ones((100, 1), np.float32), np.ones((2, 1), np.float32)
    score = score_pairs([(images, texts, 100.0)], text_of, name="t")
    assert score.value == 0.75
    assert score.chance == 0.75
    assert not score.is_above_chance


def test_random_teachers_are_rarely_above_chance():
    rng = np.random.default_rng(2)
    text_of = rng.integers(0, 10, 200)
    above = [
        score_pairs([(_random(rng, 200, 8), _random(rng, 10, 8), 50.0)], text_of, name="t")
        for _ in range(40)
    ]
    assert sum(score.is_above_chance for score in above) <= 5
    signal = _random(rng, 10, 8)
    knows = _unit(signal[text_of] + rng.normal(size=(200, 8)) * 0.7)
    assert score_pairs([(knows, signal, 50.0)], text_of, name="t").is_above_chance


def test_an_ensemble_averages_affinities_not_similarities():
    """The sure teacher decides, though the other's similarities differ more before scaling."""
    image, texts = _unit(np.ones((2, 2))), _unit(np.array([[1.0, 0.9], [0.9, 1.0]]))
    unsure = np.array([[1.0, 0], [1, 0]], np.float32), _unit(np.array([[1.0, 0], [0, 1]])), 0.1
    sure = np.stack([texts[1], texts[1]]), texts, 1000.0
    assert score_pairs([unsure, sure], np.array([1, 1]), name="e").hits.tolist() == [1, 1]
    assert score_pairs([unsure], np.array([1, 1]), name="e").hits.tolist() == [0, 0]
    with pytest.raises(ValueError, match="images and texts"):
        score_pairs([unsure, (image, texts[:1], 1.0)], np.array([1, 1]), name="e")


def test_the_rule_for_clearly_better():
    a = _score([1] * 9 + [0] * 11)
    b = _score([0] * 9 + [0] * 11)
    assert is_clearly_better(a, b)  # 9 > 2 * 3
    assert not is_clearly_better(b, a)
    assert not is_clearly_better(a, a)
    assert not is_clearly_better(_score([1] * 4), _score([0] * 4))  # few pairs say little
    assert is_clearly_better(_score([1] * 5), _score([0] * 5))
    # Paired: 12 gained and 3 lost are clear, 12 gained and 8 lost are not.
    rest = [1] * 30
    assert is_clearly_better(_score([1] * 12 + [0] * 3 + rest), _score([0] * 12 + [1] * 3 + rest))
    assert not is_clearly_better(
        _score([1] * 12 + [0] * 8 + rest), _score([0] * 12 + [1] * 8 + rest)
    )
    for other in (_score([1]), _score([1] * 20, "retrieval_recall@1"), _score([1] * 20, texts=6)):
        with pytest.raises(ValueError, match="different samples"):
            is_clearly_better(a, other)


def test_a_score_is_one_line_and_json():
    score = _score([1, 1, 0, 1])
    assert score.line() == (
        "x: zero-shot accuracy 75.0 % ± 10.0 (chance 20.0 %; 4 pairs, 5 classes)"
    )
    assert score.facts()["value"] == 0.75
    assert "hits" not in score.facts()


@pytest.mark.parametrize(("count", "texts"), [(1, 2), (3, 1)])
def test_too_little_to_score(count, texts):
    rows = np.ones((count, 1), np.float32), np.ones((texts, 1), np.float32), 1.0
    with pytest.raises(DataError, match="two of each"):
        score_pairs([rows], np.zeros(count, np.int64), name="t")
