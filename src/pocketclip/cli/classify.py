"""`pocketclip classify`: which label fits each photograph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketclip.cli._options import (
    DEFAULT_MODEL,
    Backend,
    BatchSize,
    Device,
    Json,
    ModelName,
    ModelOption,
    Offline,
    Revision,
    Template,
    Threads,
)
from pocketclip.cli.output import Column, note, print_json, print_table
from pocketclip.errors import PocketclipError

if TYPE_CHECKING:
    from pocketclip.label_set import LabelSet

FEW = 8
"""For at most this many prompts and photographs a quick start matters more than speed."""


def classify(
    photos: Annotated[
        list[str],
        typer.Argument(metavar="PHOTO", help="Photographs: files, folders or quoted patterns."),
    ],
    labels: Annotated[
        str, typer.Option(help='The labels, separated by commas, such as "a dog,a cat".')
    ] = "",
    labels_file: Annotated[
        Path | None,
        typer.Option(
            help="A text file with one label per line, added to --labels; or a label set that "
            "`pocketclip fit` wrote."
        ),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    model_name: ModelName = None,
    template: Template = None,
    top: Annotated[
        int, typer.Option(min=1, help="The number of labels to show per photograph.")
    ] = 3,
    batch_size: BatchSize = 32,
    backend: Backend = "auto",
    device: Device = "auto",
    threads: Threads = None,
    revision: Revision = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Choose the label that fits each photograph best, and print probabilities.

    With a label set, a photograph may be none of the labels: the table then shows "none of these"
    and the best label in brackets, and --json has "none": true.

    A photograph that cannot be read is named and skipped. The exit code is then 1, or 2 if none
    could be read.

    \b
    pocketclip classify photo.jpg --labels "a dog,a cat"
    pocketclip classify holidays/ --labels-file places.txt --template "a photo of {}." --json
    pocketclip classify "shelf/*.jpg" --labels "apples,pears" --model my-checkpoint/
    pocketclip classify photo.jpg --labels-file labels.json
    """
    from pocketclip.cli._inputs import (
        encode_photographs,
        load_encoder,
        photographs,
        report_bad,
        text_arguments,
    )
    from pocketclip.formats.escaping import name_text

    label_set = _read_label_set(labels, labels_file, template)
    names = [] if label_set is not None else _read_labels(labels, labels_file)
    templates = text_arguments(template or ["{}"], "--template")
    paths = photographs(photos)
    prompts = len(names) * len(templates)
    encoder = load_encoder(
        model, model_name, backend=backend, device=device, threads=threads, batch_size=batch_size,
        revision=revision, offline=offline, low_latency_start=prompts <= FEW and len(paths) <= FEW,
    )  # fmt: skip
    if label_set is not None:
        label_set.check_space(encoder.space_id, str(labels_file), embed_dim=encoder.embed_dim)
        encoder.preload("image")
    else:
        encoder.preload("image", "text")
        classifier = encoder.classifier(names, templates)
    results: list[dict[str, Any]] = []
    bad: list[tuple[Path, str]] = []
    for good, embeddings, failed in encode_photographs(encoder, paths):
        if label_set is not None:
            ranked = encoder.rank(embeddings, label_set)
            none = label_set.is_none(embeddings).tolist()
        else:
            ranked = encoder.rank(embeddings, classifier, names)
            none = [None] * len(ranked)
        for path, row, is_none in zip(good, ranked, none, strict=True):
            result = {"photo": name_text(path), "labels": dict(list(row.items())[:top])}
            results.append(result if is_none is None else {**result, "none": is_none})
        bad += failed
    report_bad(results, bad)
    if json:
        skipped = [{"photo": name_text(path), "reason": reason} for path, reason in bad]
        print_json({"model": encoder.config.name, "space_id": encoder.space_id,
                    "results": results, "skipped": skipped})  # fmt: skip
    else:
        _print_table(results)
    if bad:
        raise typer.Exit(1)


def _read_label_set(labels: str, file: Path | None, templates: list[str] | None) -> LabelSet | None:
    """Return the label set in a file; None if it is a text with one label per line."""
    from pocketclip.label_set import is_label_set, read_label_set

    if file is None or not is_label_set(file):
        return None
    label_set = read_label_set(file)
    for option, given in (("--labels", labels.strip()), ("--template", templates)):
        if given:
            raise PocketclipError(
                f"{file} is a label set, which has its own labels and needs no prompts: leave out "
                f"{option}, or add labels with `pocketclip fit --labels`"
            )
    return label_set


def _read_labels(text: str, file: Path | None) -> list[str]:
    from pocketclip.cli._inputs import read_lines, text_arguments

    lines = read_lines(file) if file is not None else []
    arguments = text_arguments(text.split(","), "--labels")
    labels = [label.strip() for label in [*arguments, *lines] if label.strip()]
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
        (best, best_share), *others = row["labels"].items()
        following = ", ".join(f"{label} {share:.1%}" for label, share in others)
        shown = f"none of these ({best})" if row.get("none") else best
        rows.append((row["photo"], shown, f"{best_share:.1%}", following))
    print_table(columns, rows)
