"""Write a clean copy of a set: all good samples, and a list of what was left out.

`audit` calls this. `dropped.jsonl` lists each dropped sample, each shard that ends too early, and
each member that the layout does not have.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.shards.audit.inspect import Problem
from pocketclip.shards.audit.ledger import AuditReport, Ledger
from pocketclip.shards.index import Index, write_index
from pocketclip.shards.jsonl import SUFFIXES as LINES
from pocketclip.shards.jsonl import read_lines
from pocketclip.shards.layout import PART_OF
from pocketclip.shards.reader import load_packed, name_of
from pocketclip.shards.tar import Group, groups, members
from pocketclip.shards.writer import JsonlWriter, ShardStats, ShardWriter
from pocketclip.types import Sample

DROPPED = "dropped.jsonl"


def check_target(out: str, folder: str) -> None:
    """Check that the folder for the copy is empty.

    Raises:
        DataError: it is not.
    """
    if storage.list_files(out):
        raise DataError(
            f"{out} is not empty: repair into a new folder ({folder} itself is never changed)"
        )


def write_clean(
    paths: list[str], out: str, ledger: Ledger, description: Index, report: AuditReport
) -> None:
    """Write the good samples of `paths` to `out`, with an index and `dropped.jsonl`.

    Raises:
        StorageError: `out` cannot be written to.
    """
    index = Index(
        teachers=description.teachers,
        captioners=description.captioners,
        augmentation=description.augmentation,
        materialised=description.materialised,
        config_hash=description.config_hash,
    )
    storage.remove_abandoned(out)
    path = storage.join(out, DROPPED)
    with storage.write_whole(path) as local, local.open("w", encoding="utf-8") as log:

        def note(file: str, uid: str, reasons: list[str]) -> None:
            log.write(json.dumps({"file": file, "uid": uid, "reasons": reasons}) + "\n")

        for source in paths:
            problems = ledger.problems_of(name_of(source))
            stats, dropped = _copy(source, out, problems, note, description.teacher_dims)
            report.dropped += dropped
            if stats is not None:
                index.add([stats])
        for name in sorted({p.file for p in report.problems.get("absent", [])}):
            note(name, "", ["the shard is missing"])
    report.kept = index.samples
    report.repaired = out
    write_index(out, index)


def _copy(
    source: str,
    out: str,
    problems: list[Problem],
    note: Callable[[str, str, list[str]], None],
    teacher_dims: tuple[int, ...],
) -> tuple[ShardStats | None, int]:
    """Return the copy's statistics (None if it has no sample) and the number of dropped samples."""
    name = name_of(source)
    dropped = 0
    whole = [f"{p.kind}: {p.reason}" for p in problems if p.position < 0]
    if whole:
        note(name, "", whole)
    bad: dict[int, list[Problem]] = {}
    for problem in problems:
        if problem.position >= 0:
            bad.setdefault(problem.position, []).append(problem)
    with contextlib.ExitStack() as stack:
        writer: ShardWriter | JsonlWriter | None = None
        for position, (uid, load) in enumerate(_loaders(source)):
            if position in bad:
                note(name, uid, [f"{p.kind}: {p.reason}" for p in bad[position]])
                dropped += 1
                continue
            sample, packed, dtype, extra = load()
            if extra:
                note(name, uid, [f"the layout has no member {key}" for key in extra])
            if writer is None:
                writer = _writer(storage.join(out, name), dtype, teacher_dims)
                stack.enter_context(writer)
            try:
                if isinstance(writer, ShardWriter):
                    writer.write(sample, packed=packed, packed_dtype=dtype)
                else:
                    writer.write(sample)
            except DataError as error:  # it can be read, but our layout cannot hold it
                note(name, uid, [str(error)])
                dropped += 1
    return (writer.stats if writer is not None else None), dropped


def _writer(path: str, dtype: str, teacher_dims: tuple[int, ...]) -> ShardWriter | JsonlWriter:
    if path.lower().endswith(LINES):
        return JsonlWriter(path)
    return ShardWriter(path, dtype=dtype.split("+")[0] or "bfloat16", teacher_dims=teacher_dims)


_Loaded = tuple[Sample, "tuple[str, bytes] | None", str, "list[str]"]


def _loaders(source: str) -> Iterator[tuple[str, Callable[[], _Loaded]]]:
    """Yield each sample's uid and a function that loads it, until the shard ends or is cut."""
    # The audit has reported a cut already; the samples before it are good.
    with storage.open_read(source) as stream, contextlib.suppress(DataError):
        if source.lower().endswith(LINES):
            for sample in read_lines(stream, source):
                yield sample.uid, lambda sample=sample: (sample, None, "float32", [])  # type: ignore[misc]
            return
        for group in groups(members(stream, source)):
            yield group.uid, lambda group=group: _load_group(group, source)  # type: ignore[misc]


def _load_group(group: Group, source: str) -> _Loaded:
    sample, packed, dtype = load_packed(group, source)
    extra = [key for key in group.members if key not in PART_OF]
    return sample, packed, dtype, extra
