"""Probes on many tasks: find the training split of each, train on its embeddings, score.

training = find_training_sets(plan.ready, "sets", "train", options)
for key, result in run_probes(encoder, plan.ready, training.found, ["knn"], settings):
    print(key, result)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from pocketclip.errors import PocketclipError
from pocketclip.evaluate.datasets.find import DataOptions, TaskData, find
from pocketclip.evaluate.stream import RunOptions, Skipped
from pocketclip.evaluate.suite import Failure, run_probe
from pocketclip.evaluate.tasks import Task
from pocketclip.types import Encoder

Ready = Sequence[tuple[Task, TaskData]]
WatchProbe = Callable[[Task, "int | None"], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True, slots=True)
class TrainingSets:
    """The training splits of tasks, and why others have none."""

    found: dict[str, TaskData]
    missing: dict[str, str]
    """By task key, the message."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The scores of the probes of one task."""

    facts: dict[str, Any]
    """The metrics, and `train`, `train_samples` and perhaps `train_skipped`."""
    skipped: list[Skipped]
    """Training images that could not be read."""


def find_training_sets(ready: Ready, root: str, split: str, options: DataOptions) -> TrainingSets:
    """Look for the split that probes learn from, for every task.

    Args:
        ready: tasks with their evaluation data, from `plan`.
        root: the folder, table or object store with the training data.
        split: the name of the split, in folders or in a column `split`.
        options: how tables are read.
    """
    conditions = tuple((name, split if name == "split" else value) for name, value in options.where)
    options = replace(options, split=split, where=conditions)
    training, missing = {}, {}
    for task, _ in ready:
        try:
            training[task.key] = find(task, root, options)
        except PocketclipError as error:
            missing[task.key] = str(error)
    return TrainingSets(training, missing)


def run_probes(
    encoder: Encoder,
    ready: Ready,
    training: Mapping[str, TaskData],
    methods: Sequence[str],
    options: RunOptions,
    *,
    watch: WatchProbe = lambda _task, _total: nullcontext(lambda _count: None),
) -> Iterator[tuple[str, ProbeResult | Failure]]:
    """Train and score probes on every task that has a training set; yield task key and result.

    Args:
        encoder: the model.
        ready: tasks with their evaluation data.
        training: training data by task key.
        methods: `knn`, `linear` or both.
        options: batch size, workers, whether bad images may be skipped, ...
        watch: opened around each task with the number of its images; gives what counts them.
    """
    for task, test in ready:
        train = training.get(task.key)
        if train is None:
            continue
        total = None if train.total is None or test.total is None else train.total + test.total
        skipped: list[Skipped] = []
        try:
            with watch(task, total) as advance:
                settings = replace(options, advance=advance)
                metrics, samples = run_probe(encoder, test, train, methods, settings, skipped)
        except PocketclipError as error:
            yield task.key, Failure(task.key, str(error))
            continue
        facts: dict[str, Any] = {"train": train.path, "train_samples": samples}
        if skipped:
            facts["train_skipped"] = len(skipped)
        yield task.key, ProbeResult(facts | metrics, skipped)
