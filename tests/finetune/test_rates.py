from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace

import pytest

from pocketclip.errors import DivergedError
from pocketclip.finetune import pipeline, presets, rates
from pocketclip.finetune.pipeline import Options, finetune
from pocketclip.finetune.rates import Trial, better_rate, trial_recipe
from pocketclip.train.recipe import load_recipe


def trial(rate, validation, retention=0.97):
    return Trial(rate=rate, steps=20, a=1.0, validation=validation, retention=retention)


@pytest.mark.parametrize(
    ("trials", "expected", "why"),
    [
        ([trial(1e-3, 0.7), trial(1e-4, 0.5), trial(1e-5, 0.4)], 1e-3, "best on the validation"),
        # A fragile start: what is learnt fast is not kept, or no longer better than before.
        ([trial(1e-3, 0.7, 0.6), trial(1e-4, 0.5), trial(1e-5, 0.4)], 1e-4, "best"),
        ([trial(1e-3, 0.1, 0.2), trial(1e-4, 0.3, 0.8), trial(1e-5, 0.4)], 1e-5, "best"),
        # 0.81 is within one image of 0.82, 0.8 is not.
        ([trial(1e-3, 0.82), trial(1e-4, 0.81), trial(1e-5, 0.8)], 1e-4, "lowest of the equally"),
        ([trial(1e-3, 0.8), trial(1e-4, 0.8), trial(1e-5, 0.8)], 1e-4, "the middle one"),
        ([trial(1e-3, 0.8, 0.5), trial(1e-4, 0.8), trial(1e-5, 0.8)], 1e-5, "lowest"),
        ([trial(1e-3, 0.8, 0.1), trial(1e-4, 0.8, 0.5), trial(1e-5, 0.7, 0.8)], 1e-5, "the most"),
        ([Trial(rate=1e-3, steps=20), trial(1e-4, 0.3), trial(1e-5, 0.4)], 1e-5, "best"),
    ],
)
def test_the_rule(trials, expected, why):
    for order in (trials, trials[::-1]):
        best, said = better_rate(order, 0.9, 0.02)
        assert best.rate == expected
        assert why in said


def test_one_image_less_is_no_tie_however_it_is_rounded():
    trials = [trial(1e-3, 62 / 80), trial(1e-4, 61 / 80), trial(1e-5, 61 / 80)]
    assert better_rate(trials, 0.9, 1 / 80)[0].rate == 1e-3


def test_where_every_rate_diverges_a_lower_one_is_named():
    with pytest.raises(DivergedError, match=r"--set optimizer\.lr=3e-05"):
        better_rate([Trial(rate=1e-2, steps=20), Trial(rate=1e-3, steps=20)], 0.9, 0.1)


def test_a_trial_has_a_schedule_of_its_own():
    fields = presets.recipe_fields("full", 5000, None)
    evaluation = {"evaluation.data": "x", "data.source": "y", "schedule.constant": 600}
    recipe = load_recipe({"model": {"name": "tiny"}}, {**fields, **evaluation})
    short = trial_recipe(recipe, 1e-5, 500)
    assert short.steps == 500
    assert short.evaluation is None
    assert short.checkpoint.every_steps is None
    assert short.optimizer.lr == 1e-5
    assert short.schedule.warmup == 500 * recipe.schedule.warmup // recipe.steps
    assert short.schedule.constant == 500 * 600 // recipe.steps
    assert short.ema == recipe.ema


@pytest.fixture
def fast(monkeypatch):
    """A preset rate that ruins the model, and trainings of a few steps."""
    monkeypatch.setitem(presets.PRESETS["head"], "optimizer.lr", 30.0)
    monkeypatch.setattr(rates, "LEAST_TRAINING", 2)
    monkeypatch.setattr(rates, "LEAST_STEPS", 2)
    monkeypatch.setattr(rates, "FACTORS", (1.0, 1e-5))
    return Options(preset="head", steps=6, views=1, retain=0.9, interpolation=False)


def test_a_rate_that_ruins_the_start_is_not_taken(fast, start, squares, tmp_path, monkeypatch):
    out, trained = tmp_path / "out", []
    train_run = pipeline.FinetuneRun.train_run

    def train(run, name, recipe, on_checkpoint):
        trained.append(name)
        if name == "rate-0.0003" and trained.count(name) == 1:
            raise KeyboardInterrupt
        return train_run(run, name, recipe, on_checkpoint)

    monkeypatch.setattr(pipeline.FinetuneRun, "train_run", train)
    with pytest.raises(KeyboardInterrupt):
        finetune(str(start), str(squares), out, fast, workers=0)
    result = finetune(str(start), str(squares), out, fast, workers=0)
    # The first trial was recorded, and is not repeated.
    assert trained == ["rate-30", "rate-0.0003", "rate-0.0003", "head"]
    training = result["training"]
    assert training["lr"] == 3e-4
    assert [one["rate"] for one in training["rates"]] == [30.0, 3e-4]
    assert [one["steps"] for one in training["rates"]] == [2, 2]
    assert training["rates"][0]["retention"] < 0.9 <= training["rates"][1]["retention"]
    assert "lr: 0.0003" in (out / "runs" / "head" / "recipe.yaml").read_text()
    assert [path.name for path in (out / "runs").iterdir()] == ["head"]
    page = (out / "report.html").read_text()
    assert re.search(r"30: [\d.]+ % \([-\d.]+ % kept\), 0\.0003: [\d.]+ % \([\d.]+ % kept\)", page)


@pytest.mark.parametrize(
    ("changes", "note"),
    [({"settings": ["optimizer.lr=1e-4"]}, "--set"), ({"rate_trials": False}, "untried")],
)
def test_no_trials_where_they_are_not_wanted(changes, note, fast):
    fields = {**presets.recipe_fields("full", 5000, None), "data.source": "y"}
    recipe = load_recipe({"model": {"name": "tiny"}}, fields)
    run = SimpleNamespace(options=dataclasses.replace(fast, **changes))
    same, trials, why = rates.choose_rate(run, recipe, None, None)
    assert same is recipe
    assert trials == []
    assert note in why
