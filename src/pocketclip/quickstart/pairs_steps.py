"""The steps of a quickstart on the user's own pairs, within a time budget.

The plain student comes first. Without a teacher it gets the whole budget: a teacher trained on the
same pairs would know no more than the student. A given teacher is compared with the plain student
on the validation set before anything is reinforced, and left out unless it is clearly better.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pocketclip import checkpoint, devices
from pocketclip.infer.encoder import Encoder
from pocketclip.pairs import PairOptions, PairShard
from pocketclip.quickstart.budget import Clock, Decisions, measure_rate, steps_within, threads
from pocketclip.quickstart.collection import PAIRS, TESTS, VALIDATION, read_rows
from pocketclip.quickstart.listing import Listed
from pocketclip.quickstart.own_pairs import SIDE, CopySettings, copy_pairs
from pocketclip.quickstart.quickstart_run import DATA, MODEL, RUNS, SHARDS, QuickstartRun
from pocketclip.quickstart.report import report_page
from pocketclip.quickstart.students import (
    MOST_CHECKPOINTS,
    checkpoints,
    choose_student,
    student_recipe,
    test_students,
    train_student,
)
from pocketclip.quickstart.text_variants import COLUMNS
from pocketclip.reinforce.teacher_check import CheckSample, check_teacher, check_teachers
from pocketclip.reinforce.teachers import load_teacher
from pocketclip.teacher_score import TeacherScore, is_clearly_better
from pocketclip.train.recipe import Recipe, batch_size_for, load_recipe

_PAIRS_A_MINUTE = 5000
"""Training pairs that are used at most, by minutes: more could not be learnt in the time."""
_SHARE_FOR_COPYING = 0.2
_SHARE_FOR_PLAIN = 0.4
"""Of the time left, where there is a teacher."""
_SHARE_FOR_REINFORCING = 0.4
_MOST_EPOCHS = 200
"""After that a small set has nothing new to teach."""
SIZE, _STORED_SIZE = 64, 224
"""The student's image size, and the size of views that teachers see."""
_MOST_VIEWS = 5
_CHECKED = 200
"""Validation pairs on which a teacher is compared with the plain student."""
_TEACHER_SIDE = 288
_RATE_ON = 1 / 3
"""The learning rate of a student that is trained on, as a share of the first one's: at the full
rate it first loses what it gained."""
_MEASURED = 0.015
"""The share of the budget for each measurement of the rate."""


def own_pairs_steps(
    run: QuickstartRun,
    shards: Sequence[PairShard],
    listed: Listed,
    options: PairOptions,
    clock: Clock,
) -> None:
    """Run all steps."""
    minutes, teachers = run.settings["minutes"], run.settings["teachers"]
    with run.timed("data", "reading the pairs, and storing small copies of the photographs"):
        settings = CopySettings(
            label_column=run.settings["label_column"],
            side=_TEACHER_SIDE if teachers else SIDE,
            most=max(1000, round(_PAIRS_A_MINUTE * minutes)),
            seconds=_SHARE_FOR_COPYING * clock.seconds,
        )
        facts = run.result["pairs"] = copy_pairs(
            run.out / DATA,
            shards,
            listed,
            options,
            settings,
            lambda done, total: run.reporter.progress(done, total, "pairs"),
        )
    decisions = Decisions(run.out)
    run.result["plan"] = decisions.values
    with run.timed("plan", "measuring the speed of this machine"):
        speed = decisions("speed", lambda: _speed(run, facts, clock))
    with threads(speed["threads"]):
        share = _SHARE_FOR_PLAIN if teachers else 1.0
        steps = decisions("plain", lambda: _steps(facts, speed, share * clock.left()))
        text = "training a student on the texts as they were found"
        train_student(run, "plain", text, _recipe(run, facts, steps, speed["batch_size"]))
        if teachers:
            _with_teachers(run, facts, decisions, clock)
        test_students(run, facts["tasks"])
    choose_student(run, facts["tasks"][0], _scored(run, facts))
    with run.timed("report", "writing the report"):
        page = report_page(run)
    run.finish(page)


def _recipe(
    run: QuickstartRun,
    facts: Mapping[str, Any],
    steps: int,
    batch: int,
    changes: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return the recipe of a student of the copied pairs."""
    fields = {
        "batch_size": batch,
        "checkpoint.every_steps": math.ceil(
            steps / checkpoints(steps * batch, facts["validation"])
        ),
        "model.overrides": STUDENT,
        "channels_last": True,
        "loss.weights": [1.0, 0.0],
        "data.reinforced": False,
        "data.captions": "mix",
        "data.truth_ratio": 0.5 if facts["tasks"] == ["retrieval"] else 1 / len(COLUMNS),
        "data.image_column": "image",
        "data.caption_columns": list(COLUMNS),
        "data.image_augmentation": _views(facts, SIZE),
    }
    return student_recipe(
        run, facts["tasks"][0], run.out / DATA / PAIRS, steps, fields | dict(changes or {})
    )


STUDENT: dict[str, Any] = {"text.context_length": 48, "text.causal": True}


def _views(facts: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Return the augmentation: crops, and mirrored photographs unless texts name sides."""
    crop = {"size": size, "scale": [0.5, 1.0], "interpolation": "bicubic"}
    flip = {} if facts["sides"] else {"random_horizontal_flip": {"p": 0.5}}
    return {"random_resized_crop": crop, **flip}


def _speed(run: QuickstartRun, facts: Mapping[str, Any], clock: Clock) -> dict[str, Any]:
    """Measure the training with different numbers of threads, and return the fastest."""
    most = devices.need_torch().get_num_threads()
    batch = batch_size_for(facts["train"], 128)
    recipe = _recipe(run, facts, 100, batch)
    best: dict[str, Any] = {}
    for count in sorted({most, max(1, most - 1)}, reverse=True):
        with threads(count):
            rate = measure_rate(recipe, max(1.0, _MEASURED * clock.seconds))
        if not best or rate > best["samples_per_second"]:
            best = {"threads": count, "samples_per_second": round(rate, 1), "batch_size": batch}
    return best


def _steps(facts: Mapping[str, Any], speed: Mapping[str, Any], seconds: float) -> int:
    batch, rate = speed["batch_size"], speed["samples_per_second"]
    # At most a quarter of the time is for scoring, see `checkpoints`.
    scored = min(MOST_CHECKPOINTS * facts["validation"], int(seconds * rate / 2))
    steps = steps_within(seconds, rate, batch, scored=scored)
    return min(steps, max(12, _MOST_EPOCHS * facts["train"] // batch))


def _scored(run: QuickstartRun, facts: Mapping[str, Any]) -> int:
    """Return the number of validation pairs with a score: those without a label have none."""
    task = facts["tasks"][0]
    return len(read_rows(run.out / DATA / TESTS / f"{VALIDATION}{task}" / "test.csv"))


def _with_teachers(
    run: QuickstartRun, facts: Mapping[str, Any], decisions: Decisions, clock: Clock
) -> None:
    """Compare the teachers with the plain student; train on with them, or without."""
    with run.timed("teachers", "comparing the teachers with the plain student"):
        found = decisions("teachers", lambda: _compare(run, facts))
    run.result["teachers"] = found
    speed = decisions.values["speed"]
    plain = run.out / RUNS / "plain" / MODEL
    changes: dict[str, Any] = {
        "model.init": str(plain),
        "seed": run.settings["seed"] + 1,
        "optimizer.lr": load_recipe("scenes-tiny").optimizer.lr * _RATE_ON,
    }
    better = found["used"]
    if not better:
        steps = decisions("plain-more", lambda: _steps(facts, speed, clock.left()))
        text = "training the plain student on: no teacher knows clearly more than it"
        recipe = _recipe(run, facts, steps, speed["batch_size"], changes)
        train_student(run, "plain-more", text, recipe)
        return
    size = decisions("reinforce", lambda: _affordable(facts, found, clock))
    with run.timed("reinforce", "reinforcing: views and the teachers' embeddings"):
        run.result["reinforced"] = _reinforce(run, facts, better, size)
    samples = run.result["reinforced"]["samples"]
    steps = decisions("reinforced", lambda: _steps(facts, speed, clock.left()))
    changes |= {
        "data.source": str(run.out / SHARDS), "data.reinforced": True,
        "data.image_column": None, "data.caption_columns": [], "data.image_augmentation": None,
        "loss.weights": [0.0, 1.0],
    }  # fmt: skip
    recipe = _recipe(run, facts, steps, batch_size_for(samples, speed["batch_size"]), changes)
    train_student(run, "reinforced", "training it on with the teachers' embeddings", recipe)


def _compare(run: QuickstartRun, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores of the teachers and the plain student on the same validation pairs."""
    task = facts["tasks"][0]
    folder = run.out / DATA / TESTS / f"{VALIDATION}{task}"
    rows = read_rows(folder / "test.csv")
    rows = rows[:: max(1, len(rows) // _CHECKED)][:_CHECKED]
    sample = CheckSample(
        names=[f"{number} {row['image']}" for number, row in enumerate(rows)],
        images=[folder / row["image"] for row in rows],
        texts=[row.get("label") or row["caption"] for row in rows],
        is_labelled=task != "retrieval",
    )
    templates = ("{}",) if task == "texts" else ("a photo of {}.",)
    student = Encoder(checkpoint.load(run.out / RUNS / "plain" / MODEL, fuse=True))
    plain = check_teacher(student, sample, name="plain student", templates=templates)
    checked: list[dict[str, Any]] = []
    seconds = 0.0
    for spec in run.settings["teachers"]:
        teacher = load_teacher(spec)
        began = time.monotonic()
        score = check_teacher(teacher, sample, name=Path(spec).name, templates=templates)
        better = _is_worth_it(score, plain)
        taken = (time.monotonic() - began) / len(rows)
        seconds += taken if better else 0.0
        checked.append({"spec": spec, "better": better, "line": score.line(), **score.facts()})
    used, ensemble = _use(sample, templates, checked)
    return {
        "plain": {"line": plain.line(), **plain.facts()},
        "checked": checked,
        "used": used,
        "ensemble": ensemble,
        "seconds_per_image": seconds,
    }


def _is_worth_it(teacher: TeacherScore, plain: TeacherScore) -> bool:
    """Return whether a teacher knows something, and clearly more than the plain student.

    A student that knows nothing yet may score below a teacher that knows nothing.
    """
    return teacher.is_above_chance and is_clearly_better(teacher, plain)


def _use(
    sample: CheckSample, templates: Sequence[str], checked: Sequence[Mapping[str, Any]]
) -> tuple[list[str], str | None]:
    """Return the better teachers, or the best one if they know less together; and their score."""
    better = [entry for entry in checked if entry["better"]]
    specs = [entry["spec"] for entry in better]
    if len(better) < 2:
        return specs, None
    _, together = check_teachers([load_teacher(s) for s in specs], sample, templates=templates)
    best = max(better, key=lambda entry: entry["value"])
    return specs if together.value >= best["value"] else [best["spec"]], together.line()


def _affordable(facts: Mapping[str, Any], found: Mapping[str, Any], clock: Clock) -> dict[str, int]:
    """Return how many views of how many pairs the teachers can embed in their share of time."""
    seconds = _SHARE_FOR_REINFORCING * clock.left()
    images = int(seconds / max(found["seconds_per_image"], 1e-6))
    views = min(_MOST_VIEWS, max(1, images // facts["train"]))
    return {"views": views, "pairs": max(64, min(facts["train"], images // views))}


def _reinforce(
    run: QuickstartRun, facts: Mapping[str, Any], teachers: Sequence[str], size: Mapping[str, int]
) -> dict[str, Any]:
    return run.reinforce(
        PairOptions(image_column="image", caption_columns=tuple(COLUMNS), shard_size=400),
        {
            "teachers": list(teachers),
            "augmentations": size["views"],
            "seed": run.settings["seed"],
            "image_augmentation": _views(facts, _STORED_SIZE),
        },
        first=size["pairs"],
    )  # fmt: skip
