"""`pocketclip materialise`: a reinforced dataset with its views rendered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pocketclip.cli._inputs import import_with_extra
from pocketclip.cli._options import Json
from pocketclip.cli.output import note, print_json, say
from pocketclip.errors import PocketclipError, count_of

if TYPE_CHECKING:
    from pocketclip.train.materialise import MaterialiseReport
    from pocketclip.train.size_estimate import Estimate


def materialise(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="DR",
            help="Reinforced tar shards with images: a folder, tars, or a quoted pattern; local or "
            "in an object store.",
        ),
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="The folder to write shards to.")],
    size: Annotated[
        int | None,
        typer.Option(min=1, help="The side of the student's images, in pixels."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="In place of --size: a train recipe, whose model's image size is taken.",
        ),
    ] = None,
    encoding: Annotated[
        str, typer.Option(help="jpeg, or webp for lossless files of the exact pixels.")
    ] = "jpeg",
    quality: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="The quality of JPEG, from 1 to 100.  [default: 90]"),
    ] = None,
    views: Annotated[
        str,
        typer.Option(
            metavar="N|all", help="The number of views per sample: the first N stored ones, or all."
        ),
    ] = "all",
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="The number of processes that render.  [default: one per core]"),
    ] = None,
    json: Json = False,
) -> None:
    """Render every stored view of a dataset once, at a student's size, for faster training.

    Training then decodes one small image per sample in place of replaying an augmentation. OUT is
    a reinforced dataset too: captions and embeddings are carried along, and the same seed chooses
    the same views. It serves students of this size only, and takes more room than the images if
    there are many views. JPEG changes the views a little: the report says by how much (PSNR).

    Samples that cannot be rendered are left out and named in OUT/left_out.jsonl; the exit code is
    then 1, or 2 if nothing was rendered. The same command, given again, continues after an
    interruption.

    \b
    pocketclip materialise dr --size 224 --out dr224
    pocketclip materialise dr --recipe my.yaml --out dr-small --quality 80 --views 5
    pocketclip materialise s3://me/dr --size 256 --out s3://me/dr256 --encoding webp
    pocketclip train my.yaml --data dr224
    """
    from contextlib import ExitStack
    from dataclasses import asdict

    from pocketclip.cli._progress import Advance, progress

    packages = ("pydantic", "torch", "yaml")
    made = import_with_extra("pocketclip.train.materialise", "materialising", "train", packages)
    with ExitStack() as stack:
        advance: list[Advance] = []

        def start(estimate: Estimate) -> None:
            if not json:
                note(_announced(estimate))
            advance.append(stack.enter_context(progress(estimate.samples, "samples")))

        report = made.materialise(
            source[0] if len(source) == 1 else source,
            out,
            size=_size(size, recipe),
            encoding=encoding,
            quality=quality,
            views=_number_of_views(views),
            workers=workers,
            on_start=start,
            on_progress=lambda count: advance[0](count),
        )
    if json:
        print_json({**asdict(report), "complete": not report.left_out})
    else:
        _show(report)
    if report.left_out:
        raise typer.Exit(1)


def _size(size: int | None, recipe: str | None) -> int:
    if (size is None) == (recipe is None):
        raise PocketclipError("give the student's image size: --size PIXELS, or --recipe RECIPE")
    if size is not None:
        return size
    from pocketclip.train.recipe import load_recipe

    assert recipe is not None
    return load_recipe(recipe).model.config().image_size


def _number_of_views(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise PocketclipError(f"--views {text}: say a number, or all")
    return int(text)


def _announced(estimate: Estimate) -> str:
    """Return the line that says how large the result will be."""
    free = "" if estimate.free is None else f", {estimate.free / 1e9:,.1f} GB are free"
    return (
        f"{count_of(estimate.samples, 'sample')} of about {estimate.bytes_per_sample:,.0f} bytes: "
        f"{estimate.bytes / 1e9:,.2f} GB in all{free}"
    )


def _show(report: MaterialiseReport) -> None:
    from pocketclip.cli.audit import show_parts
    from pocketclip.train.materialise import LEFT_OUT

    samples, shards = count_of(report.samples, "sample"), count_of(report.shards, "shard")
    quality = f" of quality {report.quality}" if report.quality is not None else ", lossless"
    say(f"{report.out}: {samples} in {shards}, {report.bytes / 1e6:,.1f} MB")
    say(
        f"{count_of(report.views, 'view')} of {report.size} x {report.size} pixels as "
        f"{report.encoding}{quality}"
    )
    show_parts(report.parts, report.samples)
    before = report.source_bytes / (report.samples + report.left_out)
    say(f"before: {before:,.0f} bytes per sample")
    if report.quality is not None:
        say(
            f"PSNR to the exact views: {report.psnr_mean:.1f} dB on average, "
            f"{report.psnr_lowest:.1f} dB at the lowest"
        )
    if report.left_out:
        say(f"{count_of(report.left_out, 'sample')} left out, each named in {LEFT_OUT}:")
        for example in report.examples[:5]:
            say(f"  {example}")
