"""`pocketclip reinforce`: raw pairs to a reinforced dataset."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketclip.cli._inputs import duration
from pocketclip.cli._options import (
    CAPTION_HELP,
    DELIMITER_HELP,
    IMAGE_HELP,
    PAIRS_HELP,
    PRIVATE_HELP,
    QUOTES_HELP,
    UID_HELP,
    WHERE_HELP,
    options,
)
from pocketclip.cli.output import note, print_json, progress_bar, say
from pocketclip.errors import MissingDependencyError

if TYPE_CHECKING:
    from pocketclip.pairs import PairShard
    from pocketclip.reinforce.job import Summary
    from pocketclip.reinforce.recipe import Recipe


def reinforce(
    pairs: Annotated[list[str], typer.Argument(metavar="PAIRS", help=PAIRS_HELP)],
    out: Annotated[str, typer.Option("--out", "-o", help="A folder, or s3://bucket/folder.")],
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher",
            "-t",
            help="A model name, checkpoint, NAME=FILE, random:NAME, transformers:ID or "
            "open_clip:NAME/TAG; several make an ensemble.",
        ),
    ] = None,
    captioner: Annotated[
        list[str] | None,
        typer.Option(
            "--captioner",
            "-c",
            help="As --teacher; NAME=SPEC names its captions syn_text_NAME. Several add up.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A recipe in YAML; options override its fields.")
    ] = None,
    augmentations: Annotated[
        int | None, typer.Option(help="Augmented views per image.  [default: 10]")
    ] = None,
    captions: Annotated[
        int | None, typer.Option(help="Captions per image and captioner.  [default: 5]")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="How embeddings are stored: float32, float16, bfloat16, int8, int6.  "
            "[default: bfloat16]"
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all random choices.  [default: 0]")] = None,
    output_format: Annotated[
        str | None, typer.Option("--format", help="tar or jsonl.  [default: tar]")
    ] = None,
    images: Annotated[
        bool | None, typer.Option("--images/--no-images", help="Store the images too.")
    ] = None,
    image_column: Annotated[str | None, typer.Option(help=IMAGE_HELP)] = None,
    caption_column: Annotated[list[str] | None, typer.Option(help=CAPTION_HELP)] = None,
    uid_column: Annotated[str | None, typer.Option(help=UID_HELP)] = None,
    where: Annotated[list[str] | None, typer.Option(help=WHERE_HELP)] = None,
    shard_size: Annotated[
        int, typer.Option(min=1, help="Pairs per shard, of tables and folders.")
    ] = 1000,
    quotes: Annotated[bool, typer.Option("--quotes/--no-quotes", help=QUOTES_HELP)] = True,
    delimiter: Annotated[str | None, typer.Option(help=DELIMITER_HELP)] = None,
    allow_private: Annotated[bool, typer.Option("--allow-private", help=PRIVATE_HELP)] = False,
    max_bad: Annotated[
        str | None,
        typer.Option(help="Stop when more pairs are bad: a number, or a share such as 5%."),
    ] = "50%",
    batch_size: Annotated[
        int | None, typer.Option(help="Pairs handed to the models at a time.  [default: 16]")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16, float16, or auto: bfloat16 where it is native."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that decode and augment.  [default: all cores]"),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray", metavar="ADDRESS", help="Run on a Ray cluster: auto, ray://..., or local."
        ),
    ] = None,
    min_actors: Annotated[int, typer.Option(help="With --ray: start with so many.")] = 1,
    max_actors: Annotated[
        int | None, typer.Option(help="With --ray: grow to so many.  [default: --min-actors]")
    ] = None,
    cpus_per_actor: Annotated[float, typer.Option(help="With --ray.")] = 1,
    gpus_per_actor: Annotated[float, typer.Option(help="With --ray.")] = 0,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use weights from the local cache only.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Store captions, replayable augmentations and teachers' embeddings with raw pairs, once.

    PAIRS are tables (csv, tsv, jsonl, parquet), folders of x.jpg and x.txt, webdataset tars,
    tfrecords, patterns of them, or info.json lists; local or on an object store. One shard in,
    one shard out. Finished shards are skipped when the command is given again, so a run may be
    interrupted at any time. A pair that cannot be used is named in SHARD.bad.jsonl; the exit
    code is then 1, and 2 if there was no other.

    \b
    pocketclip reinforce pairs.csv --out dr --teacher vit-b16 --captioner coca-vit-l14
    pocketclip reinforce "s3://me/raw/{00000..00999}.tar" --out s3://me/dr --config recipe.yaml
    pocketclip reinforce photos/ --out dr --teacher ours=runs/7 --augmentations 5 --dtype int8
    """
    # Before torch is loaded: its threads share the cores with the worker processes, and by default
    # a thread that waits for another one keeps its core busy. (Several times slower on two cores.)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    recipe = _recipe(
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
    from pocketclip.pairs import open_pairs
    from pocketclip.reinforce.job import Limit

    limit = Limit.parse(max_bad)
    if ray is not None:  # the actors may stand in another folder
        pairs, out, recipe = _absolute(pairs, out, recipe)
    columns = (image_column, caption_column, uid_column, where, shard_size)
    found = open_pairs(pairs, options(*columns, quotes, delimiter, allow_private))
    begun = time.monotonic()
    with Progress(found) as progress:
        shared: dict[str, Any] = {
            "workers": workers,
            "limit": limit,
            "on_start": progress.start,
            "on_pairs": progress.add,
            "on_shard": progress.finish,
        }
        if ray is None:
            from pocketclip.reinforce import job

            summary = job.run(found, recipe, out, **shared)
        else:
            from pocketclip.reinforce import cluster

            where_to_run = cluster.Cluster(
                address=None if ray == "local" else ray,
                min_actors=min_actors,
                max_actors=max(min_actors, max_actors or min_actors),
                cpus=cpus_per_actor,
                gpus=gpus_per_actor,
            )
            summary = cluster.run(found, recipe, out, where_to_run, **shared)
    facts = _facts(summary, out, time.monotonic() - begun)
    if json:
        print_json(facts)
    else:
        _print(facts)
    if not facts["samples"]:
        raise typer.Exit(2)
    if facts["bad"]:
        raise typer.Exit(1)


def _absolute(pairs: list[str], out: str, recipe: Recipe) -> tuple[list[str], str, Recipe]:
    """Return the same with local paths that hold everywhere on this machine."""
    from pocketclip.checkpoint import resolve
    from pocketclip.storage import absolute

    models = {
        field: tuple(resolve.absolute(spec) for spec in getattr(recipe, field))
        for field in ("teachers", "captioners")
    }
    return [absolute(path) for path in pairs], absolute(out), recipe.model_copy(update=models)


def _recipe(config: Path | None, **overrides: Any) -> Recipe:
    try:
        from pocketclip.reinforce.recipe import load_recipe
    except ModuleNotFoundError as error:
        if error.name not in ("pydantic", "torch", "yaml"):
            raise
        raise MissingDependencyError(
            f"reinforcing needs {error.name}: pip install 'pocketclip[reinforce]'"
        ) from error
    return load_recipe(config, **overrides)


class Progress:
    """Pairs and shards done, rate, remaining time and bad pairs, on standard error."""

    EVERY = 60.0
    """Seconds between lines where there is no terminal."""

    def __init__(self, shards: Sequence[PairShard]) -> None:
        sizes = [shard.size for shard in shards]
        self.known = None not in sizes
        self.total = sum(size for size in sizes if size is not None) if self.known else None
        self.shards = len(shards)
        self.done = self.bad = self.before = 0
        self.finished: list[int] = []
        """Pairs of each shard that this run finished."""
        self.begun = self.last = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}", markup=False),
                TimeRemainingColumn(),
            )
            self._bar = progress_bar(*columns)
            self._bar.start()
            self._task = self._bar.add_task("loading the models", total=self.total)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, shards: int, finished: int, pairs_finished: int) -> None:
        """Begin to count; some of the work may have been done before."""
        self.begun = self.last = time.monotonic()
        self.before, self.shards_before = pairs_finished, finished
        if finished:
            note(f"{finished} of {shards} shards are finished already")
        if self._bar is not None:
            self._bar.advance(self._task, pairs_finished)

    def finish(self, pairs: int) -> None:
        """Take note of a finished shard; tars do not say before how many pairs they hold."""
        self.finished.append(pairs)
        if not self.known:
            left = self.shards - self.shards_before - len(self.finished)
            mean = sum(self.finished) / len(self.finished)
            self.total = round(self.before + sum(self.finished) + left * mean)
            if self._bar is not None:
                self._bar.update(self._task, total=self.total)

    def add(self, done: int, bad: int) -> None:
        """Count pairs, and the bad ones among them."""
        self.done += done
        self.bad += bad
        now = time.monotonic()
        rate = self.done / max(now - self.begun, 1e-9)
        text = f"{rate:.1f} pairs/s, {self.bad} bad"
        if self._bar is not None:
            self._bar.update(self._task, advance=done, description=text)
        elif now - self.last >= self.EVERY:
            self.last = now
            of = left = ""
            if self.total is not None:
                rest = self.total - self.before - self.done
                about = "" if self.known else "about "
                of = f" of {about}{self.total}"
                left = f", about {duration(rest / max(rate, 1e-9))} left"
            else:
                at = self.shards_before + len(self.finished) + 1
                of = f" (shard {at} of {self.shards})"
            note(f"{self.before + self.done}{of} pairs, {text}{left}")


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
    }


def _print(facts: dict[str, Any]) -> None:
    say(f"{facts['out']}: {facts['samples']} samples in {facts['shards']} shards")
    sizes = ", ".join(f"{part} {size}" for part, size in facts["bytes_per_sample"].items())
    say(f"bytes per sample: {sizes}")
    if facts["captions_cut"]:
        say(f"{facts['captions_cut']} captions are longer than a teacher reads (embedded cut)")
    if facts["bad"]:
        note(f"{facts['bad']} pairs were left out; the .bad.jsonl files beside the shards say why")
    elif not facts["samples"]:
        note("no pair was taken: none has the values that --where asks for")
