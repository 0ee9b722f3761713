"""The page of a comparison: charts, the table of tasks, and where the figures come from.

page = comparison_page(compare(gather(["results.jsonl", "mobileclip2-s0"])))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pocketclip.errors import count_of
from pocketclip.evaluate.report.comparison import (
    Comparison,
    averages,
    best,
    measure,
    percent,
    points_between,
)
from pocketclip.evaluate.report.confusion import confusion_page
from pocketclip.evaluate.report.latency import DEVICE, LatencyFile, Measured, published_ms
from pocketclip.evaluate.report.runs import PUBLISHED, Run, published_run
from pocketclip.pages.render import element, render, write_page
from pocketclip.pages.svg import NARROW, WIDE, Chart, Drawing, Mark, Series

__all__ = ["comparison_page", "confusion_page", "measured_models", "write_page"]


def comparison_page(comparison: Comparison, latency: LatencyFile | None = None) -> str:
    """Return one self-contained HTML page.

    Args:
        comparison: the runs and their results.
        latency: times measured here, shown in a separate chart.

    Raises:
        DataError: none of the compared models was measured, or no variant of all of them.
    """
    runs = comparison.runs
    titles = [run.title for run in runs]
    # A title short enough to read; the table lists all models.
    names = " and ".join(titles) if len(titles) < 3 else f"{len(titles)} models"
    times = measured_models(comparison, latency) if latency else None
    return render(
        "comparison.html",
        "pocketclip.evaluate.report",
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
    ms = [_published_ms(run), *([times.ms.get(_architecture(run))] if times else [])]
    origin = "published" if run.published else element("code", run.origin)
    return [run.title, origin, len(run.metrics), *("-" if t is None else f"{t:.1f}" for t in ms)]


def _ranked(runs: Sequence[Run], values: Sequence[float | None]) -> list[tuple[float, str]]:
    """Return values and titles, the lowest first; empty if a run has no value."""
    ranked = sorted((v, run.title) for run, v in zip(runs, values, strict=True) if v is not None)
    return ranked if len(ranked) == len(runs) else []


def _published_chart(comparison: Comparison) -> list[Drawing]:
    others = _other_published(comparison.runs)
    return _chart("published", DEVICE, comparison, comparison.runs, others, _published_ms)


def _measured_chart(comparison: Comparison, latency: LatencyFile, times: Measured) -> list[Drawing]:
    def ms(run: Run) -> float | None:
        return latency.total(_architecture(run), times.variant)

    runs = [run for run in comparison.runs if _architecture(run) in times.ms]
    others = [run for run in _other_published(comparison.runs) if ms(run)]
    how = f"{times.variant}, {count_of(times.threads, 'thread')}"
    return (
        _chart("measured", how, comparison, runs, others, ms)
        # On a user's own sets, published models have no results.
        or _chart("measured", how, comparison, runs, [], ms)
    )


def _chart(
    name: str,
    how: str,
    comparison: Comparison,
    runs: Sequence[Run],
    others: Sequence[Run],
    ms_of: Callable[[Run], float | None],
) -> list[Drawing]:
    """Return both sizes of accuracy against latency; empty without a task common to all.

    Args:
        name: the kind of latency.
        how: it was measured.
        comparison: chooses the tasks.
        runs: compared ones; those without a latency are drawn as lines.
        others: published ones, drawn hollow.
        ms_of: returns the latency of a run.
    """
    figure = measure([*runs, *others], comparison.selected)
    if figure is None:
        return []
    marks = [_mark(run, 100 * value, ms_of(run), filled=run in runs)
             for run, value in zip([*runs, *others], figure.values, strict=True)]  # fmt: skip
    chart = Chart(
        name=name,
        title=f"{figure.label} against {name} latency ({how})",
        description="; ".join(mark.tooltip for mark in marks) + ".",
        x_label=f"{name} ms, image + text ({how}, log)",
        y_label=f"{figure.label}, %",
        marks=marks,
        joined=("v1", "v2"),
        legend={"v1": "MobileCLIP (v1)", "v2": "MobileCLIP2 (v2)", "own": "your models"},
        hollow="hollow: not in the table below",
    )
    return [Drawing(chart, size) for size in (WIDE, NARROW)]


def _mark(run: Run, value: float, ms: float | None, *, filled: bool) -> Mark:
    title = run.title
    series: Series = "v2" if title.startswith("mobileclip2-") else "v1"
    # "v2 S0" for mobileclip2-s0
    label = f"{series} {title.partition('-')[2].upper()}" if run.published else title
    without = "no latency on that device"
    return Mark(
        name=title,
        x=ms,
        y=value,
        series=series if run.published else "own",
        label=label,
        remark="" if ms else f" {value:.1f}: {without}",
        tooltip=f"{title}: {value:.1f} %, " + (f"{ms:.3g} ms" if ms else without),
        filled=filled,
    )


def _other_published(runs: Iterable[Run]) -> list[Run]:
    titles = {run.title for run in runs if run.published}
    return [published_run(name) for name in PUBLISHED if name not in titles]


def _published_ms(run: Run) -> float | None:
    # A user's model has no published latency, even with a published architecture.
    return published_ms(run.title) if run.published else None


def _architecture(run: Run) -> str:
    return run.model or run.title
