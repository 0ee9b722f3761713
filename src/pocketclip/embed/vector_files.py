"""The files of a job: one parquet file of vectors per shard of images, written in one go.

`NAME-DIGEST.parquet` holds the shard NAME; the digest is that of the images' list and of the model.
So one listing of the folder says which shards are finished. `NAME-DIGEST.bad.jsonl` names the
images that could not be read. `embeddings.json` holds the facts of the model.

| column | type | |
|---|---|---|
| `id` | string | the image's name in its shard |
| `path` | string | its path or URL, or the tar or table that holds it |
| `embedding` | list of D float16 | of unit length |
| `space_id` | string | the embedding space |

Shapes: N images, D embedding.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pocketclip import storage
from pocketclip.errors import ConfigError, DataError, ParseError, one_line
from pocketclip.formats.arrow import PREFIX, import_pyarrow, vector_table
from pocketclip.formats.escaping import dump_json
from pocketclip.formats.json_text import load_json
from pocketclip.pairs import PairShard
from pocketclip.pairs.base import check_shard_names, digest_parts
from pocketclip.types import Embeddings

ABOUT = "embeddings.json"
SUFFIX = ".parquet"
BAD_SUFFIX = ".bad.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class BadImage:
    """An image without an embedding, and why."""

    id: str
    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """The result of one shard."""

    name: str
    samples: int
    """Number of rows."""
    bad: int
    """Number of images that could not be read."""


@dataclass(slots=True, kw_only=True)
class Folder:
    """What a job's folder holds.

    Attributes:
        finished: the reports of finished shards, by name.
        pending: the other shards.
        others: number of files of other shards.
    """

    finished: dict[str, ShardReport] = field(default_factory=dict)
    pending: list[PairShard] = field(default_factory=list)
    others: int = 0


def stem_of(shard: PairShard, facts: Mapping[str, Any]) -> str:
    """Return the name of a shard's files, without suffix."""
    parts = shard.fingerprint, shard.origin, json.dumps(facts, sort_keys=True)
    return f"{shard.name}-{digest_parts(*parts)[:16]}"


def write_shard(
    out: str,
    stem: str,
    columns: Mapping[str, Sequence[str]],
    embeddings: Embeddings,
    facts: Mapping[str, Any],
    bad: Sequence[BadImage],
) -> None:
    """Write a shard's file, and before it the list of its bad images, each whole or not at all.

    Args:
        out: a folder or an object store.
        stem: the name of its files.
        columns: `id` and `path` of N images.
        embeddings: (N, D), which are stored as float16.
        facts: of the model.
        bad: the images that could not be read.

    Raises:
        MissingDependencyError: pyarrow is not installed.
        StorageError: it cannot be written.
    """
    _, parquet = import_pyarrow()
    bad_path = storage.join(out, stem + BAD_SUFFIX)
    if bad:
        rows = ({"id": one.id, "path": one.path, "reason": one.reason} for one in bad)
        lines = "".join(dump_json(row) + "\n" for row in rows)
        storage.write_bytes(bad_path, lines.encode("utf-8", "backslashreplace"), tidy=False)
    else:  # that of an earlier attempt, which could not read them
        storage.remove(bad_path)
    spaces = {"space_id": [facts["space_id"]] * len(embeddings)}
    vectors = np.asarray(embeddings, np.float16)
    table = vector_table(columns, vectors, spaces, {**facts, "bad": len(bad)})
    file = io.BytesIO()
    parquet.write_table(table, file)
    storage.write_bytes(storage.join(out, stem + SUFFIX), file.getvalue(), tidy=False)


def read_report(path: str, name: str) -> ShardReport:
    """Return the report of a finished shard, from the end of its file.

    Raises:
        DataError: it is damaged.
        StorageError: it cannot be read.
    """
    pa, parquet = import_pyarrow()
    with storage.open_read(path) as stream:
        try:
            footer = parquet.read_metadata(stream)
            bad = int((footer.metadata or {})[f"{PREFIX}bad".encode()])
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            raise DataError(
                f"{path} is damaged ({one_line(error)}): remove it and run again"
            ) from error
    return ShardReport(name=name, samples=footer.num_rows, bad=bad)


def open_folder(shards: Sequence[PairShard], facts: Mapping[str, Any], out: str) -> Folder:
    """Claim a folder for a model, and return what it holds of these shards.

    Raises:
        ConfigError: it holds embeddings of another model, or files of another program.
        DataError: two shards have one name, or a shard was made from other images.
        StorageError: it cannot be reached, read or written.
    """
    check_shard_names(shards, "embed")
    storage.remove_abandoned(out)
    files = {path.replace("\\", "/").rpartition("/")[2]: path for path in storage.list_files(out)}
    _claim(facts, out, files)
    stored = {
        name.removesuffix(SUFFIX): path for name, path in files.items() if name.endswith(SUFFIX)
    }
    by_name = {stem.rpartition("-")[0]: stem for stem in stored}
    folder = Folder()
    done = []
    for shard in shards:
        stem = stem_of(shard, facts)
        if stem in stored:
            done.append((stored[stem], shard.name))
        elif shard.name in by_name:
            raise DataError(
                f"{stored[by_name[shard.name]]} was made from other images than {shard.name} holds "
                "now: choose another --out, or remove that file to make it again"
            )
        else:
            folder.pending.append(shard)
    pending = {shard.name for shard in folder.pending}
    for name, path in files.items():  # lists of unfinished and of removed files
        stem = name.removesuffix(BAD_SUFFIX)
        if stem != name and stem not in stored and stem.rpartition("-")[0] in pending:
            storage.remove(path)
    reports = storage.map_many(lambda one: read_report(*one), done)
    folder.finished = {report.name: report for report in reports}
    folder.others = len(stored) - len(done)
    return folder


def _claim(facts: Mapping[str, Any], out: str, files: Mapping[str, str]) -> None:
    if ABOUT not in files:
        if files:
            raise ConfigError(
                f"{out} holds {min(files)}, which this job did not write: choose another --out"
            )
        text = json.dumps(facts, indent=1) + "\n"
        storage.write_bytes(storage.join(out, ABOUT), text.encode())
        return
    try:
        stored = load_json(storage.read_bytes(files[ABOUT]), what=files[ABOUT])
    except ParseError as error:
        raise DataError(f"{error}: choose another --out") from error
    if stored == facts:
        return
    known = stored if isinstance(stored, dict) else {}
    changed = [key for key in sorted({*facts, *known}) if facts.get(key) != known.get(key)]
    raise ConfigError(
        f"{out} holds embeddings of another model ({', '.join(changed)} changed): choose another "
        "--out, or remove that folder first"
    )


def check_written(shards: Sequence[PairShard], facts: Mapping[str, Any], out: str) -> None:
    """Check that the files of all shards are where this process looks for them.

    Raises:
        DataError: one is not.
    """
    names = {path.replace("\\", "/").rpartition("/")[2] for path in storage.list_files(out)}
    for shard in shards:
        if stem_of(shard, facts) + SUFFIX not in names:
            raise DataError(
                f"shard {shard.name} is not in {out}: --out must mean the same folder on every "
                "machine"
            )
