"""`pocketclip plan`: what a reinforcement and a training will store, compute, read and cost."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from pocketclip.cli._inputs import import_with_extra
from pocketclip.cli._options import Json, TrainSettings
from pocketclip.cli.output import Column, note, print_json, print_table, say, say_paragraph
from pocketclip.errors import ConfigError

if TYPE_CHECKING:
    from pocketclip.plan import Line, Plan


def plan(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A train recipe or a reinforce recipe: a name or a YAML file. With a train "
            "recipe, the reinforcement of its data is planned too.",
        ),
    ],
    pairs: Annotated[
        str, typer.Option(metavar="N", help="The number of pairs: 12M, 1.3B or 12_000_000.")
    ],
    rates: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Rates of GPUs and cores: the JSON of benchmarks/gpu.py, or a list of rates; may "
            "be repeated.",
        ),
    ] = None,
    rate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND:MODEL=N",
            help="A rate per second that you assume, before those of files: "
            "teacher_views:vit-l14=2400, teacher_texts, captioner_tokens, train_samples of a "
            "model; loader_samples=200 or loader_samples_device of a core; may be repeated.",
        ),
    ] = None,
    reinforce: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="With a train recipe: the reinforce recipe of its data.  [default: that of the "
            "published set that the recipe names]",
        ),
    ] = None,
    settings: TrainSettings = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Take the bytes per sample of this reinforced dataset.  [default: measured on "
            "samples that the recipe's settings make]",
        ),
    ] = None,
    image_bytes: Annotated[
        str | None,
        typer.Option(metavar="N", help="The bytes of an image.  [default: 35K, DataComp's]"),
    ] = None,
    view_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Plan a materialised copy too, with this many bytes per view, as `pocketclip "
            "materialise` says.",
        ),
    ] = None,
    teacher_dims: Annotated[
        str | None,
        typer.Option(
            metavar="D,D", help="The width of each teacher's embeddings.  [default: the zoo's]"
        ),
    ] = None,
    shard_size: Annotated[str, typer.Option(metavar="N", help="The pairs per shard.")] = "10K",
    gpus: Annotated[int, typer.Option(min=1, help="The GPUs that train together.")] = 8,
    days: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="A deadline: how many actors or GPUs it takes to be done in time."
        ),
    ] = None,
    gpu_price: Annotated[
        float | None, typer.Option(min=0, help="The price of a GPU for an hour.")
    ] = None,
    storage_price: Annotated[
        float | None, typer.Option(min=0, help="The price of a GB stored for a month.")
    ] = None,
    egress_price: Annotated[
        float | None, typer.Option(min=0, help="The price of a GB read from the store.")
    ] = None,
    json: Json = False,
) -> None:
    """Plan a reinforcement and a training: storage, GPU hours, network, cores and cost.

    Each line says what it rests on. Bytes per sample are measured: samples with the recipe's views,
    captions and teachers are written as shards are. Rates come from --rates and --rate only. A line
    whose rate is not known stays empty, and the rates that are missing are listed. There are no
    default prices.

    \b
    pocketclip plan datacompdr-12m --pairs 12.8M --rates gpu.json
    pocketclip plan mobileclip-datacompdr1b --pairs 1.28B --gpus 256 --days 7 --rates gpu.json
    pocketclip plan recipe.yaml --reinforce own.yaml --pairs 3M --image-bytes 80K
    pocketclip plan datacompdr-12m --pairs 12.8M --rate teacher_views:vit-l14=2400 --gpu-price 2.5
    pocketclip plan datacompdr-12m --pairs 12.8M --like dr --json
    """
    planning = import_with_extra("pocketclip.plan", "planning", "reinforce")
    number = planning.parse_count
    dims = None
    if teacher_dims is not None:
        dims = tuple(number(text, "--teacher-dims") for text in teacher_dims.split(","))
    if like is not None and (image_bytes or dims):
        raise ConfigError("--like measures bytes: leave --image-bytes and --teacher-dims out")
    scale = planning.Scale(
        pairs=number(pairs, "--pairs"),
        shard_size=number(shard_size, "--shard-size"),
        gpus=gpus,
        days=days,
        like=like,
        image_bytes=None if image_bytes is None else number(image_bytes, "--image-bytes"),
        teacher_dims=dims,
        materialised_bytes=None if view_bytes is None else number(view_bytes, "--view-bytes"),
    )
    known = [planning.parse_rate(text) for text in rate or []]
    known += [one for file in rates or [] for one in planning.read_rates(file)]
    recipes = planning.load_recipes(recipe, reinforce=reinforce, settings=settings or ())
    prices = planning.Prices(gpu_hour=gpu_price, storage=storage_price, egress=egress_price)
    of_use = planning.Rates(known)
    made: Plan = planning.make_plan(recipes, scale, of_use, prices)
    for one in of_use.unused():
        name = f"{one.kind}:{one.model}" if one.model else one.kind
        note(f"warning: --rate {name}: nothing in this plan needs it")
    if json:
        print_json(dataclasses.asdict(made))
        return
    _print(made)


def _print(made: Plan) -> None:
    columns = (Column(""), Column("part", folds=True), Column("amount", right=True),
               Column("rests on", folds=True, dim=True))  # fmt: skip
    topic, rows = "", []
    for line in made.lines:
        rows.append(
            ("" if line.topic == topic else line.topic, line.name, _amount(line), line.assumption)
        )
        topic = line.topic
    print_table(columns, rows)
    say()
    for text in made.left_out:
        say_paragraph(f"left out: {text}")
    if made.missing:
        from pocketclip.plan.rates import describe_missing

        note(f"warning: rates {describe_missing(made.missing)}")


def _amount(line: Line) -> str:
    from pocketclip.plan.numbers import show, show_bytes

    if line.amount is None:
        return "not known"
    if line.unit == "bytes":
        return show_bytes(line.amount)
    if line.unit == "bytes/s":
        return show_bytes(line.amount) + "/s"
    if line.unit == "samples":
        return show(line.amount, ("", "k", "M", "B")) + " samples"
    whole = line.amount >= 100 or line.amount == int(line.amount)
    return f"{line.amount:,.0f} {line.unit}" if whole else f"{line.amount:.3g} {line.unit}"
