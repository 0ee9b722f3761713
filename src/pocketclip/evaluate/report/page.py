"""The page of a comparison: plots, the table of tasks, and where the figures come from.

page = comparison_page(compare(gather(["results.jsonl", "mobileclip2-s0"])))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pocketclip.evaluate.report.compare import (
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
from pocketclip.evaluate.report.markup import document, table, text, write_page
from pocketclip.evaluate.report.plot import Level, Plot, Point, Series
from pocketclip.evaluate.report.runs import PUBLISHED, Run, published_run

__all__ = ["comparison_page", "confusion_page", "measured_models", "write_page"]

_PAPERS = "MobileCLIP (arXiv 2311.17049) and MobileCLIP2 (arXiv 2508.20691)"


def comparison_page(comparison: Comparison, latency: LatencyFile | None = None) -> str:
    """Return one self-contained HTML page.

    Args:
        comparison: what to show.
        latency: times measured here; they get a plot of their own, never a published axis.

    Raises:
        DataError: none of the models compared was measured, or no form of all of them.
    """
    titles = [run.title for run in comparison.runs]
    # A list of names that a person can take in; the table has them all.
    named = " and ".join(titles) if len(titles) < 3 else f"{len(titles)} models"
    parts = [f"<p>{text(_summary(comparison))}</p>"]
    parts.append(_published_plot(comparison))
    if latency is not None:
        parts.append(_measured_plot(comparison, latency))
    parts += ["<h2>Tasks</h2>", _task_table(comparison)]
    parts += ["<h2>Where the figures come from</h2>", _origins(comparison, latency)]
    return document(f"Accuracy of {named}", "\n".join(parts))


def measured_models(comparison: Comparison, latency: LatencyFile) -> Measured:
    """Return the times of the models compared.

    Raises:
        DataError: as `LatencyFile.of`.
    """
    return latency.of([_architecture(run) for run in comparison.runs])


def _summary(comparison: Comparison) -> str:
    runs, mean = comparison.runs, comparison.average
    complete = [(v, r.title) for r, v in zip(runs, comparison.average_38, strict=True)
                if v is not None]  # fmt: skip
    if len(complete) == len(runs):
        highest, title = max(complete)
        if len(runs) == 1:
            return f"{title} reaches {percent(highest)} % on average over DataComp's 38 tasks."
        lowest, last = min(complete)
        return (f"Over DataComp's 38 tasks {title} is the best with {percent(highest)} % on "
                f"average; {last} has the lowest average, {percent(lowest)} %.")  # fmt: skip
    if mean is None:
        return "These models have no task in common, so there is no average over them."
    tasks = "one task" if mean.tasks == 1 else f"{mean.tasks} tasks"
    other = "That is not the 38-task average, which takes all of DataComp's tasks."
    if len(runs) == 1:
        return f"{runs[0].title} has {percent(mean.values[0])} % on average over {tasks}. {other}"
    highest, title = max(zip(mean.values, [run.title for run in runs], strict=True))
    return (f"Over the {tasks} that all {len(runs)} models have, {title} is the best with "
            f"{percent(highest)} % on average. {other}")  # fmt: skip


def _series(run: Run) -> Series:
    if not run.published:
        return "own"
    return "v2" if run.title.startswith("mobileclip2-") else "v1"


def _short(run: Run) -> str:
    """Return `v2 S0` for mobileclip2-s0; the title of a model of the user's."""
    if not run.published:
        return run.title
    return f"{_series(run)} {run.title.partition('-')[2].upper()}"


def _points(runs: Sequence[Run], figure: Measure, times: Iterable[float | None],
            compared: int) -> list[Point]:  # fmt: skip
    return [
        Point(name=run.title, label=_short(run), series=_series(run), ms=ms,
              value=100 * value, compared=position < compared)
        for position, (run, value, ms) in enumerate(zip(runs, figure.values, times, strict=True))
        if ms is not None
    ]  # fmt: skip


def _others(runs: Sequence[Run]) -> list[Run]:
    there = {run.title for run in runs if run.published}
    return [published_run(name) for name in PUBLISHED if name not in there]


def _published_plot(comparison: Comparison) -> str:
    heading = "<h2>Accuracy against published latency</h2>"
    runs = [*comparison.runs, *_others(comparison.runs)]
    figure = measure(runs, comparison.selected)
    if figure is None:
        return (f"{heading}\n<p>The published models and these have no task in common, so there "
                "is nothing to draw.</p>")  # fmt: skip
    # A model of the user's has no time on that device, even with a published architecture.
    times = [published_ms(run.title) if run.published else None for run in runs]
    levels = [
        Level(name=run.title, value=100 * value, remark="no latency on that device")
        for run, value in zip(runs, figure.values, strict=True)
        if not run.published
    ]
    points = _points(runs, figure, times, len(comparison.runs))
    drawn = Plot(
        identity="published",
        title=f"{figure.label} against published latency",
        description=_described(points, levels),
        x_label=f"published ms, image + text ({DEVICE}, log)",
        y_label=f"{figure.label}, %",
        points=points,
        levels=levels,
    ).svg()
    dashed = " Dashed: a model without a latency on that device." if levels else ""
    return (
        f"{heading}\n<figure>\n{drawn}\n<figcaption>One image and one text on an {DEVICE}, as "
        f"published; the axis of latency is logarithmic.{dashed}</figcaption>\n</figure>"
    )


def _measured_plot(comparison: Comparison, latency: LatencyFile) -> str:
    times = measured_models(comparison, latency)
    here = [run for run in comparison.runs if _architecture(run) in times.ms]
    others = [run for run in _others(comparison.runs) if latency.total(run.title, times.form)]
    heading = "<h2>Accuracy against latency measured here</h2>"
    shown, figure = [*here, *others], measure([*here, *others], comparison.selected)
    if figure is None:  # sets of the user's own: no published model has results on them
        shown, figure = here, measure(here, comparison.selected)
    if figure is None:
        return f"{heading}\n<p>The models measured have no task in common.</p>"
    ms = [latency.total(_architecture(run), times.form) for run in shown]
    points = _points(shown, figure, ms, len(here))
    how = f"{times.form}, {times.threads} thread{'' if times.threads == 1 else 's'}"
    drawn = Plot(
        identity="measured",
        title=f"{figure.label} against latency measured here ({how})",
        description=_described(points, ()),
        x_label=f"measured ms, image + text ({how}, log)",
        y_label=f"{figure.label}, %",
        points=points,
    ).svg()
    left = [run.title for run in comparison.runs if _architecture(run) not in times.ms]
    lacking = f" Not measured: {text(', '.join(left))}." if left else ""
    return (
        f"{heading}\n<figure>\n{drawn}\n<figcaption>One image and one text, {text(how)}, on the "
        f"machine that wrote <code>{text(latency.place)}</code>; these times do not compare with "
        f"the published ones.{lacking}</figcaption>\n</figure>"
    )


def _described(points: Sequence[Point], levels: Sequence[Level]) -> str:
    with_time = "; ".join(f"{p.name} {p.ms:.3g} ms, {p.value:.1f} %" for p in points)
    without = "; ".join(f"{level.name} {level.value:.1f} %" for level in levels)
    return with_time + (f". No latency on that device: {without}" if levels else "") + "."


def _task_table(comparison: Comparison) -> str:
    runs = comparison.runs
    two = len(runs) == 2
    head = ["task", "metric", *(run.title for run in runs), *(["difference"] if two else [])]
    rows = [[text(row.label), text(row.metric), *_cells(row.values)]
            for row in comparison.rows]  # fmt: skip
    foot = [[text(label), "", *_cells(values)] for label, values in averages(comparison)]
    caption = "Main metric of each task in per cent; the best of a row is bold"
    caption += ", the difference is the second minus the first, in points." if two else "."
    return table(caption, head, rows, foot, kind="metrics")


def _cells(values: Sequence[float | None]) -> list[str]:
    highest = best(values)
    cells = [
        f"<strong>{percent(v)}</strong>" if v is not None and v == highest else percent(v)
        for v in values
    ]
    return [*cells, points_between(values)] if len(values) == 2 else cells


def _origins(comparison: Comparison, latency: LatencyFile | None) -> str:
    times = measured_models(comparison, latency).ms if latency else {}
    head = ["model", "results", "tasks", f"ms, published ({DEVICE})"]
    head += ["ms, measured here"] if latency else []
    rows = []
    for run in comparison.runs:
        published = published_ms(run.title) if run.published else None
        origin = "published" if run.published else f"<code>{text(run.origin)}</code>"
        row = [text(run.title), origin, str(len(run.metrics)), _ms(published)]
        rows.append([*row, _ms(times.get(_architecture(run)))] if latency else row)
    parts = [table("Latency is for one image and one text.", head, rows, kind="names")]
    parts.append(
        f"<p>Published results and latency are those of {_PAPERS}; the tasks and their main "
        "metrics are those of DataComp (arXiv 2304.14108). All other values were read from the "
        "files named here. FairFace and UTKFace have no main metric; their accuracies are shown "
        "by question and are part of no average.</p>"
    )
    if comparison.notes:
        notes = "".join(f"<li>{text(note)}</li>" for note in comparison.notes)
        parts.append(f"<p>What compares less well than it looks:</p>\n<ul>{notes}</ul>")
    return "\n".join(parts)


def _architecture(run: Run) -> str:
    return run.model or run.title


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
