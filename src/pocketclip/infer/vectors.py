"""Embeddings in files, with the names of their inputs.

    write_vectors("photos.npy", embeddings, names, {"space_id": encoder.space_id})
    embeddings, about = read_vectors("photos.npy")

Shapes: N inputs, D embedding.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pocketclip.errors import (
    DataError,
    ParseError,
    PocketclipError,
)
from pocketclip.formats.arrow import import_pyarrow, vector_table
from pocketclip.formats.escaping import dump_json
from pocketclip.formats.fields import field, items, typed
from pocketclip.formats.json_text import read_json
from pocketclip.storage.local import check_writable, digest_file, remove_abandoned, write_whole
from pocketclip.types import Embeddings

SUFFIXES = (".npy", ".parquet")


def prepare_vectors(path: str | os.PathLike[str]) -> None:
    """Check, before any work, that `write_vectors` can write to `path`.

    Temporary files that killed processes left beside it are removed.

    Raises:
        PocketclipError: the suffix is neither `.npy` nor `.parquet`, or the folder does not exist.
        MissingDependencyError: pyarrow is not installed, for parquet.
        OSError: the path is not writable; the error names the file.
    """
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise PocketclipError(f"{target}: write to a .npy or .parquet file")
    if not target.absolute().parent.is_dir():
        raise PocketclipError(f"{target}: the folder does not exist")
    if target.suffix == ".parquet":
        import_pyarrow()
    else:
        check_writable(sidecar_of(target))
    check_writable(target)
    remove_abandoned(target.absolute().parent)


def sidecar_of(path: Path) -> Path:
    """Return the file beside a .npy file that names the inputs."""
    return path.with_name(path.name + ".json")


def write_vectors(
    path: str | os.PathLike[str],
    embeddings: Embeddings,
    inputs: Sequence[str],
    about: Mapping[str, Any],
) -> None:
    """Write embeddings (N, D), the names of the N inputs, and facts about them.

    A .parquet file holds everything, in columns `input` and `embedding`. A .npy file holds float32
    (N, D); `PATH.json` beside it holds the facts, `inputs`, and `sha256`, the hash of the .npy
    file. The two are replaced one after the other, and the hash shows whether they belong
    together. Each file is written whole or not at all.

    Bytes of a name that are not UTF-8 are lone surrogates in `inputs`. The JSON file keeps them (as
    `\\udcff`, from which `os.fsencode` restores the bytes); parquet has the six characters instead.

    Raises:
        PocketclipError, MissingDependencyError, OSError: see `prepare_vectors`.
    """
    target = Path(path)
    if target.suffix == ".parquet":
        _, parquet = import_pyarrow()
        table = vector_table({"input": inputs}, embeddings, {}, about)
        # Through a handle: pyarrow takes no path that is not UTF-8.
        with write_whole(target) as temporary, temporary.open("wb") as handle:
            parquet.write_table(table, handle)
        return
    with write_whole(sidecar_of(target)) as facts_file, write_whole(target) as vectors:
        with vectors.open("wb") as handle:
            np.save(handle, embeddings)
        sidecar = {**about, "sha256": digest_file(vectors), "inputs": list(inputs)}
        facts_file.write_text(dump_json(sidecar, indent=1) + "\n", "utf-8")


def read_vectors(path: str | os.PathLike[str]) -> tuple[Embeddings, dict[str, Any]]:
    """Return embeddings (N, D) from a .npy file, and the facts and `inputs` from its JSON file.

    Raises:
        DataError: a file is damaged, or the two do not belong together.
        OSError: a file cannot be read.
    """
    target = Path(path)
    sidecar = sidecar_of(target)
    try:
        raw = read_json(sidecar, max_bytes=256 << 20, surrogates=True)
        about: dict[str, Any] = typed(raw, dict, what=str(sidecar))
        inputs = items(about, "inputs", str, what=str(sidecar))
        expected = field(about, "sha256", str, what=str(sidecar))
    except ParseError as error:
        raise DataError(f"{error}: it does not name the inputs of {target.name}") from error
    if digest_file(target) != expected:
        raise DataError(
            f"{target} and {sidecar.name} do not belong together (one was written without the "
            "other): write them again"
        )
    try:
        embeddings = np.load(target, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{target} is not a .npy file of embeddings ({error})") from error
    if embeddings.ndim != 2 or len(inputs) != len(embeddings):
        raise DataError(
            f"{sidecar} names {len(inputs)} inputs for embeddings of shape {embeddings.shape} in "
            f"{target.name}: write them again"
        )
    return embeddings, about
