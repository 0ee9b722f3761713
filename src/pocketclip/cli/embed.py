"""`pocketclip embed`: embeddings of photographs or texts, to a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketclip.cli._options import (
    DEFAULT_MODEL,
    Backend,
    Device,
    Json,
    ModelName,
    ModelOption,
    Offline,
    Revision,
    Threads,
)
from pocketclip.cli.output import print_json, say
from pocketclip.errors import PocketclipError, count_of

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder
    from pocketclip.types import Embeddings


def embed(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Photographs: files, folders or quoted patterns; or one .txt file with one text "
            "per line.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write: .npy or .parquet.")],
    model: ModelOption = DEFAULT_MODEL,
    model_name: ModelName = None,
    batch_size: Annotated[int, typer.Option(min=1, help="The number of inputs per batch.")] = 32,
    backend: Backend = "auto",
    device: Device = "auto",
    threads: Threads = None,
    revision: Revision = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Write unit embeddings of photographs or texts to a file.

    A .npy file holds a float32 array (inputs, width); FILE.json beside it names the input of each
    row, the model, its embedding space and the hash of the .npy file. A .parquet file holds both.
    An input that cannot be read is named and left out; the exit code is then 1. If none can be
    read, nothing is written and the exit code is 2.

    \b
    pocketclip embed photos/ --out photos.npy
    pocketclip embed captions.txt --out captions.parquet --model mobileclip2-s2
    """
    from pocketclip.cli._inputs import load_encoder, photographs, report_bad
    from pocketclip.formats.escaping import name_text
    from pocketclip.infer.vectors import prepare_vectors, write_vectors

    prepare_vectors(out)
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
    write_vectors(out, embeddings, names, about)
    skipped = [reason for _, reason in bad]
    summary = {**about, "out": name_text(out), "rows": len(names), "skipped": skipped}
    if json:
        print_json(summary)
    else:
        say(f"{out}: {count_of(len(names), 'embedding')} of width {encoder.embed_dim}")
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
