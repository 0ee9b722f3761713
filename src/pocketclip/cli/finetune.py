"""`pocketclip finetune`: from a published model to a better one of one's own images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from pocketclip.cli._inputs import import_with_extra
from pocketclip.cli._options import (
    DecodeWorkers,
    Json,
    LabelColumn,
    Offline,
    PairsWhere,
    Seed,
    Template,
    TrainSettings,
    label_conditions,
)
from pocketclip.cli._progress import ConsoleReporter
from pocketclip.cli.output import print_json, say

START_HELP = (
    "The model to start from: a model name (see `pocketclip models`), training run, checkpoint, "
    "weight file, NAME=FILE, hub id OWNER/NAME, or random:NAME. It needs trainable weights: not a "
    "bundle, and not a fused checkpoint."
)


def finetune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=START_HELP)],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            metavar="PAIRS|FOLDER",
            help="Your images: a folder with one sub-folder per label, a table with labels or "
            "captions, a folder of images with texts (x.jpg, x.txt), or images alone.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write everything to.")],
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher",
            "-t",
            metavar="MODEL",
            help="A larger model that is distilled in the place of the start if it is clearly "
            "better on your images; may be repeated.",
        ),
    ] = None,
    captioner: Annotated[
        str | None,
        typer.Option(
            "--captioner",
            "-c",
            metavar="MODEL",
            help="A model that first writes a caption for each image; for images without texts.",
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help="How much is trained: head (the final projections), last-n (the last blocks), "
            "lora (small added layers, merged at the end), or full (everything, early layers "
            "slower)."
        ),
    ] = "full",
    label_column: LabelColumn = None,
    caption_column: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="The column of a table with the captions."),
    ] = None,
    unlabelled: Annotated[
        bool,
        typer.Option("--unlabelled", help="Ignore labels, captions and the names of folders."),
    ] = False,
    image_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="The column with image paths.  [default: the first of the usual names]",
        ),
    ] = None,
    where: PairsWhere = None,
    classes_file: Annotated[
        Path | None,
        typer.Option(help="A file of class names, one per line, or of lines label<TAB>name."),
    ] = None,
    template: Template = None,
    steps: Annotated[
        int | None,
        typer.Option(min=2, help="The largest number of training steps.  [default: by the images]"),
    ] = None,
    settings: TrainSettings = None,
    rate_trials: Annotated[
        bool,
        typer.Option(
            "--rate-trials/--no-rate-trials",
            help="Choose the learning rate by short trainings, of half the steps in all; not where "
            "--set gives optimizer.lr.",
        ),
    ] = True,
    validation: Annotated[
        float | None,
        typer.Option(
            help="The share of the images to validate with, of each label.  [default: 0.2, from "
            "1,000 images on 0.1]"
        ),
    ] = None,
    views: Annotated[
        int, typer.Option(min=1, help="The number of augmented views stored of each image.")
    ] = 10,
    self_distillation: Annotated[
        bool,
        typer.Option(
            "--self-distillation/--no-self-distillation",
            help="Distil what the start says of your images and captions about other things.",
        ),
    ] = True,
    interpolation: Annotated[
        bool,
        typer.Option(
            "--interpolation/--no-interpolation",
            help="Also score the models between start and end.",
        ),
    ] = True,
    retain: Annotated[
        float | None,
        typer.Option(
            help="The least that the result keeps of what the start knew, as a share; 0: any. "
            "[default: 0.95 with --keep; else 0.9, as that score says less is kept than is]"
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="An evaluation set of your own that measures what is to be kept.  [default: the "
            "package's own images and captions]",
        ),
    ] = None,
    export: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORMAT",
            help="Also write a bundle of the result: onnx, openvino, coreml, executorch or litert; "
            "may be repeated.",
        ),
    ] = None,
    seed: Seed = 0,
    workers: DecodeWorkers = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Make a model better on your own images, and keep what it knew.

    Some images of each label are held out to validate with. The start model stays a teacher while
    the model learns, or --teacher takes its place, and the models between start and end are scored
    too; the one with the best validation among those that keep enough of the start's knowledge
    becomes OUT/model, which may be the start itself: the last line says so. OUT gets a report to
    open in a browser. Your images are not copied, except into OUT/shards, which may be deleted at
    the end. The same command, given again, continues after an interruption. An image that cannot be
    used is left out and counted; the exit code is then 1.

    \b
    pocketclip finetune mobileclip2-s0 --data shelf/ --out runs/shelf
    pocketclip finetune mobileclip2-s0 --data pairs.csv --label-column product --out runs/shelf
    pocketclip finetune runs/small --data photos/ --preset lora --out runs/photos --export onnx
    pocketclip finetune mobileclip2-s0 --data shelf/ --teacher mobileclip2-s4 --out runs/shelf
    pocketclip finetune mobileclip2-s0 --data unsorted/ --teacher mobileclip2-s4 --out runs/mine
    """
    # Before torch is loaded, as in `pocketclip reinforce`.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    module = import_with_extra(
        "pocketclip.finetune.pipeline", "fine-tuning", "train", ("pydantic", "torch", "yaml")
    )
    from pocketclip.evaluate.datasets.examples import DataOptions

    options = module.Options(
        preset=preset,
        images=DataOptions(
            image_column=image_column, label_column=label_column, caption_column=caption_column,
            where=label_conditions(where or []), templates=tuple(template or ()), split="train",
            classes_file=None if classes_file is None else str(classes_file),
        ),
        unlabelled=unlabelled, teachers=teacher or (), captioner=captioner, share=validation,
        steps=steps, settings=settings or (), rate_trials=rate_trials, seed=seed,
        self_distillation=self_distillation, interpolation=interpolation, retain=retain, keep=keep,
        views=views,
    )  # fmt: skip
    reporter = ConsoleReporter()
    result = module.finetune(
        model, data, out, options,
        export=export or (), offline=offline, workers=workers, reporter=reporter,
    )  # fmt: skip
    reporter.end()
    if json:
        print_json(result)
    else:
        _print(result, out)
    if result["counts"]["left_out"]:
        raise typer.Exit(1)


def _print(result: dict[str, Any], out: Path) -> None:
    say(f"{'':32}{result['metric']:>26}{'kept of the start':>20}")
    for row in result["candidates"]:
        say(f"{row['name']:32}{100 * row['validation']:>24.1f} %{100 * row['retention']:>18.1f} %")
    for line in ("", f"report  {out / 'report.html'}", "", "next:"):
        say(line)
    for command in result["next"]:
        say(f"  {command}")
    say("")
    say(f"{out / 'model'}: {result['verdict']}")
