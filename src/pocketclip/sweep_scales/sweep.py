"""A reinforced set and held-out labelled images to the scales of its teachers.

Shapes: N images, C classes, D embedding, K teachers.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pocketclip import zoo
from pocketclip.errors import ConfigError, DataError, PocketclipError
from pocketclip.evaluate.classifier import build_classifier
from pocketclip.evaluate.datasets.examples import Example, TaskData
from pocketclip.evaluate.datasets.find import DataOptions
from pocketclip.evaluate.labelled import labelled_set
from pocketclip.evaluate.stream import RunOptions, Skipped, features, images_of
from pocketclip.sweep_scales.likelihood import (
    HIGHEST,
    LOWEST,
    Doubles,
    Fit,
    Integers,
    Mixture,
    Point,
    best_mixture,
    best_scale,
    mixture_at,
    point_at,
)
from pocketclip.sweep_scales.set_teachers import load_set_teachers, read_set
from pocketclip.types import Encoder

Watch = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
_DIGITS = 3
"""Significant digits of a scale in a recipe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSweep:
    """What one teacher's scale should be, and what is known of it otherwise."""

    name: str
    space_id: str
    accuracy: float
    """Zero-shot top-1 on the labelled images; no scale changes it."""
    best: Fit
    recorded: Point | None
    """The scale in the set's index, which training takes unless the recipe states another."""
    published: Point | None
    """The scale that a paper found best for this model, if it is one of those."""

    def facts(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "name": self.name, "space_id": self.space_id, "accuracy": round(self.accuracy, 6),
            "best": self.best.facts(),
            "recorded": self.recorded and self.recorded.facts(),
            "published": self.published and self.published.facts(),
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """The scales of a set's teachers."""

    folder: str
    data: str
    images: int
    classes: int
    teachers: tuple[TeacherSweep, ...]
    own: Mixture | None
    """All teachers together, each at its own best scale; None for one teacher."""
    joint: Mixture | None = None
    """All together, at the scales that are best for their mixture; None if not asked for, or for
    one teacher."""
    skipped: tuple[Skipped, ...] = ()

    @property
    def scales(self) -> list[float]:
        """One scale per teacher, for `loss.teacher_scales`: the joint ones, else each best."""
        own = tuple(teacher.best.point.scale for teacher in self.teachers)
        return [_rounded(scale) for scale in (self.joint.scales if self.joint else own)]

    @property
    def setting(self) -> str:
        """The field of a train recipe, as `--set` takes it."""
        return f"loss.teacher_scales=[{','.join(f'{scale:g}' for scale in self.scales)}]"

    def facts(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "set": self.folder, "data": self.data, "images": self.images, "classes": self.classes,
            "teachers": [teacher.facts() for teacher in self.teachers],
            "together": self.own and self.own.facts(), "joint": self.joint and self.joint.facts(),
            "teacher_scales": self.scales, "setting": self.setting,
            "skipped": [f"{bad.name}: {bad.reason}" for bad in self.skipped],
        }  # fmt: skip


def _rounded(scale: float) -> float:
    return float(f"{scale:.{_DIGITS}g}")


def sweep_scales(
    folder: str,
    data: str,
    *,
    teachers: Sequence[str] = (),
    label_column: str | None = None,
    where: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    templates: Sequence[str] = (),
    samples: int = 0,
    joint: bool = False,
    lowest: float = LOWEST,
    highest: float = HIGHEST,
    run_options: RunOptions | None = None,
    device: str = "auto",
    offline: bool = False,
    watch: Watch = lambda _name, _total: nullcontext(lambda _count: None),
) -> SweepReport:
    """Return the logit scale that each teacher of a set prefers on labelled images.

    Use images like those of the set that no teacher was trained on. Of images that it was trained
    on a teacher is surer, and its scale comes out too high.

    Args:
        folder: a folder of reinforced shards; only its index is read.
        data: labelled images: a folder with one sub-folder per label, or a table as
            `pocketclip eval` takes it.
        teachers: MODEL or LABEL=MODEL, see `pocketclip.sweep_scales.set_teachers.assign`; without
            any, the models that the index names.
        label_column: the table's column of labels.
        where: column values; only rows with these values count.
        templates: prompts such as "a photo of {}."; by default the set's own.
        samples: the number of images to use, chosen by name; 0: all.
        joint: also search the scales that are best for the mixture of all teachers; the report's
            `scales` are then these.
        lowest: the smallest scale to try.
        highest: the largest.
        run_options: batch size, workers, whether to leave out unreadable images.
        device: as `pocketclip.reinforce.load_teacher`.
        offline: load teachers from the local cache only.
        watch: context manager around each teacher's work, given its name and the number of images;
            its value is called with numbers of finished images.

    Raises:
        ConfigError: a teacher is not found or did not make the set, or the range is empty.
        DataError: no index, no labels, fewer than two classes, or unreadable images.
        PocketclipError: a teacher cannot be loaded.
    """
    if not 0 < lowest < highest < math.inf:
        raise ConfigError(f"scales from {lowest:g} to {highest:g}: give a range above 0")
    if samples < 0:
        raise ConfigError(f"samples must be 0 (all) or more, not {samples}")
    index = read_set(folder)
    conditions = tuple(where.items()) if isinstance(where, Mapping) else tuple(where)
    options = DataOptions(label_column=label_column, where=conditions, templates=tuple(templates))
    _, labelled = labelled_set(data, options)
    classes = labelled.classes or []
    if len(classes) < 2:
        raise DataError(f"{data} has one class, {classes[0]!r}: a scale needs two or more")
    if samples:
        labelled = _choose(labelled, samples)
    settings = run_options or RunOptions()
    found: list[TeacherSweep] = []
    everything: list[Doubles] = []
    truth: Integers | None = None
    skipped: list[Skipped] = []
    models = load_set_teachers(index, folder, teachers, device=device, offline=offline)
    for stored, spec, teacher in models:
        name = str(stored.get("name") or teacher.name)
        with watch(name, labelled.total) as advance:
            cosines, labels, bad = _cosines(teacher, labelled, replace(settings, advance=advance))
        if truth is not None and not np.array_equal(labels, truth):
            raise PocketclipError(f"{data} changed while its images were read: start again")
        if len(set(labels.tolist())) < 2:
            raise DataError(
                f"{data}: all {len(labels)} images have the label {classes[labels[0]]!r}: a scale "
                "needs images of two classes or more"
            )
        truth, skipped = labels, bad
        everything.append(cosines)
        fit = best_scale(cosines, labels, lowest=lowest, highest=highest)
        recorded = stored.get("logit_scale")
        # Of the MODEL, not of the name in the index, which may be that of other weights.
        published = zoo.teacher_logit_scale(spec)
        found.append(TeacherSweep(
            name=name,
            space_id=teacher.space_id,
            accuracy=float((cosines.argmax(axis=1) == labels).mean()),
            best=fit,
            recorded=point_at(cosines, labels, recorded) if recorded else None,
            published=point_at(cosines, labels, published) if published else None,
        ))  # fmt: skip
    assert truth is not None
    own = [teacher.best.point.scale for teacher in found]
    several = len(found) > 1
    return SweepReport(
        folder=folder, data=data, images=len(truth), classes=len(classes), teachers=tuple(found),
        own=mixture_at(everything, truth, own) if several else None,
        joint=best_mixture(everything, truth, own, lowest=lowest, highest=highest)
        if several and joint else None,
        skipped=tuple(skipped),
    )  # fmt: skip


def _cosines(
    teacher: Encoder, labelled: TaskData, settings: RunOptions
) -> tuple[Doubles, Integers, list[Skipped]]:
    """Return the cosines (N, C) of images and classes, the labels (N,), and the skipped images."""
    classes, templates = labelled.classes or [], labelled.templates or []
    # No cache: teachers of other libraries may compute in other precisions under one space_id.
    classifier = build_classifier(teacher, classes, templates, cache=None)
    images, labels, skipped = features(teacher, labelled, settings)
    cosines: Doubles = images.astype(np.float64) @ classifier.astype(np.float64).T
    return cosines, labels, skipped


def _choose(labelled: TaskData, count: int) -> TaskData:
    """Return a set with about `count` of the images, chosen by a hash of their names."""

    def rank(example: Example) -> str:
        name = example.name.encode("utf-8", "surrogatepass")
        return hashlib.sha256(b"sweep-scales " + name).hexdigest()

    ranked = ((rank(example), at, example) for at, example in enumerate(images_of(labelled)))
    chosen = [example for _, _, example in sorted(heapq.nsmallest(count, ranked), key=_position)]
    return replace(labelled, samples=lambda: iter(chosen), total=len(chosen))


def _position(ranked: tuple[str, int, Example]) -> int:
    return ranked[1]
