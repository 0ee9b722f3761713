"""`pocketclip embed`: embeddings of photographs or texts, to a file or to many."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pocketclip.cli._options import (
    DEFAULT_MODEL,
    AllowPrivate,
    Backend,
    CpusPerActor,
    Delimiter,
    Device,
    GpusPerActor,
    ImageColumn,
    Json,
    MaxActors,
    MinActors,
    ModelName,
    ModelOption,
    Offline,
    PairsWhere,
    Quotes,
    RayAddress,
    Revision,
    Threads,
    UidColumn,
    pair_options,
    ray_cluster,
)
from pocketclip.cli.output import note, print_json, say
from pocketclip.errors import ConfigError, PocketclipError, count_of

if TYPE_CHECKING:
    from pocketclip.cluster import Cluster
    from pocketclip.infer.encoder import Encoder
    from pocketclip.pairs import PairOptions
    from pocketclip.types import Embeddings

SUFFIXES = (".npy", ".parquet")


def embed(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Photographs: files, folders or quoted patterns; or one .txt file with one text "
            "per line. Into a folder also tables (csv, tsv, jsonl, parquet) and tars of images, "
            "and all of them from an object store.",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            help="The file to write, .npy or .parquet; or a folder for many parquet files, also "
            "s3://BUCKET/FOLDER.",
        ),
    ],
    model: ModelOption = DEFAULT_MODEL,
    model_name: ModelName = None,
    batch_size: Annotated[int, typer.Option(min=1, help="The number of inputs per batch.")] = 32,
    backend: Backend = "auto",
    device: Device = "auto",
    threads: Threads = None,
    revision: Revision = None,
    image_column: ImageColumn = None,
    uid_column: UidColumn = None,
    where: PairsWhere = None,
    shard_size: Annotated[
        int,
        typer.Option(
            min=1,
            help="The number of images per file of a folder, of photographs and tables; a tar "
            "makes one file.",
        ),
    ] = 10_000,
    quotes: Quotes = True,
    delimiter: Delimiter = None,
    allow_private: AllowPrivate = False,
    ray: RayAddress = None,
    min_actors: MinActors = 1,
    max_actors: MaxActors = None,
    cpus_per_actor: CpusPerActor = 1,
    gpus_per_actor: GpusPerActor = 0,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Write unit embeddings of photographs or texts to a file, or of many images to a folder.

    A .npy file holds a float32 array (inputs, width); FILE.json beside it names the input of each
    row, the model, its embedding space and the hash of the .npy file. A .parquet file holds both.
    An input that cannot be read is named and left out; the exit code is then 1. If none can be
    read, nothing is written and the exit code is 2.

    A folder gets one parquet file per --shard-size images (id, path, embedding in float16,
    space_id). The same command, given again, skips finished files, so a run may be interrupted at
    any time. Images that cannot be read are named in FILE.bad.jsonl. With --ray the actors of a
    cluster write the same files.

    \b
    pocketclip embed photos/ --out photos.npy
    pocketclip embed captions.txt --out captions.parquet --model mobileclip2-s2
    pocketclip embed s3://me/photos --out s3://me/vectors
    pocketclip embed "raw/{00000..00999}.tar" --out /nfs/vectors --ray auto --max-actors 64
    pocketclip embed pairs.parquet --out vectors --ray --max-actors 4 --model bundle/
    """
    if _is_folder(out):
        columns = (image_column, None, uid_column, where, shard_size)
        options = pair_options(*columns, quotes, delimiter, allow_private)
        cluster = None
        if ray is not None:
            cluster = ray_cluster(ray, min_actors, max_actors, cpus_per_actor, gpus_per_actor)
        settings = {
            "model": model, "model_name": model_name, "backend": backend, "device": device,
            "threads": threads, "batch_size": batch_size, "revision": revision, "offline": offline,
        }  # fmt: skip
        _embed_shards(inputs, out, options, settings, cluster, json=json)
        return
    given = {
        "--ray": ray, "--image-column": image_column, "--uid-column": uid_column, "--where": where,
    }  # fmt: skip
    for option, value in given.items():
        if value is not None:
            raise ConfigError(f"{option} needs a folder to write to: {out} is a single file")
    from pocketclip.cli._inputs import load_encoder, photographs, report_bad
    from pocketclip.formats.escaping import name_text
    from pocketclip.infer.vectors import prepare_vectors, write_vectors

    target = Path(out)
    prepare_vectors(target)
    texts = _texts(inputs)
    photos = [] if texts is not None else photographs(inputs)
    encoder = load_encoder(
        model, model_name, backend=backend, device=device, threads=threads, batch_size=batch_size,
        revision=revision, offline=offline,
    )  # fmt: skip
    encoder.preload("image" if texts is None else "text")
    bad: list[tuple[Path, str]] = []
    if texts is not None:
        names, embeddings = texts, encoder.encode_text(texts)
    else:
        names, embeddings, bad = _embed_photographs(encoder, photos)
    about = {
        "model": encoder.config.name,
        "space_id": encoder.space_id,
        "embed_dim": encoder.embed_dim,
        "kind": "text" if texts is not None else "image",
    }
    report_bad(names, bad)
    write_vectors(target, embeddings, names, about)
    skipped = [reason for _, reason in bad]
    summary = {**about, "out": name_text(target), "rows": len(names), "skipped": skipped}
    if json:
        print_json(summary)
    else:
        say(f"{target}: {count_of(len(names), 'embedding')} of width {encoder.embed_dim}")
    if bad:
        raise typer.Exit(1)


def _is_folder(out: str) -> bool:
    """Return whether to write many files: into a store, a folder, or what has no suffix."""
    from pocketclip import storage

    return (
        storage.is_remote(out) or out.endswith("/") or not Path(out).suffix or (Path(out).is_dir())
    )


def _embed_shards(
    inputs: list[str],
    out: str,
    options: PairOptions,
    settings: dict[str, Any],
    cluster: Cluster | None,
    *,
    json: bool,
) -> None:
    from pocketclip import storage
    from pocketclip.checkpoint import resolve
    from pocketclip.cli._progress import PairProgress
    from pocketclip.embed.job import Settings, run
    from pocketclip.pairs.photographs import open_image_shards

    if out.lower().endswith(SUFFIXES):
        raise ConfigError(f"{out}: an object store or a folder gets many files: give a folder")
    if any(text.endswith(".txt") for text in inputs):
        raise ConfigError(f"embeddings of texts go to one .npy or .parquet file, not to {out}")
    begun = time.monotonic()
    # What the files hold does not depend on the working directory.
    inputs, out = [storage.absolute(text) for text in inputs], storage.absolute(out)
    model = Settings(**{**settings, "model": resolve.absolute(settings["model"])})
    shards, passed_over = open_image_shards(inputs, options)
    for sentence in passed_over:
        note(sentence)
    with PairProgress(shards, "images") as progress:
        summary = run(
            shards, model, out, cluster,
            on_start=progress.start, on_progress=progress.add, on_shard=progress.finish,
        )  # fmt: skip
    rows = sum(report.samples for report in summary.reports)
    bad = sum(report.bad for report in summary.reports)
    if json:
        print_json(
            {
                **{key: summary.facts[key] for key in ("model", "space_id", "embed_dim", "kind")},
                "out": out,
                "rows": rows,
                "bad": bad,
                "files": len(summary.reports),
                "files_finished_before": summary.skipped,
                "files_of_other_inputs": summary.others,
                "seconds": round(time.monotonic() - begun, 1),
            }
        )
    else:
        files = count_of(len(summary.reports), "file")
        width = summary.facts["embed_dim"]
        say(f"{out}: {count_of(rows, 'embedding')} of width {width} in {files}")
    if summary.others:
        note(f"{out} also holds {count_of(summary.others, 'file')} of other inputs")
    if bad:
        images = count_of(bad, "image was", "images were")
        note(f"{images} left out; the .bad.jsonl files in {out} say which and why")
    if not rows:
        raise typer.Exit(2)
    if bad:
        raise typer.Exit(1)


def _texts(inputs: list[str]) -> list[str] | None:
    if not any(text.endswith(".txt") for text in inputs):
        return None
    if len(inputs) > 1:
        raise PocketclipError("give either one .txt file of texts, or photographs")
    from pocketclip.cli._inputs import read_lines

    texts = read_lines(Path(inputs[0]))
    if not texts:
        raise PocketclipError(f"{inputs[0]} is empty")
    return texts


def _embed_photographs(
    encoder: Encoder, photos: list[Path]
) -> tuple[list[str], Embeddings, list[tuple[Path, str]]]:
    import numpy as np

    from pocketclip.cli._inputs import encode_photographs
    from pocketclip.formats.escaping import name_text

    names: list[str] = []
    batches = [np.empty((0, encoder.embed_dim), np.float32)]
    bad: list[tuple[Path, str]] = []
    for good, embeddings, failed in encode_photographs(encoder, photos):
        names += [name_text(path) for path in good]
        batches.append(embeddings)
        bad += failed
    return names, np.concatenate(batches), bad
