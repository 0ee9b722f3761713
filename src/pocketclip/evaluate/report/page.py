"""The page of a comparison: charts, the table of tasks, and where the figures come from.

page = comparison_page(compare(gather(["results.jsonl", "mobileclip2-s0"])))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pocketclip.evaluate.report.comparison import (
    Comparison,
    Measure,
    averages,
    best,
    measure,
    percent,
    points_between,
)
from pocketclip.evaluate.report.confusion import confusion_page
from pocketclip.evaluate.report.latency import DEVICE, LatencyFile, Measured, published_ms
from pocketclip.evaluate.report.render import element, render, write_page
from pocketclip.evaluate.report.runs import PUBLISHED, Run, published_run
from pocketclip.evaluate.report.svg import NARROW, WIDE, Chart, Drawing, Level, Mark, Series

__all__ = ["comparison_page", "confusion_page", "measured_models", "write_page"]

_LEGEND: dict[Series, str] = {
    "v1": "MobileCLIP (v1)",
    "v2": "MobileCLIP2 (v2)",
    "own": "your models",
}


def comparison_page(comparison: Comparison, latency: LatencyFile | None = None) -> str:
    """Return one self-contained HTML page.

    Args:
        comparison: the runs and their results.
        latency: times measured here; they get a chart of their own, never a published axis.

    Raises:
        DataError: none of the compared models was measured, or no variant of all of them.
    """
    runs = comparison.runs
    titles = [run.title for run in runs]
    # A list of names that a person can take in; the table has them all.
    names = " and ".join(titles) if len(titles) < 3 else f"{len(titles)} models"
    times = measured_models(comparison, latency) if latency else None
    return render(
        "comparison.html",
        title=f"Accuracy of {names}",
        comparison=comparison,
        complete=_ranked(runs, comparison.average_38),
        ranked=_ranked(runs, comparison.average.values) if comparison.average else [],
        published=_published_chart(comparison),
        measured=_measured_chart(comparison, latency, times) if latency and times else None,
        latency=latency,
        times=times,
        missing=[run.title for run in runs if times and _architecture(run) not in times.ms],
        device=DEVICE,
        percent=percent,
        task_head=["task", "metric", *titles, *(["difference"] if len(runs) == 2 else [])],
        task_rows=[[row.label, row.metric, *_cells(row.values)] for row in comparison.rows],
        averages=[[label, "", *_cells(values)] for label, values in averages(comparison)],
        origin_head=["model", "results", "tasks", f"ms, published ({DEVICE})",
                     *(["ms, measured here"] if times else [])],
        origins=[_origin(run, times) for run in runs],
    )  # fmt: skip


def measured_models(comparison: Comparison, latency: LatencyFile) -> Measured:
    """Return the times of the models compared.

    Raises:
        DataError: as `LatencyFile.of`.
    """
    return latency.of([_architecture(run) for run in comparison.runs])


def _cells(values: Sequence[float | None]) -> list[str]:
    highest = best(values)
    cells = [
        element("strong", percent(v)) if v is not None and v == highest else percent(v)
        for v in values
    ]
    return [*cells, points_between(values)] if len(values) == 2 else cells


def _origin(run: Run, times: Measured | None) -> list[object]:
    published = _published_ms(run)
    origin = "published" if run.published else element("code", run.origin)
    ms = [published, *([times.ms.get(_architecture(run))] if times else [])]
    return [run.title, origin, len(run.metrics), *("-" if t is None else f"{t:.1f}" for t in ms)]


def _ranked(runs: Sequence[Run], values: Sequence[float | None]) -> list[tuple[float, str]]:
    """Return values and titles, the lowest first; empty if a run has no value."""
    ranked = sorted((v, run.title) for run, v in zip(runs, values, strict=True) if v is not None)
    return ranked if len(ranked) == len(runs) else []


def _published_chart(comparison: Comparison) -> list[Drawing]:
    """Return both sizes; empty if these and the published models have no task in common."""
    runs = [*comparison.runs, *_other_published(comparison.runs)]
    figure = measure(runs, comparison.selected)
    if figure is None:
        return []
    levels = [
        Level(name=run.title, y=100 * value, remark="no latency on that device")
        for run, value in zip(runs, figure.values, strict=True)
        if not run.published
    ]
    marks = _marks(runs, figure, _published_ms, len(comparison.runs))
    title, label = (
        f"{figure.label} against published latency",
        f"published ms, image + text ({DEVICE}, log)",
    )
    return _drawings("published", title, label, figure, marks, levels)


def _measured_chart(comparison: Comparison, latency: LatencyFile, times: Measured) -> list[Drawing]:
    """Return both sizes; empty if the measured models have no task in common."""
    here = [run for run in comparison.runs if _architecture(run) in times.ms]
    others = [run for run in _other_published(comparison.runs)
              if latency.total(run.title, times.variant)]  # fmt: skip
    shown, figure = [*here, *others], measure([*here, *others], comparison.selected)
    if figure is None:  # sets of the user's own: no published model has results on them
        shown, figure = here, measure(here, comparison.selected)
    if figure is None:
        return []
    marks = _marks(
        shown, figure, lambda run: latency.total(_architecture(run), times.variant), len(here)
    )
    how = f"{times.variant}, {times.threads} thread{'' if times.threads == 1 else 's'}"
    title = f"{figure.label} against latency measured here ({how})"
    return _drawings(
        "measured", title, f"measured ms, image + text ({how}, log)", figure, marks, []
    )


def _drawings(name: str, against: str, x_label: str, figure: Measure, marks: Sequence[Mark],
              levels: Sequence[Level]) -> list[Drawing]:  # fmt: skip
    without = "; ".join(f"{level.name} {level.y:.1f} %" for level in levels)
    description = "; ".join(f"{m.name} {m.x:.3g} ms, {m.y:.1f} %" for m in marks)
    description += (f". No latency on that device: {without}" if levels else "") + "."
    chart = Chart(
        name=name,
        title=f"{figure.label} against {against}",
        description=description,
        x_label=x_label,
        y_label=f"{figure.label}, %",
        marks=marks,
        levels=levels,
        joined=("v1", "v2"),
        legend=_LEGEND,
        hollow="hollow: not in the table below",
    )
    return [Drawing(chart, size) for size in (WIDE, NARROW)]


def _marks(runs: Sequence[Run], figure: Measure, latency_of: Callable[[Run], float | None],
           compared: int) -> list[Mark]:  # fmt: skip
    marks = []
    for number, (run, value) in enumerate(zip(runs, figure.values, strict=True)):
        ms, series = latency_of(run), _series(run)
        if ms is not None:
            short = f"{series} {run.title.partition('-')[2].upper()}"  # "v2 S0" for mobileclip2-s0
            marks.append(Mark(name=run.title, x=ms, y=100 * value, series=series,
                              label=short if run.published else run.title,
                              tooltip=f"{run.title}: {100 * value:.1f} %, {ms:.3g} ms",
                              filled=number < compared))  # fmt: skip
    return marks


def _series(run: Run) -> Series:
    if not run.published:
        return "own"
    return "v2" if run.title.startswith("mobileclip2-") else "v1"


def _other_published(runs: Iterable[Run]) -> list[Run]:
    titles = {run.title for run in runs if run.published}
    return [published_run(name) for name in PUBLISHED if name not in titles]


def _published_ms(run: Run) -> float | None:
    # A model of the user's has no time on that device, even with a published architecture.
    return published_ms(run.title) if run.published else None


def _architecture(run: Run) -> str:
    return run.model or run.title
