"""The students of a quickstart: their recipes, their training, and the choice among them.

Every student's checkpoints are scored on the validation set, and a run's model is the best of them
(`pocketclip.train.selection`). The quickstart's `model/` is the best student on the same set. The
test set serves the report alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pocketclip.errors import TrainingError
from pocketclip.quickstart.collection import TESTS, VALIDATION
from pocketclip.quickstart.quickstart_run import DATA, MODEL, RUNS, QuickstartRun
from pocketclip.train import selection
from pocketclip.train.curve import go_on_command
from pocketclip.train.recipe import Recipe, load_recipe

MOST_CHECKPOINTS, _LEAST_CHECKPOINTS = 8, 3


def student_recipe(
    run: QuickstartRun, task: str, source: Path, steps: int, changes: Mapping[str, Any]
) -> Recipe:
    """Return a student's recipe.

    Args:
        run: the quickstart.
        task: the name of its deciding task.
        source: the training data.
        steps: optimiser steps.
        changes: fields by dotted key, applied last.
    """
    base = load_recipe("scenes-tiny")
    return load_recipe(
        "scenes-tiny",
        {
            "data.source": str(source),
            "seed": run.settings["seed"],
            "steps": steps,
            "schedule.warmup": min(base.schedule.warmup, steps // 4),
            "checkpoint.every_steps": math.ceil(steps / MOST_CHECKPOINTS),
            "data.workers": run.workers,
            "log_every": max(1, min(base.log_every, steps // MOST_CHECKPOINTS)),
            "evaluation": {
                "data": str(run.out / DATA / TESTS),
                "tasks": [f"{VALIDATION}{task}"],
            },
            **changes,
        },
    )


def checkpoints(samples: int, validation: int) -> int:
    """Return the number of checkpoints that are scored: few where that would take all the time.

    Args:
        samples: that the training sees.
        validation: images that each score encodes, at about half the time of a training sample.
    """
    affordable = int(samples / 3 / max(validation / 2, 1))
    return min(max(affordable, _LEAST_CHECKPOINTS), MOST_CHECKPOINTS)


def train_student(run: QuickstartRun, name: str, text: str, recipe: Recipe) -> None:
    """Train a student into `runs/NAME` and add what is known of it to the result."""
    with run.timed(f"train {name}", text):
        run.train(name, recipe)
    found = selection.load(run.out / RUNS / name)
    if found is None or found.best is None:
        raise TrainingError(
            f"no checkpoint of {run.out / RUNS / name} could be scored, so nothing can be chosen; "
            "its log.jsonl says why"
        )
    arm: dict[str, Any] = {
        "steps": recipe.steps,
        "samples": recipe.steps * recipe.batch_size,
        "seed": recipe.seed,
        "init": recipe.model.init,
        "chosen_step": found.best[0],
        "validation": found.best[1],
        "rising": found.is_rising(),
        "curve": [
            {"samples": score.step * recipe.batch_size, "score": score.main_metric}
            for score in found.scores
            if score.main_metric is not None
        ],
    }
    run.result.setdefault("arms", {})[name] = arm


def test_students(run: QuickstartRun, tasks: Sequence[str]) -> None:
    """Evaluate each student on the test sets, and add its metrics to the result."""
    for name, arm in run.result["arms"].items():
        with run.timed(f"evaluate {name}", f"evaluating the {name} student"):
            arm["metrics"] = run.evaluate(name, run.out / RUNS / name / MODEL, tasks)


def choose_student(run: QuickstartRun, task: str, held_out: int) -> None:
    """Publish the best student on the validation set as `model/`, and record the choice.

    Of equal ones the earlier one is taken, so the plain student if it is among them. The
    difference is compared with its standard error, as if the students' errors were independent,
    which overstates it.

    Args:
        run: the quickstart, with trained students.
        task: the deciding task.
        held_out: N, the number of validation images.
    """
    arms: dict[str, dict[str, Any]] = run.result["arms"]
    scores = {name: arm["validation"] for name, arm in arms.items()}
    chosen = max(scores, key=lambda name: scores[name])
    error = math.sqrt(sum(p * (1 - p) for p in _two_best(scores)) / held_out)
    run.result["choice"] = {
        "task": task,
        "samples": held_out,
        "chance": round(run.chance(f"{VALIDATION}{task}"), 4),
        "scores": scores,
        "chosen": chosen,
        "step": arms[chosen]["chosen_step"],
        "standard_error": round(error, 4),
        "rising": arms[chosen]["rising"],
    }
    run.publish(run.out / RUNS / chosen / MODEL)


def _two_best(scores: Mapping[str, float]) -> list[float]:
    return sorted(scores.values(), reverse=True)[:2]


def go_on(run: QuickstartRun) -> str:
    """Return the command that trains on from the chosen student."""
    name = run.result["choice"]["chosen"]
    return go_on_command(run.out / RUNS / name)


def choice_lines(result: Mapping[str, Any]) -> list[str]:
    """Return in plain sentences which student `model/` is, and why."""
    choice = result["choice"]
    chosen, scores = choice["chosen"], choice["scores"]
    shown = ", ".join(f"{name} {100 * value:.1f} %" for name, value in scores.items())
    lines = [
        f"model/ is the {chosen} student after step {choice['step']:,}: the best on the "
        f"{choice['samples']:,} validation pairs ({shown})."
    ]
    others = [value for name, value in scores.items() if name != chosen]
    if others and scores[chosen] - max(others) <= 2 * choice["standard_error"]:
        lines.append(
            f"The difference is within chance: its standard error is "
            f"{100 * choice['standard_error']:.1f} points."
        )
    guessing = choice["chance"]
    if scores[chosen] <= guessing + 2 * math.sqrt(guessing * (1 - guessing) / choice["samples"]):
        lines.append(
            f"It is hardly better than guessing ({100 * guessing:.1f} %): it needs more time, or "
            "more pairs."
        )
    if choice["rising"]:
        lines.append("Its validation score still rose at the end: more training would help.")
    return lines
