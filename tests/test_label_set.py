"""Label sets: what they answer, and what of a file is refused."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from pocketclip.errors import DataError, EmbeddingError, ParseError
from pocketclip.label_set import LabelSet, NoneOfThese, is_label_set, read_label_set

SPACE = "space-0123456789abcdef"


def label_set(**changes):
    rng = np.random.default_rng(0)
    values = {
        "labels": ("kiwi", "lime", "fig"),
        "weights": rng.normal(size=(3, 4)).astype(np.float32),
        "biases": rng.normal(size=3).astype(np.float32),
        "space_id": SPACE,
        "model": "tiny",
        "temperature": 0.5,
        "none": NoneOfThese(score="probability", below=0.4, error=0.05),
    }
    return LabelSet(**values | changes)


def embeddings(count=5):
    rows = np.random.default_rng(1).normal(size=(count, 4))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_probabilities_are_the_softmax_of_a_linear_head():
    labels, rows = label_set(), embeddings()
    logits = (rows.astype(float) @ labels.weights.T.astype(float) + labels.biases) / 0.5
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(labels.probabilities(rows), expected, rtol=1e-12)
    ranked = labels.rank(rows)[0]
    assert list(ranked.values()) == sorted(ranked.values(), reverse=True)
    assert ranked["lime"] == pytest.approx(expected[0, 1])


@pytest.mark.parametrize("score", ["probability", "logit"])
def test_none_below_the_score(score):
    rows = embeddings()
    labels = label_set(none=None)
    best = (labels.logits if score == "logit" else labels.probabilities)(rows).max(axis=1)
    middle = float(np.median(best))
    labels = label_set(none=NoneOfThese(score=score, below=middle, error=0.05))
    answers = labels.classify(rows)
    assert [answer is None for answer in answers] == (best < middle).tolist()
    assert 0 < answers.count(None) < len(rows)
    assert None not in label_set(none=None).classify(rows)


def test_the_file_keeps_every_bit(tmp_path):
    path, made = tmp_path / "labels.json", label_set(made={"method": "ridge"})
    made.write(path)
    read = read_label_set(path)
    assert is_label_set(path)
    assert (read.weights == made.weights).all()
    assert (read.biases == made.biases).all()
    assert (read.labels, read.none, read.made) == (made.labels, made.none, made.made)
    assert read.temperature == 0.5
    assert read.digest == made.digest
    assert label_set(temperature=0.4).digest != made.digest


def test_a_text_of_labels_is_no_label_set(tmp_path):
    path = tmp_path / "labels.txt"
    for text in ("kiwi\nlime\n", "{}\n"[:1] + "kiwi} pie\nlime\n", ""):
        path.write_text(text)
        assert not is_label_set(path)


def test_another_space_is_refused_naming_both():
    with pytest.raises(DataError, match=rf"tiny \({SPACE}\).* space-other"):
        label_set().check_space("space-other")
    with pytest.raises(DataError, match="width 4"):
        label_set().check_space(SPACE, embed_dim=5)


def test_a_tiny_temperature_gives_all_to_the_best_label():
    labels, rows = label_set(temperature=1e-320), embeddings()
    assert (labels.probabilities(rows).max(axis=1) == 1).all()


def test_embeddings_that_do_not_fit():
    with pytest.raises(ValueError, match="expected"):
        label_set().logits(np.ones((2, 5), np.float32))
    with pytest.raises(EmbeddingError, match="image 1"):
        label_set().logits(np.array([[1, 0, 0, 0], [np.nan, 0, 0, 0]], np.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "not a label set"),
        ({"version": 2}, "version 2.*reads version 1"),
        ({"labels": ["a", "a", "b"]}, "'a' is there twice"),
        ({"labels": ["a", "b"]}, "damaged"),
        ({"labels": []}, "damaged|labels"),
        ({"embed_dim": 5}, "damaged"),
        ({"embed_dim": 10**12}, "embed_dim"),
        ({"weights": "AAAA"}, "damaged"),
        ({"weights": "!" * 64}, "not base64"),
        ({"weights": base64.b64encode(np.full(12, np.nan, "<f4").tobytes()).decode()}, "NaN"),
        ({"biases": [1, 2]}, "biases"),
        ({"biases": [1, 2, "3"]}, "biases"),
        ({"biases": [1, 2, 1e39]}, "biases hold"),
        ({"labels": ["a", " ", "b"]}, "empty"),
        ({"temperature": 0}, "temperature"),
        ({"none": {"score": "logit", "below": 0.1, "error": 7}}, "error"),
        ({"none": {"score": "guess", "below": 0.1, "error": 0.1}}, "guess"),
        ({"none": {"score": "logit"}}, "below"),
        ({"space_id": None}, "space_id"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, changes, message):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(label_set().as_json() | changes))
    with pytest.raises(ParseError, match=message) as caught:
        read_label_set(path)
    assert "labels.json" in str(caught.value)


def test_half_a_file_is_refused(tmp_path):
    path = tmp_path / "labels.json"
    label_set().write(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ParseError, match="not JSON"):
        read_label_set(path)
