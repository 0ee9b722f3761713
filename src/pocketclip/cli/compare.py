"""`pocketclip compare`: results beside each other, in the terminal and as a page."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pocketclip.cli._options import Json, check_output_file
from pocketclip.cli.output import (
    Bold,
    Column,
    on_terminal,
    print_json,
    print_table,
    say,
    table_width,
)
from pocketclip.errors import PocketclipError

if TYPE_CHECKING:
    from pocketclip.evaluate.report.comparison import Comparison
    from pocketclip.evaluate.report.latency import Measured


def compare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Results files, run folders, or published models: of MobileCLIP (see `pocketclip "
            "models`) and of others (`pocketclip models --rivals`).",
        ),
    ],
    tasks: Annotated[
        str,
        typer.Option(
            help="Compare only these tasks, separated by commas, such as imagenet1k,cifar10."
        ),
    ] = "",
    suite: Annotated[
        str | None, typer.Option(help="Compare only the tasks of a suite: datacomp38 or all.")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a page with plots to this .html file."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write one plot of accuracy to this .svg file."),
    ] = None,
    against: Annotated[
        Literal["parameters", "operations", "latency"],
        typer.Option(help="What --plot shows accuracy against."),
    ] = "parameters",
    latency: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The output of benchmarks/encode.py on this computer, for a plot of accuracy "
            "against latency.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Compare models task by task: your own with each other and with published ones.

    Values are the main metric of each task, in percent; the best of a row is bold. The average
    over 38 tasks is shown only for models that have results for all of them. Models of others, such
    as SigLIP's and OpenAI's, are known by open_clip's names and the like.

    \b
    pocketclip compare results.jsonl mobileclip2-s0
    pocketclip compare runs/a runs/b --tasks imagenet1k,cifar10
    pocketclip compare mobileclip2-s4 siglip-so400m-14 --plot sizes.svg --against operations
    pocketclip compare results.jsonl mobileclip2-s0 --html page.html --latency encode.log
    """
    from pocketclip.evaluate.report import page, runs
    from pocketclip.evaluate.report.charts import size_chart
    from pocketclip.evaluate.report.comparison import compare as compare_runs
    from pocketclip.evaluate.report.latency import read_latency
    from pocketclip.evaluate.tasks import suite as keys_of
    from pocketclip.pages.svg import svg_file

    check_output_file("--html", html, (".html", ".htm"))
    check_output_file("--plot", plot, (".svg",))
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    comparison = compare_runs(runs.gather(sources), [*(keys_of(suite) if suite else ()), *names])
    times = read_latency(latency) if latency else None
    measured = page.measured_models(comparison, times) if times else None
    if html is not None:
        page.write_page(html, page.comparison_page(comparison, times))
    if plot is not None:
        chart = size_chart(comparison, against)
        if chart is None:
            raise PocketclipError(
                f"--plot {plot}: the published models and these have no task in common"
            )
        page.write_page(plot, svg_file(chart))
    if json:
        facts = comparison.as_json()
        print_json(facts | ({"latency": _latency(comparison, measured)} if measured else {}))
        return
    _print(comparison, measured)
    written = {html: "plots and tables", plot: f"accuracy against {against}"}
    for path, what in written.items():
        if path is not None:
            say()
            say(f"{path}: {what}")


def _times(comparison: Comparison, measured: Measured) -> list[float | None]:
    return [measured.ms.get(run.model or run.title) for run in comparison.runs]


def _latency(comparison: Comparison, measured: Measured) -> dict[str, Any]:
    titles = [run.title for run in comparison.runs]
    ms = dict(zip(titles, _times(comparison, measured), strict=True))
    return {"form": measured.variant, "threads": measured.threads, "ms": ms}


def _print(comparison: Comparison, measured: Measured | None) -> None:
    """Print the table; on a narrow terminal as several tables below each other."""
    from pocketclip.evaluate.report.comparison import averages
    from pocketclip.evaluate.report.figures import figures_of

    titles = ["\n".join(_broken(run.title)) for run in comparison.runs]
    labels = [row.label for row in comparison.rows] + [name for name, _ in averages(comparison)]
    sizes = _sizes(comparison)
    first = max(len(name) for name in ("task", *labels))
    width = table_width()
    if on_terminal():
        first = min(first, 30)  # it folds
    room = float("inf") if width is None else width - first - 2
    start = 0
    while start < len(titles):
        stop, used = start, 0
        while stop < len(titles) and (stop == start or used < room):
            used += max(6, *map(len, titles[stop].split("\n"))) + 2
            stop += used <= room or stop == start
        if start:
            say()
        _print_columns(comparison, titles, slice(start, stop), measured, sizes)
        start = stop
    for run in comparison.runs:
        if how := figures_of(run).how:
            say(f"~ latency of {run.title}, {how}", dim=True)
    for remark in comparison.notes:
        say(remark, dim=True)


def _broken(title: str) -> list[str]:
    parts = [part for part in re.split(r"(?<=/)", title) if part]
    lines = [line for part in parts for line in textwrap.wrap(part, 15, break_on_hyphens=True)]
    return lines or [title]


def _sizes(comparison: Comparison) -> list[tuple[str, list[str], str]]:
    """Return the rows of size and speed: label, a cell per model, and the ratio of the first two.

    Rows without any value are left out. A derived latency has a sign before it.
    """
    from pocketclip.evaluate.report.figures import figures_of
    from pocketclip.evaluate.report.latency import DEVICE

    figures = [figures_of(run) for run in comparison.runs]
    rows = {
        "parameters, millions": [f.params_million for f in figures],
        "active parameters, millions": [
            f.active_params_million or f.params_million for f in figures
        ],
        "operations, GFLOP": [f.gflop for f in figures],
        f"ms, image + text, {DEVICE}": [f.ms for f in figures],
    }
    if all(f.active_params_million is None for f in figures):
        del rows["active parameters, millions"]
    derived = [bool(f.how) for f in figures]
    lines = []
    for label, values in rows.items():
        signs = ["~" if d and label.startswith("ms") else "" for d in derived]
        cells = [
            "-" if value is None else f"{sign}{value:.1f}"
            for sign, value in zip(signs, values, strict=True)
        ]
        first, second = (*values, None, None)[:2]
        ratio = "-" if not first or second is None else f"x {second / first:.2f}"
        if any(value is not None for value in values):
            lines.append((label, cells, ratio))
    return lines


def _print_columns(
    comparison: Comparison,
    titles: Sequence[str],
    shown: slice,
    measured: Measured | None,
    sizes: Sequence[tuple[str, list[str], str]],
) -> None:
    from pocketclip.evaluate.report.comparison import averages, best, percent, points_between

    two = len(titles) == 2
    columns = [Column("task", folds=True)]
    columns += [Column(title, right=True) for title in titles[shown]]
    columns += [Column("difference", right=True)] * two
    lines: list[list[str]] = []

    def add(label: str, values: Sequence[float | None]) -> None:
        highest = best(values)
        cells = [
            Bold(percent(v)) if v is not None and v == highest else percent(v)
            for v in values[shown]
        ]
        lines.append([label, *cells, *([points_between(values)] if two else [])])

    for row in comparison.rows:
        add(row.label, row.values)
    lines.append([""] * len(columns))
    for label, values in averages(comparison):
        add(label, values)
    for label, cells, ratio in sizes:
        lines.append([label, *cells[shown], *([ratio] if two else [])])
    if measured is not None:
        ms = ["-" if value is None else f"{value:.1f}" for value in _times(comparison, measured)]
        label = f"ms here, image + text ({measured.variant}, {measured.threads} threads)"
        lines.append([label, *ms[shown], *([""] if two else [])])
    print_table(columns, lines)
