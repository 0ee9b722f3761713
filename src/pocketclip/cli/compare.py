"""`pocketclip compare`: results beside each other, in the terminal and as a page."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from pocketclip.evaluate.report.comparison import Comparison
    from pocketclip.evaluate.report.latency import Measured


def compare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Results files, run folders, or published models (see `pocketclip models`).",
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
    over 38 tasks is shown only for models that have results for all of them.

    \b
    pocketclip compare results.jsonl mobileclip2-s0
    pocketclip compare runs/a runs/b --tasks imagenet1k,cifar10
    pocketclip compare results.jsonl mobileclip2-s0 --html page.html --latency encode.log
    """
    from pocketclip.evaluate.report import page, runs
    from pocketclip.evaluate.report.comparison import compare as compare_runs
    from pocketclip.evaluate.report.latency import read_latency
    from pocketclip.evaluate.tasks import suite as keys_of

    check_output_file("--html", html, (".html", ".htm"))
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    comparison = compare_runs(runs.gather(sources), [*(keys_of(suite) if suite else ()), *names])
    times = read_latency(latency) if latency else None
    measured = page.measured_models(comparison, times) if times else None
    if html is not None:
        page.write_page(html, page.comparison_page(comparison, times))
    if json:
        facts = comparison.as_json()
        print_json(facts | ({"latency": _latency(comparison, measured)} if measured else {}))
        return
    _print(comparison, measured)
    if html is not None:
        say()
        say(f"{html}: plots and tables")


def _times(comparison: Comparison, measured: Measured) -> list[float | None]:
    return [measured.ms.get(run.model or run.title) for run in comparison.runs]


def _latency(comparison: Comparison, measured: Measured) -> dict[str, Any]:
    titles = [run.title for run in comparison.runs]
    ms = dict(zip(titles, _times(comparison, measured), strict=True))
    return {"form": measured.variant, "threads": measured.threads, "ms": ms}


def _print(comparison: Comparison, measured: Measured | None) -> None:
    """Print the table; on a narrow terminal as several tables below each other."""
    from pocketclip.evaluate.report.comparison import averages

    titles = ["\n".join(_broken(run.title)) for run in comparison.runs]
    labels = [row.label for row in comparison.rows] + [name for name, _ in averages(comparison)]
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
        _print_columns(comparison, titles, slice(start, stop), measured)
        start = stop
    for remark in comparison.notes:
        say(remark, dim=True)


def _broken(title: str) -> list[str]:
    return textwrap.wrap(title, 15, break_on_hyphens=True) or [title]


def _print_columns(
    comparison: Comparison, titles: Sequence[str], shown: slice, measured: Measured | None
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
    if measured is not None:
        ms = ["-" if value is None else f"{value:.1f}" for value in _times(comparison, measured)]
        label = f"ms here, image + text ({measured.variant}, {measured.threads} threads)"
        lines.append([label, *ms[shown], *([""] if two else [])])
    print_table(columns, lines)
