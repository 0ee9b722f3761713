"""`pocketclip train`: a model from reinforced shards, raw pairs, or live teachers."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketclip.cli._inputs import import_with_extra
from pocketclip.cli._options import Json, Offline, TrainSettings
from pocketclip.cli._progress import TrainingProgress
from pocketclip.cli.output import (
    Bold,
    Column,
    figure_text,
    note,
    print_json,
    print_table,
    say,
    say_paragraph,
)
from pocketclip.errors import ConfigError, count_of

if TYPE_CHECKING:
    from pocketclip.train.loop import Summary
    from pocketclip.train.profile import Profile
    from pocketclip.train.recipe import Recipe


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE", help="The name of a train recipe (see --list), or a YAML file."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The run's folder.  [default: runs/RECIPE]"),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            "-d",
            metavar="SOURCE",
            help="Reinforced shards or raw pairs, instead of the recipe's data.source; may be "
            "repeated.",
        ),
    ] = None,
    settings: TrainSettings = None,
    resume: Annotated[
        str,
        typer.Option(
            help="auto: continue from the newest readable checkpoint in --out; no: refuse a folder "
            "that holds a run; or the checkpoint to continue from."
        ),
    ] = "auto",
    device: Annotated[
        str,
        typer.Option(help="The device to train on: cpu, cuda, or auto for a GPU if there is one."),
    ] = "auto",
    show: Annotated[
        bool, typer.Option("--show", help="Print the recipe with all settings, and exit.")
    ] = False,
    list_recipes: Annotated[
        bool, typer.Option("--list", help="Print the recipes that come with pocketclip, and exit.")
    ] = False,
    offline: Offline = False,
    profile: Annotated[
        int | None,
        typer.Option(
            "--profile",
            metavar="N",
            help="Measure where the time of N steps goes, after 3 that warm up, and trace 2 more: "
            "prints a table, and writes profile/ in the run's folder. The run goes on to its end.",
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Exit with code 1 if a sample was replaced or an evaluation failed. Without it, a "
            "completed run exits with 0.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Train a model; write a run folder with its checkpoints, log and finished model.

    Reinforced shards (from `pocketclip reinforce`, or published ones) replay their augmentations
    and embeddings, so no teacher runs. With an evaluation in the recipe, the finished model is the
    best of what was scored on it: the checkpoints and, with model.init, the start. The same
    command, given again, continues with the next sample after an interruption; Ctrl-C writes a
    checkpoint first. Use torchrun for several processes or machines. The exit code is 0 if the run
    was completed (or ended early, by evaluation.patience), 2 if it failed, and 130 if it was
    interrupted.

    \b
    pocketclip train grocery-small --data dr --out runs/small
    pocketclip train grocery-small --data dr --set steps=1000 --set optimizer.lr=2e-3
    pocketclip train my.yaml --data s3://me/dr --out runs/mine
    pocketclip train grocery-small --data dr --set steps=20 --profile 10 --out runs/profile
    torchrun --nproc-per-node 8 -m pocketclip.train mobileclip-b-datacompdr12m --data dr12m
    pocketclip train --list
    """
    recipes = import_with_extra(
        "pocketclip.train.recipe", "training", "train", ("pydantic", "yaml")
    )
    if list_recipes:
        _list(recipes, json)
        return
    if recipe is None:
        raise ConfigError("give a recipe; `pocketclip train --list` names those of the package")
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
    profiles: list[Profile] = []  # one, unless the run ends before
    summary = _run(chosen, out, resume, device, offline, profile, profiles.append)
    if int(os.environ.get("RANK", "0")) == 0:
        if json:
            measured = {"profile": profiles[0].as_json() if profiles else None}
            print_json(_facts(summary) | (measured if profile is not None else {}))
        else:
            for one in profiles:
                _print_profile(one)
            _print(summary)
    if summary.interrupted:
        raise typer.Exit(130)
    if strict and (summary.skipped or summary.failed_evaluations):
        raise typer.Exit(1)


def _list(recipes: Any, json: bool) -> None:
    by_name = {name: recipes.load_recipe(name) for name in recipes.names()}
    if json:
        print_json({name: recipe.model_dump(mode="json") for name, recipe in by_name.items()})
        return
    width = max(map(len, by_name))
    for name, recipe in by_name.items():
        say(f"{name:{width}}  {recipe.about}")


def _run(
    recipe: Recipe,
    out: Path,
    resume: str,
    device: str,
    offline: bool,
    profile: int | None,
    on_profile: Callable[[Profile], None],
) -> Summary:
    # Before torch is loaded: by default its waiting threads keep their cores busy, which slows the
    # decoding processes down.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before teachers use CUDA
    loop = import_with_extra("pocketclip.train.loop", "training", "train", ("torch",))
    logging.getLogger("pocketclip.train").setLevel(logging.INFO)
    with TrainingProgress() as progress:
        summary: Summary = loop.train(
            recipe,
            out,
            resume=resume,
            device=device,
            teachers=_teachers(recipe, device, offline),
            on_log=progress.log,
            offline=offline,
            profile=profile,
            on_profile=on_profile,
        )
    return summary


def _teachers(recipe: Recipe, device: str, offline: bool) -> Sequence[Any]:
    if not recipe.teachers:
        return ()
    from pocketclip.reinforce.teachers import load_teacher

    local = os.environ.get("LOCAL_RANK")
    if local is not None and device in ("auto", "cuda"):
        import torch

        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    return [load_teacher(spec, device=device, offline=offline) for spec in recipe.teachers]


def _facts(summary: Summary) -> dict[str, Any]:
    best, selection = summary.best, summary.selection
    return {
        "run": str(summary.run),
        "model": str(summary.model) if summary.model is not None else None,
        "step": summary.step,
        "steps": summary.steps,
        "samples": summary.samples,
        "interrupted": summary.interrupted,
        "skipped": summary.skipped,
        "too_small": summary.too_small,
        "failed_evaluations": summary.failed_evaluations,
        "metrics": summary.metrics,
        "best": None if best is None else {"step": best[0], "main_metric": best[1]},
        "selection": None if selection is None else selection.as_json(),
        "stopped_early": summary.stopped_early,
        "go_on": _go_on(summary) if summary.is_rising else None,
        "seconds": round(summary.seconds, 1),
    }


def _go_on(summary: Summary) -> str:
    from pocketclip.train.curve import go_on_command

    return go_on_command(summary.run)


def _print_profile(profile: Profile) -> None:
    columns = [Column("phase"), Column("ms per step", right=True), Column("share", right=True)]
    shares = {name: 100 * value / profile.total for name, value in profile.milliseconds.items()}
    rows = [
        [name, figure_text(value), f"{shares[name]:.1f} %"]
        for name, value in profile.milliseconds.items()
    ]
    print_table(columns, [*rows, [Bold("step"), figure_text(profile.total), "100.0 %"]])
    last = profile.first_step + profile.steps - 1
    say_paragraph(
        f"Steps {profile.first_step} to {last} on {profile.device} in {profile.dtype}: "
        f"{1000 * profile.samples / profile.total:.1f} samples/s."
    )
    if profile.operations is None or profile.operations_per_second is None:
        say_paragraph("The operations of captioners are not counted.")
        return
    peak = "no peak is known of this device"
    if profile.peak is not None and profile.share_of_peak is not None:
        peak = f"{100 * profile.share_of_peak:.1f} % of the device's {profile.peak / 1e9:,.0f}"
    say_paragraph(
        f"{profile.operations / 1e9:,.1f} GFLOP per step: the model's products of matrices and "
        "convolutions, once for a forward pass and twice for a backward pass. With `accumulate`, "
        "the pass without gradients counts; what `gradient_checkpointing` computes again does "
        f"not. {profile.operations_per_second / 1e9:,.1f} GFLOP/s; {peak}."
    )


def _print(summary: Summary) -> None:
    if summary.interrupted:
        note(
            f"interrupted after step {summary.step} of {summary.steps}, saved in {summary.run}; "
            "the same command continues"
        )
        return
    samples, steps = count_of(summary.samples, "sample"), count_of(summary.step, "step")
    early = f" of {summary.steps}, ended by evaluation.patience" * summary.stopped_early
    say(f"{summary.model}: {samples} seen in {steps}{early}")
    if summary.selection is not None:
        say(summary.selection.describe())
    if summary.is_rising:
        say(f"the score still rose at the end; to train on: {_go_on(summary)}")
    if summary.skipped:
        samples = count_of(summary.skipped, "sample")
        note(f"{samples} could not be used, replaced by others (named above)")
    if summary.too_small:
        samples = count_of(summary.too_small, "image")
        note(f"{samples} below data.min_image_side left out, others took their place")
    if summary.failed_evaluations:
        note(f"{summary.failed_evaluations} checkpoints could not be scored (see above)")
