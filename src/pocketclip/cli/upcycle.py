"""`pocketclip upcycle`: a dense model made a sparse mixture of experts."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketclip import zoo
from pocketclip.cli._inputs import import_with_extra
from pocketclip.cli._options import Json, ModelArgument, ModelName, Offline, Revision, Seed
from pocketclip.cli.output import Column, figure_text, note, print_json, print_table, say
from pocketclip.errors import PocketclipError

if TYPE_CHECKING:
    from pocketclip.upcycling import Upcycled
    from pocketclip.zoo.sparse import TowerName

_TOWERS: dict[str, tuple[TowerName, ...]] = {
    "both": ("image", "text"), "image": ("image",), "text": ("text",),
}  # fmt: skip
_SIZES = ("params_million", "active_params_million", "gflop")


def upcycle(
    model: ModelArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The folder to write the sparse checkpoint to.")
    ],
    experts: Annotated[
        int,
        typer.Option(help="The number of experts per mixture, each as large as the dense MLP."),
    ] = 8,
    top_k: Annotated[int, typer.Option(help="The number of experts that process a token.")] = 2,
    layers: Annotated[
        str,
        typer.Option(
            metavar="RULE",
            help="The transformer blocks of each tower that become mixtures: every-N (never the "
            "first), last-N, or numbers from 0, such as 1,3,5.",
        ),
    ] = "every-2",
    towers: Annotated[str, typer.Option(help="The towers: both, image or text.")] = "both",
    noise: Annotated[
        float,
        typer.Option(
            help="Add noise to the experts, of this many standard deviations of the dense weight; "
            "the sparse model then no longer equals the dense one."
        ),
    ] = 0.0,
    seed: Seed = 0,
    model_name: ModelName = None,
    revision: Revision = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Make a dense model a sparse mixture of experts, to train it on (CLIP-UP).

    In the chosen blocks, a router and E experts replace the MLP; K experts process a token. Every
    expert begins as a copy of the MLP, so the sparse model at first gives the dense model's
    embeddings, which is checked before it is written. It pays only after further training. The
    defaults are ours: the paper's settings could not be read. The embedding space is a new one.

    MODEL is unfused and dense. An MCi image tower is convolutional and stays dense.

    \b
    pocketclip upcycle runs/b16 --out sparse/
    pocketclip upcycle vit-b16 --out sparse/ --layers last-6 --towers image
    pocketclip upcycle mobileclip2-s0 --out sparse/ --experts 4 --layers 1,2,3
    pocketclip train clip-up-b16 --data dr/ --set model.init=sparse/ --out runs/sparse
    pocketclip bench sparse/ runs/b16
    """
    chosen = _TOWERS.get(towers)
    if chosen is None:
        raise PocketclipError(f"--towers {towers}: say both, image or text")
    upcycling = import_with_extra("pocketclip.upcycling", "making a model sparse", "train")
    made = upcycling.upcycle_checkpoint(
        model, out, experts=experts, top_k=top_k, layers=layers, towers=chosen, noise=noise,
        seed=seed, model_name=model_name, revision=revision, offline=offline,
        reporter=None if json else note,
    )  # fmt: skip
    if json:
        print_json(_facts(made))
    else:
        _print(made, asked=chosen)


def _facts(made: Upcycled) -> dict[str, Any]:
    from pocketclip.finetune.start import overrides_of

    return {
        "folder": str(made.folder),
        "model": made.sparse.name,
        "space_id": made.space_id,
        "mixtures": {
            tower: None if moe is None
            else {"blocks": list(moe.blocks), "experts": moe.experts, "top_k": moe.top_k}
            for tower, moe in zoo.mixtures(made.sparse).items()
        },
        "max_abs_error": made.max_abs_error,
        "dense": _sizes(made.dense),
        "sparse": _sizes(made.sparse),
        "license": str(made.license),
        "recipe": {"name": made.sparse.name, "overrides": overrides_of(made.sparse)},
    }  # fmt: skip


def _sizes(config: zoo.ModelConfig) -> dict[str, float]:
    from pocketclip.checkpoint.operations import measure

    size = measure(config)
    return {name: getattr(size, name) for name in _SIZES}


def _print(made: Upcycled, *, asked: tuple[TowerName, ...]) -> None:
    say(f"{made.folder}: {zoo.describe(made.sparse)}, {made.space_id}")
    for tower, moe in zoo.mixtures(made.sparse).items():
        part = getattr(made.sparse, tower)
        if moe is not None:
            blocks = f"block{'s' if len(moe.blocks) > 1 else ''} {', '.join(map(str, moe.blocks))}"
            what = (
                f"{moe.experts} experts, {moe.top_k} per token, in {blocks} "
                f"(of {part.layers}, from 0)"
            )
        elif tower not in asked:
            what = "dense, as --towers says"
        else:
            what = "dense: it is convolutional (MCi) and has no transformer blocks"
        say(f"  {tower} tower: {what}")
    if made.max_abs_error is None:
        say("  differs from the dense model: --noise makes it another one")
    else:
        say(
            "  equals the dense model on the package's photographs and captions: unit embeddings "
            f"differ by {made.max_abs_error:.1e} at most"
        )
    if made.license.is_known:
        say(f"  licence of the weights: {made.license}")
    say()
    rows = [("dense", _sizes(made.dense)), ("sparse", _sizes(made.sparse))]
    columns = [Column(""), *(Column(t, right=True) for t in ("million params", "active", "GFLOP"))]
    print_table(columns, [(name, *map(figure_text, size.values())) for name, size in rows])
    say("Active: what one token uses. GFLOP: one image and one text, every token through every "
        "block.", dim=True)  # fmt: skip
    say()
    say("Now train it; until then it is only larger:")
    say(f"  {_training(made)}")


def _training(made: Upcycled) -> str:
    """Return the command that trains the sparse model."""
    from pocketclip.checkpoint.resolve import is_path
    from pocketclip.finetune.start import overrides_of

    out = str(made.folder)
    # A path in any case, even if it is named as a model is.
    out = shlex.quote(out if is_path(out) else f"./{out}")
    begin = "pocketclip train {} --data SHARDS --out RUN --set model.init=" + out
    if made.sparse == zoo.sparse_config(zoo.entry("vit-b16").config):
        return begin.format("clip-up-b16")
    settings = {"model.name": made.sparse.name}
    settings |= {f"model.overrides.{k}": _yaml(v) for k, v in overrides_of(made.sparse).items()}
    return " ".join([
        begin.format("RECIPE"),
        *(f"--set {shlex.quote(f'{key}={value}')}" for key, value in settings.items()),
    ])  # fmt: skip


def _yaml(value: Any) -> str:
    """Return a value as a setting takes it, in YAML on one line."""
    import json

    return json.dumps(value)
