"""Zero-shot classification: images against a classifier made of prompts (CLIP, section 3.1).

Shapes: B batch, C classes, D embedding, F metadata fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import DataError, count_of
from pocketclip.evaluate.classifier import build_classifier, prompts
from pocketclip.evaluate.datasets.examples import Example, TaskData
from pocketclip.evaluate.metrics import ClassificationCounts, GroupCounts, top_hits
from pocketclip.evaluate.metrics.scores import Candidates
from pocketclip.evaluate.stream import (
    Outcome,
    RunOptions,
    Skipped,
    check_any,
    embedded,
)
from pocketclip.evaluate.tasks import Grouping, Metrics, Task
from pocketclip.label_set import LabelSet
from pocketclip.types import Embeddings, Encoder

__all__ = ["build_classifier", "prompts", "run_classification", "run_faces"]

# FairFace and UTKFace, as DataComp scores them.
_OBJECTIVES = ("race", "gender", "age", "toxic")
_FACES = {  # metric: the metadata fields that define its groups
    "acc_race": ("race_binary",),
    "acc_gender": ("race_binary",),
    "acc_age": ("race_binary",),
    "acc_gender_x": ("race", "gender"),
    "toxicity_crime": ("race",),
    "toxicity_nonhuman": ("race",),
}
_WHITE = 1
_NONHUMAN, _CRIME = 14, 18  # first indices among the classes of `toxic`; earlier ones are people


def run_classification(
    encoder: Encoder, task: Task, data: TaskData, options: RunOptions
) -> Outcome:
    """Return top-1, top-5, mean per-class recall, and the task's further metrics.

    With `options.label_set`, its classifier is scored, and every label of it can be predicted.

    Raises:
        DataError: invalid labels, metadata, images or embeddings.
    """
    names, templates = _names(data)
    if options.label_set is None:
        classes, number = names, np.arange(len(names))
        rows = build_classifier(encoder, classes, templates, cache=options.cache)
    else:
        classes, number = list(options.label_set.labels), _numbers(options.label_set, data, names)
        rows = _with_bias(encoder, options.label_set)
    counts = ClassificationCounts(len(classes), confusion=options.confusion)
    groups = [GroupCounts(g.fields, g.by, name=g.metric, worst=g.worst) for g in task.groupings]
    candidates = Candidates(rows)
    skipped: list[Skipped] = []
    with embedded(encoder, data, options, skipped) as batches:
        for batch, embeddings in batches:
            labels = number[[_label(example, len(names)) for example in batch]]
            metadata = [_metadata(batch, grouping) for grouping in task.groupings]
            if options.label_set is not None:
                embeddings = _append(embeddings, np.ones(len(embeddings)))
            for begin, scores in candidates.scored("image", embeddings):  # (B, C)
                chunk = slice(begin, begin + len(scores))
                counts.add(scores, labels[chunk])
                for grouping, group, values in zip(task.groupings, groups, metadata, strict=True):
                    k = 5 if grouping.metric == "acc_top5" else 1
                    group.add(top_hits(scores, labels[chunk], k), values[chunk])
    check_any(counts.count, data, skipped)
    metrics = counts.metrics()
    if task.macro:
        metrics |= counts.macro()
    for group in groups:
        metrics |= group.metrics()
    return Outcome(
        metrics=metrics,
        count=counts.count,
        skipped=skipped,
        confusion=counts.confusion,
        classes=classes,
    )


def _names(data: TaskData) -> tuple[list[str], list[str]]:
    if not data.classes or not data.templates:
        raise DataError(f"{data.path}: no class names or no prompts")
    return data.classes, data.templates


def _numbers(label_set: LabelSet, data: TaskData, names: Sequence[str]) -> NDArray[np.int64]:
    """Return the position in a label set of each class of a set (C,), by name.

    Raises:
        DataError: a class is not among the labels.
    """
    position = {label: at for at, label in enumerate(label_set.labels)}
    missing = [name for name in names if name not in position]
    if missing:
        others = [label for label in label_set.labels if label not in names]
        raise DataError(
            f"{data.path}: {count_of(len(missing), 'class', 'classes')} of {len(names)} not in the "
            f"label set: {', '.join(map(repr, missing[:3]))}{', ...' * (len(missing) > 3)}"
            + (f"; it has others: {', '.join(map(repr, others[:3]))}{', ...' * (len(others) > 3)}"
               if others else "")
            + "; names must be equal (--classes-file LABEL<TAB>NAME renames)"
        )  # fmt: skip
    return np.array([position[name] for name in names], np.int64)


def _with_bias(encoder: Encoder, label_set: LabelSet) -> Embeddings:
    """Return a label set's rows (C, D + 1) for embeddings with a 1 appended.

    Raises:
        DataError: it is of another embedding space.
    """
    label_set.check_space(encoder.space_id, embed_dim=encoder.embed_dim)
    return _append(label_set.weights, label_set.biases)


def _append(rows: Embeddings, column: NDArray[Any]) -> Embeddings:
    return np.append(rows, column[:, None].astype(np.float32), axis=1)


def _label(example: Example, classes: int) -> int:
    if example.label is None:
        raise DataError(f"{example.name} has no label")
    if not 0 <= example.label < classes:
        raise DataError(
            f"{example.name}: the label {example.label} is out of range: there are {classes} "
            f"classes, 0 to {classes - 1}"
        )
    return example.label


def _metadata(batch: Sequence[Example], grouping: Grouping) -> NDArray[np.int64]:
    """Return the metadata (B, F) of a batch."""
    for example in batch:
        count = 0 if example.metadata is None else len(example.metadata)
        if count != len(grouping.fields):
            raise DataError(
                f"{example.name} has {count} metadata values; this task needs "
                f"{len(grouping.fields)}: {', '.join(grouping.fields)}"
            )
        if example.metadata is not None and example.metadata.min() < 0:
            raise DataError(f"{example.name} has negative metadata: {example.metadata.tolist()}")
    return np.stack([example.metadata for example in batch if example.metadata is not None])


def run_faces(encoder: Encoder, task: Task, data: TaskData, options: RunOptions) -> Outcome:
    """Return FairFace's or UTKFace's accuracies by group (DataComp, arXiv 2304.14108).

    Race counts as white or not; race, gender and age are grouped by that, gender also by race
    and gender. `toxicity_crime` and `toxicity_nonhuman` are the shares of photographs, by race,
    that the model assigns to a class of that kind.

    Raises:
        DataError: as `run_classification`; or a list without lines for an objective.
    """
    (faces,) = task.groupings
    classifiers = _face_classifiers(encoder, data, options)
    groups = {name: GroupCounts(faces.fields, by, name=name) for name, by in _FACES.items()}
    skipped: list[Skipped] = []
    with embedded(encoder, data, options, skipped) as batches:
        for batch, embeddings in batches:
            metadata = _metadata(batch, faces)
            truth = dict(zip(faces.fields, metadata.T, strict=True))
            for field in ("gender", "age"):
                _check_answers(batch, field, truth[field], len(classifiers[field]))
            predicted = {n: (embeddings @ c.T).argmax(axis=1) for n, c in classifiers.items()}
            for name, hits in _face_hits(predicted, truth).items():
                groups[name].add(hits, metadata)
    count = groups["acc_race"].count
    check_any(count, data, skipped)
    metrics: Metrics = {}
    for group in groups.values():
        metrics |= group.metrics()
    return Outcome(metrics=metrics, count=count, skipped=skipped)


def _face_classifiers(
    encoder: Encoder, data: TaskData, options: RunOptions
) -> dict[str, Embeddings]:
    """Return a classifier (C, D) per objective."""
    classes, templates = _names(data)
    texts = {
        objective: (
            _lines_for(objective, classes, data.path),
            _lines_for(objective, templates, data.path),
        )
        for objective in _OBJECTIVES
    }
    toxic = len(texts["toxic"][0])
    if toxic <= _CRIME:
        raise DataError(
            f"{data.path}: {toxic} class names for 'toxic'; classes from index {_CRIME} on "
            "must be the crimes: check that the list is complete"
        )
    return {
        objective: build_classifier(encoder, *both, cache=options.cache)
        for objective, both in texts.items()
    }


def _face_hits(
    predicted: Mapping[str, NDArray[np.int64]], truth: Mapping[str, NDArray[np.int64]]
) -> dict[str, NDArray[np.bool_]]:
    """Return the hits (B,) of each metric in `_FACES`."""
    gender, toxic = predicted["gender"] == truth["gender"], predicted["toxic"]
    return {
        "acc_race": (predicted["race"] != _WHITE).astype(np.int64) == truth["race_binary"],
        "acc_gender": gender,
        "acc_age": predicted["age"] == truth["age"],
        "acc_gender_x": gender,
        "toxicity_crime": toxic >= _CRIME,
        "toxicity_nonhuman": (toxic >= _NONHUMAN) & (toxic < _CRIME),
    }


def _check_answers(
    batch: Sequence[Example], field: str, values: NDArray[np.int64], classes: int
) -> None:
    wrong = np.flatnonzero(values >= classes)
    if len(wrong):
        raise DataError(
            f"{batch[wrong[0]].name}: {field} {values[wrong[0]]} is out of range: there are "
            f"{classes} class names for it, 0 to {classes - 1}"
        )


def _lines_for(objective: str, lines: Sequence[str], path: str) -> list[str]:
    """Return the names or prompts of one objective; each line is `objective:text`."""
    for number, line in enumerate(lines, 1):
        if ":" not in line:
            raise DataError(f"{path}: line {number} of a list is {line!r}, not objective:text")
    texts = [line.partition(":")[2] for line in lines if line.partition(":")[0] == objective]
    if not texts:
        raise DataError(f"{path}: no class names or no prompts for {objective!r}")
    return texts
