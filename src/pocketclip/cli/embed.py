"""`pocketclip embed`: embeddings of photographs or texts, to a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pocketclip.cli.loading import (
    BACKEND_HELP,
    DEVICE_HELP,
    MODEL_HELP,
    MODEL_NAME_HELP,
    REVISION_HELP,
    THREADS_HELP,
)
from pocketclip.cli.output import print_json, say
from pocketclip.errors import PocketclipError

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder
    from pocketclip.types import Embeddings


def embed(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Photographs (files, folders, quoted patterns), or one .txt file with a text "
            "per line.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="A .npy or .parquet file to write.")],
    model: Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)] = "mobileclip2-s0",
    model_name: Annotated[str | None, typer.Option(help=MODEL_NAME_HELP)] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs encoded at a time.")] = 32,
    backend: Annotated[str, typer.Option(help=BACKEND_HELP)] = "auto",
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help=THREADS_HELP)] = None,
    revision: Annotated[str | None, typer.Option(help=REVISION_HELP)] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use weights from the local cache only.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Write unit embeddings of photographs or texts.

    A .npy file holds a float32 array (inputs, width); beside it FILE.json names the input of
    each row, the model, its embedding space and the hash of the .npy file. A .parquet file holds
    both. Inputs that cannot be read are named and left out; the exit code is then 1. If none can
    be read, nothing is written; the exit code is then 2.

    \b
    pocketclip embed photos/ --out photos.npy
    pocketclip embed captions.txt --out captions.parquet --model mobileclip2-s2
    """
    from pocketclip.cli._inputs import check_some, photographs, report_bad
    from pocketclip.cli.loading import load_encoder
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
    report_bad(bad)
    check_some(names, bad)
    write_vectors(out, embeddings, names, about)
    skipped = [reason for _, reason in bad]
    summary = {**about, "out": name_text(out), "rows": len(names), "skipped": skipped}
    if json:
        print_json(summary)
    else:
        say(f"{out}: {len(names)} embeddings of width {encoder.embed_dim}")
    if bad:
        raise typer.Exit(1)


def _texts(inputs: list[str]) -> list[str] | None:
    if not any(text.endswith(".txt") for text in inputs):
        return None
    if len(inputs) > 1:
        raise PocketclipError("give one .txt file of texts, or photographs, not both")
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
    parts = [np.empty((0, encoder.embed_dim), np.float32)]
    bad: list[tuple[Path, str]] = []
    for good, embeddings, failed in encode_photographs(encoder, photos):
        names += [name_text(path) for path in good]
        parts.append(embeddings)
        bad += failed
    return names, np.concatenate(parts), bad
