"""`pocketclip train`: a model from reinforced shards, raw pairs, or live teachers."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketclip.cli._inputs import duration
from pocketclip.cli.output import note, print_json, progress_bar, say
from pocketclip.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from pocketclip.train.loop import Summary
    from pocketclip.train.recipe import Recipe


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="The name of a recipe (see --list), or a YAML file."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run's folder.  [default: runs/RECIPE]")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", "-d", help="Reinforced shards, or raw pairs; the recipe's data.source."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="A field of the recipe, as optimizer.lr=1e-3; repeat."),
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            help="auto: go on from the newest readable checkpoint in --out; no: refuse a folder "
            "with a run; or a checkpoint to go on from."
        ),
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    show: Annotated[
        bool, typer.Option("--show", help="Print the resolved recipe and end.")
    ] = False,
    list_recipes: Annotated[
        bool, typer.Option("--list", help="Print the recipes that come with pocketclip and end.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use weights from the local cache only.")
    ] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Exit with code 1 if a sample was replaced or an evaluation failed; without it a "
            "run that was completed exits with 0.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Train a model, and leave a run folder with its checkpoints, log and finished model.

    Reinforced shards (`pocketclip reinforce`, or published ones) are replayed: teachers cost
    nothing. The same command given again goes on where the run stopped, with the very next
    sample; Ctrl-C writes a checkpoint first. Several processes or machines: torchrun. The exit
    code is 0 if the run was completed, 2 if it failed, 130 if it was stopped.

    \b
    pocketclip train grocery-small --data dr --out runs/small
    pocketclip train grocery-small --data dr --set steps=1000 --set optimizer.lr=2e-3
    pocketclip train my.yaml --data s3://me/dr --out runs/mine
    torchrun --nproc-per-node 8 -m pocketclip.train mobileclip-b-datacompdr12m --data dr12m
    pocketclip train --list
    """
    recipes = _recipes()
    if list_recipes:
        _list(recipes, json)
        return
    if recipe is None:
        raise ConfigError("which recipe? `pocketclip train --list` names those that there are")
    changes: list[str] = list(settings or [])
    chosen: Recipe = recipes.load_recipe(recipe, changes)
    if data:
        source = data[0] if len(data) == 1 else tuple(data)
        merged = chosen.data.model_copy(update={"source": source})
        chosen = chosen.model_copy(update={"data": merged})
    if show:
        for line in recipes.dump(chosen).rstrip("\n").split("\n"):
            say(line)
        return
    out = out or Path("runs") / Path(recipe).stem
    summary = _run(chosen, out, resume, device, offline)
    if int(os.environ.get("RANK", "0")) == 0:
        facts = _facts(summary)
        if json:
            print_json(facts)
        else:
            _print(summary, facts)
    if summary.interrupted:
        raise typer.Exit(130)
    if strict and (summary.skipped or summary.failed_evaluations):
        raise typer.Exit(1)


def _recipes() -> Any:
    try:
        from pocketclip.train import recipe
    except ModuleNotFoundError as error:
        if error.name not in ("pydantic", "yaml"):
            raise
        raise MissingDependencyError(
            f"training needs {error.name}: pip install 'pocketclip[train]'"
        ) from error
    return recipe


def _list(recipes: Any, json: bool) -> None:

    found = {name: recipes.load_recipe(name) for name in recipes.names()}
    if json:
        print_json({name: recipe.model_dump(mode="json") for name, recipe in found.items()})
        return
    width = max(map(len, found))
    for name, recipe in found.items():
        say(f"{name:{width}}  {recipe.about}")


def _run(recipe: Recipe, out: Path, resume: str, device: str, offline: bool) -> Summary:
    # Before torch is loaded: its threads share the cores with the processes that decode, and by
    # default a thread that waits for another one keeps its core busy.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from pocketclip.train.loop import train as run
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingDependencyError(
            "training needs torch: pip install 'pocketclip[train]'"
        ) from error
    logging.getLogger("pocketclip.train").setLevel(logging.INFO)
    shown = Shown()
    with shown:
        return run(
            recipe,
            out,
            resume=resume,
            device=device,
            teachers=_teachers(recipe, device, offline),
            on_log=shown.log,
            offline=offline,
        )


def _teachers(recipe: Recipe, device: str, offline: bool) -> Sequence[Any]:
    if not recipe.teachers:
        return ()
    from pocketclip.reinforce.teachers import load_teacher

    local = os.environ.get("LOCAL_RANK")
    if local is not None and device in ("auto", "cuda"):
        import torch

        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    return [load_teacher(spec, device=device, offline=offline) for spec in recipe.teachers]


class Shown:
    """The records of a run on standard error: a bar on a terminal, else a line now and then."""

    EVERY = 30.0
    """Seconds between lines where there is no terminal."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._last = 0.0

    def __enter__(self) -> Shown:
        if sys.stderr.isatty() and int(os.environ.get("RANK", "0")) == 0:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}", markup=False),
            )
            self._bar = progress_bar(*columns)
            self._bar.start()
            self._task = self._bar.add_task("starting", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def log(self, record: Mapping[str, Any]) -> None:
        """Show a record of the log."""
        text = describe(record)
        if self._bar is not None:
            self._bar.update(
                self._task, total=record["steps"], completed=record["step"], description=text
            )
            return
        now = time.monotonic()
        if now - self._last >= self.EVERY or record["step"] == record["steps"]:
            self._last = now
            note(f"step {record['step']} of {record['steps']}: {text}")


def describe(record: Mapping[str, Any]) -> str:
    """Return the gist of a record: terms, rate, waiting for data, time left."""
    terms = [
        f"{name.removesuffix('_loss')} {value:.3f}"
        for name, value in record.items()
        if name.endswith("_loss") and value
    ]
    return (
        f"loss {record['loss']:.3f} ({', '.join(terms)}), {record['samples_per_second']:.1f} "
        f"samples/s, {100 * record['data_wait']:.0f} % waiting for data, "
        f"{duration(record['seconds_left'])} left"
    )


def _facts(summary: Summary) -> dict[str, Any]:
    best = summary.best
    return {
        "run": str(summary.run),
        "model": str(summary.model) if summary.model is not None else None,
        "step": summary.step,
        "steps": summary.steps,
        "samples": summary.samples,
        "interrupted": summary.interrupted,
        "skipped": summary.skipped,
        "failed_evaluations": summary.failed_evaluations,
        "metrics": summary.metrics,
        "best": None if best is None else {"step": best[0], "main_metric": best[1]},
        "seconds": round(summary.seconds, 1),
    }


def _print(summary: Summary, facts: Mapping[str, Any]) -> None:
    if summary.interrupted:
        note(
            f"stopped after step {summary.step} of {summary.steps}, saved in {summary.run}; the "
            "same command goes on"
        )
        return
    say(f"{summary.model}: {summary.samples} samples seen in {summary.steps} steps")
    if facts["best"]:
        say(f"best: {facts['best']['main_metric']:.4f} after step {facts['best']['step']}")
    if summary.skipped:
        note(f"{summary.skipped} samples could not be used and were replaced (named above)")
    if summary.failed_evaluations:
        note(f"{summary.failed_evaluations} checkpoints could not be scored (see above)")
