"""`pocketclip fit`: a label set from a few labelled photographs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketclip.cli._options import (
    DEFAULT_MODEL,
    Backend,
    BatchSize,
    Device,
    Json,
    LabelColumn,
    LabelledWhere,
    ModelName,
    ModelOption,
    Offline,
    Revision,
    Template,
    Threads,
    check_output_file,
    label_conditions,
)
from pocketclip.cli.output import Column, note, print_json, print_table, say

if TYPE_CHECKING:
    from pocketclip.fit import Fitted

_SHOWN = 10


def fit(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Labelled photographs: a folder with one folder per label (or train/LABEL/), or a "
            "table (csv, tsv, jsonl).",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The label set to write: a .json file.")],
    model: ModelOption = DEFAULT_MODEL,
    model_name: ModelName = None,
    image_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column of a table with image paths.")
    ] = None,
    label_column: LabelColumn = None,
    where: LabelledWhere = None,
    classes_file: Annotated[
        str | None,
        typer.Option(
            help="A text file with one class name per line, or label<TAB>name: it may name further "
            "classes, without photographs."
        ),
    ] = None,
    labels: Annotated[
        str,
        typer.Option(
            help="Further labels without photographs, separated by commas: they keep their prompt."
        ),
    ] = "",
    template: Template = None,
    method: Annotated[
        str,
        typer.Option(
            help="The regression: ridge; logistic; or auto for ridge, or logistic where that takes "
            "seconds and is better on held-out photographs."
        ),
    ] = "auto",
    none_error: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.99,
            help="The share of photographs with one of the labels that `classify` may call none of "
            "these; 0: it calls none so.",
        ),
    ] = 0.05,
    max_images: Annotated[
        int, typer.Option(min=2, help="Of more photographs, use as many of each label as possible.")
    ] = 200_000,
    batch_size: BatchSize = 64,
    backend: Backend = "auto",
    device: Device = "auto",
    threads: Threads = None,
    revision: Revision = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Fit a classifier to labelled photographs: better than any prompt, in seconds.

    A linear head on the model's embeddings, pulled towards the zero-shot classifier, is fitted to
    1 to 50 photographs per label or more. The strength of the pull, the temperature of the
    probabilities, and the threshold for "none of these" are chosen on held-out photographs. If the
    head is not better than the prompts there, the label set holds the prompts' classifier. Use it
    with `classify --labels-file` and `eval --labels-file`. A bundle is enough: torch is not needed.

    A photograph that cannot be read is named and left out; the exit code is then 1.

    \b
    pocketclip fit shelf/ --model mobileclip2-s0 --out labels.json
    pocketclip fit pairs.csv --label-column product --where split=train --out labels.json
    pocketclip fit shelf/ --labels "kiwi,fig" --template "a photo of {} on a shelf." -o shelf.json
    pocketclip classify photo.jpg --model mobileclip2-s0 --labels-file labels.json
    """
    from pocketclip.cli._inputs import load_encoder, text_arguments
    from pocketclip.cli._progress import ConsoleReporter
    from pocketclip.evaluate.datasets.examples import DataOptions
    from pocketclip.fit import FitOptions, fit_labels

    check_output_file("--out", out, (".json",))
    further = [name.strip() for name in text_arguments(labels.split(","), "--labels")]
    options = FitOptions(
        method=method, more_labels=tuple(name for name in further if name),
        none_error=none_error, max_images=max_images, batch_size=batch_size,
    )  # fmt: skip
    data = DataOptions(
        image_column=image_column, label_column=label_column,
        where=label_conditions(where or []), classes_file=classes_file,
        templates=tuple(text_arguments(template or [], "--template")), split="train",
    )  # fmt: skip
    encoder = load_encoder(
        model, model_name, backend=backend, device=device, threads=threads, batch_size=batch_size,
        revision=revision, offline=offline,
    )  # fmt: skip
    reporter = ConsoleReporter()
    try:
        fitted = fit_labels(encoder, source, data, options, reporter=reporter)
    finally:
        reporter.end()
    for bad in fitted.skipped:
        note(f"skipped: {bad.name}: {bad.reason}")
    fitted.label_set.write(out)
    if json:
        print_json(_facts(fitted, out))
    else:
        _print(fitted, out)
    if fitted.skipped:
        raise typer.Exit(1)


def _facts(fitted: Fitted, out: Path) -> dict[str, Any]:
    from pocketclip.formats.escaping import name_text

    made = fitted.label_set
    none = made.as_json()["none"]
    return {
        "out": name_text(out),
        "model": made.model,
        "space_id": made.space_id,
        "labels": list(made.labels),
        "temperature": made.temperature,
        "none": none,
        **fitted.facts,
        "skipped": [{"photo": bad.name, "reason": bad.reason} for bad in fitted.skipped],
    }


def _print(fitted: Fitted, out: Path) -> None:
    from pocketclip.errors import count_of
    from pocketclip.fit.pipeline import ZERO_SHOT

    facts, made = fitted.facts, fitted.label_set
    counts = facts["photographs"]
    with_photographs = [count for count in counts if count]
    low, high = min(with_photographs), max(with_photographs)
    each = f"{low} each" if low == high else f"{low} to {high} each"
    say(f"{count_of(sum(counts), 'photograph')} of {len(with_photographs)} labels, {each}")
    if len(with_photographs) < len(counts):
        rest = len(counts) - len(with_photographs)
        say(
            f"{count_of(rest, 'label')} without photographs: the prompt decides; the logits of the "
            f"others are changed by {-facts['offset']:+.2f}"
        )
    if facts["held_out"]:
        _print_scores(facts)
        _print_classes(facts)
    else:
        say(
            "Hardly a label has two photographs, so nothing could be held out: the accuracy is not "
            "known, strength and temperature are the usual ones, and nothing is called none of "
            "these"
        )
    say()
    strength = "" if facts["strength"] is None else f", strength {facts['strength']:g}"
    say(f"{out}: {len(made.labels)} labels, {facts['method']}{strength}")
    if facts["method"] == ZERO_SHOT:
        say("The head was not better than the prompts: the label set holds the prompts' classifier")
    if made.none is not None:
        say(
            f"A photograph whose highest logit is below {made.none.below:.3g} is none of these: "
            f"about {made.none.error:.1%} or fewer of the labels' own photographs"
        )
    elif facts["held_out"]:
        say("Nothing is called none of these: --none-error is 0, or needs more photographs")


def _print_scores(facts: Mapping[str, Any]) -> None:
    from pocketclip.fit.folds import FOLDS

    accuracy, error = facts["accuracy"], facts["calibration_error"]
    columns = (Column("", folds=True), *(Column(t, right=True) for t in
               ("accuracy", "calibration error", "calibrated")))  # fmt: skip
    rows = (
        ("the prompts alone", f"{accuracy['zero_shot']:.1%}", f"{error['zero_shot']:.3f}",
         f"{error['zero_shot_calibrated']:.3f}"),
        ("the fitted head", f"{accuracy['head']:.1%}", f"{error['head']:.3f}",
         f"{error['head_calibrated']:.3f}"),
    )  # fmt: skip
    say()
    print_table(columns, rows)
    say(f"cross-validated: {facts['held_out']} photographs, held out in {FOLDS} parts", dim=True)


def _print_classes(facts: Mapping[str, Any]) -> None:
    worst = [row for row in facts["per_class"] if row["head"] < 1][:_SHOWN]
    if worst:
        say()
        columns = (
            Column("least often right", folds=True), Column("held out", right=True),
            Column("prompt", right=True), Column("head", right=True),
            Column("taken for", folds=True),
        )  # fmt: skip
        print_table(columns, [
            (row["label"], str(row["held_out"]), f"{row['zero_shot']:.0%}", f"{row['head']:.0%}",
             f"{row['taken_for']} ({row['times']})")
            for row in worst
        ])  # fmt: skip
    if facts["confused"]:
        say()
        titles = (Column("most often confused", folds=True), Column("taken for", folds=True),
                  Column("times", right=True))  # fmt: skip
        rows = [(row["label"], row["taken_for"], str(row["times"])) for row in facts["confused"]]
        print_table(titles, rows)
    if facts["doubtful"]:
        say()
        columns = (
            Column("label to be checked", folds=True), Column("label", folds=True),
            Column("", right=True), Column("rather", folds=True), Column("", right=True),
        )  # fmt: skip
        print_table(columns, [
            (row["photo"], row["label"], f"{row['probability']:.1%}", row["rather"],
             f"{row['rather_probability']:.1%}")
            for row in facts["doubtful"][:_SHOWN]
        ])  # fmt: skip
        if len(facts["doubtful"]) > _SHOWN:
            say(f"and {len(facts['doubtful']) - _SHOWN} more, see --json", dim=True)
