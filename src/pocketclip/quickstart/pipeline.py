"""`pocketclip quickstart`: the whole pipeline in minutes, on drawn scenes or the user's pairs.

    result = quickstart_scenes("quickstart-out")

Two students start from the same weights and see the same views of the same pictures in the same
order. The plain student learns from the alt-texts alone (CLIP's loss). The reinforced student
learns from what reinforcing stored: the captioner's captions and the teachers' embeddings
(MobileCLIP, arXiv 2311.17049, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from typing import Any

from pocketclip._deprecated import renamed_arguments
from pocketclip.errors import ConfigError
from pocketclip.pairs import PairOptions, PairShard, open_pairs
from pocketclip.progress import ProgressReporter
from pocketclip.quickstart.collection import PAIRS, Sizes, write_collection
from pocketclip.quickstart.own_pairs import copy_pairs, with_labels
from pocketclip.quickstart.quickstart_run import ARMS, DATA, MODEL, SHARDS, QuickstartRun
from pocketclip.quickstart.report import commands, report_page
from pocketclip.train.recipe import Recipe, load_recipe

TEACHERS, CAPTIONER = ("teacher-a", "teacher-b"), "captioner"
_CROPS = {
    "random_resized_crop": {
        "size": 64, "scale": [0.65, 1.0], "ratio": [0.85, 1.18], "interpolation": "bicubic",
    }
}  # fmt: skip
"""Mild crops, because captions say where things are and how many there are."""


@renamed_arguments(tell="reporter")
def quickstart_scenes(
    out: str | Path,
    *,
    seed: int = 0,
    scale: float = 1.0,
    workers: int | None = None,
    reporter: ProgressReporter | None = None,
) -> dict[str, Any]:
    """Run the pipeline on drawn scenes, with the models that ship with the package.

    Args:
        out: the output folder; a second call with the same arguments resumes an interrupted one.
        seed: for the scenes and all other random choices.
        scale: multiplies the number of scenes and training steps; 1 takes some minutes on two
            cores.
        workers: decode processes; None chooses a number for the machine.
        reporter: receives the progress.

    Returns:
        The contents of `result.json`.

    Raises:
        ConfigError: a scale out of range, or a folder that holds something else.
    """
    _check(scale)
    settings = {"mode": "scenes", "seed": seed, "scale": scale}
    run = QuickstartRun(
        out=Path(out), settings=settings, reporter=reporter or ProgressReporter(), workers=workers
    )
    with run.claim_folder():
        _scenes(run)
    return run.result


@renamed_arguments(tell="reporter")
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
    reporter: ProgressReporter | None = None,
) -> dict[str, Any]:
    """Run the pipeline on the user's pairs; without a teacher, train one on them first.

    Args:
        out: as in `quickstart_scenes`; also gets a copy of the readable pairs.
        pairs: sources, as `pocketclip.pairs.open_pairs` takes them.
        options: how to read the pairs.
        label_column: a column with class names, for zero-shot classification.
        teachers: as `pocketclip.reinforce.teachers.load_teacher` takes them.
        seed: for all random choices.
        scale: multiplies the number of training steps.
        workers: decode processes; None chooses a number for the machine.
        reporter: receives the progress.

    Raises:
        ConfigError, DataError: bad settings, or pairs that cannot be used.
    """
    _check(scale)
    options = options or PairOptions()
    sources = [str(Path(p).resolve()) if Path(p).exists() else p for p in pairs]
    settings = {
        "mode": "pairs", "seed": seed, "scale": scale, "pairs": sources,
        "options": options.identity(), "label_column": label_column, "teachers": list(teachers),
    }  # fmt: skip
    shards = open_pairs(list(pairs), with_labels(options, label_column))
    run = QuickstartRun(
        out=Path(out), settings=settings, reporter=reporter or ProgressReporter(), workers=workers
    )
    with run.claim_folder():
        _pairs(run, shards)
    return run.result


def _scenes(run: QuickstartRun) -> None:
    seed, scale = run.settings["seed"], run.settings["scale"]
    sizes = Sizes().scaled(scale)
    total = sizes.train + sizes.unseen + sizes.retrieval
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
        _arms(run, ("unseen", "retrieval"), {})
        with run.timed("teachers", "evaluating the teachers"):
            run.result["teachers"] = {
                name: run.evaluate(name, shipped / name, ("unseen", "retrieval"))
                for name in TEACHERS
            }
    with run.timed("report", "writing the report"):
        page = report_page(run)
    run.finish(page)


def _pairs(run: QuickstartRun, shards: Sequence[PairShard]) -> None:
    seed, label_column = run.settings["seed"], run.settings["label_column"]
    teachers = run.settings["teachers"]
    tests = ("labels", "retrieval") if label_column else ("retrieval",)
    with run.timed("data", "reading the pairs"):
        run.result["pairs"] = copy_pairs(
            run.out / DATA,
            shards,
            label_column,
            lambda done, total: run.reporter.progress(done, total, "pairs"),
        )
    specs = list(teachers)
    if not specs:
        with run.timed("teacher", "training a teacher on the pairs themselves"):
            recipe = _recipe(
                run, run.out / DATA / PAIRS, run.result["pairs"]["train"],
                {
                    "data.reinforced": False, "data.captions": "truth",
                    "data.image_column": "image", "data.caption_columns": ["caption"],
                    "data.image_augmentation": _PAIR_CROPS, "loss.weights": [1.0, 0.0],
                    "model.overrides": _PAIR_MODEL, "seed": seed + 1,
                },
            )  # fmt: skip
            specs = [str(run.train("teacher", recipe, None))]
    with run.timed("reinforce", "reinforcing: views and the teacher's embeddings"):
        size = 224 if teachers else 64
        run.result["reinforced"] = run.reinforce(
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
    _arms(run, tests, {"model.overrides": _PAIR_MODEL, "data.captions": "truth"})
    if not teachers:
        with run.timed("teachers", "evaluating the teacher"):
            run.result["teachers"] = {"teacher": run.evaluate("teacher", Path(specs[0]), tests)}
    with run.timed("report", "writing the report"):
        page = report_page(run)
    run.finish(page)


def next_commands(out: str | Path, result: Mapping[str, Any]) -> list[str]:
    """Return three commands to go on with."""
    return commands(QuickstartRun(out=Path(out), settings=result["settings"]))


_PAIR_CROPS: dict[str, Any] = {
    "random_resized_crop": {"size": 64, "scale": [0.5, 1.0], "interpolation": "bicubic"}
}
_PAIR_MODEL = {"text.context_length": 48}


def _check(scale: float) -> None:
    if not 0.01 <= scale <= 100:
        raise ConfigError(f"the scale is {scale:g}; it must be from 0.01 to 100")


def _recipe(run: QuickstartRun, source: Path, samples: int, changes: Mapping[str, Any]) -> Recipe:
    seed, scale = run.settings["seed"], run.settings["scale"]
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
            "data.workers": run.workers,
            "log_every": max(1, min(base.log_every, steps // 8)),
            **changes,
        },
    )


def _batch_size(most: int, samples: int) -> int:
    """Return a power of 2 from 16 to `most`; an epoch has at least four batches if possible.

    A sample that occurs twice in a batch would be its own negative.
    """
    size = most
    while size > 16 and 4 * size > samples:
        size //= 2
    return size


def _arms(run: QuickstartRun, tests: Sequence[str], changes: Mapping[str, Any]) -> None:
    """Train the two students and evaluate them; the reinforced one becomes `model`."""
    task = run.tasks(tests[:1])[0]
    samples = run.result["reinforced"]["samples"]
    overrides: dict[str, Mapping[str, Any]] = {
        "plain": {**changes, "data.captions": "truth", "loss.weights": [1.0, 0.0]},
        "reinforced": changes,
    }
    stages = {
        "plain": "training a student on the texts as they were found",
        "reinforced": "training the same student on the reinforced pairs",
    }
    run.result["arms"] = {}
    for name in ARMS:
        recipe = _recipe(run, run.out / SHARDS, samples, overrides[name])
        with run.timed(f"train {name}", stages[name]):
            model = run.train(name, recipe, task)
        with run.timed(f"evaluate {name}", f"evaluating the {name} student"):
            metrics = run.evaluate(name, model, tests)
        run.result["arms"][name] = {
            "steps": recipe.steps,
            "samples": recipe.steps * recipe.batch_size,
            "metrics": metrics,
            "curve": run.curve(name),
        }
    run.publish(run.out / "runs" / "reinforced" / MODEL)
