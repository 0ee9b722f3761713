"""Evaluate one model on many tasks, and resume an interrupted run.

    results = list(run(encoder, plan(["imagenet1k"], "data").ready, out="results.jsonl"))

All evaluation sets are located before the first image is read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip import storage
from pocketclip._version import __version__
from pocketclip.errors import ConfigError, DataError, PocketclipError, StorageError
from pocketclip.evaluate.datasets.find import DataOptions, NoSetError, TaskData, find
from pocketclip.evaluate.probe import knn, linear_probe, scikit_learn
from pocketclip.evaluate.results import Result, check_writable, read_results, write_results
from pocketclip.evaluate.retrieval import run_association, run_caption_choice, run_retrieval
from pocketclip.evaluate.stream import Outcome, RunOptions, Skipped, features
from pocketclip.evaluate.tasks import (
    MAIN_METRICS,
    TASKS,
    Kind,
    Metrics,
    Task,
    find_task,
)
from pocketclip.evaluate.zeroshot import run_classification, run_faces
from pocketclip.formats.escaping import escape_surrogates
from pocketclip.types import Embeddings, Encoder

_RUNS: dict[Kind, Callable[[Encoder, Task, TaskData, RunOptions], Outcome]] = {
    "classification": run_classification,
    "faces": run_faces,
    "retrieval": run_retrieval,
    "caption_choice": run_caption_choice,
    "association": run_association,
}
Watch = Callable[[Task, TaskData], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True, slots=True)
class Plan:
    """The tasks that can be evaluated, and the reasons why others cannot."""

    ready: list[tuple[Task, TaskData]]
    missing: dict[str, str]
    """The error message of each task without a usable set, by key."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that failed, and the reason."""

    key: str
    reason: str


def plan(names: Sequence[str | Task], root: str, options: DataOptions | None = None) -> Plan:
    """Locate the set of every task before any is evaluated.

    Args:
        names: published tasks by key or short name, names of the user's own sets, or tasks such
            as `own_task(root)` where `root` is a single set.
        root: the folder, table or object-store path that holds the sets.
        options: how to read the user's own tables.

    Raises:
        ConfigError: no name, or a name given twice.
        StorageError: the object store cannot be reached.
    """
    ready, missing = [], {}
    tasks = [_task(name) for name in names]
    repeated = sorted({t.key for t in tasks if [u.key for u in tasks].count(t.key) > 1})
    if repeated:
        raise ConfigError(f"task {repeated[0]!r} is given twice")
    if not tasks:
        raise ConfigError("no tasks: name at least one")
    for task in tasks:
        try:
            ready.append((task, find(task, root, options or DataOptions())))
        except NoSetError as error:
            missing[task.key] = f"{error}{_hint(task.key)}"
        except DataError as error:
            missing[task.key] = str(error)
        except StorageError as error:
            if storage.is_remote(root):  # every task would fail in the same way
                raise
            missing[task.key] = str(error)
    return Plan(ready, missing)


def _task(name: str | Task) -> Task:
    if isinstance(name, Task):
        return name
    try:
        return find_task(name)
    except ConfigError:  # a set of the user's own
        return Task(key=name.strip(), dataset=name.strip())


def _hint(key: str) -> str:
    """Return a note about published tasks with similar names, if any."""
    try:
        find_task(key)
    except ConfigError as error:
        return f" ({error})" if "near it" in str(error) else ""
    return ""


def evaluate(
    encoder: Encoder, task: Task, data: TaskData, options: RunOptions | None = None
) -> tuple[Result, Outcome]:
    """Return one task's result, and the outcome behind it (which has the confusion matrix).

    Raises:
        DataError: unreadable images (without `skip_bad`), labels out of range, or embeddings that
            are not finite; the message names file and row.
    """
    options = options or RunOptions()
    if options.label_set is not None and data.kind != "classification":
        raise DataError(
            f"{data.path} is not a set for classification: a label set cannot be scored"
        )
    start = time.monotonic()
    outcome = _RUNS[data.kind](encoder, task, data, options)
    main = task.main_metric if task.key in TASKS else MAIN_METRICS[data.kind]
    metrics = outcome.metrics | {"main_metric": outcome.metrics[main] if main else None}
    about = {
        "space_id": encoder.space_id,
        "samples": outcome.count,
        "skipped": len(outcome.skipped),
        "kind": data.kind,
        "metric": main,
        "data": escape_surrogates(data.path),
        "identity": data.identity,
        "seconds": round(time.monotonic() - start, 2),
        "version": __version__,
    }
    variant = _variant(encoder)
    if variant is not None:
        about["form"] = variant
    if options.label_set is not None:
        about["label_set"] = options.label_set.digest
    return Result(key=task.key, dataset=task.dataset, metrics=metrics, about=about), outcome


def run(
    encoder: Encoder,
    ready: Sequence[tuple[Task, TaskData]],
    *,
    out: str | None = None,
    about: Mapping[str, Any] | None = None,
    options: RunOptions | None = None,
    watch: Watch = lambda _task, _data: nullcontext(lambda _count: None),
    on_outcome: Callable[[Outcome], None] = lambda _outcome: None,
) -> Iterator[Result | Failure]:
    """Evaluate tasks in order; yield each result once it is in the file.

    If the file can no longer be written, the result is yielded before the error is raised.
    Results in `out` for the same set are reused. A failed task is yielded as a `Failure`, and the
    run continues.

    Args:
        encoder: the model.
        ready: tasks with their sets, from `plan`.
        out: a results file, local or in an object store; rewritten whole after each task.
        about: further fields for each line, such as the model's name.
        options: batch size, workers, whether to skip unreadable images, ...
        watch: context manager around each evaluated task; its value is called with numbers of
            finished images.
        on_outcome: called after each evaluated task.

    Raises:
        DataError: `out` holds results of another embedding space, or is not a results file.
        StorageError: `out` cannot be written.
    """
    options = options or RunOptions()
    if out:
        check_writable(out)  # before hours of work
    finished = resumable(out, encoder) if out and storage.exists(out) else {}
    for task, data in ready:
        old = finished.get(task.key)
        if old and (reason := _other_set(old, task, data, str(out), options)):
            yield Failure(task.key, reason)
            continue
        # A requested confusion matrix is not in the file.
        if old and _reusable(old, data, options) and not options.confusion:
            yield old
            continue
        try:
            with watch(task, data) as advance:
                settings = replace(options, advance=advance)
                result, outcome = evaluate(encoder, task, data, settings)
        except PocketclipError as error:
            yield Failure(task.key, str(error))
            continue
        extra = {
            key: escape_surrogates(value) if isinstance(value, str) else value
            for key, value in (about or {}).items()
        }
        result = replace(result, about=extra | result.about)
        unwritten = _add(out, result, encoder) if out else None
        on_outcome(outcome)
        yield result
        if unwritten is not None:
            raise unwritten


def _add(out: str, result: Result, encoder: Encoder) -> PocketclipError | None:
    """Rewrite a results file with one more result; return the error if that fails."""
    try:
        # Another process may have added results in the meantime.
        current = resumable(out, encoder) if storage.exists(out) else {}
        write_results(out, (current | {result.key: result}).values())
    except PocketclipError as error:
        return error
    return None


def _other_set(
    old: Result, task: Task, data: TaskData, out: str, options: RunOptions
) -> str | None:
    """Return why a result must not replace that of another set with the same name, if so."""
    digest = None if options.label_set is None else options.label_set.digest
    if old.about.get("label_set") != digest:
        whose = "prompts" if old.about.get("label_set") is None else "another label set"
        return f"{out} holds this set's result with {whose}: write to another file"
    path = old.about.get("data")
    if task.key in TASKS or not isinstance(path, str):
        return None
    same = old.about.get("identity") == data.identity
    if same or storage.absolute(path) == escape_surrogates(storage.absolute(data.path)):
        return None
    return (f"{out} holds the result of another set with this name, {path}: write to another file, "
            "or name this set with --tasks NAME")  # fmt: skip


def _reusable(result: Result, data: TaskData, options: RunOptions) -> bool:
    same = result.about.get("identity") == data.identity
    return same and (options.skip_bad or not result.about.get("skipped"))


def resumable(path: str, encoder: Encoder) -> dict[str, Result]:
    """Return the results in a file by key, if results of `encoder` may be added to it.

    Raises:
        DataError: a line is of another or an unknown embedding space, or of another variant of the
            model (such as a quantised export).
    """
    results = read_results(path)
    for line, result in enumerate(results, 1):
        space = result.about.get("space_id")
        if space != encoder.space_id:
            whose = f"of embedding space {space}" if space else "of an unknown embedding space"
            raise DataError(
                f"{path} line {line} ({result.key}) is {whose}, this model of "
                f"{encoder.space_id}: write to another file"
            )
        variant, own_variant = result.about.get("form"), _variant(encoder)
        if variant != own_variant:
            raise DataError(
                f"{path} line {line} ({result.key}) was made by {_describe(variant)}, and this is "
                f"{_describe(own_variant)}: write to another file"
            )
    return {result.key: result for result in results}


def _variant(encoder: Encoder) -> str | None:
    return getattr(encoder, "variant", None)


def _describe(variant: str | None) -> str:
    return "the model itself" if variant is None else f"its export {variant}"


def check_probes(methods: Sequence[str]) -> None:
    """Check that these probes can be trained before any image is embedded.

    Raises:
        ConfigError: an unknown method.
        MissingDependencyError: `linear` without scikit-learn.
    """
    unknown = sorted(set(methods) - {"knn", "linear"})
    if unknown or not methods:
        raise ConfigError(f"no probe {(unknown or [''])[0]!r}; choose from: knn, linear")
    if "linear" in methods:
        scikit_learn()


def run_probe(
    encoder: Encoder,
    test: TaskData,
    train: TaskData,
    methods: Sequence[str],
    options: RunOptions | None = None,
    skipped: list[Skipped] | None = None,
) -> tuple[Metrics, int]:
    """Return the metrics of classifiers on frozen embeddings, and the number of training samples.

    Args:
        encoder: the model.
        test: labelled set to score.
        train: labelled set to train on.
        methods: `knn`, `linear` or both.
        options: as for `evaluate`.
        skipped: receives the unreadable training images.

    Raises:
        ConfigError: an unknown method.
        DataError: as `evaluate`; or the two sets have no class names in common.
        MissingDependencyError: `linear` without scikit-learn.
    """
    check_probes(methods)
    for data in (train, test):
        if not data.classes:
            raise DataError(f"{data.path} has no classes")
    options = options or RunOptions()
    number, classes = _common_classes(train, test)

    def embedded(data: TaskData) -> tuple[Embeddings, NDArray[np.int64]]:
        embeddings, labels, unreadable = features(encoder, data, options)
        if skipped is not None and data is train:
            skipped.extend(unreadable)
        return embeddings, number(data)[labels]

    train_set, test_set = embedded(train), embedded(test)
    metrics: Metrics = {}
    if "knn" in methods:
        metrics |= knn(*train_set, *test_set, classes=classes)
    if "linear" in methods:
        metrics |= linear_probe(*train_set, *test_set, classes=classes)
    return metrics, len(train_set[0])


def _common_classes(
    train: TaskData, test: TaskData
) -> tuple[Callable[[TaskData], NDArray[np.int64]], int]:
    """Return a function from a set to shared class indices, and the number of classes.

    Raises:
        DataError: the lists differ and one of them has a name twice.
    """
    lists = [train.classes or [], test.classes or []]
    if lists[0] == lists[1]:  # two classes may have one name, as in ImageNet
        return lambda data: np.arange(len(data.classes or ())), len(lists[0])
    for data, names in zip((train, test), lists, strict=True):
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise DataError(f"{data.path}: two classes are called {repeated!r}, and the lists of "
                            "the two splits differ: make the names distinct")  # fmt: skip
    if not {*lists[0]} & {*lists[1]}:
        raise DataError(f"{train.path} and {test.path} have no class name in common")
    shared = {name: position for position, name in enumerate(sorted({*lists[0], *lists[1]}))}
    return lambda data: np.array([shared[n] for n in data.classes or ()], np.int64), len(shared)
