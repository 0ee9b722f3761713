"""`pocketclip quickstart`: the whole way in minutes, with rendered scenes or with the user's pairs.

    result = quickstart_scenes("quickstart-out")

Two students begin with the same weights and see the same views of the same pictures in the same
order. The plain one learns from the alt-texts alone (CLIP's loss); the other one from what was
stored by reinforcing: the captioner's captions and the teachers' embeddings (MobileCLIP, arXiv
2311.17049, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from typing import Any

from pocketclip.errors import ConfigError
from pocketclip.pairs import PairOptions, PairShard, open_pairs
from pocketclip.quickstart.collection import PAIRS, Sizes, write_collection
from pocketclip.quickstart.course import ARMS, DATA, MODEL, SHARDS, Course, Quiet, Tell
from pocketclip.quickstart.own_pairs import copy_pairs, with_labels
from pocketclip.quickstart.report import commands, report_page
from pocketclip.train.recipe import Recipe, load_recipe

TEACHERS, CAPTIONER = ("teacher-a", "teacher-b"), "captioner"
_CROPS = {
    "random_resized_crop": {
        "size": 64, "scale": [0.65, 1.0], "ratio": [0.85, 1.18], "interpolation": "bicubic",
    }
}  # fmt: skip
"""Mild: a caption says where things are, and how many."""


def quickstart_scenes(
    out: str | Path,
    *,
    seed: int = 0,
    scale: float = 1.0,
    workers: int | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Do the whole way with rendered scenes and the models that ship with the package.

    Args:
        out: the folder; the same command given again goes on where it was interrupted.
        seed: of the scenes and of everything else.
        scale: times the scenes and the training steps; 1 takes some minutes on two cores.
        workers: processes that decode; None for as many as suit the machine.
        tell: is told how far it is.

    Returns:
        What stands in `result.json`.

    Raises:
        ConfigError: a scale out of range, or a folder that holds something else.
    """
    _check(scale)
    settings = {"mode": "scenes", "seed": seed, "scale": scale}
    course = Course(out=Path(out), settings=settings, tell=tell or Quiet(), workers=workers)
    with course.begun():
        _scenes(course)
    return course.result


def quickstart_pairs(
    out: str | Path,
    pairs: Sequence[str],
    *,
    options: PairOptions | None = None,
    label_column: str | None = None,
    teachers: Sequence[str] = (),
    seed: int = 0,
    scale: float = 1.0,
    workers: int | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Do the whole way with the user's pairs; without a teacher, train one on them first.

    Args:
        out: as `quickstart_scenes`; gets a copy of the pairs that can be read.
        pairs: what `pocketclip.pairs.open_pairs` takes.
        options: how they are read.
        label_column: a column with class names, for zero-shot classification.
        teachers: as `pocketclip.reinforce.teachers.load_teacher` takes them.
        seed: of everything.
        scale: times the training steps.
        workers: processes that decode; None for as many as suit the machine.
        tell: is told how far it is.

    Raises:
        ConfigError, DataError: bad settings, or pairs that cannot be used.
    """
    _check(scale)
    options = options or PairOptions()
    named = [str(Path(p).resolve()) if Path(p).exists() else p for p in pairs]
    settings = {
        "mode": "pairs", "seed": seed, "scale": scale, "pairs": named,
        "options": options.identity(), "label_column": label_column, "teachers": list(teachers),
    }  # fmt: skip
    found = open_pairs(list(pairs), with_labels(options, label_column))
    course = Course(out=Path(out), settings=settings, tell=tell or Quiet(), workers=workers)
    with course.begun():
        _pairs(course, found)
    return course.result


def _scenes(course: Course) -> None:
    seed, scale = course.settings["seed"], course.settings["scale"]
    sizes = Sizes().scaled(scale)
    total = sizes.train + sizes.unseen + sizes.retrieval
    with course.timed("data", f"drawing {total} scenes"):
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            course.tell.progress(done, total, "scenes")

        write_collection(course.out / DATA, sizes, seed, advance)
    with ExitStack() as stack:
        shipped = stack.enter_context(
            resources.as_file(resources.files("pocketclip") / "data" / "quickstart")
        )
        with course.timed("reinforce", "reinforcing: captions, views, teachers' embeddings"):
            course.result["reinforced"] = course.reinforce(
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
        _arms(course, ("unseen", "retrieval"), {})
        with course.timed("teachers", "evaluating the teachers"):
            course.result["teachers"] = {
                name: course.score(name, shipped / name, ("unseen", "retrieval"))
                for name in TEACHERS
            }
    with course.timed("report", "writing the report"):
        page = report_page(course)
    course.finish(page)


def _pairs(course: Course, found: Sequence[PairShard]) -> None:
    seed, label_column = course.settings["seed"], course.settings["label_column"]
    teachers = course.settings["teachers"]
    tests = ("labels", "retrieval") if label_column else ("retrieval",)
    with course.timed("data", "reading the pairs"):
        course.result["pairs"] = copy_pairs(
            course.out / DATA,
            found,
            label_column,
            lambda done, total: course.tell.progress(done, total, "pairs"),
        )
    specs = list(teachers)
    if not specs:
        with course.timed("teacher", "training a teacher on the pairs themselves"):
            recipe = _recipe(
                course, course.out / DATA / PAIRS, course.result["pairs"]["train"],
                {
                    "data.reinforced": False, "data.captions": "truth",
                    "data.image_column": "image", "data.caption_columns": ["caption"],
                    "data.image_augmentation": _PAIR_CROPS, "loss.weights": [1.0, 0.0],
                    "model.overrides": _PAIR_MODEL, "seed": seed + 1,
                },
            )  # fmt: skip
            specs = [str(course.learn("teacher", recipe, None))]
    with course.timed("reinforce", "reinforcing: views and the teacher's embeddings"):
        size = 224 if teachers else 64
        course.result["reinforced"] = course.reinforce(
            PairOptions(image_column="image", caption_columns=("caption",), shard_size=400),
            {
                "teachers": specs,
                "augmentations": 5,
                "seed": seed,
                "image_augmentation": {
                    "random_resized_crop": {**_PAIR_CROPS["random_resized_crop"], "size": size},
                    "random_horizontal_flip": {"p": 0.5},
                },
            },
        )
    _arms(course, tests, {"model.overrides": _PAIR_MODEL, "data.captions": "truth"})
    if not teachers:
        with course.timed("teachers", "evaluating the teacher"):
            course.result["teachers"] = {"teacher": course.score("teacher", Path(specs[0]), tests)}
    with course.timed("report", "writing the report"):
        page = report_page(course)
    course.finish(page)


def next_commands(out: str | Path, result: Mapping[str, Any]) -> list[str]:
    """Return three commands that a user would want after this."""
    return commands(Course(out=Path(out), settings=result["settings"]))


_PAIR_CROPS: dict[str, Any] = {
    "random_resized_crop": {"size": 64, "scale": [0.5, 1.0], "interpolation": "bicubic"}
}
_PAIR_MODEL = {"text.context_length": 48}


def _check(scale: float) -> None:
    if not 0.01 <= scale <= 100:
        raise ConfigError(f"the scale is {scale:g}; it is from 0.01 to 100")


def _recipe(course: Course, source: Path, samples: int, changes: Mapping[str, Any]) -> Recipe:
    seed, scale = course.settings["seed"], course.settings["scale"]
    base = load_recipe("scenes-tiny")
    steps = max(4, round(base.steps * scale))
    return load_recipe(
        "scenes-tiny",
        {
            "data.source": str(source),
            "seed": seed,
            "steps": steps,
            "schedule.warmup": min(base.schedule.warmup, steps // 4),
            "batch_size": _batch_size(base.batch_size, samples),
            "checkpoint.every_steps": max(1, steps // 8),
            "data.workers": course.workers,
            "log_every": max(1, min(base.log_every, steps // 8)),
            **changes,
        },
    )


def _batch_size(most: int, samples: int) -> int:
    """Return a power of 2 of which the samples fill at least four, from 16 to `most`.

    A sample that is twice in a batch would be its own wrong answer.
    """
    size = most
    while size > 16 and 4 * size > samples:
        size //= 2
    return size


def _arms(course: Course, tests: Sequence[str], changes: Mapping[str, Any]) -> None:
    """Train the two students and evaluate them; the reinforced one becomes `model`."""
    watched = course.tasks(tests[:1])[0]
    samples = course.result["reinforced"]["samples"]
    fields: dict[str, Mapping[str, Any]] = {
        "plain": {**changes, "data.captions": "truth", "loss.weights": [1.0, 0.0]},
        "reinforced": changes,
    }
    what = {
        "plain": "training a student on the texts as they were found",
        "reinforced": "training the same student on the reinforced pairs",
    }
    course.result["arms"] = {}
    for name in ARMS:
        recipe = _recipe(course, course.out / SHARDS, samples, fields[name])
        with course.timed(f"train {name}", what[name]):
            model = course.learn(name, recipe, watched)
        with course.timed(f"evaluate {name}", f"evaluating the {name} student"):
            metrics = course.score(name, model, tests)
        course.result["arms"][name] = {
            "steps": recipe.steps,
            "samples": recipe.steps * recipe.batch_size,
            "metrics": metrics,
            "curve": course.curve(name),
        }
    course.keep(course.out / "runs" / "reinforced" / MODEL)
