"""Inspect one shard, in whatever process: what `auditing` collects.

Nothing here raises for bad data: each thing found is a `Problem`, by kind:

| kind | what is wrong |
|---|---|
| `tar` | the file is empty, cut or damaged: what follows is not seen |
| `absent`, `undeclared` | the index lists a shard that is not there; the other way about |
| `size`, `hash`, `count` | bytes, SHA-256 or samples are not what the index says |
| `unreadable` | a member cannot be decoded |
| `missing` | a sample lacks what the others have, or parameters for its embeddings |
| `uid`, `duplicate` | an impossible uid; one that was there already |
| `image` | an image that cannot be decoded |
| `captions` | not texts, or an empty one |
| `shape`, `nan`, `norm` | embeddings of wrong width or count, not finite, not of unit length |
| `params` | parameters that the augmentation cannot unpack |
| `drift` | the stored embedding is not that of the replayed image |
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from pocketclip import storage
from pocketclip.errors import AugmentationError, DataError, ImageError, MissingDependencyError
from pocketclip.formats.tar import split_name
from pocketclip.images import open_image
from pocketclip.shards.check import faults, odd_norms
from pocketclip.shards.jsonl import SUFFIXES as LINES
from pocketclip.shards.jsonl import read_lines
from pocketclip.shards.layout import PART_OF
from pocketclip.shards.reader import name_of, sample_of
from pocketclip.shards.tar import Group, Member, groups, members
from pocketclip.shards.writer import ShardStats, columns
from pocketclip.types import Sample

if TYPE_CHECKING:
    from pocketclip.augment import Augmentation

_WIDTH = "width "
_ODD = "width of its own"  # which has been told already


@dataclass(slots=True, frozen=True)
class Problem:
    """One thing that is wrong."""

    kind: str
    file: str
    """The shard's name."""
    uid: str
    """Empty if it concerns the whole shard."""
    reason: str
    position: int = -1
    """The sample's place in its shard, from 0; -1 if it concerns the whole shard."""


@dataclass(slots=True, frozen=True)
class Rules:
    """What a shard is measured by; picklable."""

    teacher_dims: tuple[int, ...] = ()
    dims: int = 0
    """The width of embeddings, if the index says."""
    augmentation: dict[str, Any] | None = None
    decode_images: bool = True


@dataclass(slots=True)
class Inspection:
    """What was found in one shard."""

    stats: ShardStats
    problems: list[Problem] = field(default_factory=list)
    uids: list[str] = field(default_factory=list)
    """In order; one that cannot be parsed has its uid here too."""
    layouts: dict[frozenset[str], list[tuple[int, str]]] = field(default_factory=dict)
    """Sets of columns, and the samples (position, uid) that have them.

    The width of the embeddings stands among the columns, see `lack`.
    """
    counts: dict[frozenset[str], int] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)
    """Members that are no part of the layout, by key."""


class Hashed:
    """A stream that is hashed while it is read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self.bytes = 0

    def read(self, size: int = -1) -> bytes:
        """Read and count."""
        data = self._stream.read(size)
        self._hash.update(data)
        self.bytes += len(data)
        return data

    def seekable(self) -> bool:
        """Forwards only: otherwise the hash would be of something else."""
        return False

    def hexdigest(self) -> str:
        """Return the SHA-256 of the whole file; reads what is left."""
        while self.read(1 << 20):
            pass
        return self._hash.hexdigest()


def inspect(path: str, rules: Rules) -> Inspection:
    """Open everything in the shard at `path`, and return what was found.

    Raises:
        MissingDependencyError: something that is needed to open it is not installed.
    """
    name = name_of(path)
    found = Inspection(ShardStats(name=name))
    augmentation = _augmentation(rules)
    try:
        for position, (uid, sample, dtype, error) in enumerate(_samples(path, found)):
            found.stats.samples += 1
            found.uids.append(uid)
            if sample is None:
                found.problems.append(Problem("unreadable", name, uid, error, position))
                continue
            wrong = list(problems_of(sample, rules, augmentation))
            found.problems += [Problem(kind, name, uid, why, position) for kind, why in wrong]
            _count(found, sample, dtype, position, odd="shape" in dict(wrong))
    except (DataError, OSError) as error:
        found.problems.append(Problem("tar", name, "", _tail(error, path)))
    found.stats.columns = sorted(set(columns_only(set().union(*found.counts))))
    return found


def problems_of(
    sample: Sample, rules: Rules, augmentation: Augmentation | None
) -> Iterator[tuple[str, str]]:
    """Yield (kind, reason) for what is wrong with one sample by itself."""
    yield from faults(sample, rules.teacher_dims or ((rules.dims,) if rules.dims else ()))
    yield from odd_norms(sample, rules.teacher_dims)
    for key, texts in sample.captions.items():
        if any(isinstance(text, str) and not text.strip() for text in texts):
            yield "captions", f"{key} has an empty caption"
    if "image_emb" in sample.embeddings and sample.param_aug is None:
        yield "missing", "image_emb cannot be replayed: there is no paug.json"
    if augmentation is not None:
        for index, packed in enumerate(sample.param_aug or []):
            try:
                augmentation.unpack(packed)
            except AugmentationError as error:
                yield "params", f"augmentation {index}: {error}"
    if rules.decode_images and sample.image:
        try:
            open_image(sample.image)
        except MissingDependencyError:
            raise
        except ImageError as error:
            yield "image", str(error).removeprefix("image bytes: ")


def _augmentation(rules: Rules) -> Augmentation | None:
    if rules.augmentation is None:
        return None
    from pocketclip.augment import Augmentation

    return Augmentation.from_config(rules.augmentation)


def _samples(path: str, found: Inspection) -> Iterator[tuple[str, Sample | None, str, str]]:
    """Yield (uid, sample or None, dtype, error) and fill in the statistics of the file."""
    with storage.open_read(path) as raw:
        if path.lower().endswith(LINES):
            for sample in read_lines(raw, path):
                yield sample.uid, sample, "float32", ""
            raw.seek(0)
            stream = Hashed(raw)
        else:
            stream = Hashed(raw)
            try:
                for group in groups(_outside(stream, path, found)):  # type: ignore[arg-type]
                    for key, size in group.sizes.items():
                        _count_member(found, key, size)
                    yield _parsed(group, path)
            finally:
                _close(stream, found)
            return
        _close(stream, found)


def _close(stream: Hashed, found: Inspection) -> None:
    found.stats.sha256 = stream.hexdigest()
    found.stats.bytes = stream.bytes
    rest = stream.bytes - sum(found.stats.parts.values())
    found.stats.parts = dict(sorted({**found.stats.parts, "tar": rest}.items()))


def _parsed(group: Group, path: str) -> tuple[str, Sample | None, str, str]:
    try:
        sample, dtype = sample_of(group, path)
    except DataError as error:
        return group.uid, None, "", _tail(error, path)
    return group.uid, sample, dtype, ""


def _outside(stream: BinaryIO, path: str, found: Inspection) -> Iterator[Member]:
    """Yield the members, and count those that belong to no sample."""
    for member in members(stream, path):
        if not split_name(member.name)[0]:
            base = member.name.rpartition("/")[2]
            _count_member(found, base.partition(".")[2].lower() or base, member.size)
        yield member


def _count_member(found: Inspection, key: str, size: int) -> None:
    part = PART_OF.get(key, "other")
    if part == "other":
        found.ignored[key] = found.ignored.get(key, 0) + 1
    found.stats.parts[part] = found.stats.parts.get(part, 0) + size


def _count(found: Inspection, sample: Sample, dtype: str, position: int, *, odd: bool) -> None:
    names = columns(sample)
    rows = sample.embeddings.get("image_emb", sample.embeddings.get("text_emb"))
    if rows is not None and rows.ndim == 2:
        width = int(rows.shape[1])
        names.add(_ODD if odd else f"{_WIDTH}{width}")
        found.stats.dims = max(found.stats.dims, width)
    held = frozenset(names)
    found.counts[held] = found.counts.get(held, 0) + 1
    found.layouts.setdefault(held, []).append((position, sample.uid))
    both = {*filter(None, found.stats.dtype.split("+")), *filter(None, dtype.split("+"))}
    found.stats.dtype = "+".join(sorted(both))


def columns_only(held: Iterable[str]) -> list[str]:
    """Return a set of columns without the width that stands among them."""
    return [column for column in held if not column.startswith(_WIDTH)]


def lack(held: frozenset[str], expected: set[str]) -> tuple[str, str] | None:
    """Return (kind, reason) if samples with the columns `held` are not as `expected`."""
    lacks = expected - held
    names = sorted(columns_only(lacks))
    if names:
        return "missing", f"lacks {', '.join(names)}"
    for column in lacks if _ODD not in held else ():
        return "shape", f"its embeddings are not {column.removeprefix(_WIDTH)} wide, as most are"
    return None


def _tail(error: Exception, path: str) -> str:
    """Return an error's text without the path, which stands beside it."""
    return " ".join(str(error).split()).removeprefix(f"{path}: ")


def expected_columns(
    layouts: Sequence[tuple[frozenset[str], int]], declared: Sequence[str]
) -> set[str]:
    """Return what each sample should have: what the index declares, or else most have.

    Args:
        layouts: sets of columns, and how many samples have them.
        declared: the index's columns; empty without an index.
    """
    total = sum(count for _, count in layouts)
    sums: dict[str, int] = {}
    for held, count in layouts:
        for column in held:
            sums[column] = sums.get(column, 0) + count
    often = {column for column, count in sums.items() if count * 2 > total}
    # An index lists what any sample has. Metadata, URLs and further captions are there or not.
    core = {c for c in declared if not c.startswith("text_") or c == "text_emb"}
    return (often | core) - {"meta", "url"}
