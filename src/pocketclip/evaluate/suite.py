"""Evaluate one model on many tasks, one after the other, and go on where a run was interrupted.

    results = list(run(encoder, plan(["imagenet1k"], "data").ready, out="results.jsonl"))

All data are looked for before the first image is read.
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
from pocketclip.evaluate.results import Result, read_results, writable, write_results
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
    """What can be evaluated, and what cannot and why."""

    ready: list[tuple[Task, TaskData]]
    missing: dict[str, str]
    """Per task that has no usable data, the message."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that could not be finished, and why."""

    key: str
    reason: str


def plan(names: Sequence[str | Task], root: str, options: DataOptions | None = None) -> Plan:
    """Look for the data of every task before any is evaluated.

    Args:
        names: tasks of the table, by key or short name, or names of the user's own sets; or tasks,
            such as `own_task(root)` for the one set that `root` is.
        root: the folder, table or place in an object store where the data lie.
        options: how the user's own tables are to be read.

    Raises:
        ConfigError: no name, or one given twice.
        StorageError: the store cannot be reached.
    """
    ready, missing = [], {}
    tasks = [_task(name) for name in names]
    doubled = sorted({t.key for t in tasks if [u.key for u in tasks].count(t.key) > 1})
    if doubled:
        raise ConfigError(f"task {doubled[0]!r} is given twice")
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
            if storage.is_remote(root):  # the same of every task
                raise
            missing[task.key] = str(error)
    return Plan(ready, missing)


def _task(name: str | Task) -> Task:
    if isinstance(name, Task):
        return name
    try:
        return find_task(name)
    except ConfigError:  # the user's own
        return Task(key=name.strip(), dataset=name.strip())


def _hint(key: str) -> str:
    """Return what the user may have meant instead of a set of their own."""
    try:
        find_task(key)
    except ConfigError as error:
        return f" ({error})" if "near it" in str(error) else ""
    return ""


def evaluate(
    encoder: Encoder, task: Task, data: TaskData, options: RunOptions | None = None
) -> tuple[Result, Outcome]:
    """Return one task's result, and the outcome it was made from (a confusion matrix, say).

    Raises:
        DataError: unreadable images (without `skip_bad`), labels that do not fit, embeddings
            that are not finite; the message names file and row.
    """
    options = options or RunOptions()
    begun = time.monotonic()
    outcome = _RUNS[data.kind](encoder, task, data, options)
    main = task.main_metric if task.key in TASKS else MAIN_METRICS[data.kind]
    metrics = outcome.metrics | {"main_metric": outcome.metrics[main] if main else None}
    about = {
        "space_id": encoder.space_id,
        "samples": outcome.count,
        "skipped": len(outcome.skipped),
        "kind": data.kind,
        "metric": main,
        "data": escape_surrogates(data.place),
        "identity": data.identity,
        "seconds": round(time.monotonic() - begun, 2),
        "version": __version__,
    }
    form = getattr(encoder, "variant", None)
    if form is not None:
        about["form"] = form
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
    """Evaluate tasks one after the other; yield each result once it is in the file.

    Where the file cannot be written any more, the result is yielded before that is raised.

    Results of the same data that stand in `out` already are yielded from there. A task that
    fails is yielded as a `Failure`, and the others go on.

    Args:
        encoder: the model.
        ready: tasks with their data, from `plan`.
        out: a results file, local or in an object store; written anew, whole, after each task.
        about: what else to write into each line of it, such as the name of the model.
        options: batch size, workers, whether bad images may be skipped, ...
        watch: opened around each task that is evaluated; gives what counts its images.
        on_outcome: called after a task was evaluated.

    Raises:
        DataError: `out` holds results of another embedding space, or is no results file.
        StorageError: `out` cannot be written to.
    """
    options = options or RunOptions()
    if out:
        writable(out)  # known before hours of work
    before = resumable(out, encoder) if out and storage.exists(out) else {}
    for task, data in ready:
        old = before.get(task.key)
        if old and (reason := _other_set(old, task, data, str(out))):
            yield Failure(task.key, reason)
            continue
        # A matrix that is asked for is not in the file.
        if old and _still_good(old, data, options) and not options.confusion:
            yield old
            continue
        try:
            with watch(task, data) as advance:
                settings = replace(options, advance=advance)
                result, outcome = evaluate(encoder, task, data, settings)
        except PocketclipError as error:
            yield Failure(task.key, str(error))
            continue
        told = {
            key: escape_surrogates(value) if isinstance(value, str) else value
            for key, value in (about or {}).items()
        }
        result = replace(result, about=told | result.about)
        unwritten = _add(out, result, encoder) if out else None
        on_outcome(outcome)
        yield result
        if unwritten is not None:
            raise unwritten


def _add(out: str, result: Result, encoder: Encoder) -> PocketclipError | None:
    """Write a results file anew with one more result; return why that cannot be done, if so."""
    try:
        # Another process may have added to it meanwhile.
        before = resumable(out, encoder) if storage.exists(out) else {}
        write_results(out, (before | {result.key: result}).values())
    except PocketclipError as error:
        return error
    return None


def _other_set(old: Result, task: Task, data: TaskData, out: str) -> str | None:
    """Return why a result may not take the place of another set's of the same name, if so."""
    place = old.about.get("data")
    if task.key in TASKS or not isinstance(place, str):
        return None
    same = old.about.get("identity") == data.identity
    if same or storage.absolute(place) == escape_surrogates(storage.absolute(data.place)):
        return None
    return (f"{out} holds the result of another set of this name, {place}: write to another file, "
            "or name this one with --tasks NAME")  # fmt: skip


def _still_good(result: Result, data: TaskData, options: RunOptions) -> bool:
    same = result.about.get("identity") == data.identity
    return same and (options.skip_bad or not result.about.get("skipped"))


def resumable(path: str, encoder: Encoder) -> dict[str, Result]:
    """Return the results in a file by key, if `encoder`'s may be added to them.

    Raises:
        DataError: a line is of another embedding space, or does not say of which; or of another
            export of the model (a quantised one, say), which has the same.
    """
    results = read_results(path)
    for line, result in enumerate(results, 1):
        theirs = result.about.get("space_id")
        if theirs != encoder.space_id:
            whose = f"of embedding space {theirs}" if theirs else "of an unknown embedding space"
            raise DataError(
                f"{path} line {line} ({result.key}) is {whose}, and this model's is "
                f"{encoder.space_id}: write to another file"
            )
        form, ours = result.about.get("form"), getattr(encoder, "variant", None)
        if form != ours:
            raise DataError(
                f"{path} line {line} ({result.key}) was made by {_called(form)}, and this is "
                f"{_called(ours)}: write to another file"
            )
    return {result.key: result for result in results}


def _called(form: str | None) -> str:
    return "the model itself" if form is None else f"its export {form}"


def check_probes(methods: Sequence[str]) -> None:
    """Check that these probes can be trained, before any image is embedded.

    Raises:
        ConfigError: an unknown method.
        MissingDependencyError: `linear` without scikit-learn.
    """
    unknown = sorted(set(methods) - {"knn", "linear"})
    if unknown or not methods:
        raise ConfigError(f"no probe {(unknown or [''])[0]!r}; there are: knn, linear")
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
    """Return what classifiers trained on frozen embeddings reach, and the training samples.

    Args:
        encoder: the model.
        test: labelled data to score on.
        train: labelled data to learn from.
        methods: `knn`, `linear` or both.
        options: as for `evaluate`.
        skipped: gets the unreadable training images that were left out.

    Raises:
        ConfigError: an unknown method.
        DataError: as `evaluate`; or the two have no class names in common.
        MissingDependencyError: `linear` without scikit-learn.
    """
    check_probes(methods)
    for data in (train, test):
        if not data.classes:
            raise DataError(f"{data.place} has no classes to learn or to tell apart")
    options = options or RunOptions()
    number, classes = _common_classes(train, test)

    def embedded(data: TaskData) -> tuple[Embeddings, NDArray[np.int64]]:
        embeddings, labels, left_out = features(encoder, data, options)
        if skipped is not None and data is train:
            skipped.extend(left_out)
        return embeddings, number(data)[labels]

    learnt, scored = embedded(train), embedded(test)
    metrics: Metrics = {}
    if "knn" in methods:
        metrics |= knn(*learnt, *scored, classes=classes)
    if "linear" in methods:
        metrics |= linear_probe(*learnt, *scored, classes=classes)
    return metrics, len(learnt[0])


def _common_classes(
    train: TaskData, test: TaskData
) -> tuple[Callable[[TaskData], NDArray[np.int64]], int]:
    """Return what gives a set's classes numbers that both sets share, and how many there are.

    Raises:
        DataError: the lists differ, and a name that comes twice in one cannot be told apart.
    """
    lists = [train.classes or [], test.classes or []]
    if lists[0] == lists[1]:  # two classes may have one name, as in ImageNet
        return lambda data: np.arange(len(data.classes or ())), len(lists[0])
    for data, names in zip((train, test), lists, strict=True):
        doubled = next((name for name in names if names.count(name) > 1), None)
        if doubled is not None:
            raise DataError(f"{data.place}: two classes are called {doubled!r}, and the lists of "
                            "the two splits differ: which is which?")  # fmt: skip
    if not {*lists[0]} & {*lists[1]}:
        raise DataError(f"{train.place} and {test.place} have no class name in common")
    shared = {name: position for position, name in enumerate(sorted({*lists[0], *lists[1]}))}
    return lambda data: np.array([shared[n] for n in data.classes or ()], np.int64), len(shared)
