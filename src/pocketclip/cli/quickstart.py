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
    ImageColumn,
    Json,
    PairsWhere,
    pair_options,
)
from pocketclip.cli._progress import ConsoleReporter
from pocketclip.cli.output import print_json, say
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
            help="With --pairs: a model name or checkpoint; may be repeated.  [default: one is "
            "trained on the pairs]",
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
            help="With --pairs: the column with class names, to evaluate zero-shot classification."
        ),
    ] = None,
    where: PairsWhere = None,
    allow_private: AllowPrivate = False,
    scale: Annotated[
        float,
        typer.Option(
            help="Multiplies the number of scenes and training steps: 0.2 is quick, 3 thorough."
        ),
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="The seed of all random choices.")] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="The number of processes that decode images.  [default: by the machine]"
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Run every step on a small dataset, in minutes: reinforce, train, evaluate, report.

    Without --pairs it draws scenes and gives them captions as poor as the web's; teachers and a
    captioner for them come with the package, and nothing is downloaded. With --pairs it uses your
    own images. It trains one model on the plain pairs and one on the reinforced ones. The folder
    gets the reinforced model and a report to open in a browser. The same command, given again,
    continues after an interruption.

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
        }
        for name, value in only_with_pairs.items():
            if value:
                raise ConfigError(f"{name} goes with --pairs: the drawn scenes have their own")
    module = import_with_extra(
        "pocketclip.quickstart.pipeline", "the quickstart", "reinforce",
        ("pydantic", "torch", "yaml", "fsspec"),
    )  # fmt: skip
    shared: dict[str, Any] = {"seed": seed, "scale": scale, "workers": workers}
    shared["reporter"] = reporter = ConsoleReporter()
    if pairs:
        columns = [caption_column] if caption_column else None
        result = module.quickstart_pairs(
            out, pairs,
            options=pair_options(
                image_column, columns, None, where, 1000, allow_private=allow_private
            ),
            label_column=label_column, teachers=teacher or (), **shared,
        )  # fmt: skip
    else:
        result = module.quickstart_scenes(out, **shared)
    reporter.end()
    if json:
        print_json(result)
    else:
        _print(result, out, module.next_commands(out, result))


def _print(result: dict[str, Any], out: Path, commands: list[str]) -> None:
    names = {
        "unseen": "zero-shot, unseen pairs",
        "labels": "zero-shot, labels",
        "retrieval": "retrieval, mean recall@1",
    }
    say(f"{'':28}{'plain':>9}{'reinforced':>12}")
    for task in result["arms"]["plain"]["metrics"]:
        values = [result["arms"][arm]["metrics"][task]["main_metric"] for arm in result["arms"]]
        say(f"{names[task]:28}" + "".join(f"{100 * v:>{w}.1f} %" for v, w in
                                            zip(values, (7, 10), strict=True)))  # fmt: skip
    for line in ("", f"model   {out / 'model'}", f"report  {out / 'report.html'}", "", "next:"):
        say(line)
    for command in commands:
        say(f"  {command}")
