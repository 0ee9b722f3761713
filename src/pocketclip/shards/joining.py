"""Join the images and captions of one set with the reinforcements of another, by uid.

    report = join("grocery-dr", "pairs.csv", "out", options=PairOptions(where={"split": "train"}))
    report.samples, report.pairs_alone, report.reinforcements_alone

The pairs are read once, in order, and each of their shards becomes one shard; reinforcements are
looked up by uid. Without pairs, images are fetched by the URLs in the reinforced set. A run that
was stopped continues with its first unfinished shard when it is started again.

`unmatched.jsonl` in `out` lists each pair and reinforcement that is not in the result, and why.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.formats.json_text import MAX_BYTES, digest_json, load_json
from pocketclip.shards.claims import OutputFolder
from pocketclip.shards.index import NAME, Index, describe, refuse_materialised, write_index
from pocketclip.shards.jsonl import SUFFIXES as LINES
from pocketclip.shards.lookup import Lookup
from pocketclip.shards.merging import FetchShard, merge
from pocketclip.shards.reader import SUFFIXES, home_of, name_of, read_shard, sample_of, shard_paths
from pocketclip.shards.tar import groups, members
from pocketclip.shards.writer import ShardStats, ShardWriter
from pocketclip.storage.temporary import scratch_folder
from pocketclip.types import Bad, Pair

if TYPE_CHECKING:
    from pocketclip.pairs import PairOptions, PairShard
    from pocketclip.storage.http import FetchOptions

STATE = "join.json"
UNMATCHED = "unmatched.jsonl"
_NOTES = ".join.jsonl"  # beside each finished shard, until all are finished
_EXAMPLES = 10
KINDS = {
    "pair_alone": "a pair without reinforcement",
    "reinforcement_alone": "a reinforcement without pair",
    "bad": "a pair or reinforcement that cannot be matched",
    "caption_differs": "kept with the caption that was embedded, which differs from the pair's",
}


@dataclass(slots=True, kw_only=True)
class JoinReport:
    """The result of a join."""

    out: str
    shards: int = 0
    samples: int = 0
    bytes: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    """Bytes of all shards by part."""
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    """Number of pairs or reinforcements of each of `KINDS`."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """The first uids of each of `KINDS`, with the reason if one is known."""

    @property
    def complete(self) -> bool:
        """Whether every pair and every reinforcement was matched."""
        return not any(self.counts.values())

    def note(self, kind: str, uid: str, reason: str = "") -> None:
        """Count a pair or reinforcement of one of `KINDS`."""
        self.counts[kind] += 1
        shown = self.examples.setdefault(kind, [])
        if len(shown) < _EXAMPLES:
            shown.append(f"{uid}: {reason}" if reason else uid)


def join(
    reinforced: str | Sequence[str],
    pairs: str | Sequence[str] | None,
    out: str,
    *,
    options: PairOptions | None = None,
    fetch: FetchOptions | None = None,
    dtype: str | None = None,
    on_start: Callable[[int], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> JoinReport:
    """Write samples of `pairs` with their reinforcements to `out`, and return a report.

    Images and ground-truth captions come from the pairs; synthetic captions, parameters and
    embeddings come from the reinforced set. Embeddings are copied unchanged.

    Args:
        reinforced: shards, as `read` takes them.
        pairs: as `pocketclip.pairs.open_pairs` takes them; None: fetch the images by URL.
        out: a new folder, or that of an unfinished join of the same sets.
        options: how to read the pairs.
        fetch: how to fetch images, if `pairs` is None.
        dtype: the type to store embeddings in; None: copy them unchanged.
        on_start: called once with the number of pairs, or an estimate if it is unknown.
        on_progress: called with the number of pairs done since the last call.

    Raises:
        DataError: `out` holds other files, a set is damaged, or the dtype is unknown.
        StorageError: a path cannot be read or written.
    """
    from pocketclip.pairs import PairOptions, open_pairs

    paths = shard_paths(reinforced)
    home = home_of(reinforced)
    for parent in {path.replace("\\", "/").rpartition("/")[0] or "." for path in paths}:
        refuse_materialised(parent, "a join")
    description = (describe(home) if home is not None else None) or Index()
    sources: list[Any]
    if pairs is None:
        from pocketclip.storage.http import FetchOptions

        sources = [FetchShard(path, fetch or FetchOptions()) for path in paths]
    else:
        sources = list(open_pairs(pairs, options or PairOptions()))
    identity = _identity(paths, sources, dtype)
    finished = _folder(out).finished(identity)
    if finished is not None:
        return JoinReport(**finished)
    _folder(out).claim(identity)
    with scratch_folder("join") as folder:
        tars = _as_tars(paths, folder)
        with Lookup(folder, tars) as lookup:
            if not lookup.samples:
                raise DataError(f"{paths[0]}: no samples in {len(paths)} shards; nothing to join")
            if on_start is not None:
                sizes = [getattr(source, "size", None) for source in sources]
                on_start(lookup.samples if None in sizes else sum(filter(None, sizes)))
            job = _Job(out, lookup, description, dtype, on_progress)
            notes = [job.join_shard(source) for source in sources]
            return _finish(job, notes, identity)


class _Job:
    """Writes the joined set shard by shard."""

    def __init__(
        self,
        out: str,
        lookup: Lookup,
        description: Index,
        dtype: str | None,
        on_progress: Callable[[int], None] | None,
    ) -> None:
        self.out = out
        self.lookup = lookup
        self.description = description
        self.dtype = dtype
        self.on_progress = on_progress or (lambda _count: None)

    def join_shard(self, source: PairShard | FetchShard) -> str:
        """Write the shard of `source` unless it is finished; return the path of its notes."""
        path = storage.join(self.out, f"{source.name}.tar")
        notes = storage.join(self.out, source.name + _NOTES)
        if storage.exists(notes):
            self._mark_matched(path, notes)
            return notes
        with (
            storage.write_whole(notes, tidy=False) as local,
            local.open("w", encoding="utf-8") as log,
        ):
            # The notes are complete only after the shard: their existence marks it as finished.
            stats = self._write(source, path, log.write)
            head = None if stats is None else asdict(stats)
            log.write(json.dumps({"stats": head}) + "\n")
        return notes

    def _mark_matched(self, path: str, notes: str) -> None:
        """Mark the reinforcements that a finished shard matched."""
        matched = [note["uid"] for note in _read_notes(notes) if note.get("kind") == "bad"]
        if storage.exists(path):
            with storage.open_read(path) as stream:
                matched += [g.uid for g in groups(members(stream, path, load=False))]
        for uid in matched:
            self.lookup.mark(uid)
        self.on_progress(len(matched))

    def _write(
        self, source: PairShard | FetchShard, path: str, log: Callable[[str], Any]
    ) -> ShardStats | None:
        writer: ShardWriter | None = None
        with contextlib.ExitStack() as stack:
            for pair in source:
                for kind, reason, merged in self._match(pair):
                    if kind:
                        log(json.dumps({"kind": kind, "uid": pair.uid, "reason": reason}) + "\n")
                    if merged is None:
                        continue
                    if writer is None:  # here, so that no empty shard is written
                        writer = stack.enter_context(self._writer(path, merged.dtype))
                    try:
                        writer.write(merged.sample, packed=merged.packed, packed_dtype=merged.dtype)
                    except DataError as error:
                        note = {"kind": "bad", "uid": pair.uid, "reason": str(error)}
                        log(json.dumps(note) + "\n")
                self.on_progress(1)
        return writer.stats if writer is not None else None

    def _writer(self, path: str, dtype: str) -> ShardWriter:
        chosen = self.dtype or dtype.split("+")[0] or "bfloat16"
        return ShardWriter(path, dtype=chosen, teacher_dims=self.description.teacher_dims)

    def _match(self, pair: Pair | Bad) -> Iterator[tuple[str, str, Any]]:
        """Yield (kind, reason, merged sample); each may be empty or None."""
        location = self.lookup.find(pair.uid)
        is_first = location is not None and self.lookup.mark(pair.uid)
        if isinstance(pair, Bad):
            yield "bad", pair.reason, None
            return
        if location is None:
            yield "pair_alone", "", None
            return
        if not is_first:
            yield "bad", "an earlier pair has this uid", None
            return
        try:
            group, path = self.lookup.load(location)
            sample, dtype = sample_of(group, path)
            merged = merge(pair, sample, group.members, dtype, keep=self.dtype is None)
        except DataError as error:
            yield "bad", str(error), None
            return
        if merged.caption_differs:
            yield "caption_differs", merged.caption_differs, None
        yield "", "", merged


def _as_tars(paths: list[str], folder: Path) -> list[str]:
    """Return tars of all `paths`; jsonl, which allows no random access, is converted."""
    out = []
    for number, path in enumerate(paths):
        if path.lower().endswith(LINES):
            copy = str(folder / f"{number:08d}.tar")
            with ShardWriter(copy, dtype="float32", images=False) as writer:
                try:
                    for sample in read_shard(path):
                        writer.write(sample)
                except DataError as error:
                    raise DataError(
                        f"{path}: {error}; run `pocketclip audit --repair` and join the copy"
                    ) from error
            path = copy
        out.append(path)
    return out


def _identity(paths: list[str], sources: list[Any], dtype: str | None) -> str:
    """Return a hash of everything that decides the result."""
    facts = {
        "version": 1,
        "reinforced": [[name_of(path), storage.size(path)] for path in paths],
        "pairs": [[source.name, source.fingerprint] for source in sources],
        "dtype": dtype,
    }
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"two shards are named {twice}: join their folders one by one")
    return digest_json(facts)


def _folder(out: str) -> OutputFolder:
    return OutputFolder(path=out, state=STATE, job="join", others=(*SUFFIXES, NAME))


def _read_notes(path: str) -> Iterator[dict[str, Any]]:
    with storage.open_read(path) as stream:
        for line in iter(partial(stream.readline, MAX_BYTES + 1), b""):
            yield load_json(line, what=path, surrogates=True)


def _finish(job: _Job, notes: list[str], identity: str) -> JoinReport:
    report = JoinReport(out=job.out)
    description = job.description
    index = Index(
        teachers=description.teachers,
        captioners=description.captioners,
        augmentation=description.augmentation,
        config_hash=identity,
    )
    path = storage.join(job.out, UNMATCHED)
    with storage.write_whole(path) as local, local.open("w", encoding="utf-8") as out:

        def record(kind: str, uid: str, reason: str) -> None:
            report.note(kind, uid, reason)
            out.write(json.dumps({"kind": kind, "uid": uid, "reason": reason}) + "\n")

        for notes_path in notes:
            for note in _read_notes(notes_path):
                if "stats" not in note:
                    record(note["kind"], note["uid"], note["reason"])
                elif note["stats"] is not None:
                    index.add([ShardStats(**note["stats"])])
        empty = {
            shard.name for shard in description.shards if not shard.samples
        }  # all pairs were bad
        for shard_path in job.lookup.empty:
            if name_of(shard_path) not in empty:
                record("bad", name_of(shard_path), f"{shard_path}: the shard holds no samples")
        for uid, shard_path in job.lookup.duplicates():
            record("bad", uid, f"{name_of(shard_path)}: an earlier reinforcement has this uid")
        for uid, shard_path in job.lookup.unmatched():
            record("reinforcement_alone", uid, name_of(shard_path))
    report.shards = len(index.shards)
    report.samples, report.parts = index.samples, index.parts
    report.bytes = sum(shard.bytes for shard in index.shards)
    write_index(job.out, index)
    _folder(job.out).finish(identity, asdict(report))
    for notes_path in notes:
        storage.remove(notes_path)
    return report
