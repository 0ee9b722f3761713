"""Scores a run's checkpoints on held-out data, as `pocketclip eval` scores a model.

    score = make_scorer(recipe.evaluation)  # finds the data, or says what is wrong with them
    score(model, 1000)                      # {"main_metric": 0.61, "shelf": 0.61}

Of training, this module alone knows `pocketclip.evaluate`; the loop takes any function.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING

from pocketclip.errors import ConfigError, DataError, ImageError, PocketclipError
from pocketclip.evaluate import TASKS, DataOptions, Failure, Plan, RunOptions, own_task, plan
from pocketclip.evaluate import run as evaluate
from pocketclip.evaluate.classifier import prompts
from pocketclip.evaluate.datasets.examples import Puzzle, TaskData
from pocketclip.evaluate.tasks import MAIN_METRICS, Task
from pocketclip.images import open_image
from pocketclip.infer.encoder import Encoder
from pocketclip.train.sections import EvaluationSection

if TYPE_CHECKING:
    from pocketclip.nn.clip import CLIP

log = logging.getLogger(__name__)


def make_scorer(wanted: EvaluationSection) -> Callable[[CLIP, int], Mapping[str, float]]:
    """Return a function that scores a model after a step: metrics by name.

    `main_metric` is the mean of the tasks' main metrics, which stand beside it by task. What can
    be known of the data is checked now, before any training.

    Embeddings of class names are not kept on disk: each checkpoint is another embedding space.

    Raises:
        ConfigError: the data are missing, cannot be read, or do not fit the section. The
            function itself raises a PocketclipError where a task cannot be finished.
    """
    found = _found(wanted)

    def score(model: CLIP, step: int) -> Mapping[str, float]:
        metrics: dict[str, float] = {}
        options = RunOptions(cache=None)
        for item in evaluate(Encoder(model), found.ready, about={"step": step}, options=options):
            if isinstance(item, Failure):
                raise PocketclipError(f"{item.key}: {item.reason}")
            value = item.metrics["main_metric"]
            if value is None or not math.isfinite(value):
                raise PocketclipError(f"{item.key}: its main metric is {value}")
            metrics[item.key] = float(value)
        shown = ", ".join(f"{key} {value:.4f}" for key, value in metrics.items())
        log.info("step %d: %s", step, shown)
        return {"main_metric": sum(metrics.values()) / len(metrics), **metrics}

    return score


def _found(wanted: EvaluationSection) -> Plan:
    options = DataOptions(
        label_column=wanted.label_column, caption_column=wanted.caption_column,
        where=tuple(wanted.where.items()), templates=wanted.templates,
    )  # fmt: skip
    tasks = wanted.tasks or (own_task(wanted.data),)
    try:
        found = plan(tasks, wanted.data, options)
        for reason in found.missing.values():
            raise DataError(reason)
        for task, data in found.ready:
            _check(task, data)
    except PocketclipError as error:
        raise ConfigError(f"evaluation: {error}") from error
    return found


def _check(task: Task, data: TaskData) -> None:
    """Refuse what would fail after hours of training, as far as the first sample shows it."""
    main = task.main_metric if task.key in TASKS else MAIN_METRICS[data.kind]
    if main is None:
        raise ConfigError(f"{task.key} has no main metric to choose a checkpoint by")
    if data.kind == "classification":
        prompts(data.classes or [], data.templates or [])
    samples = data.samples()
    first = next(samples, None)
    if isinstance(samples, Generator):
        samples.close()  # and with it the files that it reads
    if first is None:
        raise DataError(f"{data.path} holds no samples")
    if isinstance(first, Puzzle):
        return
    try:
        open_image(first.image)
    except ImageError as error:
        raise DataError(f"{data.path}: {first.name}: {error}") from error
