"""The charts of a comparison: accuracy against latency, parameters and operations.

chart = size_chart(comparison, "parameters")
svg_file(chart)                        # a picture of its own

The published models of the zoo and some of others stand beside what is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pocketclip import zoo as zoo_models
from pocketclip.errors import count_of
from pocketclip.evaluate.report.comparison import Comparison, Measure, measure
from pocketclip.evaluate.report.figures import figures_of
from pocketclip.evaluate.report.latency import DEVICE, LatencyFile, Measured
from pocketclip.evaluate.report.runs import PUBLISHED, Run, published_run, rival_run
from pocketclip.evaluate.rivals import FAMILIES, SHOWN
from pocketclip.pages.svg import Chart, Mark, Series

Against = Literal["latency", "parameters", "operations"]
Value = Callable[[Run], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """What accuracy is drawn against."""

    name: str
    title: str
    label: str
    unit: str
    missing: str
    value: Value
    how: Callable[[Run], str] = lambda _run: ""


_AXES: dict[Against, _Axis] = {
    "latency": _Axis(
        name="published",
        title=f"published latency ({DEVICE})",
        label=f"published ms, image + text ({DEVICE}, log)",
        unit="ms",
        missing="no latency on that device",
        value=lambda run: figures_of(run).ms,
        how=lambda run: figures_of(run).how,
    ),
    "parameters": _Axis(
        name="parameters",
        title="parameters",
        label="million parameters, image + text (log)",
        unit="million parameters",
        missing="size not recorded",
        value=lambda run: figures_of(run).params_million,
    ),
    "operations": _Axis(
        name="operations",
        title="operations",
        label="GFLOP, image + text (log)",
        unit="GFLOP",
        missing="size not recorded",
        value=lambda run: figures_of(run).gflop,
    ),
}
_LEGEND: dict[Series, str] = {
    "v1": "MobileCLIP (v1)", "v2": "MobileCLIP2 (v2)", "own": "your models",
    **dict(FAMILIES.items()),
}  # fmt: skip
AGAINST: tuple[Against, ...] = tuple(_AXES)


def size_chart(comparison: Comparison, against: Against) -> Chart | None:
    """Return accuracy against published latency, parameters or operations.

    A user's own model without that figure is drawn as a line. A model of others without it is
    left out: `not_drawn` names them.

    Returns:
        None without a task common to all.
    """
    axis = _AXES[against]
    runs = [run for run in comparison.runs if not _is_left_out(run, axis)]
    titles = {run.title for run in comparison.runs if run.published}
    zoo = [published_run(name) for name in PUBLISHED if name not in titles]
    others = [run for name in SHOWN if name not in titles
              and not _is_left_out(run := rival_run(name), axis)]  # fmt: skip
    figure = measure([*runs, *zoo, *others], comparison.selected)
    return _chart(axis, runs, [*zoo, *others], figure)


def not_drawn(comparison: Comparison, against: Against) -> list[str]:
    """Return the titles of the compared models that `size_chart` leaves out."""
    return [run.title for run in comparison.runs if _is_left_out(run, _AXES[against])]


def measured_chart(comparison: Comparison, latency: LatencyFile, times: Measured) -> Chart | None:
    """Return accuracy against latency measured here; None without a task common to all."""

    def ms(run: Run) -> float | None:
        return latency.total(architecture(run), times.variant)

    how = f"{times.variant}, {count_of(times.threads, 'thread')}"
    axis = _Axis(
        name="measured",
        title=f"measured latency ({how})",
        label=f"measured ms, image + text ({how}, log)",
        unit="ms",
        missing="",
        value=ms,
    )
    runs = [run for run in comparison.runs if architecture(run) in times.ms]
    titles = {run.title for run in comparison.runs if run.published}
    others = [run for name in PUBLISHED if name not in titles and ms(run := published_run(name))]
    figure = measure([*runs, *others], comparison.selected)
    if figure is None:  # on a user's own sets, published models have no results
        figure, others = measure(runs, comparison.selected), []
    return _chart(axis, runs, others, figure)


def architecture(run: Run) -> str:
    """Return the name under which a run's latency may have been measured; empty if none may.

    What a model of the zoo takes says nothing about one that only bears its name.
    """
    if run.model is not None:
        return run.model
    return "" if zoo_models.find(run.title) else run.title


def _is_left_out(run: Run, axis: _Axis) -> bool:
    return run.rival is not None and axis.value(run) is None


def _chart(
    axis: _Axis, runs: Sequence[Run], others: Iterable[Run], figure: Measure | None
) -> Chart | None:
    """Return accuracy against an axis; None without a figure of accuracy.

    Args:
        axis: what it is drawn against.
        runs: compared ones; those without a value are drawn as lines.
        others: published ones, drawn hollow.
        figure: the accuracy of both.
    """
    if figure is None:
        return None
    everyone = [*runs, *others]
    values = zip(everyone, figure.values, strict=True)
    marks = [_mark(run, 100 * value, axis, filled=at < len(runs))
             for at, (run, value) in enumerate(values)]  # fmt: skip
    return Chart(
        name=axis.name,
        title=f"{figure.label} against {axis.title}",
        description="; ".join(mark.tooltip for mark in marks) + ".",
        x_label=axis.label,
        y_label=f"{figure.label}, %",
        marks=marks,
        joined=("v1", "v2"),
        legend=_LEGEND,
        hollow="hollow: not compared",
    )


def _mark(run: Run, value: float, axis: _Axis, *, filled: bool) -> Mark:
    title, x = run.title, axis.value(run)
    series: Series = "own"
    label, how = title, axis.how(run)
    if run.rival is not None:
        series, label = run.rival.family, run.rival.label
    elif run.published:
        series = "v2" if title.startswith("mobileclip2-") else "v1"
        # "v2 S0" for mobileclip2-s0
        label = f"{series} {title.partition('-')[2].upper()}"
    shown = axis.missing if x is None else f"{x:.3g} {axis.unit}"
    return Mark(
        name=title,
        x=x,
        y=value,
        series=series,
        label=label,
        remark="" if x else f" {value:.1f}: {axis.missing}",
        tooltip=f"{title}: {value:.1f} %, {shown}" + (f" ({how})" if how else ""),
        filled=filled,
    )
