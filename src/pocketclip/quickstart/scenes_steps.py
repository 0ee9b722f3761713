"""The steps of a quickstart on drawn scenes: a plain and a reinforced student, fairly compared."""

from __future__ import annotations

from contextlib import ExitStack
from importlib import resources
from typing import Any

from pocketclip.pairs import PairOptions
from pocketclip.quickstart.collection import Sizes, write_collection
from pocketclip.quickstart.quickstart_run import DATA, SHARDS, QuickstartRun
from pocketclip.quickstart.report import report_page
from pocketclip.quickstart.students import (
    choose_student,
    student_recipe,
    test_students,
    train_student,
)
from pocketclip.train.recipe import batch_size_for, load_recipe

TEACHERS, CAPTIONER = ("teacher-a", "teacher-b"), "captioner"
_CROPS = {
    "random_resized_crop": {
        "size": 64, "scale": [0.65, 1.0], "ratio": [0.85, 1.18], "interpolation": "bicubic",
    }
}  # fmt: skip
"""Mild crops, because captions say where things are and how many there are."""
_TASKS = ("unseen", "retrieval")


def scenes_steps(run: QuickstartRun) -> None:
    """Run all steps."""
    seed, scale = run.settings["seed"], run.settings["scale"]
    sizes = Sizes().scaled(scale)
    total = sizes.total
    with run.timed("data", f"drawing {total} scenes"):
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            run.reporter.progress(done, total, "scenes")

        write_collection(run.out / DATA, sizes, seed, advance)
    with ExitStack() as stack:
        shipped = stack.enter_context(
            resources.as_file(resources.files("pocketclip") / "data" / "quickstart")
        )
        with run.timed("reinforce", "reinforcing: captions, views, teachers' embeddings"):
            run.result["reinforced"] = run.reinforce(
                PairOptions(image_column="image", caption_columns=("alt_text",), shard_size=400),
                {
                    "teachers": [str(shipped / name) for name in TEACHERS],
                    "captioners": [f"scenes={shipped / CAPTIONER}"],
                    "augmentations": 4,
                    "captions": 2,
                    "seed": seed,
                    "image_augmentation": _CROPS,
                    "sampling": {
                        "method": "nucleus",
                        "top_p": 0.7,
                        "max_length": 30,
                        "min_length": 3,
                    },
                },
            )
        _students(run, scale)
        test_students(run, _TASKS)
        choose_student(run, "unseen", sizes.validation)
        with run.timed("teachers", "evaluating the teachers"):
            run.result["teachers"] = {
                name: run.evaluate(name, shipped / name, _TASKS) for name in TEACHERS
            }
    with run.timed("report", "writing the report"):
        page = report_page(run)
    run.finish(page)


def _students(run: QuickstartRun, scale: float) -> None:
    """Train the two students, from the same weights, on the same views in the same order."""
    base = load_recipe("scenes-tiny")
    steps = max(4, round(base.steps * scale))
    changes: dict[str, dict[str, Any]] = {
        "plain": {"data.captions": "truth", "loss.weights": [1.0, 0.0]},
        "reinforced": {},
    }
    texts = {
        "plain": "training a student on the texts as they were found",
        "reinforced": "training the same student on the reinforced pairs",
    }
    batch = batch_size_for(run.result["reinforced"]["samples"], base.batch_size)
    for name, fields in changes.items():
        fields |= {"batch_size": batch}
        recipe = student_recipe(run, "unseen", run.out / SHARDS, steps, fields)
        train_student(run, name, texts[name], recipe)
