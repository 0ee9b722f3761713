"""The tasks of the published tables (names, main metrics, groups) and the published results.

    find_task("cifar100").main_metric            # "acc1"; its key is "vtab/cifar100"
    published_results()["mobileclip-s0"]["imagenet1k"]["acc1"]

38 tasks are DataComp's (arXiv 2304.14108, appendix N) and form the published average; 12 more are
reported beside them. `data/published` holds the tables.
"""

from __future__ import annotations

import csv
import difflib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from pocketclip.errors import ConfigError

Kind = Literal["classification", "faces", "retrieval", "caption_choice", "association"]
Metrics = dict[str, float | None]
"""Values by name; None if undefined, as the top 5 of two classes or an empty group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """Accuracy within groups defined by a set's metadata."""

    fields: tuple[str, ...]
    """Names of the metadata columns, in order."""
    by: tuple[str, ...]
    """The fields whose values define the groups."""
    metric: Literal["acc", "acc_top5"] = "acc"
    worst: str = "acc_wg"
    """Name of the lowest value of any non-empty group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """An evaluation set and its scoring."""

    key: str
    """DataComp's name, for instance `vtab/cifar100`, or the name of the user's own set."""
    dataset: str
    """Display name."""
    main_metric: str | None = None
    """None if the published results name none, or if the kind decides."""
    in_average: bool = False
    """Whether the task is one of the 38."""
    kind: Kind | None = None
    """How the task is scored; None if the set decides."""
    groupings: tuple[Grouping, ...] = ()
    macro: bool = False
    """Whether to report macro averages, as WILDS does for iWildCam."""


MAIN_METRICS: dict[Kind, str | None] = {
    "classification": "acc1",
    "faces": None,
    "retrieval": "mean_recall@1",
    "caption_choice": "acc",
    "association": "jaccard_score_10-12",
}
"""The main metric of a task that is not in the table, by kind."""

_FMOW = ("region", "year", "y")
_FACES = ("age", "gender", "race", "race_binary")
_GROUPINGS = {
    "wilds/camelyon17": (Grouping(fields=("hospital", "slide", "y"), by=("slide",)),),
    "wilds/fmow": (
        Grouping(fields=_FMOW, by=("year",), worst="acc_worst_year"),
        Grouping(fields=_FMOW, by=("region",), worst="acc_worst_region"),
    ),
    "fairness/dollar_street": (
        Grouping(
            fields=("income_ds", "income_meta", "region"),
            by=("income_ds",),
            metric="acc_top5",
            worst="acc_top5_wg",
        ),
    ),
    "fairness/geode": (Grouping(fields=("region", "country"), by=("region",)),),
    # The groups of faces differ between metrics: see `zeroshot.run_faces`.
    "fairness/fairface": (Grouping(fields=_FACES, by=("race_binary",)),),
    "fairness/utkface": (Grouping(fields=_FACES, by=("race_binary",)),),
}


def _kind(key: str) -> Kind:
    if key in ("fairness/fairface", "fairness/utkface"):
        return "faces"
    if key.startswith(("retrieval/", "longclip/")):
        return "retrieval"
    if key.startswith("comp/"):
        return "caption_choice"
    return "association" if key == "misc/winogavil" else "classification"


def published_rows(name: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a table in `data/published`, by column."""
    table = resources.files("pocketclip") / "data" / "published" / name
    yield from csv.DictReader(table.read_text("utf-8").splitlines())


TASKS: dict[str, Task] = {
    row["task"]: Task(
        key=row["task"],
        dataset=row["dataset"],
        main_metric=row["main_metric"] or None,
        in_average=row["in_average_38"] == "1",
        kind=_kind(row["task"]),
        groupings=_GROUPINGS.get(row["task"], ()),
        macro=row["task"] == "wilds/iwildcam",
    )
    for row in published_rows("tasks.csv")
}
DATACOMP38 = tuple(key for key, task in TASKS.items() if task.in_average)
SUITES = {"datacomp38": DATACOMP38, "all": tuple(TASKS)}
# Usual short names of tasks whose key has an unwieldy last part.
_SHORT = {
    "flickr": "retrieval/flickr_1k_test_image_text_retrieval",
    "flickr30k": "retrieval/flickr_1k_test_image_text_retrieval",
    "mscoco": "retrieval/mscoco_2014_5k_test_image_text_retrieval",
    "coco": "retrieval/mscoco_2014_5k_test_image_text_retrieval",
    "imagenet": "imagenet1k",
}


def find_task(name: str) -> Task:
    """Return the task with this key, last part of a key, or usual short name.

    Raises:
        ConfigError: no such task; the message suggests similar names.
    """
    requested = name.strip().lower()
    short = {key.rpartition("/")[2]: key for key in TASKS} | _SHORT
    key = requested if requested in TASKS else short.get(requested)
    if key is None:
        known = dict.fromkeys([*TASKS, *short])
        near = difflib.get_close_matches(requested, known, n=3, cutoff=0.5)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise ConfigError(f"no task {name!r} in the published tables{hint}")
    return TASKS[key]


def suite(name: str) -> tuple[str, ...]:
    """Return the task keys of a suite.

    Raises:
        ConfigError: no suite has this name.
    """
    if name not in SUITES:
        raise ConfigError(f"no suite {name!r}; choose from: {', '.join(SUITES)}")
    return SUITES[name]


@functools.cache
def published_results() -> dict[str, dict[str, Metrics]]:
    """Return the published values by model, task key and metric; None for empty groups."""
    results: dict[str, dict[str, Metrics]] = {}
    for row in published_rows("results.csv"):
        value = float(row["value"])
        metrics = results.setdefault(row["model"], {}).setdefault(row["task"], {})
        metrics[row["metric"]] = None if math.isnan(value) else value
    return results
