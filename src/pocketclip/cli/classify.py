"""`pocketclip classify`: which label fits each photograph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from pocketclip.cli.loading import (
    BACKEND_HELP,
    DEVICE_HELP,
    MODEL_HELP,
    MODEL_NAME_HELP,
    REVISION_HELP,
    THREADS_HELP,
)
from pocketclip.cli.output import Column, note, print_json, print_table
from pocketclip.errors import PocketclipError

FEW = 8
"""Up to so many prompts and photographs it is not worth the while to make the model fast."""


def classify(
    photos: Annotated[
        list[str], typer.Argument(metavar="PHOTO", help="Files, folders or quoted patterns.")
    ],
    labels: Annotated[
        str, typer.Option(help='What to tell apart, separated by commas: "a dog,a cat".')
    ] = "",
    labels_file: Annotated[
        Path | None, typer.Option(help="A text file with one label per line.")
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)] = "mobileclip2-s0",
    model_name: Annotated[str | None, typer.Option(help=MODEL_NAME_HELP)] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help='A prompt such as "a photo of {}."; several are averaged.'),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many labels to show per photograph.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Photographs encoded at a time.")] = 32,
    backend: Annotated[str, typer.Option(help=BACKEND_HELP)] = "auto",
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help=THREADS_HELP)] = None,
    revision: Annotated[str | None, typer.Option(help=REVISION_HELP)] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use weights from the local cache only.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say which label fits each photograph, with probabilities.

    A photograph that cannot be read is named and skipped; the exit code is then 1, or 2 if none
    can be read.

    \b
    pocketclip classify photo.jpg --labels "a dog,a cat"
    pocketclip classify holidays/ --labels-file places.txt --template "a photo of {}." --json
    pocketclip classify "shelf/*.jpg" --labels "apples,pears" --model my-checkpoint/
    """
    from pocketclip.cli._inputs import (
        check_some,
        encode_photographs,
        photographs,
        report_bad,
        text_arguments,
    )
    from pocketclip.cli.loading import load_encoder
    from pocketclip.formats.escaping import name_text

    wanted = _labels(labels, labels_file)
    templates = text_arguments(template or ["{}"], "--template")
    paths = photographs(photos)
    prompts = len(wanted) * len(templates)
    encoder = load_encoder(
        model, model_name, backend=backend, device=device, threads=threads, batch_size=batch_size,
        revision=revision, offline=offline, low_latency_start=prompts <= FEW and len(paths) <= FEW,
    )  # fmt: skip
    encoder.preload("image", "text")
    classifier = encoder.classifier(wanted, templates)
    results: list[dict[str, Any]] = []
    bad: list[tuple[Path, str]] = []
    for good, embeddings, failed in encode_photographs(encoder, paths):
        ranked = encoder.rank(embeddings, classifier, wanted)
        results += [
            {"photo": name_text(path), "labels": dict(list(row.items())[:top])}
            for path, row in zip(good, ranked, strict=True)
        ]
        bad += failed
    report_bad(bad)
    check_some(results, bad)
    if json:
        skipped = [{"photo": name_text(path), "reason": reason} for path, reason in bad]
        print_json({"model": encoder.config.name, "space_id": encoder.space_id,
                    "results": results, "skipped": skipped})  # fmt: skip
    else:
        _print_table(results)
    if bad:
        raise typer.Exit(1)


def _labels(text: str, file: Path | None) -> list[str]:
    from pocketclip.cli._inputs import read_lines, text_arguments

    lines = read_lines(file) if file is not None else []
    given = text_arguments(text.split(","), "--labels")
    labels = [part.strip() for part in [*given, *lines] if part.strip()]
    if not labels:
        raise PocketclipError('no labels: give --labels "a dog,a cat" or --labels-file FILE')
    doubled = [label for label, count in Counter(labels).items() if count > 1]
    if doubled:
        raise PocketclipError(f"the label {doubled[0]!r} is given twice")
    if len(labels) == 1:
        note(f"warning: the only label, {labels[0]}, gets 100 % of every photograph")
    return labels


def _print_table(results: list[dict[str, Any]]) -> None:
    columns = (
        Column("photograph", folds=True), Column("label", folds=True), Column("", right=True),
        Column("next", folds=True, dim=True),
    )  # fmt: skip
    rows = []
    for row in results:
        (best, share), *others = row["labels"].items()
        following = ", ".join(f"{label} {part:.1%}" for label, part in others)
        rows.append((row["photo"], best, f"{share:.1%}", following))
    print_table(columns, rows)
