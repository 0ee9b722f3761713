"""The learning rate, chosen by short trainings that the validation images score.

    recipe, trials, why = choose_rate(run, recipe, validation, retention)

A rate that suits one published model ruins another, and nothing about a model says which suits it.
So the recipe's rate, a sixth of it and a 36th are tried: each trains for a sixth of the steps, with
a schedule of its own, and the models half and all of the way from the start are scored, as the
result will be. The rule, see `better_rate`: the best validation among the rates that keep enough of
what the start knew, and of equal ones the lowest.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pocketclip import checkpoint
from pocketclip.errors import DivergedError
from pocketclip.finetune import interpolate
from pocketclip.finetune.finetune_run import FinetuneRun
from pocketclip.finetune.retention import Retention
from pocketclip.finetune.training import training_images
from pocketclip.finetune.validation import Validation, training_pixels
from pocketclip.infer.encoder import Encoder
from pocketclip.nn.clip import CLIP
from pocketclip.pipeline_folder import RUNS
from pocketclip.train.recipe import Recipe, load_recipe
from pocketclip.train.recipe_settings import parse_settings

FACTORS = (1.0, 1 / 6, 1 / 36)
"""What the recipe's rate is multiplied by."""
SHARE, LEAST_STEPS = 6, 20
"""A trial takes the training's steps divided by `SHARE`, and no fewer than `LEAST_STEPS`."""
LEAST_TRAINING = 60
"""Steps of a training below which no rates are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a short training at one rate came to, at the better of its scored points."""

    rate: float
    steps: int
    a: float | None = None
    """The point between the start, 0, and the end, 1; None: the training diverged."""
    validation: float | None = None
    retention: float | None = None

    def keeps(self, least: float) -> bool:
        """Return whether enough of what the start knew is kept."""
        return self.retention is not None and interpolate.keeps(self.retention, least)


def choose_rate(
    run: FinetuneRun, recipe: Recipe, validation: Validation, retention: Retention
) -> tuple[Recipe, list[Trial], str]:
    """Return the recipe with the rate to train at, what was tried, and why that rate in words.

    Each trial is recorded in the folder's steps, so that an interrupted call goes on.

    Args:
        run: the fine-tuning; its images are stored.
        recipe: of the training, with the highest rate to try.
        validation: scores on the validation images.
        retention: scores what a model keeps.
    """
    options, rate = run.options, recipe.optimizer.lr
    if "optimizer.lr" in parse_settings(options.settings):
        return recipe, [], "given by --set"
    if not options.rate_trials:
        return recipe, [], "the preset's, untried"
    if recipe.steps < LEAST_TRAINING:
        why = f"the preset's, untried: fewer than {LEAST_TRAINING} steps"
        run.reporter.stage(f"learning rate {rate:g}: {why}")
        return recipe, [], why
    rates = [float(f"{rate * factor:.1e}") for factor in FACTORS]
    steps = max(LEAST_STEPS, recipe.steps // SHARE)
    trials = []
    with run.timed("rates", f"trying {len(rates)} learning rates, {steps} steps each"):
        for each in rates:
            trials.append(_trial(run, trial_recipe(recipe, each, steps), validation, retention))
            run.reporter.stage(f"  {_said(trials[-1], run.metric)}")
    one_image = 1 / max(1, run.result["counts"]["validation"])
    best, why = better_rate(trials, options.least_retention, one_image)
    run.reporter.stage(f"learning rate {best.rate:g}: {why}")
    floor = min(recipe.schedule.min_lr, best.rate)
    return _changed(recipe, {"optimizer.lr": best.rate, "schedule.min_lr": floor}), trials, why


def better_rate(trials: Sequence[Trial], least: float, one_image: float) -> tuple[Trial, str]:
    """Return the trial whose rate is trained at, and why in words.

    The best validation among those that keep enough. Trials less than one validation image below
    it count as equal, and the lowest rate of them is taken, which changes the start the least. If
    that holds for all of several trials, they say nothing about the rate, and the middle one is
    taken. If none keeps enough: the one that keeps the most.

    Args:
        trials: one or more, of different rates.
        least: the least retention.
        one_image: what one validation image adds to a validation score.

    Raises:
        DivergedError: all of them diverged.
    """
    known = sorted((t for t in trials if t.validation is not None), key=lambda t: t.rate)
    if not known:
        lowest = min(trial.rate for trial in trials)
        raise DivergedError(
            f"training diverges even at the rate {lowest:g}: pass a lower one, such as --set "
            f"optimizer.lr={lowest / 30:.1g}, or check the start with `pocketclip eval`"
        )
    kept = [trial for trial in known if trial.keeps(least)]
    if not kept:
        best = max(known, key=lambda trial: (trial.retention, -trial.rate))
        return best, f"none tried keeps {least:.0%} of what the start knew, this one the most"
    top = max(trial.validation or 0.0 for trial in kept)
    # A score one image lower is no tie, however it was rounded.
    equal = [t for t in kept if top - (t.validation or 0.0) < 0.999 * one_image]
    if len(equal) == len(trials) > 1:
        return equal[len(equal) // 2], "the middle one of those tried, which are equally good"
    if len(equal) > 1:
        return equal[0], "the lowest of the equally good ones tried"
    return equal[0], "the best on the validation images of those tried"


def trial_recipe(recipe: Recipe, rate: float, steps: int) -> Recipe:
    """Return the recipe of a short training, scored by its caller at the end only."""
    schedule = recipe.schedule
    return _changed(
        recipe,
        {
            "evaluation": None,
            "optimizer.lr": rate,
            "schedule.min_lr": min(schedule.min_lr, rate),
            "steps": steps,
            "schedule.warmup": schedule.warmup * steps // recipe.steps,
            "schedule.constant": schedule.constant * steps // recipe.steps,
            "checkpoint.every_steps": None,
            "log_every": max(1, steps // 4),
        },
    )


def _changed(recipe: Recipe, fields: dict[str, Any]) -> Recipe:
    return load_recipe(recipe.model_dump(mode="json"), fields)


def _trial(run: FinetuneRun, recipe: Recipe, validation: Validation, retention: Retention) -> Trial:
    """Train and score, unless an earlier call did; the run's folder is removed."""
    rate, steps = recipe.optimizer.lr, recipe.steps
    name = f"rate-{rate:g}"

    def work() -> dict[str, Any]:
        trial = Trial(rate=rate, steps=steps)
        try:
            summary = run.train_run(name, recipe, None)
            assert summary.model is not None
            points = _points(run, checkpoint.load(summary.model), validation, retention)
        except DivergedError:
            return dataclasses.asdict(trial)
        kept = [p for p in points if p.keeps(run.options.least_retention)]
        # The best of those that count, as along the whole line; else what comes nearest.
        best = (
            max(kept, key=lambda point: point.validation)
            if kept
            else max(points, key=lambda point: point.retention)
        )
        return dataclasses.asdict(trial) | dataclasses.asdict(best)

    value = run.recorded(name, work)
    shutil.rmtree(run.out / RUNS / name, ignore_errors=True)
    return Trial(**value)


def _points(
    run: FinetuneRun, end: CLIP, validation: Validation, retention: Retention
) -> list[interpolate.Point]:
    images, texts = training_images(run)
    pixels = training_pixels(images, run.start.config.preprocess)
    way = interpolate.Way(run.start, end, pixels, texts=texts or None)

    def kept(model: CLIP) -> float:
        return retention.score(Encoder(model))

    points = (0.5, 1.0) if run.options.interpolation else (1.0,)
    return [interpolate.score(way, a, validation.score, kept) for a in points]


def _said(trial: Trial, metric: str) -> str:
    if trial.validation is None or trial.retention is None:
        return f"{trial.rate:g}: the training diverged"
    return (
        f"{trial.rate:g}: {metric} {100 * trial.validation:.1f} %, {trial.retention:.0%} kept, "
        f"{trial.a:.0%} of the way"
    )
