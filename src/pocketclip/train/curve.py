"""Does a score still rise at the end of a run, and which command trains on from there."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from pocketclip.checkpoint.resolve import RUN_MODEL
from pocketclip.checkpoint.resolve import RUN_RECIPE as RECIPE
from pocketclip.train.recipe import load_recipe

LEAST_SCORES = 3
"""Fewer scores say nothing about a trend."""
LEAST_GAIN = 0.05
"""What the last third must gain, as a share of the whole range of the scores."""


def still_rising(scores: Sequence[float]) -> bool:
    """Return whether scores still rise at the end: longer training would probably help.

    The scores are cut into thirds. They rise if the highest one is in the last third, and the mean
    of the last third is above that of the third before it by more than 5 % of the range of all
    scores, and by more than the largest drop from one score to the next within the two (with fewer
    than six scores: within the last three). A drop is the measure of the noise: a curve that goes
    up and down by as much as it gained is not said to rise.

    Args:
        scores: in the order of training, higher is better, of any scale; failed evaluations left
            out. Fewer than three: False.
    """
    count = len(scores)
    if count < LEAST_SCORES:
        return False
    third = count // 3
    last, before = scores[-third:], scores[-2 * third : -third]
    gain = sum(last) / third - sum(before) / third
    recent = scores[-max(2 * third, LEAST_SCORES) :]
    drop = max(one - two for one, two in pairwise(recent))
    spread = max(scores) - min(scores)
    return max(last) == max(scores) and gain > max(LEAST_GAIN * spread, drop)


def go_on_command(run: Path) -> str:
    """Return the command that trains on from a finished run.

    A run whose schedule has ended cannot be resumed: its learning rate has fallen. The command
    starts a new run from `RUN/model` with the same recipe: the same number of steps, with a warm-up
    and a schedule of its own, a third of the learning rate, and another order of the samples. At
    the full rate the new run first loses what the last one gained. With an evaluation, the start is
    scored too, so the new run's model is never worse on it.

    Args:
        run: the run's folder, with its `recipe.yaml`.

    Raises:
        ConfigError: there is no recipe in the folder.
    """
    recipe = load_recipe(run / RECIPE)
    rate, seed = f"{recipe.optimizer.lr / 3:.2g}", recipe.seed + 1
    words = [
        "pocketclip", "train", str(run / RECIPE), "--set", f"model.init={run / RUN_MODEL}",
        "--set", f"optimizer.lr={rate}", "--set", f"seed={seed}", "--out", f"{run}-more",
    ]  # fmt: skip
    if recipe.schedule.min_lr > float(rate):
        words[-2:-2] = ["--set", f"schedule.min_lr={rate}"]
    return shlex.join(words)
