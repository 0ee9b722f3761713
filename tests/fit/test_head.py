"""The head, its strength, and its calibration, on embeddings of known classes."""

from __future__ import annotations

import numpy as np
import pytest

from pocketclip.embeddings import softmax
from pocketclip.fit.calibration import (
    calibration_error,
    fit_temperature,
    log_loss,
    lowest_score,
)
from pocketclip.fit.cross_validation import STRENGTHS, choose_strength, heads
from pocketclip.fit.folds import FOLDS, folds, spread
from pocketclip.fit.head import fit_logistic, fit_ridge, zero_shot_head
from pocketclip.fit.unseen import unseen_offset

CLASSES, WIDTH = 4, 16


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def blobs(each=20, seed=0, noise=0.6):
    """Return embeddings and labels, and a zero-shot classifier that knows half of it."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(CLASSES, WIDTH))
    labels = np.repeat(np.arange(CLASSES), each)
    rows = unit(centres[labels] + noise * rng.normal(size=(len(labels), WIDTH)) + 2)
    prompts = unit(centres + 2.5 * np.random.default_rng(8).normal(size=centres.shape))
    return rows, labels, prompts


def accuracy(head, rows, labels):
    return float((head.logits(rows).argmax(axis=1) == labels).mean())


def both(prior, rows, labels, strength):
    yield fit_logistic(prior, rows, labels, strength)
    yield next(fit_ridge(prior, rows, labels, [strength], [10.0]))[-1]


def test_a_weak_pull_learns_and_a_strong_one_keeps_the_prompts():
    rows, labels, prompts = blobs()
    new, truth, _ = blobs(seed=1)
    prior = zero_shot_head(prompts, 10.0)
    assert accuracy(prior, new, truth) < 0.8
    for head in both(prior, rows, labels, 0.1):
        assert accuracy(head, new, truth) > 0.95
    for head in both(prior, rows, labels, 1e9):
        np.testing.assert_allclose(head.logits(new), prior.logits(new), atol=1e-4)


def test_logistic_regression_is_at_the_minimum():
    rows, labels, prompts = blobs(each=5)
    prior = zero_shot_head(prompts, 10.0)
    head = fit_logistic(prior, rows, labels, 0.3)
    # The gradient of the loss with respect to the weights is zero there.
    errors = softmax(head.logits(rows)) - np.eye(CLASSES)[labels]
    centre = rows.mean(axis=0, dtype=np.float64)
    gradient = errors.T @ (rows - centre) + 0.3 * (head.weights - prior.weights)
    assert np.abs(gradient).max() < 0.01 < np.abs(errors.T @ rows).max()


def test_ridge_regression_is_the_least_squares_solution():
    rows, labels, prompts = blobs(each=5)
    prior = zero_shot_head(prompts, 10.0)
    _, _, head = next(fit_ridge(prior, rows, labels, [0.3], [7.0]))
    centred = rows - rows.mean(axis=0, dtype=np.float64)
    lacking = 7.0 * np.eye(CLASSES)[labels] - centred @ prior.weights.T
    lacking -= lacking.mean(axis=1, keepdims=True)
    expected = np.linalg.solve(centred.T @ centred + 0.3 * np.eye(WIDTH), centred.T @ lacking).T
    np.testing.assert_allclose(head.weights - prior.weights, expected, atol=1e-8)


def test_classes_without_photographs_keep_their_prompt():
    rows, labels, prompts = blobs()
    prior = zero_shot_head(prompts, 10.0)
    some = labels < 2
    for head in both(prior, rows[some], labels[some], 0.1):
        assert (head.weights[2:] == prior.weights[2:]).all()
        assert (head.biases[2:] == 0).all()
        change = head.weights - prior.weights
        assert np.abs(change[:2]).max() > 0.1
        np.testing.assert_allclose(change[:2].sum(axis=0), 0, atol=1e-8)


@pytest.mark.parametrize("method", ["ridge", "logistic"])
def test_the_strength_is_chosen_on_photographs_that_are_held_out(method):
    rows, labels, prompts = blobs(each=10)
    names = [f"{row}.jpg" for row in range(len(rows))]
    strength, held = choose_strength(method, prompts, 10.0, rows, labels, names, STRENGTHS[method])
    assert strength <= 1
    assert held.rows.tolist() == list(range(len(rows)))
    assert (held.logits.argmax(axis=1) == labels).mean() > 0.9
    # Labels at random cannot be learnt: whoever sees them itself would find them.
    shuffled = np.random.default_rng(3).permutation(labels)
    _, held = choose_strength(method, prompts, 10.0, rows, shuffled, names, STRENGTHS[method])
    assert (held.logits.argmax(axis=1) == shuffled).mean() < 0.6


def test_nothing_is_held_out_of_single_photographs():
    rows, labels, prompts = blobs(each=1)
    assert choose_strength("ridge", prompts, 10.0, rows, labels, list("abcd"), [1.0]) is None


def test_folds_are_stratified_and_by_name():
    labels = np.array([0] * 7 + [1] * 2 + [2])
    names = [f"{row}.jpg" for row in range(len(labels))]
    part = folds(names, labels)
    assert part[-1] == -1  # the only one of its class
    counts = np.bincount(part[labels == 0], minlength=FOLDS)
    assert counts.min() >= 1
    assert counts.max() <= 2
    assert len(set(part[labels == 1])) == 2
    order = np.random.default_rng(0).permutation(len(labels))
    again = folds([names[row] for row in order], labels[order])
    assert [sorted(order[again == f]) for f in range(FOLDS)] == [
        sorted(np.flatnonzero(part == f)) for f in range(FOLDS)
    ]


def test_spread_takes_as_many_of_each_class_as_possible():
    labels = np.array([0] * 90 + [1] * 3 + [2] * 30)
    names = [f"{row}.jpg" for row in range(len(labels))]
    rows = spread(names, labels, 23)
    assert np.bincount(labels[rows]).tolist() == [10, 3, 10]
    assert spread(names, labels, 200).tolist() == list(range(len(labels)))


def test_the_temperature_undoes_a_scale():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(4000, 5))
    labels = np.array([rng.choice(5, p=row) for row in softmax(logits)])
    assert fit_temperature(logits, labels) == pytest.approx(1, abs=0.1)
    assert fit_temperature(30 * logits, labels) == pytest.approx(30, rel=0.1)
    probabilities = softmax(logits)
    assert calibration_error(probabilities, labels) < 0.03
    sure = softmax(30 * logits)
    assert calibration_error(sure, labels) > 0.2
    assert log_loss(sure, labels) > log_loss(probabilities, labels)


def test_the_expected_calibration_error_of_two_groups():
    # Right 50 % of the time at 90 %, always at 60 %: the mean gap is 0.4.
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 4)
    labels = np.array([0, 0, 1, 1, 0, 0, 0, 0])
    assert calibration_error(probabilities, labels) == pytest.approx(0.4)


def test_the_lowest_score_keeps_the_error():
    scores = np.arange(1.0, 100)  # 99 of them
    assert lowest_score(scores, 0.05) == 5
    assert lowest_score(scores[:18], 0.05) is None  # 1 in 19 is more than 5 %
    assert lowest_score(scores[:19], 0.05) == 1
    assert lowest_score(scores, 0.0) is None
    rng = np.random.default_rng(0)
    shares = [(rng.random(200) < lowest_score(rng.random(60), 0.1)).mean() for _ in range(200)]
    assert 0.07 < np.mean(shares) <= 0.105


def test_labels_without_photographs_keep_a_chance():
    rows, labels, prompts = blobs(each=20, noise=0.9)
    new, truth, _ = blobs(each=40, seed=1, noise=0.9)
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(4, WIDTH)))  # four more classes, and prompts that know them
    more = unit(np.repeat(centres, 40, axis=0) + 0.15 * rng.normal(size=(160, WIDTH)))
    prompts = np.concatenate([prompts, centres])
    names = [f"{row}.jpg" for row in range(len(rows))]
    offset = unseen_offset("ridge", prompts, 10.0, rows, labels, names, 0.01)
    [head] = heads("ridge", prompts, 10.0, rows, labels, [0.01])
    every, true = np.concatenate([new, more]), np.append(truth, np.repeat(np.arange(4, 8), 40))
    before = accuracy(head, every, true)
    head.biases[:CLASSES] -= offset
    assert accuracy(head, every, true) >= before
    assert unseen_offset("ridge", prompts[:4], 10.0, rows, labels, names, 0.01) == 0
