"""`pocketclip join`: images and captions of one set, reinforcements of another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pocketclip.cli._options import (
    AllowPrivate,
    CaptionColumn,
    Delimiter,
    ImageColumn,
    Json,
    PairsWhere,
    Quotes,
    ShardSize,
    UidColumn,
    pair_options,
)
from pocketclip.cli.output import print_json, say
from pocketclip.errors import PocketclipError, count_of

if TYPE_CHECKING:
    from pocketclip.shards import JoinReport


def join(
    reinforced: Annotated[
        str,
        typer.Argument(
            metavar="REINFORCED",
            help="Shards with reinforcements: a folder, a tar or jsonl file, or a quoted pattern; "
            "local or in an object store.",
        ),
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="The folder to write shards to.")],
    pairs: Annotated[
        str | None,
        typer.Argument(
            metavar="PAIRS",
            help="Images and captions: a table (csv, tsv, jsonl, parquet), a folder, or tars. "
            "Without it, use --fetch.",
        ),
    ] = None,
    fetch: Annotated[
        bool,
        typer.Option(
            "--fetch", help="Without PAIRS: fetch the images from the URLs in REINFORCED."
        ),
    ] = False,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    uid_column: UidColumn = None,
    where: PairsWhere = None,
    quotes: Quotes = True,
    delimiter: Delimiter = None,
    allow_private: AllowPrivate = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="The dtype to store embeddings in: float32, float16, bfloat16, int8 or int6.  "
            "[default: unchanged]"
        ),
    ] = None,
    shard_size: ShardSize = 1000,
    concurrency: Annotated[
        int, typer.Option(min=1, help="The number of images to fetch at the same time.")
    ] = 32,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="How long to wait for a server, in seconds.")
    ] = 10.0,
    json: Json = False,
) -> None:
    """Join images and captions with the reinforcements of another dataset, by uid.

    Writes shards with both. A sample that is missing on one side is counted and named in
    OUT/unmatched.jsonl; the exit code is then 1, or 2 if nothing was joined. The same command,
    given again, continues after an interruption. Published DataCompDR datasets hold URLs instead
    of images: --fetch downloads them.

    \b
    pocketclip join grocery-dr pairs.csv --out joined --caption-column alt_text --where split=train
    pocketclip join "dr/{00000..00012}.tar" "images/{00000..00012}.tar" --out joined
    pocketclip join hf://datasets/apple/DataCompDR-12M "images/*.tar" --out joined --dtype int8
    """
    if (pairs is None) != fetch:
        raise PocketclipError("give either PAIRS, or --fetch to fetch the images from their URLs")
    from contextlib import ExitStack
    from dataclasses import asdict, replace

    from pocketclip import shards
    from pocketclip.cli._progress import Advance, progress
    from pocketclip.storage.http import FetchOptions

    fetching = FetchOptions(concurrency=concurrency, timeout=timeout, allow_private=allow_private)
    options = replace(
        pair_options(
            image_column, caption_column, uid_column, where, shard_size, quotes, delimiter
        ),
        fetch=fetching,
    )
    with ExitStack() as stack:
        advance: list[Advance] = []
        report = shards.join(
            reinforced,
            pairs,
            out,
            options=options,
            fetch=fetching,
            dtype=dtype,
            on_start=lambda total: advance.append(stack.enter_context(progress(total, "pairs"))),
            on_progress=lambda count: advance[0](count),
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

    samples, shards = count_of(report.samples, "sample"), count_of(report.shards, "shard")
    say(f"{report.out}: {samples} in {shards}")
    show_parts(report.parts, report.samples)
    for kind, count in report.counts.items():
        if count:
            say(f"{count_of(count, 'time')} {KINDS[kind]}:")
            for example in report.examples[kind][:5]:
                say(f"  {example}")
    if not report.complete:
        say(f"all of them are in {UNMATCHED}")
