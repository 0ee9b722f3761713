"""Results side by side, task by task, with the averages that may be made of them.

    runs = gather(["results.jsonl", "mobileclip2-s0"])
    comparison = compare(runs)
    comparison.average.values              # one mean per run, over the tasks that all have

Values are fractions, as in the results files; `pocketclip.evaluate.report.page` draws the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pocketclip.evaluate.report.runs import Run
from pocketclip.evaluate.results import average_38
from pocketclip.evaluate.tasks import DATACOMP38, MAIN_METRICS, TASKS, find_task

# FairFace and UTKFace have no main metric: these stand for them, outside the averages.
_FACES = {"acc_race_avg": "race", "acc_gender_avg": "gender", "acc_age_avg": "age"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: a task, or one named value of a task without a main metric."""

    key: str
    label: str
    metric: str
    values: tuple[float | None, ...]
    """One per run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One figure per run that tells them apart, and what it is."""

    label: str
    values: tuple[float, ...]
    tasks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs beside each other."""

    runs: list[Run]
    rows: list[Row]
    average: Measure | None
    """The mean over the tasks that all runs have; None where there is no such task."""
    average_38: tuple[float | None, ...]
    """DataComp's average; None for each run that lacks one of its tasks."""
    notes: list[str]
    """What makes values less comparable than they look."""
    selected: frozenset[str] | None = None
    """The keys of the tasks that were asked for; None for all."""

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain JSON types, values by the runs' titles."""
        titles = [run.title for run in self.runs]
        mean = self.average
        return {
            "models": [
                {"title": r.title, "model": r.model, "origin": r.origin,
                 "published": r.published, "space_id": r.space_id}
                for r in self.runs
            ],
            "tasks": [
                {"key": row.key, "dataset": row.label, "metric": row.metric,
                 "values": dict(zip(titles, row.values, strict=True))}
                for row in self.rows
            ],
            "average": mean and {"tasks": mean.tasks,
                                 "values": dict(zip(titles, mean.values, strict=True))},
            "average_38": dict(zip(titles, self.average_38, strict=True)),
            "notes": self.notes,
        }  # fmt: skip


def compare(runs: Sequence[Run], tasks: Iterable[str] = ()) -> Comparison:
    """Put runs beside each other, task by task in the order of the published table.

    Args:
        runs: from `gather`.
        tasks: keys or short names of the tasks wanted; without any, all that a run has.

    Raises:
        ConfigError: a task that neither the table nor any of the runs has.
    """
    keys, selected = _keys(runs, list(tasks))
    rows = [row for key in keys for row in _rows(key, runs)]
    whole = selected is None or selected.issuperset(DATACOMP38)
    averages = tuple(average_38({k: run.main(k) for k in DATACOMP38}) if whole else None
                     for run in runs)  # fmt: skip
    return Comparison(runs=list(runs), rows=rows, average=_mean(runs, keys), average_38=averages,
                      notes=_notes(runs, keys), selected=selected)  # fmt: skip


def _keys(runs: Sequence[Run], tasks: list[str]) -> tuple[list[str], frozenset[str] | None]:
    own = dict.fromkeys(key for run in runs for key in run.metrics if key not in TASKS)
    if not tasks:
        return _present(runs), None
    wanted = {name if name in own else find_task(name).key for name in tasks}
    return [key for key in (*TASKS, *own) if key in wanted], frozenset(wanted)


def _present(runs: Sequence[Run]) -> list[str]:
    """Return the tasks that any run has, the user's own last."""
    found = dict.fromkeys(key for run in runs for key in run.metrics)
    return [*(key for key in TASKS if key in found), *(key for key in found if key not in TASKS)]


def _rows(key: str, runs: Sequence[Run]) -> list[Row]:
    task = TASKS.get(key)
    label = (
        task.dataset if task else next((r.datasets[key] for r in runs if key in r.datasets), key)
    )
    if task is not None and task.main_metric is None:
        return [
            Row(
                key=key,
                label=f"{label}, {question}",
                metric=metric,
                values=tuple(run.metrics.get(key, {}).get(metric) for run in runs),
            )
            for metric, question in _FACES.items()
        ]
    metric = (task and task.main_metric) or _own_metric(key, runs)
    values = tuple(run.main(key) for run in runs)
    return [Row(key=key, label=label, metric=metric, values=values)]


def _own_metric(key: str, runs: Sequence[Run]) -> str:
    for run in runs:
        about = run.about.get(key, {})
        metric = about.get("metric") or MAIN_METRICS.get(about.get("kind", ""))
        if isinstance(metric, str):
            return metric
    return "main_metric"


def _mean(runs: Sequence[Run], keys: Iterable[str]) -> Measure | None:
    columns = [[run.main(key) for run in runs] for key in keys]
    whole = [[v for v in column if v is not None] for column in columns]
    common = [column for column in whole if len(column) == len(runs)]
    if not common:
        return None
    means = tuple(math.fsum(values) / len(common) for values in zip(*common, strict=True))
    unit = "1 task" if len(common) == 1 else f"{len(common)} tasks"
    label = f"average over the {unit} that all have"
    return Measure(label=label, values=means, tasks=len(common))


def measure(runs: Sequence[Run], selected: frozenset[str] | None = None) -> Measure | None:
    """Return one figure that all runs have, for a plot; None where they have no task in common.

    It is the 38-task average, else ImageNet top-1, else the mean over the tasks that all have.

    Args:
        runs: at least one.
        selected: the keys of the tasks that may be used; None for all.
    """
    if selected is None or selected.issuperset(DATACOMP38):
        found = [average_38({key: run.main(key) for key in DATACOMP38}) for run in runs]
        values = tuple(value for value in found if value is not None)
        if len(values) == len(runs):
            return Measure(label="38-task average", values=values, tasks=len(DATACOMP38))
    if selected is None or "imagenet1k" in selected:
        values = tuple(v for run in runs if (v := run.main("imagenet1k")) is not None)
        if len(values) == len(runs):
            return Measure(label="ImageNet top-1", values=values, tasks=1)
    return _mean(runs, [k for k in _present(runs) if selected is None or k in selected])


def _notes(runs: Sequence[Run], keys: Iterable[str]) -> list[str]:
    notes = []
    for key in keys:
        having = [(run, run.about[key]) for run in runs if run.about.get(key)]
        for run, about in having:
            if about.get("skipped"):
                notes.append(f"{key}: {run.title} left out {about['skipped']} unreadable images")
        known = [(run, a["identity"]) for run, a in having if a.get("identity") is not None]
        other = next((run for run, identity in known if identity != known[0][1]), None)
        if other is not None:
            notes.append(f"{key}: {known[0][0].title} and {other.title} were not given the same "
                         "data, class names and prompts")  # fmt: skip
    return notes


def averages(comparison: Comparison) -> list[tuple[str, tuple[float | None, ...]]]:
    """Return the last rows of a table: their names, and a value per run."""
    found: list[tuple[str, tuple[float | None, ...]]] = []
    if comparison.average is not None:
        found.append((comparison.average.label, comparison.average.values))
    if any(value is not None for value in comparison.average_38):
        found.append(("38-task average", comparison.average_38))
    return found


def best(values: Iterable[float | None]) -> float | None:
    """Return the highest value where there are two or more."""
    found = [value for value in values if value is not None]
    return max(found) if len(found) > 1 else None


def percent(value: float | None) -> str:
    """Return a fraction in per cent with one decimal, or a dash."""
    return "-" if value is None else f"{100 * value:.1f}"


def points_between(values: Sequence[float | None]) -> str:
    """Return the second value minus the first in points, with its sign."""
    first, second = values
    if first is None or second is None:
        return "-"
    points = round(100 * (second - first), 1)
    return f"{points:+.1f}" if points else "0.0"
