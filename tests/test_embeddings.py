"""An embedding of no use is an error that names its input; the others are scaled exactly."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from pocketclip.embeddings import check_finite, check_scale, image_name, text_name, unit_length
from pocketclip.errors import EmbeddingError

NAMES = ["one", "two", "three"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [(np.nan, "not finite"), (np.inf, "not finite"), (-np.inf, "not finite"), (0, "zero")],
)
def test_the_first_bad_row_is_named(value, reason):
    rows = np.ones((3, 4), np.float32)
    rows[1, 2:] = value
    if value == 0:
        rows[1] = 0
        np.testing.assert_array_equal(check_finite(rows, NAMES.__getitem__), rows)
    with pytest.raises(EmbeddingError, match=f"two: its embedding is {reason}") as caught:
        unit_length(rows, NAMES.__getitem__)
    assert caught.value.index == 1
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.index, again.reason) == (
        str(caught.value), 1, caught.value.reason
    )  # fmt: skip


def test_rows_that_are_scaled():
    rows = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    wanted = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_array_equal(unit_length(rows, str), wanted)
    assert unit_length(np.empty((0, 7), np.float32), str).shape == (0, 7)
    # In half precision the squares of these exceed the largest number, in single of those.
    for kind, value in ((np.float16, 300), (np.float32, 1e30), (np.float32, 1e-9)):
        found = unit_length(np.full((1, 4), value, kind), str)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, 0.5, rtol=1e-6)


def test_names():
    assert image_name(Path("a/b.jpg"), 3) == "a/b.jpg"
    assert image_name("c.jpg", 3) == "c.jpg"
    assert image_name(b"\xff\xd8", 3) == "image 3 (counted from 0)"
    assert text_name("a cat") == "text 'a cat'"
    assert text_name("x\n" * 100) == "text '" + r"x\n" * 30 + "'..."


def test_a_scale():
    assert check_scale(14.3) == 14.3
    for scale in (float("nan"), float("inf"), 0.0, -1.0):
        with pytest.raises(EmbeddingError, match=f"logit scale: it is {scale}"):
            check_scale(scale)
