"""`pocketclip caption`: captions of photographs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketclip.cli._inputs import import_with_extra
from pocketclip.cli._options import (
    MODEL_HELP,
    AllowPrivate,
    BatchSize,
    CaptionColumn,
    Delimiter,
    Device,
    ImageColumn,
    Json,
    Offline,
    PairsWhere,
    Quotes,
    Seed,
    UidColumn,
    pair_options,
)
from pocketclip.cli._progress import Advance, progress
from pocketclip.cli.output import note, on_terminal, print_json, say
from pocketclip.errors import PocketclipError, count_of

if TYPE_CHECKING:
    from pocketclip.reinforce.captioning import CaptionReport


def caption(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="PHOTO|FOLDER|TABLE",
            help="Photographs: files, folders or quoted patterns; or tables (csv, tsv, jsonl, "
            "parquet) and tars of images, with or without captions; local or in an object store.",
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="The captioner, such as coca-vit-l14, transformers:ID of a BLIP or GIT model, or "
            f"python:MODULE:FACTORY. {MODEL_HELP}",
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            help="The table to write: .jsonl, .parquet, or .csv or .tsv for one caption per image. "
            "The same command, given again, goes on where it stopped.",
        ),
    ] = None,
    captions: Annotated[
        int, typer.Option("--captions", "-n", min=1, help="The number of captions per image.")
    ] = 1,
    method: Annotated[
        str | None,
        typer.Option(
            help="How the next token is chosen: nucleus, top_k, greedy or beam.  [default: nucleus]"
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Nucleus: the probability of the tokens to choose from.  [default: 0.9]"),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Top-k: the number of tokens to choose from.  [default: 50]")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Divides the logits: lower is more usual.  [default: 1.0]"),
    ] = None,
    beams: Annotated[
        int | None, typer.Option(help="Beam search: the number of beams.  [default: 6]")
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            help="The maximum length of a caption in tokens, with its start and end.  [default: "
            "the context of a CoCa, else 77]"
        ),
    ] = None,
    min_length: Annotated[
        int | None,
        typer.Option(help="The minimum length of a caption in tokens.  [default: 5]"),
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(help="Above 1: makes tokens that occur already rarer.  [default: 1.0]"),
    ] = None,
    first_sentence: Annotated[
        bool,
        typer.Option(
            "--first-sentence",
            help="Cut each caption at its first full stop, as the published sets do (with "
            "--length 30).",
        ),
    ] = False,
    column: Annotated[
        str | None,
        typer.Option(
            help="The column of the captions.  [default: captions; syn_text_NAME where the table "
            "has captions of its own]"
        ),
    ] = None,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    uid_column: UidColumn = None,
    where: PairsWhere = None,
    quotes: Quotes = True,
    delimiter: Delimiter = None,
    allow_private: AllowPrivate = False,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    workers: Annotated[
        int, typer.Option(min=0, help="The number of processes that decode images.")
    ] = 0,
    device: Device = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="The precision of the model: float32, bfloat16, float16, or auto for bfloat16 "
            "where the device has it."
        ),
    ] = "auto",
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Write captions of photographs.

    Without --out they are printed, else written to a table with one row per image: uid, path or
    url, the image's own captions if it has any, and the new ones. The table can be interrupted and
    continued, and `pocketclip reinforce` reads it. An image that cannot be opened is named; the
    exit code is then 1, or 2 if none could be opened. The captions of an image depend on its
    bytes and uid, the model, the settings and the seed alone.

    \b
    pocketclip caption photo.jpg --model coca-vit-l14 --captions 3
    pocketclip caption photos/ --model coca-vit-l14 --out captions.jsonl
    pocketclip caption pairs.csv --model coca-vit-l14 --length 30 --first-sentence --out c.parquet
    """
    captioning = import_with_extra("pocketclip.reinforce.captioning", "captioning", "reinforce")
    sampling = {
        "method": method,
        "top_p": top_p,
        "top_k": top_k,
        "temperature": temperature,
        "beams": beams,
        "max_length": length,
        "min_length": min_length,
        "repetition_penalty": repetition_penalty,
        "first_sentence": first_sentence or None,
    }
    columns = (image_column, caption_column, uid_column, where, 1000)
    shown = out is None and not json
    with ExitStack() as stack:
        advance: list[Advance] = []

        def start(total: int | None, passed_over: Sequence[str]) -> None:
            for sentence in passed_over:
                note(sentence)
            # Captions that are printed on a terminal are the progress.
            if not (shown and on_terminal()):
                advance.append(stack.enter_context(progress(total, "images")))

        def count_images(count: int) -> None:
            for one in advance:
                one(count)

        try:
            report: CaptionReport = captioning.caption(
                inputs,
                model,
                out=out,
                captions=captions,
                sampling={key: value for key, value in sampling.items() if value is not None},
                seed=seed,
                column=column,
                options=pair_options(*columns, quotes, delimiter, allow_private),
                batch_size=batch_size,
                workers=workers,
                device=device,
                precision=precision,
                offline=offline,
                on_start=start,
                on_progress=count_images,
                on_row=_print if shown else lambda _: None,
            )
        except (KeyboardInterrupt, SystemExit):
            if out is not None and os.path.exists(out):  # noqa: PTH110
                note(f"{out} holds the captions so far; the same command goes on")
            raise
    for one in report.bad:
        note(f"left out: {one.uid}: {one.reason}")
    if not report.count:
        why = "no image could be opened" if report.bad else "there are no images"
        raise PocketclipError(f"nothing was done: {why}")
    if json:
        print_json(_facts(report, out))
    elif out is not None:
        kept = f", {report.kept} of them by an earlier run" if report.kept else ""
        say(f"{out}: captions of {count_of(report.count, 'image')} under {report.column}{kept}")
    if report.left_over:
        rows = count_of(report.left_over, "row")
        note(f"{rows} of images that are not in the input any more stay at the end of {out}")
    if report.bad:
        raise typer.Exit(1)


def _print(row: dict[str, Any]) -> None:
    name = row.get("path") or row.get("url") or row["uid"]
    texts = list(row.values())[-1]  # the new captions are last
    if len(texts) == 1:
        say(f"{name}: {texts[0]}")
        return
    say(name if texts else f"{name}: no caption")
    for text in texts:
        say(f"  {text}")


def _facts(report: CaptionReport, out: str | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "model": report.model,
        "column": report.column,
        "images": report.count,
        "images_done_before": report.kept,
        "bad": [{"image": one.uid, "reason": one.reason} for one in report.bad],
    }
    return {**facts, "results": report.rows} if out is None else {"out": out, **facts}
