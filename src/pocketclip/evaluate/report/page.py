"""The page of a comparison: charts, the table of tasks, and where the figures come from.

page = comparison_page(compare(gather(["results.jsonl", "mobileclip2-s0"])))
"""

from __future__ import annotations

from collections.abc import Sequence

from pocketclip.evaluate.report.charts import (
    AGAINST,
    architecture,
    measured_chart,
    not_drawn,
    size_chart,
)
from pocketclip.evaluate.report.comparison import (
    Comparison,
    averages,
    best,
    percent,
    points_between,
)
from pocketclip.evaluate.report.confusion import confusion_page
from pocketclip.evaluate.report.figures import figures_of
from pocketclip.evaluate.report.latency import DEVICE, LatencyFile, Measured
from pocketclip.evaluate.report.runs import Run
from pocketclip.pages.render import element, render, write_page
from pocketclip.pages.svg import NARROW, WIDE, Chart, Drawing

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
        charts={against: _drawings(size_chart(comparison, against)) for against in AGAINST},
        not_drawn={against: not_drawn(comparison, against) for against in AGAINST},
        measured=(
            _drawings(measured_chart(comparison, latency, times)) if latency and times else []
        ),
        latency=latency,
        times=times,
        missing=[run.title for run in runs if times and architecture(run) not in times.ms],
        device=DEVICE,
        percent=percent,
        task_head=["task", "metric", *titles, *(["difference"] if len(runs) == 2 else [])],
        task_rows=[[row.label, row.metric, *_cells(row.values)] for row in comparison.rows],
        averages=[[label, "", *_cells(values)] for label, values in averages(comparison)],
        origin_head=["model", "results", "tasks", "million parameters", "GFLOP",
                     f"ms, published ({DEVICE})",
                     *(["ms, measured here"] if times else [])],
        origins=[_origin(run, times) for run in runs],
    )  # fmt: skip


def measured_models(comparison: Comparison, latency: LatencyFile) -> Measured:
    """Return the times of the models compared.

    Raises:
        DataError: as `LatencyFile.of`.
    """
    return latency.of([architecture(run) for run in comparison.runs])


def _cells(values: Sequence[float | None]) -> list[str]:
    highest = best(values)
    cells = [
        element("strong", percent(v)) if v is not None and v == highest else percent(v)
        for v in values
    ]
    return [*cells, points_between(values)] if len(values) == 2 else cells


def _origin(run: Run, times: Measured | None) -> list[object]:
    figures = figures_of(run)
    values = [figures.params_million, figures.gflop, figures.ms]
    cells = ["-" if value is None else f"{value:.1f}" for value in values]
    if figures.active_params_million is not None:
        cells[0] += f" ({figures.active_params_million:.1f} active)"
    if figures.how:
        cells[-1] += " (derived)"
    if times:
        ms = times.ms.get(architecture(run))
        cells.append("-" if ms is None else f"{ms:.1f}")
    origin = "published" if run.published else element("code", run.origin)
    return [run.title, origin, len(run.metrics), *cells]


def _ranked(runs: Sequence[Run], values: Sequence[float | None]) -> list[tuple[float, str]]:
    """Return values and titles, the lowest first; empty if a run has no value."""
    ranked = sorted((v, run.title) for run, v in zip(runs, values, strict=True) if v is not None)
    return ranked if len(ranked) == len(runs) else []


def _drawings(chart: Chart | None) -> list[Drawing]:
    """Return a chart in both sizes; empty without one."""
    return [] if chart is None else [Drawing(chart, size) for size in (WIDE, NARROW)]
