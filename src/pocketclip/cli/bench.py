"""`pocketclip bench`: how fast, large and accurate models are on this computer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pocketclip.cli.labelled import LABELLED_HELP
from pocketclip.cli.loading import (
    BACKEND_HELP,
    DEVICE_HELP,
    MODEL_HELP,
    MODEL_NAME_HELP,
    REVISION_HELP,
    THREADS_HELP,
)
from pocketclip.cli.output import Column, note, print_json, print_table
from pocketclip.errors import PocketclipError


def bench(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help=MODEL_HELP,
        ),
    ],
    backend: Annotated[str, typer.Option(help=BACKEND_HELP)] = "auto",
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help=THREADS_HELP)] = None,
    seconds: Annotated[float, typer.Option(min=0, help="How long each figure may take.")] = 2.0,
    labelled: Annotated[str | None, typer.Option(help=LABELLED_HELP)] = None,
    label_column: Annotated[str | None, typer.Option(help="The table's column of labels.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Only rows with COLUMN=VALUE; may be repeated.")
    ] = None,
    template: Annotated[
        list[str] | None, typer.Option(help='A prompt such as "a photo of {}."; may be repeated.')
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Also draw latency against accuracy, or throughput, to this .svg file."),
    ] = None,
    model_name: Annotated[str | None, typer.Option(help=MODEL_NAME_HELP)] = None,
    revision: Annotated[str | None, typer.Option(help=REVISION_HELP)] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use weights from the local cache only.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure models here: latency, throughput, memory, size on disk, startup and accuracy.

    Each model is measured in a process of its own, one after the other. Latency is that of one
    photograph, decoded and prepared before, through the image tower, and of one caption;
    throughput is that of the image tower at its best batch; startup is from nothing to the first
    answer. Compare ratios of models within one run, on a computer that does nothing else: times
    of different runs do not compare.

    A model that cannot be measured is named, and the others are; the exit code is then 1, or 2
    if there is none.

    \b
    pocketclip bench laptop/
    pocketclip bench runs/small laptop/ laptop-int8/ --threads 2 --plot speed.svg
    pocketclip bench laptop/ laptop-int8/ --labelled pairs.csv --label-column product --json
    """
    _check_plot(plot)
    about = _labelled(labelled, label_column, where or [], template or [])
    job = {
        "backend": backend, "threads": threads, "seconds": seconds, "labelled": about,
        "device": device, "model_name": model_name, "revision": revision, "offline": offline,
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    sources = list(dict.fromkeys(models))
    for number, source in enumerate(sources, 1):
        note(f"{source}: model {number} of {len(sources)}")
        found = _in_a_process({**job, "source": source})
        if "error" in found:
            failed.append({"source": source, "reason": found["error"]})
        else:
            rows.append({"source": source, **found})
    if json:
        print_json({"seconds_per_figure": seconds, "models": rows, "failed": failed})
    elif rows:
        _print(rows)
    if plot is not None and rows:
        _draw(plot, rows)
    for one in failed:
        note(f"failed: {one['source']}: {one['reason']}")
    if failed:
        raise typer.Exit(1 if rows else 2)


def _labelled(
    data: str | None, column: str | None, where: Sequence[str], templates: Sequence[str]
) -> dict[str, Any] | None:
    """Return the arguments of `top1`, checked before anything is measured, or None."""
    from pocketclip.cli.labelled import check_alone, top1

    if data is None:
        check_alone(column, where, templates)
        return None
    about = {
        "data": data, "label_column": column, "where": list(where), "templates": list(templates)
    }  # fmt: skip
    top1(data, label_column=column, where=where, templates=templates)
    return about


def _check_plot(plot: Path | None) -> None:
    if plot is None:
        return
    if plot.suffix.lower() != ".svg":
        raise PocketclipError(f"--plot {plot}: give an .svg file")
    if not plot.absolute().parent.is_dir():
        raise PocketclipError(f"--plot {plot}: there is no folder {plot.absolute().parent}")


def _in_a_process(job: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of one model, or `error` with what went wrong."""
    import json
    import signal
    import subprocess
    import time

    from pocketclip.storage.temporary import scratch_folder

    with scratch_folder("bench") as folder:
        result = folder / "figures.json"
        told = json.dumps({**job, "begun": time.time()})
        # What a library prints on standard output is none of our answer.
        done = subprocess.run(
            [sys.executable, "-m", "pocketclip.cli._bench_worker", told, str(result)],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            check=False,
        )
        if result.is_file() and done.returncode == 0:
            found: dict[str, Any] = json.loads(result.read_text("utf-8"))
            return found
    if done.returncode in (130, -signal.SIGINT):
        raise KeyboardInterrupt  # which reached the child first
    if done.returncode < 0:
        why = f"was ended by signal {-done.returncode}; 9 often means that memory ran out"
    else:
        why = f"ended with code {done.returncode}; what it said stands above"
    return {"error": f"the process that measured it {why}"}


def _print(rows: Sequence[dict[str, Any]]) -> None:
    columns = [Column("model", folds=True), Column("runs on", folds=True)]
    names = ["image ms\n(p95)", "text ms\n(p95)", "images/s\n(batch)", "memory\nMB", "disk\nMB",
             "startup\ns", *(["top-1\n%"] if "top1" in rows[0] else [])]  # fmt: skip
    columns += [Column(name, right=True) for name in names]
    lines = []
    for row in rows:
        best = row["throughput"]
        lines.append(
            (
                row["source"],
                f"{row['backend']} {row['precision']}",
                *(f"{row[t]['median_ms']:.1f} ({row[t]['p95_ms']:.1f})" for t in ("image", "text")),
                f"{best['images_per_s']:.1f} ({best['batch']})",
                _megabytes(row["memory_bytes"]),
                _megabytes(row["disk_bytes"]),
                f"{row['startup_s']:.2f}",
                *([f"{row['top1']:.2f}"] if "top1" in row else []),
            )
        )
    print_table(columns, lines)


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.1f}"


def _draw(plot: Path, rows: Sequence[dict[str, Any]]) -> None:
    from pocketclip.evaluate.report.render import write_page
    from pocketclip.evaluate.report.svg import Chart, Mark, svg_file

    accurate = "top1" in rows[0]
    marks = []
    for row in rows:
        name = f"{row['source']} ({row['backend']} {row['precision']})"
        ms = row["image"]["median_ms"]
        y = row["top1"] if accurate else row["throughput"]["images_per_s"]
        tooltip = f"{name}: {y:.1f}{' %' if accurate else ' per s'}, {ms:.3g} ms"
        marks.append(Mark(name=name, label=name, x=ms, y=y, tooltip=tooltip))
    chart = Chart(
        name="bench",
        title="Accuracy against latency" if accurate else "Throughput against latency",
        x_label="ms per photograph, image tower alone, batch 1",
        y_label="zero-shot top-1, %" if accurate else "photographs per second, best batch",
        y_scale="linear" if accurate else "log",
        marks=marks,
    )
    write_page(plot, svg_file(chart))
    note(f"{plot}: {len(marks)} models drawn")
