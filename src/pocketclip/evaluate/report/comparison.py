"""Results side by side, task by task, with their averages.

    runs = gather(["results.jsonl", "mobileclip2-s0"])
    comparison = compare(runs)
    comparison.average.values              # one mean per run, over the tasks common to all

Values are fractions, as in the results files; `pocketclip.evaluate.report.page` draws the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pocketclip.errors import count_of
from pocketclip.evaluate.report.figures import figures_of
from pocketclip.evaluate.report.runs import Run
from pocketclip.evaluate.results import average_38
from pocketclip.evaluate.tasks import DATACOMP38, MAIN_METRICS, TASKS, find_task

# FairFace and UTKFace have no main metric: these stand for them, outside the averages.
_FACES = {"acc_race_avg": "race", "acc_gender_avg": "gender", "acc_age_avg": "age"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the table: a task, or one value of a task without a main metric."""

    key: str
    label: str
    metric: str
    values: tuple[float | None, ...]
    """One per run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One figure per run, and its label."""

    label: str
    values: tuple[float, ...]
    tasks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs side by side."""

    runs: list[Run]
    rows: list[Row]
    average: Measure | None
    """The mean over the tasks common to all runs; None if there is none."""
    average_38: tuple[float | None, ...]
    """DataComp's average; None for runs that lack one of its tasks."""
    notes: list[str]
    """Why some values are less comparable than they look."""
    selected: frozenset[str] | None = None
    """Keys of the requested tasks; None for all."""

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON types, values keyed by the runs' titles."""
        titles = [run.title for run in self.runs]
        mean = self.average
        return {
            "models": [
                {"title": r.title, "model": r.model, "origin": r.origin,
                 "published": r.published, "space_id": r.space_id, **figures_of(r).facts()}
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
    """Compare runs task by task, in the order of the published table.

    Args:
        runs: from `gather`.
        tasks: keys or short names; by default all tasks of any run.

    Raises:
        ConfigError: a task that is neither in the table nor in any run.
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
    requested = {name if name in own else find_task(name).key for name in tasks}
    return [key for key in (*TASKS, *own) if key in requested], frozenset(requested)


def _present(runs: Sequence[Run]) -> list[str]:
    """Return the tasks of any run, the user's own last."""
    keys = dict.fromkeys(key for run in runs for key in run.metrics)
    return [*(key for key in TASKS if key in keys), *(key for key in keys if key not in TASKS)]


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
    known = [[v for v in column if v is not None] for column in columns]
    common = [column for column in known if len(column) == len(runs)]
    if not common:
        return None
    means = tuple(math.fsum(values) / len(common) for values in zip(*common, strict=True))
    label = f"average over the {count_of(len(common), 'task')} that all have"
    return Measure(label=label, values=means, tasks=len(common))


def measure(runs: Sequence[Run], selected: frozenset[str] | None = None) -> Measure | None:
    """Return one figure per run for a chart; None without a task common to all runs.

    The figure is the 38-task average, else ImageNet top-1, else the mean over the common tasks.

    Args:
        runs: at least one.
        selected: keys of the tasks that may be used; None for all.
    """
    if selected is None or selected.issuperset(DATACOMP38):
        means = [average_38({key: run.main(key) for key in DATACOMP38}) for run in runs]
        values = tuple(value for value in means if value is not None)
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
        described = [(run, run.about[key]) for run in runs if run.about.get(key)]
        for run, about in described:
            if about.get("skipped"):
                notes.append(f"{key}: {run.title} skipped {about['skipped']} unreadable images")
        known = [(run, a["identity"]) for run, a in described if a.get("identity") is not None]
        other = next((run for run, identity in known if identity != known[0][1]), None)
        if other is not None:
            notes.append(f"{key}: {known[0][0].title} and {other.title} were not evaluated on "
                         "the same images, class names and prompts")  # fmt: skip
    return notes


def averages(comparison: Comparison) -> list[tuple[str, tuple[float | None, ...]]]:
    """Return the last rows of a table, label and one value per run, no row twice."""
    rows: list[tuple[str, tuple[float | None, ...]]] = []
    average, average_of_38 = comparison.average, comparison.average_38
    is_same = average and average.tasks == len(DATACOMP38) and None not in average_of_38
    if average is not None and not is_same:
        rows.append((average.label, average.values))
    if any(value is not None for value in average_of_38):
        rows.append(("38-task average", average_of_38))
    return rows


def best(values: Iterable[float | None]) -> float | None:
    """Return the highest of two or more values, else None."""
    known = [value for value in values if value is not None]
    return max(known) if len(known) > 1 else None


def percent(value: float | None) -> str:
    """Return a fraction in percent with one decimal, or a dash."""
    return "-" if value is None else f"{100 * value:.1f}"


def points_between(values: Sequence[float | None]) -> str:
    """Return the second value minus the first in points, with its sign."""
    first, second = values
    if first is None or second is None:
        return "-"
    points = round(100 * (second - first), 1)
    return f"{points:+.1f}" if points else "0.0"
