"""Zero-shot classification: prompts to a classifier, images against it (CLIP, section 3.1).

Shapes: B batch, C classes, D embedding, F metadata fields, T templates.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketclip import files
from pocketclip.errors import DataError
from pocketclip.evaluate.examples import Example, TaskData
from pocketclip.evaluate.metrics import ClassificationCounts, GroupCounts, top_hits
from pocketclip.evaluate.stream import (
    Outcome,
    RunOptions,
    Skipped,
    embed_images,
    embed_texts,
    images_of,
)
from pocketclip.evaluate.tasks import Grouping, Metrics, Task
from pocketclip.types import Embeddings, Encoder

log = logging.getLogger(__name__)
_DRIFT = 1e-4
"""How far a kept classifier may be from the encoder's: far below what quantising changes, far
above what the order of sums does."""
_CLASSES = 32  # whose prompts are embedded together

# FairFace and UTKFace, as DataComp scores them: what is asked, and where its answers lie.
_OBJECTIVES = ("race", "gender", "age", "toxic")
_WHITE = 1
_NONHUMAN, _CRIME = 14, 18  # among the classes of `toxic`; those before are of people


def prompts(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Return the C x T prompts, class by class; `{c}` or `{}` is where the class goes.

    Raises:
        DataError: no class or template, an empty class name, a template without its place.
    """
    if not classes or not templates:
        raise DataError("a classifier needs class names and prompts")
    for number, name in enumerate(classes):
        if not name.strip():
            raise DataError(f"the name of class {number} is empty")
    parts = []
    for template in templates:
        pieces = template.replace("{c}", "{}").split("{}")
        if len(pieces) < 2:
            raise DataError(f"the prompt {template!r} has no {{c}} or {{}} for the class")
        parts.append(pieces)
    return [name.join(pieces) for name in classes for pieces in parts]


def build_classifier(
    encoder: Encoder,
    classes: Sequence[str],
    templates: Sequence[str],
    *,
    cache: str | os.PathLike[str] | None = None,
) -> Embeddings:
    """Return one unit embedding (C, D) per class.

    The prompts' embeddings are normalised, averaged over the templates and normalised again. Two
    classes may have one name. With `cache`, a folder, the result is kept there by the encoder's
    `space_id`. Quantised forms of a model share its `space_id`, so what was kept is only used if
    it agrees with the encoder on the first class.

    Raises:
        DataError: names or prompts that make no sense, or embeddings that are not finite.
    """
    texts = prompts(classes, templates)
    count = len(templates)
    path = None if cache is None else _kept(Path(cache), encoder, classes, templates)
    first = _mean(encoder, texts[:count], count)
    if path is not None:
        old = _read(path, (len(classes), encoder.embed_dim))
        if old is not None and np.abs(old[:1] - first).max() <= _DRIFT:
            return old
    step = _CLASSES * count
    rest = [_mean(encoder, texts[b : b + step], count) for b in range(count, len(texts), step)]
    classifier = np.concatenate([first, *rest])
    if path is not None:
        _write(path, classifier)
    return classifier


def _mean(encoder: Encoder, texts: Sequence[str], templates: int) -> Embeddings:
    embedded = embed_texts(encoder, texts, "the prompt").astype(np.float64)  # (C * T, D)
    mean = embedded.reshape(-1, templates, embedded.shape[1]).mean(axis=1)  # (C, D)
    lengths = np.linalg.norm(mean, axis=1, keepdims=True)
    if not lengths.all():
        at = int(np.argmin(lengths)) * templates
        raise DataError(f"the prompts from {texts[at]!r} on cancel each other: their mean is zero")
    unit: Embeddings = (mean / lengths).astype(np.float32)
    return unit


def _kept(cache: Path, encoder: Encoder, classes: Sequence[str], templates: Sequence[str]) -> Path:
    def short(value: object) -> str:
        return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()[:32]

    space = encoder.space_id
    folder = space if space.isalnum() else short(space)
    return cache / folder / f"{short([list(classes), list(templates)])}.npy"


def _read(path: Path, shape: tuple[int, int]) -> Embeddings | None:
    """Return what was kept, or None if there is nothing, or nothing usable."""
    try:
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        log.warning("%s is made anew: it cannot be read (%s)", path, error)
        return None
    right = isinstance(found, np.ndarray) and found.shape == shape and found.dtype == np.float32
    if not right or not np.isfinite(found).all():
        log.warning("%s is made anew: it is not what it should be", path)
        return None
    kept: Embeddings = found
    return kept


def _write(path: Path, classifier: Embeddings) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.write_whole(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, classifier, allow_pickle=False)
    except OSError as error:
        log.warning("the embeddings of class names are not kept: %s", error)


def run_classification(
    encoder: Encoder, task: Task, data: TaskData, options: RunOptions
) -> Outcome:
    """Return top-1, top-5, mean per-class recall, and what the task asks for besides.

    Raises:
        DataError: labels, metadata, images or embeddings that are not what they should be.
    """
    classes, templates = _names(data)
    classifier = build_classifier(encoder, classes, templates, cache=options.cache)
    counts = ClassificationCounts(len(classes), confusion=options.confusion)
    groups = [GroupCounts(g.fields, g.by, name=g.metric, worst=g.worst) for g in task.groupings]
    skipped: list[Skipped] = []
    for batch, embeddings in _embedded(encoder, data, options, skipped):
        scores = embeddings @ classifier.T  # (B, C)
        labels = np.array([_label(example, len(classes)) for example in batch])
        counts.add(scores, labels)
        for grouping, group in zip(task.groupings, groups, strict=True):
            hits = top_hits(scores, labels, 5 if grouping.metric == "acc_top5" else 1)
            group.add(hits, _metadata(batch, grouping))
    if not counts.count:
        raise DataError(f"{data.place}: no image could be read")
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


def _embedded(
    encoder: Encoder, data: TaskData, options: RunOptions, skipped: list[Skipped]
) -> Iterator[tuple[list[Example], Embeddings]]:
    return embed_images(encoder, images_of(data), lambda e: e.image, options, skipped)


def _names(data: TaskData) -> tuple[list[str], list[str]]:
    if not data.classes or not data.templates:
        raise DataError(f"{data.place}: no class names or no prompts")
    return data.classes, data.templates


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
        found = 0 if example.metadata is None else len(example.metadata)
        if found != len(grouping.fields):
            raise DataError(
                f"{example.name} has {found} metadata values; this task needs "
                f"{len(grouping.fields)}: {', '.join(grouping.fields)}"
            )
        if example.metadata is not None and example.metadata.min() < 0:
            raise DataError(f"{example.name}: metadata below zero: {example.metadata.tolist()}")
    return np.stack([example.metadata for example in batch if example.metadata is not None])


def run_faces(encoder: Encoder, task: Task, data: TaskData, options: RunOptions) -> Outcome:
    """Return FairFace's or UTKFace's accuracies by group (DataComp, arXiv 2304.14108).

    Race counts as white or not; race, gender and age are grouped by that, gender also by race
    and gender. `toxicity_crime` and `toxicity_nonhuman` are the shares of photographs, by race,
    that the model takes for something of that sort.

    Raises:
        DataError: as `run_classification`; or a list that lacks an objective.
    """
    (faces,) = task.groupings
    classes, templates = _names(data)
    texts = {
        objective: (_of(classes, objective, data.place), _of(templates, objective, data.place))
        for objective in _OBJECTIVES
    }
    classifiers = {
        objective: build_classifier(encoder, *both, cache=options.cache)
        for objective, both in texts.items()
    }
    by_binary, by_both, by_race = ("race_binary",), ("race", "gender"), ("race",)
    plan = {
        "acc_race": by_binary,
        "acc_gender": by_binary,
        "acc_age": by_binary,
        "acc_gender_x": by_both,
        "toxicity_crime": by_race,
        "toxicity_nonhuman": by_race,
    }
    groups = {name: GroupCounts(faces.fields, by, name=name) for name, by in plan.items()}
    skipped: list[Skipped] = []
    for batch, embeddings in _embedded(encoder, data, options, skipped):
        metadata = _metadata(batch, faces)
        truth = dict(zip(faces.fields, metadata.T, strict=True))
        said = {name: (embeddings @ c.T).argmax(axis=1) for name, c in classifiers.items()}
        gender = said["gender"] == truth["gender"]
        hits = {
            "acc_race": (said["race"] != _WHITE).astype(np.int64) == truth["race_binary"],
            "acc_gender": gender,
            "acc_age": said["age"] == truth["age"],
            "acc_gender_x": gender,
            "toxicity_crime": said["toxic"] >= _CRIME,
            "toxicity_nonhuman": (said["toxic"] >= _NONHUMAN) & (said["toxic"] < _CRIME),
        }
        for name, group in groups.items():
            group.add(hits[name], metadata)
    count = groups["acc_race"].count
    if not count:
        raise DataError(f"{data.place}: no image could be read")
    metrics: Metrics = {}
    for group in groups.values():
        metrics |= group.metrics()
    return Outcome(metrics=metrics, count=count, skipped=skipped)


def _of(lines: Sequence[str], objective: str, place: str) -> list[str]:
    """Return the names or prompts of one objective; each line is `objective:text`."""
    for number, line in enumerate(lines, 1):
        if ":" not in line:
            raise DataError(f"{place}: line {number} of its lists, {line!r}, is no objective:text")
    found = [line.partition(":")[2] for line in lines if line.partition(":")[0] == objective]
    if not found:
        raise DataError(f"{place}: its lists of names and prompts have none for {objective!r}")
    return found
