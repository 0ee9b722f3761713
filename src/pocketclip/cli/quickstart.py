"""`pocketclip quickstart`: from pictures with bad texts to a small model, in minutes."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketclip.cli._options import IMAGE_HELP, PAIRS_HELP, WHERE_HELP, options
from pocketclip.cli.output import note, overwrite, print_json, say
from pocketclip.errors import ConfigError, MissingDependencyError
from pocketclip.progress import ProgressReporter

if TYPE_CHECKING:
    from types import ModuleType


def quickstart(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The folder for everything that is made.")
    ] = Path("quickstart"),
    pairs: Annotated[
        list[str] | None,
        typer.Option("--pairs", "-p", help=f"Your own pairs instead of drawn scenes. {PAIRS_HELP}"),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher",
            "-t",
            help="With --pairs: a model name or checkpoint; else one is trained on the pairs.",
        ),
    ] = None,
    image_column: Annotated[str | None, typer.Option(help=IMAGE_HELP)] = None,
    caption_column: Annotated[
        str | None, typer.Option(help="Column with captions; guessed.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="With --pairs: class names, for zero-shot classification.")
    ] = None,
    where: Annotated[list[str] | None, typer.Option(help=WHERE_HELP)] = None,
    scale: Annotated[
        float, typer.Option(help="Times the scenes and the training: 0.2 is quick, 3 thorough.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of all random choices.")] = 0,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that decode.  [default: as suits the machine]"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Do the whole way in minutes: reinforce, train with and without, evaluate, report.

    Without --pairs it draws scenes and gives them texts as bad as the web's; teachers and a
    captioner for them come with the package, and nothing is fetched. With --pairs it does the
    same with your own. The folder gets the model and a report to open in a browser. The same
    command given again goes on where it was interrupted.

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
        }
        for name, value in only_with_pairs.items():
            if value:
                raise ConfigError(f"{name} goes with --pairs: the drawn scenes have their own")
    module = _module()
    shared: dict[str, Any] = {"seed": seed, "scale": scale, "workers": workers}
    shared["reporter"] = reporter = ConsoleReporter()
    if pairs:
        columns = [caption_column] if caption_column else None
        result = module.quickstart_pairs(
            out, pairs, options=options(image_column, columns, None, where, 1000),
            label_column=label_column, teachers=teacher or (), **shared,
        )  # fmt: skip
    else:
        result = module.quickstart_scenes(out, **shared)
    reporter.end()
    if json:
        print_json(result)
    else:
        _print(result, out, module.next_commands(out, result))


def _module() -> ModuleType:
    try:
        from pocketclip.quickstart import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("pydantic", "torch", "yaml", "fsspec"):
            raise
        raise MissingDependencyError(
            f"the quickstart needs {error.name}: pip install 'pocketclip[reinforce]'"
        ) from error
    return run


class ConsoleReporter(ProgressReporter):
    """Writes stages and times to standard error and, on a terminal, the progress of each stage."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.live = sys.stderr.isatty()
        self.open = False

    def stage(self, text: str) -> None:
        """Write a line."""
        self.end()
        note(f"[{time.monotonic() - self.start:4.0f} s] {text}")

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Replace the progress line."""
        if self.live:
            line = f"         {done:,} of {total:,} {note}"
            overwrite(f"{line:<76}")
            self.open = True

    def end(self) -> None:
        """End an open line."""
        if self.open:
            note("")
        self.open = False


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
