"""Scores a run's checkpoints on held-out data, as `pocketclip eval` scores a model.

    score = make_scorer(recipe.evaluation)  # finds and checks the evaluation data
    score(model, 1000)                      # {"main_metric": 0.61, "shelf": 0.61}

Only this module of training imports `pocketclip.evaluate`; the loop takes any function.
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


def make_scorer(section: EvaluationSection) -> Callable[[CLIP, int], Mapping[str, float]]:
    """Return a function that scores a model after a step: metrics by name.

    `main_metric` is the mean of the tasks' main metrics, which are returned too, by task. The
    evaluation data is checked now, before any training. Embeddings of class names are not cached
    on disk, as each checkpoint is another embedding space.

    Args:
        section: the recipe's `evaluation`.

    Raises:
        ConfigError: the data is missing, cannot be read, or does not fit the section. The
            returned function raises a PocketclipError if a task fails.
    """
    tasks = _find_tasks(section)

    def score(model: CLIP, step: int) -> Mapping[str, float]:
        metrics: dict[str, float] = {}
        options = RunOptions(cache=None)
        for item in evaluate(Encoder(model), tasks.ready, about={"step": step}, options=options):
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


def _find_tasks(section: EvaluationSection) -> Plan:
    options = DataOptions(
        label_column=section.label_column, caption_column=section.caption_column,
        where=tuple(section.where.items()), templates=section.templates,
    )  # fmt: skip
    tasks = section.tasks or (own_task(section.data),)
    try:
        planned = plan(tasks, section.data, options)
        for reason in planned.missing.values():
            raise DataError(reason)
        for task, data in planned.ready:
            _check_task(task, data)
    except PocketclipError as error:
        raise ConfigError(f"evaluation: {error}") from error
    return planned


def _check_task(task: Task, data: TaskData) -> None:
    """Refuse data that would fail at the first checkpoint, judged by its first example."""
    main = task.main_metric if task.key in TASKS else MAIN_METRICS[data.kind]
    if main is None:
        raise ConfigError(f"{task.key} has no main metric to choose a checkpoint by")
    if data.kind == "classification":
        prompts(data.classes or [], data.templates or [])
    examples = data.samples()
    first = next(examples, None)
    if isinstance(examples, Generator):
        examples.close()  # closes the files that it reads
    if first is None:
        raise DataError(f"{data.path} holds no examples")
    if isinstance(first, Puzzle):
        return
    try:
        open_image(first.image)
    except ImageError as error:
        raise DataError(f"{data.path}: {first.name}: {error}") from error
