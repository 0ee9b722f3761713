"""`pocketclip bench`: how fast, large and accurate models are on this computer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pocketclip.cli._options import (
    MODEL_HELP,
    Backend,
    Device,
    Json,
    LabelColumn,
    Labelled,
    LabelledWhere,
    ModelName,
    Offline,
    Revision,
    Template,
    Threads,
    check_output_file,
    labelled_accuracy,
    labelled_arguments,
)
from pocketclip.cli.output import (
    Column,
    figure_text,
    note,
    print_json,
    print_table,
    say,
    say_paragraph,
)
from pocketclip.errors import PocketclipError, count_of


def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    backend: Backend = "auto",
    device: Device = "auto",
    threads: Threads = None,
    seconds: Annotated[
        float, typer.Option(min=0, help="The time for each figure, in seconds.")
    ] = 2.0,
    labelled: Labelled = None,
    label_column: LabelColumn = None,
    where: LabelledWhere = None,
    template: Template = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write a plot to this .svg file: accuracy against latency with --labelled, "
            "else throughput against latency.",
        ),
    ] = None,
    model_name: ModelName = None,
    revision: Revision = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Measure latency, throughput, memory, size, startup and accuracy of models on this computer.

    Each model runs in its own process, one after the other. Latency is the time of the image
    tower for one prepared photograph, and of the text tower for one caption. Throughput is
    measured on the image tower at its best batch size. Startup is the time from starting the
    process to the first answer. Parameters and operations are counted; of a mixture of experts,
    the active ones are those that one token uses. Compare models within one run, on an otherwise
    idle computer: times from different runs are not comparable.

    A model that cannot be measured is named and skipped. The exit code is then 1, or 2 if no model
    could be measured.

    \b
    pocketclip bench laptop/
    pocketclip bench runs/small laptop/ laptop-int8/ --threads 2 --plot speed.svg
    pocketclip bench laptop/ laptop-int8/ --labelled pairs.csv --label-column product --json
    """
    from pocketclip.cli._inputs import convert_at_first_use

    check_output_file("--plot", plot, (".svg",))
    labels = (labelled, label_column, where or [], template or [])
    measures_accuracy = labelled_accuracy(*labels) is not None  # checked before any measurement
    job = {
        "backend": backend, "threads": threads, "seconds": seconds,
        "labelled": labelled_arguments(*labels) if measures_accuracy else None,
        "device": device, "model_name": model_name, "revision": revision, "offline": offline,
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    sources = list(dict.fromkeys(models))
    for number, source in enumerate(sources, 1):
        note(f"{source}: model {number} of {len(sources)}")
        try:
            convert_at_first_use(source, model_name, revision=revision, offline=offline)
        except PocketclipError as error:
            failed.append({"source": source, "reason": str(error)})
            continue
        figures = _measure_in_process({**job, "source": source})
        if "error" in figures:
            failed.append({"source": source, "reason": figures["error"]})
        else:
            rows.append({"source": source, **figures})
    if json:
        print_json({"seconds_per_figure": seconds, "models": rows, "failed": failed})
    elif rows:
        _print(rows)
    if plot is not None and rows:
        _draw(plot, rows)
    for failure in failed:
        note(f"failed: {failure['source']}: {failure['reason']}")
    if failed:
        raise typer.Exit(1 if rows else 2)


def _measure_in_process(job: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of one model; or `error`, with the reason."""
    import json
    import signal
    import subprocess
    import time

    from pocketclip.storage.temporary import scratch_folder

    with scratch_folder("bench") as folder:
        result = folder / "figures.json"
        arguments = json.dumps({**job, "begun": time.time()})
        # Libraries may print on standard output, which is for our answer only.
        process = subprocess.run(
            [sys.executable, "-m", "pocketclip.cli._bench_worker", arguments, str(result)],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            check=False,
        )
        if result.is_file() and process.returncode == 0:
            figures: dict[str, Any] = json.loads(result.read_text("utf-8"))
            return figures
    if process.returncode in (130, -signal.SIGINT):
        raise KeyboardInterrupt  # it reached the child first
    if process.returncode < 0:
        why = f"was ended by signal {-process.returncode}; 9 often means that memory ran out"
    else:
        why = f"ended with code {process.returncode}; its messages are above"
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
    say()
    _print_sizes(rows)


def _print_sizes(rows: Sequence[dict[str, Any]]) -> None:
    """Print parameters and operations, and what they count."""
    names = ("million\nparams", "active", "GFLOP", "image\ncomputed", "text\ncomputed")
    columns = [Column("model", folds=True), *(Column(name, right=True) for name in names)]
    lines = []
    for row in rows:
        size = row["size"]
        forward = size["forward"]
        computed = (
            figure_text(forward["image_gflop"]),
            f"{figure_text(forward['text_gflop'])} ({forward['text_tokens']})",
        )
        sizes = (size["params_million"], size["active_params_million"], size["gflop"])
        lines.append((row["source"], *map(figure_text, sizes), *computed))
    print_table(columns, lines)
    text = (
        "Active: what one token uses, in a mixture of experts K of E. GFLOP: one image and one "
        "text of the whole context, every token through every block, as published figures count. "
        "Computed: what the image and text towers here computed (tokens of the text)."
    )
    say_paragraph(text)


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.1f}"


def _draw(plot: Path, rows: Sequence[dict[str, Any]]) -> None:
    from pocketclip.pages.render import write_page
    from pocketclip.pages.svg import Chart, Mark, svg_file

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
    note(f"{plot}: {count_of(len(marks), 'model')} drawn")
