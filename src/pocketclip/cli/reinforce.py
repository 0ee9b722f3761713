"""`pocketclip reinforce`: turns raw pairs into a reinforced dataset."""

from __future__ import annotations

import dataclasses
import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketclip.cli._inputs import import_with_extra
from pocketclip.cli._options import (
    PAIRS_HELP,
    AllowPrivate,
    CaptionColumn,
    CaptionsFrom,
    CpusPerActor,
    Delimiter,
    GpusPerActor,
    ImageColumn,
    Json,
    MaxActors,
    MinActors,
    Offline,
    PairsWhere,
    Quotes,
    RayAddress,
    ShardSize,
    UidColumn,
    pair_options,
    ray_cluster,
)
from pocketclip.cli._progress import PairProgress
from pocketclip.cli.output import note, print_json, say
from pocketclip.errors import ConfigError, count_of

if TYPE_CHECKING:
    from pocketclip.pairs import PairOptions
    from pocketclip.reinforce.check_report import CheckOptions, TeacherCheck
    from pocketclip.reinforce.job import Summary
    from pocketclip.reinforce.recipe import Recipe


def reinforce(
    pairs: Annotated[list[str], typer.Argument(metavar="PAIRS", help=PAIRS_HELP)],
    out: Annotated[
        str,
        typer.Option("--out", "-o", help="The folder to write shards to, or s3://BUCKET/FOLDER."),
    ],
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher",
            "-t",
            metavar="MODEL",
            help="A model whose embeddings are stored: a model name, checkpoint, random:NAME, "
            "transformers:ID, open_clip:NAME/TAG or python:MODULE:FACTORY (your own code); may be "
            "repeated for an ensemble. ours=runs/7 labels it; before a weight file write the zoo "
            "model that it holds: vit-b16=file.pt.",
        ),
    ] = None,
    captioner: Annotated[
        list[str] | None,
        typer.Option(
            "--captioner",
            "-c",
            metavar="MODEL",
            help="A model that writes captions, as for --teacher; NAME=SPEC stores them as "
            "syn_text_NAME; may be repeated.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="RECIPE",
            help="A reinforce recipe: a YAML file, or the name of a published set's: "
            "datacompdr-12m, datacompdr-1b, dfndr-12m or dfndr-2b; the options here override its "
            "fields.",
        ),
    ] = None,
    augmentations: Annotated[
        int | None,
        typer.Option(help="The number of augmented views per image.  [default: 10]"),
    ] = None,
    captions: Annotated[
        int | None,
        typer.Option(help="The number of captions per image and captioner.  [default: 5]"),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="The dtype to store embeddings in: float32, float16, bfloat16, int8 or int6.  "
            "[default: bfloat16]"
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The seed of all random choices.  [default: 0]")
    ] = None,
    output_format: Annotated[
        str | None,
        typer.Option("--format", help="The format of the shards: tar or jsonl.  [default: tar]"),
    ] = None,
    images: Annotated[
        bool | None,
        typer.Option(
            "--images/--no-images", help="Whether to store the images too.  [default: images]"
        ),
    ] = None,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    captions_from: CaptionsFrom = None,
    uid_column: UidColumn = None,
    where: PairsWhere = None,
    shard_size: ShardSize = 1000,
    quotes: Quotes = True,
    delimiter: Delimiter = None,
    allow_private: AllowPrivate = False,
    check_pairs: Annotated[
        int,
        typer.Option(
            min=0,
            help="The number of pairs on which the teachers are checked before the work starts; "
            "0: none.",
        ),
    ] = 200,
    student_start: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The model that the student will start from, to compare the teachers with.",
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(help="A column of labels, on which the teachers are checked; not stored."),
    ] = None,
    max_bad: Annotated[
        str | None,
        typer.Option(help="Stop if more pairs than this are bad: a number, or a share such as 5%."),
    ] = "50%",
    batch_size: Annotated[
        int | None,
        typer.Option(help="The number of pairs per batch of the models.  [default: 16]"),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="The precision of the models: float32, bfloat16, float16, or auto for bfloat16 "
            "where the device has it.  [default: auto]"
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="The device of the models: cpu, cuda, cuda:1, mps, or auto for a GPU if there is "
            "one.  [default: auto]"
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="The number of processes that decode and augment.  [default: all cores]"
        ),
    ] = None,
    ray: RayAddress = None,
    min_actors: MinActors = 1,
    max_actors: MaxActors = None,
    cpus_per_actor: CpusPerActor = 1,
    gpus_per_actor: GpusPerActor = 0,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Reinforce raw pairs: store captions, replayable augmentations and teachers' embeddings.

    PAIRS are tables (csv, tsv, jsonl, parquet), folders with x.jpg and x.txt, webdataset tars,
    tfrecords, patterns of them, or info.json lists; local or in an object store. Each input shard
    becomes one output shard. First the teachers are scored on a sample of the pairs, so that one
    that knows nothing of them is seen before the work is paid for. The same command, given again,
    skips finished shards, so a run may be interrupted at any time. A pair that cannot be used is
    named in SHARD.bad.jsonl; the exit code is then 1, or 2 if no pair could be used.

    Captions and embeddings can be made by two runs: without a teacher, captions alone are stored;
    a second run over that set, with --captions-from, adds the teachers. Both together store the
    same samples as one run.

    \b
    pocketclip reinforce pairs.csv --out dr --teacher vit-b16 --captioner coca-vit-l14
    pocketclip reinforce "s3://me/raw/{00000..00999}.tar" --out s3://me/dr --config recipe.yaml
    pocketclip reinforce pairs.csv --out dr --config datacompdr-12m --augmentations 5
    pocketclip reinforce photos/ --out dr --teacher ours=runs/7 --augmentations 5 --dtype int8
    pocketclip reinforce pairs.csv --out captions --captioner coca-vit-l14
    pocketclip reinforce captions --out dr --captions-from "syn_text*" --teacher vit-b16
    """
    # Before torch is loaded: by default its waiting threads keep their cores busy, which slows the
    # worker processes down several times on two cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    recipes = import_with_extra("pocketclip.reinforce.recipe", "reinforcing", "reinforce")
    recipe: Recipe = recipes.load_recipe(
        config,
        teachers=teacher,
        captioners=captioner,
        augmentations=augmentations,
        captions=captions,
        dtype=dtype,
        seed=seed,
        format=output_format,
        images=images,
        batch_size=batch_size,
        precision=precision,
        device=device,
        offline=offline or None,
    )
    from pocketclip.checkpoint import resolve
    from pocketclip.pairs import open_pairs
    from pocketclip.reinforce.job import Limit

    limit = Limit.parse(max_bad)
    if ray is not None:  # the actors may have another working directory
        pairs, out, recipe = _absolute(pairs, out, recipe)
        student_start = student_start and resolve.absolute(student_start)
    columns = (image_column, caption_column, uid_column, where, shard_size)
    options = pair_options(*columns, quotes, delimiter, allow_private, captions_from)
    count = check_pairs if recipe.teachers else None
    check = _check(count, student_start, label_column, pairs, options)
    shards = open_pairs(pairs, options)
    begun = time.monotonic()
    with PairProgress(shards) as progress:

        def on_check(made: TeacherCheck) -> None:
            for line in () if json else made.lines():
                say(line)
            for line in made.warnings():
                note(f"warning: {line}")

        shared: dict[str, Any] = {
            "workers": workers,
            "limit": limit,
            "check": check,
            "on_check": on_check,
            "on_start": progress.start,
            "on_pairs": progress.add,
            "on_shard": progress.finish,
        }
        if ray is None:
            from pocketclip.reinforce import job

            summary = job.run(shards, recipe, out, **shared)
        else:
            from pocketclip.reinforce import cluster

            machines = ray_cluster(ray, min_actors, max_actors, cpus_per_actor, gpus_per_actor)
            summary = cluster.run(shards, recipe, out, machines, **shared)
    if check is not None and summary.teacher_check is None:
        note(
            "all shards were finished before, so the teachers were not checked; "
            f"`pocketclip audit {shlex.quote(out)}` scores them by their stored embeddings"
        )
    facts = _facts(summary, out, time.monotonic() - begun)
    if json:
        print_json(facts)
    else:
        _print(facts)
        if not recipe.teachers:
            from pocketclip.shards.index import how_to_embed

            say(f"captions alone; the second run: {how_to_embed(out)}")
    if not facts["samples"]:
        raise typer.Exit(2)
    if facts["bad"]:
        raise typer.Exit(1)


def _check(
    count: int | None,
    student_start: str | None,
    label_column: str | None,
    pairs: list[str],
    options: PairOptions,
) -> CheckOptions | None:
    """Return what to check of the teachers, on `count` pairs; None: nothing.

    Without teachers `count` is None.

    Raises:
        ConfigError: options that a check needs, without a check.
    """
    from pocketclip.pairs import open_pairs
    from pocketclip.reinforce.check_report import CheckOptions

    if not count:
        unused = {"--student-start": student_start, "--label-column": label_column}
        for option, value in unused.items():
            if value is not None:
                why = "there is no --teacher" if count is None else "--check-pairs is 0"
                raise ConfigError(f"{option} needs a check of the teachers: {why}")
        return None
    labelled = None
    if label_column is not None:  # opened again: what the shards store does not depend on labels
        columns = (*options.meta_columns, label_column)
        labelled = open_pairs(pairs, dataclasses.replace(options, meta_columns=columns))
    return CheckOptions(
        pairs=count, student_start=student_start, label_column=label_column, shards=labelled
    )


def _absolute(pairs: list[str], out: str, recipe: Recipe) -> tuple[list[str], str, Recipe]:
    """Return the arguments with absolute paths, which do not depend on the working directory."""
    from pocketclip.checkpoint import resolve
    from pocketclip.storage import absolute

    models = {
        field: tuple(resolve.absolute(spec) for spec in getattr(recipe, field))
        for field in ("teachers", "captioners")
    }
    return [absolute(path) for path in pairs], absolute(out), recipe.model_copy(update=models)


def _facts(summary: Summary, out: str, seconds: float) -> dict[str, Any]:
    reports = summary.reports
    samples = sum(report.samples for report in reports)
    parts: dict[str, int] = {}
    for report in reports:
        for part, size in report.stats["parts"].items():
            parts[part] = parts.get(part, 0) + size
    return {
        "out": out,
        "shards": len(reports),
        "shards_finished_before": summary.skipped,
        "samples": samples,
        "bad": sum(report.bad for report in reports),
        "captions_cut": sum(report.captions_cut for report in reports),
        "bytes_per_sample": {part: round(size / max(samples, 1)) for part, size in parts.items()},
        "seconds": round(seconds, 1),
        "teacher_check": summary.teacher_check,
    }


def _print(facts: dict[str, Any]) -> None:
    samples, shards = count_of(facts["samples"], "sample"), count_of(facts["shards"], "shard")
    say(f"{facts['out']}: {samples} in {shards}")
    sizes = ", ".join(f"{part} {size}" for part, size in facts["bytes_per_sample"].items())
    say(f"bytes per sample: {sizes}")
    if facts["captions_cut"]:
        longer = count_of(facts["captions_cut"], "caption is", "captions are")
        say(f"{longer} longer than a teacher's context: stored whole, embedded up to that length")
    if facts["bad"]:
        pairs = count_of(facts["bad"], "pair was", "pairs were")
        note(f"{pairs} left out; the .bad.jsonl files beside the shards say why")
    elif not facts["samples"]:
        note("no pair was used: no row has the values of --where")
