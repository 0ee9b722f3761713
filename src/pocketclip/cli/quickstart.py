"""`pocketclip quickstart`: every step on a small dataset, in minutes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from pocketclip.cli._inputs import import_with_extra
from pocketclip.cli._options import (
    PAIRS_HELP,
    AllowPrivate,
    DecodeWorkers,
    ImageColumn,
    Json,
    PairsWhere,
    Seed,
    pair_options,
)
from pocketclip.cli._progress import ConsoleReporter
from pocketclip.cli.output import note, print_json, say
from pocketclip.errors import ConfigError


def quickstart(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The folder to write everything to.")
    ] = Path("quickstart"),
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            "--pairs",
            "-p",
            metavar="PAIRS",
            help=f"Your own pairs, instead of drawn scenes. {PAIRS_HELP}",
        ),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher",
            "-t",
            metavar="MODEL",
            help="With --pairs: a model name or checkpoint that knows more; may be repeated. It is "
            "checked first, and left out unless it is clearly better than the plain student.",
        ),
    ] = None,
    image_column: ImageColumn = None,
    caption_column: Annotated[
        str | None,
        typer.Option(help="The column with captions.  [default: the first of the usual names]"),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(
            help="With --pairs: the column with class names, to choose and evaluate by zero-shot "
            "classification."
        ),
    ] = None,
    where: PairsWhere = None,
    allow_private: AllowPrivate = False,
    minutes: Annotated[
        float | None,
        typer.Option(help="With --pairs: the time to fill, 0.2 to 600 minutes.  [default: 10]"),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            help="Without --pairs: multiplies the number of scenes and training steps: 0.2 is "
            "quick, 3 thorough.  [default: 1]"
        ),
    ] = None,
    seed: Seed = 0,
    workers: DecodeWorkers = None,
    json: Json = False,
) -> None:
    """Run every step on a small dataset, in minutes: reinforce, train, evaluate, report.

    Without --pairs it draws scenes and gives them captions as poor as the web's; teachers and a
    captioner for them come with the package, and nothing is downloaded. It trains one student on
    the plain pairs and one on the reinforced ones.

    With --pairs it trains a student from nothing on your own images, for --minutes, and with
    --teacher a reinforced one if that teacher is clearly better. A published model gives far more:
    see `pocketclip finetune` and `pocketclip fit`.

    The folder gets the best student on a validation set, and a report to open in a browser. The
    same command, given again, continues after an interruption.

    \b
    pocketclip quickstart
    pocketclip quickstart --pairs my.csv --out mine
    pocketclip quickstart --pairs my.csv --teacher mobileclip2-s0 --label-column product
    """
    # Before torch is loaded, as in `pocketclip reinforce`.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    if not pairs:
        only_with_pairs = {
            "--teacher": teacher,
            "--image-column": image_column,
            "--where": where,
            "--caption-column": caption_column,
            "--label-column": label_column,
            "--allow-private": allow_private,
            "--minutes": minutes is not None,
        }
        for name, value in only_with_pairs.items():
            if value:
                raise ConfigError(f"{name} goes with --pairs: the drawn scenes have their own")
    module = import_with_extra(
        "pocketclip.quickstart.pipeline", "the quickstart", "reinforce",
        ("pydantic", "torch", "yaml", "fsspec"),
    )  # fmt: skip
    shared: dict[str, Any] = {"seed": seed, "workers": workers}
    shared["reporter"] = reporter = ConsoleReporter()
    if pairs:
        columns = [caption_column] if caption_column else None
        options = pair_options(
            image_column, columns, None, where, 1000, allow_private=allow_private
        )
        given = module.MINUTES if minutes is None else minutes
        if scale is not None:
            given = module.minutes_of(scale)
            if minutes is not None:
                raise ConfigError(
                    "--scale is the old name of --minutes for --pairs: give one of them"
                )
            note(f"--scale is for the drawn scenes; with --pairs this is --minutes {given:g}")
        result = module.quickstart_pairs(
            out, pairs, options=options, label_column=label_column, teachers=teacher or (),
            minutes=given, **shared,
        )  # fmt: skip
    else:
        result = module.quickstart_scenes(out, scale=1.0 if scale is None else scale, **shared)
    reporter.end()
    if json:
        print_json(result)
    else:
        _print(
            result, [*module.teacher_lines(result), *module.data_lines(result)],
            [*module.choice_lines(result), f"report  {out / 'report.html'}"],
            module.next_commands(out, result),
        )  # fmt: skip


def _print(result: dict[str, Any], data: list[str], choice: list[str], commands: list[str]) -> None:
    names = {
        "unseen": "zero-shot, unseen pairs",
        "labels": "zero-shot, labels",
        "texts": "zero-shot, texts",
        "retrieval": "retrieval, mean recall@1",
    }
    arms = result["arms"]
    widths = [max(len(name), 7) + 2 for name in arms]
    head = "".join(f"{name:>{width}}" for name, width in zip(arms, widths, strict=True))
    say(f"{'test':28}{head}")
    for task in arms["plain"]["metrics"]:
        values = [arm["metrics"][task]["main_metric"] for arm in arms.values()]
        cells = (f"{100 * v:>{w - 2}.1f} %" for v, w in zip(values, widths, strict=True))
        say(f"{names[task]:28}{''.join(cells)}")
    for line in (*data, "", *choice, "", "next:"):
        say(line)
    for command in commands:
        say(f"  {command}")
