"""What `benchmarks/runtime.py` reports is computed as it says."""

from __future__ import annotations

import numpy as np
import pytest

import runtime
import runtime_parts as parts
import runtime_variants as variants
from pocketclip import zoo
from pocketclip.preprocess import Preprocess

PHOTOS = sorted(variants.PHOTOS.glob("*.jpg"))


def test_ratios_are_of_rounds():
    times = {"ort": [1.0, 10.0, 3.0], "ours": [0.5, 4.0, 3.0]}
    assert parts.ratio(times, "ort", "ours") == 2.0  # of 2, 2.5 and 1


def test_the_rate_is_of_the_better_product_in_each_round():
    times = {"numpy": [1.0, 4.0, 2.0], "torch": [3.0, 2.0, 2.0]}
    assert parts.rate(times, "numpy", "torch") == 2 * parts.SIDE**3 / 2.0


def test_variants_take_turns(monkeypatch):
    monkeypatch.setattr(parts, "PAUSE", 0)
    made = []
    calls = {name: lambda name=name: made.append(name) for name in "abc"}
    times = parts.interleaved(calls, 3, repeat=1)
    assert "".join(made) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys("abc", 3)


@pytest.mark.parametrize("name", ["tiny", "mobileclip2-s3"])  # one of them has a mean to subtract
@pytest.mark.parametrize("batch", [1, 3])
def test_the_plain_loop_sees_the_same_pixels(name, batch):
    config = zoo.entry(name).config.preprocess
    seen = parts.plain_loop(lambda pixels: pixels, config, PHOTOS, batch)
    np.testing.assert_allclose(seen, Preprocess(config).batch(PHOTOS), atol=2e-5)


def test_the_cosine_is_the_smallest():
    expected = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    actual = np.array([[3.0, 0.0], [1.0, 1.0]], np.float32)
    assert variants.cosine(actual, expected) == pytest.approx(0.5**0.5)


def test_all_are_the_published_models():
    assert len(runtime.ALL) == 14
    assert runtime.parse(["--all"]).towers == ["image", "text"]


def test_random_models_have_statistics_of_photographs():
    model = variants.make_model("tiny")
    assert model.space_id == variants.make_model("tiny").space_id  # bundles are found again
    variances = [v for name, v in model.named_buffers() if name.endswith("running_var")]
    assert all((v - 1).abs().max() > 1e-3 for v in variances)
