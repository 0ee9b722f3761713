"""`pocketclip join`: images and captions of one set, reinforcements of another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pocketclip.cli._options import (
    CAPTION_HELP,
    DELIMITER_HELP,
    IMAGE_HELP,
    PRIVATE_HELP,
    QUOTES_HELP,
    UID_HELP,
    WHERE_HELP,
)
from pocketclip.cli._options import options as pair_options
from pocketclip.cli.output import print_json, say
from pocketclip.errors import PocketclipError

if TYPE_CHECKING:
    from pocketclip.shards import JoinReport


def join(
    reinforced: Annotated[
        str,
        typer.Argument(
            metavar="REINFORCED",
            help="Shards with reinforcements: a folder, a tar or jsonl file, a quoted pattern; "
            "local or in an object store.",
        ),
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="The folder to write.")],
    pairs: Annotated[
        str | None,
        typer.Argument(
            metavar="PAIRS",
            help="Images and captions: a table (csv, tsv, jsonl, parquet), a folder, or tars.",
        ),
    ] = None,
    fetch: Annotated[
        bool,
        typer.Option("--fetch", help="Without PAIRS: fetch the images by the set's own URLs."),
    ] = False,
    image_column: Annotated[str | None, typer.Option(help=IMAGE_HELP)] = None,
    caption_column: Annotated[list[str] | None, typer.Option(help=CAPTION_HELP)] = None,
    uid_column: Annotated[str | None, typer.Option(help=UID_HELP)] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE", help=WHERE_HELP)
    ] = None,
    quotes: Annotated[bool, typer.Option("--quotes/--no-quotes", help=QUOTES_HELP)] = True,
    delimiter: Annotated[str | None, typer.Option(help=DELIMITER_HELP)] = None,
    allow_private: Annotated[bool, typer.Option("--allow-private", help=PRIVATE_HELP)] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Store embeddings as float32, float16, bfloat16, int8 or int6; default: as they "
            "are."
        ),
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Pairs of a table per shard.")] = 1000,
    concurrency: Annotated[int, typer.Option(min=1, help="Images fetched at a time.")] = 32,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for a server.")] = 10.0,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Write shards of PAIRS with the reinforcements that REINFORCED has for them, by uid.

    What has no partner is counted, and named in DIR/unmatched.jsonl; the exit code is then 1, or 2
    if nothing was joined. A run that was stopped goes on where it was. Published DataCompDR sets
    hold URLs instead of images: --fetch brings them.

    \b
    pocketclip join grocery-dr pairs.csv --out joined --caption-column alt_text --where split=train
    pocketclip join "dr/{00000..00012}.tar" "images/{00000..00012}.tar" --out joined
    pocketclip join DataCompDR-12M --fetch --out joined --dtype int8
    """
    if (pairs is None) != fetch:
        raise PocketclipError("give either PAIRS, or --fetch to bring the images by their URLs")
    from contextlib import ExitStack
    from dataclasses import asdict, replace

    from pocketclip import shards
    from pocketclip.cli._inputs import Advance, progress
    from pocketclip.storage.http import FetchOptions

    fetching = FetchOptions(concurrency=concurrency, timeout=timeout, allow_private=allow_private)
    options = replace(
        pair_options(
            image_column, caption_column, uid_column, where, shard_size, quotes, delimiter
        ),
        fetch=fetching,
    )
    with ExitStack() as stack:
        shown: list[Advance] = []
        report = shards.join(
            reinforced,
            pairs,
            out,
            options=options,
            fetch=fetching,
            dtype=dtype,
            on_start=lambda total: shown.append(stack.enter_context(progress(total, "pairs"))),
            on_progress=lambda count: shown[0](count),
        )
    if json:
        print_json({**asdict(report), "complete": report.complete})
    else:
        _show(report)
    if not report.complete:
        raise typer.Exit(1 if report.samples else 2)


def _show(report: JoinReport) -> None:
    from pocketclip.cli.audit import show_parts
    from pocketclip.shards.joining import KINDS, UNMATCHED

    say(f"{report.out}: {report.samples} samples in {report.shards} shards")
    show_parts(report.parts, report.samples)
    for kind, count in report.counts.items():
        if count:
            say(f"{count} times {KINDS[kind]}:")
            for example in report.examples[kind][:5]:
                say(f"  {example}")
    if not report.complete:
        say(f"all of them are in {UNMATCHED}")
