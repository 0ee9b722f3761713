"""`pocketclip sweep-scales`: the logit scale that each teacher of a reinforced set prefers."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketclip.cli._options import (
    Device,
    Json,
    LabelColumn,
    LabelledWhere,
    Offline,
    Template,
    check_output_file,
    label_conditions,
)
from pocketclip.cli.output import Column, note, print_json, print_table, say
from pocketclip.errors import count_of

if TYPE_CHECKING:
    from pocketclip.sweep_scales import Point, SweepReport, TeacherSweep


def sweep_scales(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="A folder of reinforced shards, for its index.")
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            help="Labelled images that no teacher was trained on: a folder by class, or a table as "
            "`pocketclip eval` takes it.",
        ),
    ],
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=MODEL",
            help="The model of a teacher, by its name in the index; may be repeated.  [default: "
            "the model of that name]",
        ),
    ] = None,
    label_column: LabelColumn = None,
    where: LabelledWhere = None,
    template: Template = None,
    samples: Annotated[
        int, typer.Option(min=0, help="The number of images to use, chosen by name; 0: all.")
    ] = 0,
    joint: Annotated[
        bool,
        typer.Option(
            "--joint",
            help="Search the scales that are best for the mixture of all teachers, and recommend "
            "these.",
        ),
    ] = False,
    lowest: Annotated[float, typer.Option(help="The smallest scale to try.")] = 1.0,
    highest: Annotated[float, typer.Option(help="The largest scale to try.")] = 1000.0,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Leave out images that cannot be read, and count them."),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="The number of images per batch.")] = 64,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a plot of the likelihood to this .svg file."),
    ] = None,
    device: Device = "auto",
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Find the logit scale per teacher that fits held-out labelled images best.

    A teacher's logit scale decides how sharp the probabilities are that a student learns from it.
    Each teacher of the set embeds the images and the prompts of their classes; the scale with the
    highest likelihood of the right classes is searched on a grid and refined. The last line is the
    field of the train recipe. This is a guess at a good scale, and no training is run: compare the
    scales by training if the difference matters.

    Use images like those of the set that no teacher was trained on.

    \b
    pocketclip sweep-scales dr --data pairs.csv --label-column product --where split=val
    pocketclip sweep-scales dr --data shelf/ --teacher student=runs/student --plot scales.svg
    pocketclip sweep-scales dr --data imagenet-val/ --samples 5000 --joint --json
    """
    from pocketclip.cli._progress import progress
    from pocketclip.evaluate import RunOptions
    from pocketclip.pages.render import write_page
    from pocketclip.pages.svg import svg_file
    from pocketclip.sweep_scales import sweep_chart
    from pocketclip.sweep_scales import sweep_scales as sweep

    check_output_file("--plot", plot, (".svg",))
    report = sweep(
        folder, data, teachers=teacher or [], label_column=label_column,
        where=label_conditions(where or []), templates=template or [], samples=samples,
        joint=joint, lowest=lowest, highest=highest, device=device, offline=offline,
        run_options=RunOptions(batch_size=batch_size, skip_bad=skip_bad),
        watch=lambda name, total: progress(total, "images", name),
    )  # fmt: skip
    if plot is not None:
        write_page(plot, svg_file(sweep_chart(report)))
    if json:
        print_json(report.facts())
    else:
        _print(report, plot)
    for bad in report.skipped:
        note(f"skipped: {bad.name}: {bad.reason}")
    if report.skipped:
        raise typer.Exit(1)


_EDGES = {
    "lowest": "the best scale is the smallest that was tried, and the likelihood still rises below "
    "it: the teacher knows little of these classes",
    "highest": "the best scale is the largest that was tried, and the likelihood still rises above "
    "it: the teacher makes no mistake on these images, so take more or harder ones",
}


def _print(report: SweepReport, plot: Path | None) -> None:
    images, classes = count_of(report.images, "image"), count_of(report.classes, "class", "classes")
    say(f"{report.folder}: {count_of(len(report.teachers), 'teacher')}, on {images} of {classes}")
    titles = ("scale", "log-likelihood", "calibration error", "top-1")
    columns = [Column("teacher", folds=True), *(Column(title, right=True) for title in titles)]
    lines = [line for teacher in report.teachers for line in _lines(teacher)]
    for label, mixture in (
        ("together, each at its own best", report.own),
        ("together, at their joint best", report.joint),
    ):
        if mixture is not None:
            scales = ", ".join(f"{scale:.3g}" for scale in mixture.scales)
            lines.append([
                label, scales, f"{mixture.log_likelihood:.4f}",
                f"{mixture.calibration_error:.4f}", f"{mixture.accuracy:.1%}",
            ])  # fmt: skip
    print_table(columns, lines)
    for teacher in report.teachers:
        if teacher.best.edge is not None:
            note(f"{teacher.name}: {_EDGES[teacher.best.edge]} (--lowest, --highest)")
    if plot is not None:
        say(f"{plot}: likelihood against scale")
    say()
    command = ["pocketclip", "train", "RECIPE", "--data", report.folder, "--set", report.setting]
    say(shlex.join(command))


def _lines(teacher: TeacherSweep) -> list[list[str]]:
    def line(label: str, point: Point, scale: str) -> list[str]:
        return [label, scale, f"{point.log_likelihood:.4f}", f"{point.calibration_error:.4f}",
                f"{teacher.accuracy:.1%}"]  # fmt: skip

    best = teacher.best
    lines = [line(f"{teacher.name}, best", best.point, f"{best.point.scale:.3g}")]
    lines[0][1] += f" ({best.low:.3g} to {best.high:.3g})"
    for label, point in (
        ("recorded in the set", teacher.recorded),
        ("published", teacher.published),
    ):
        if point is not None:
            lines.append(line(f"{teacher.name}, {label}", point, f"{point.scale:.3g}"))
    return lines
