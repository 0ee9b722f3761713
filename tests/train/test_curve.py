"""Which curves still rise at their end, and the command that trains on."""

from __future__ import annotations

import shlex

import numpy as np
import pytest

from pocketclip.train.curve import go_on_command, still_rising
from pocketclip.train.recipe import dump, load_recipe


@pytest.mark.parametrize(
    ("scores", "rising"),
    [
        ([], False),
        ([0.1, 0.5], False),
        ([0.1, 0.3, 0.45], True),
        ([0.1, 0.3, 0.4, 0.45, 0.48, 0.5], True),
        ([0.1, 0.4, 0.49, 0.5, 0.502, 0.503], False),
        ([0.5, 0.5, 0.5], False),
        ([0.1, 0.4, 0.5, 0.45, 0.4, 0.3], False),
        # Training begins with a drop, as of a model that was finished: it is no noise.
        ([0.61, 0.3, 0.4, 0.5, 0.6, 0.65], True),
        # It went up by no more than it goes down from one score to the next.
        ([0.3, 0.4, 0.5, 0.4, 0.5, 0.42, 0.52, 0.43, 0.53], False),
        ([-9.0, -5.0, -3.0], True),
    ],
)
def test_still_rising(scores, rising):
    assert still_rising(scores) is rising


def test_noise_is_seldom_taken_for_a_rise():
    rng = np.random.default_rng(0)
    for count, most in ((3, 0.35), (6, 0.15), (12, 0.03)):
        wrong = np.mean([still_rising(rng.normal(size=count).tolist()) for _ in range(2000)])
        assert wrong < most, count


def test_the_command_starts_from_the_model_at_a_lower_rate(tmp_path):
    run = tmp_path / "my runs"
    run.mkdir()
    recipe = load_recipe("grocery-small", {"seed": 4, "optimizer.lr": 3e-3})
    (run / "recipe.yaml").write_text(dump(recipe))
    words = shlex.split(go_on_command(run))
    assert words[:3] == ["pocketclip", "train", f"{run}/recipe.yaml"]
    assert words[3::2] == ["--set", "--set", "--set", "--out"]
    assert words[4::2] == [f"model.init={run}/model", "optimizer.lr=0.001", "seed=5", f"{run}-more"]
    (run / "recipe.yaml").write_text(
        dump(load_recipe(recipe.model_dump(), ["schedule.min_lr=2e-3"]))
    )
    words = shlex.split(go_on_command(run))
    assert words[-4:] == ["--set", "schedule.min_lr=0.001", "--out", f"{run}-more"]
    # The rate is written with two digits, so 1.04e-6 falls below a lowest rate of 1.02e-6.
    rates = {"optimizer.lr": 3.12e-6, "schedule.min_lr": 1.02e-6}
    (run / "recipe.yaml").write_text(dump(load_recipe(recipe.model_dump(), rates)))
    words = shlex.split(go_on_command(run))
    changed = load_recipe(run / "recipe.yaml", words[4:-2:2])
    assert changed.schedule.min_lr == changed.optimizer.lr == 1e-6
