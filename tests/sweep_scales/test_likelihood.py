"""The likelihood over logit scales: known optima, brute force, and the ends of the range."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from pocketclip.sweep_scales.likelihood import (
    best_mixture,
    best_scale,
    grid,
    likelihood_of,
    mixture_at,
    point_at,
)


def drawn(scale, seed, images=2000, classes=12):
    """Return cosines, and labels that are drawn from their softmax at a scale."""
    rng = np.random.default_rng(seed)
    cosines = rng.uniform(-0.2, 0.5, (images, classes))
    chances = np.exp(log_softmax(scale * cosines, axis=1))
    labels = [rng.choice(classes, p=row) for row in chances]
    return cosines, np.array(labels, np.int64)


def test_the_likelihood_is_that_of_a_softmax():
    cosines, labels = drawn(20, seed=0, images=50)
    for scale in (0.5, 20, 900):
        expected = log_softmax(scale * cosines, axis=1)[np.arange(50), labels].mean()
        assert likelihood_of(cosines, labels)(scale) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", [5.0, 22.7, 90.0])
def test_the_scale_that_the_labels_were_drawn_with(scale):
    cosines, labels = drawn(scale, seed=1)
    fit = best_scale(cosines, labels)
    assert fit.low < fit.point.scale < fit.high
    assert fit.low < scale < fit.high
    assert fit.high / fit.low < 1.3
    assert fit.edge is None
    assert fit.point.calibration_error < 0.05
    # No scale of a fine grid is better, and the interval is that of Wilks.
    values = [likelihood_of(cosines, labels)(s) for s in np.geomspace(1, 1000, 500)]
    assert fit.point.log_likelihood >= max(values) - 1e-9
    for end in (fit.low, fit.high):
        drop = 2000 * (fit.point.log_likelihood - likelihood_of(cosines, labels)(end))
        assert drop == pytest.approx(1.92, rel=0.05)
    assert [scale for scale, _ in fit.curve] == pytest.approx(grid(1, 1000))


def test_ends_of_the_range_are_named():
    perfect = np.eye(6)[[0, 1, 2, 3]]
    fit = best_scale(perfect, np.arange(4), highest=300)
    assert (fit.edge, fit.point.scale, fit.high) == ("highest", 300, 300)
    wrong = best_scale(perfect, np.array([5, 5, 4, 4]))
    assert (wrong.edge, wrong.point.scale, wrong.low) == ("lowest", 1, 1)
    # Equal cosines: every scale is as good as any other.
    assert best_scale(np.full((4, 3), 0.3), np.array([0, 1, 2, 0])).edge is not None


def test_teachers_together():
    """Two teachers that know different halves of the images."""
    first, labels = drawn(30, seed=2, images=300, classes=5)
    second, _ = drawn(30, seed=3, images=300, classes=5)
    second[150:] = 0.1
    second[np.arange(150), labels[:150]] += 0.3
    cosines = [first, second]
    own = [best_scale(one, labels).point.scale for one in cosines]
    joint = best_mixture(cosines, labels, own)
    assert joint.log_likelihood >= mixture_at(cosines, labels, own).log_likelihood
    tried = [mixture_at(cosines, labels, (a, b)).log_likelihood
             for a in np.geomspace(1, 1000, 25) for b in np.geomspace(1, 1000, 25)]  # fmt: skip
    assert joint.log_likelihood >= max(tried) - 1e-4
    alone = mixture_at([first], labels, [30.0])
    point = point_at(first, labels, 30.0)
    assert alone.log_likelihood == pytest.approx(point.log_likelihood)
    assert alone.calibration_error == pytest.approx(point.calibration_error)
    assert alone.accuracy == (first.argmax(1) == labels).mean()
