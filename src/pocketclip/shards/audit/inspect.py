"""Inspect one shard, in any process; `pocketclip.shards.audit.run` collects the results.

Bad samples and files raise nothing here: each defect is a `Problem` of one of these kinds:

| kind | problem |
|---|---|
| `tar` | the file is empty, truncated or damaged, so the samples behind the damage are unknown |
| `absent` | the index lists a shard that does not exist |
| `undeclared` | the index does not list a shard that exists |
| `size`, `hash`, `count` | bytes, SHA-256 or number of samples differ from the index |
| `unreadable` | a member cannot be decoded |
| `missing` | a sample lacks a column that the others have, or parameters for its embeddings |
| `uid`, `duplicate` | an invalid uid; a uid that an earlier sample has |
| `image` | an image or view that cannot be decoded; a view of another size than the index says |
| `captions` | captions that are no texts, or empty |
| `shape`, `nan`, `norm` | embeddings of wrong width or count, not finite, not of unit length |
| `params` | parameters that the augmentation cannot unpack |
| `drift` | the stored embedding differs from that of the replayed image |
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
from pocketclip.shards.audit.scores import Draw, Drawn
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
_ODD = "width of its own"  # reported already


@dataclass(slots=True, frozen=True)
class Problem:
    """One defect of a shard or a sample."""

    kind: str
    file: str
    """The shard's name."""
    uid: str
    """The sample's uid; empty for a problem of the whole shard."""
    reason: str
    position: int = -1
    """The sample's index in its shard, from 0; -1 for a problem of the whole shard."""


@dataclass(slots=True, frozen=True)
class Rules:
    """What an inspection checks a shard against; picklable."""

    teacher_dims: tuple[int, ...] = ()
    dims: int = 0
    """The width of embeddings, if the index states it; else 0."""
    augmentation: dict[str, Any] | None = None
    decode_images: bool = True
    view_size: int = 0
    """The side of each view of a materialised set, in pixels; 0 for any other set."""
    score_samples: int = 0
    """The number of samples to keep for `pocketclip.shards.audit.scores`."""


@dataclass(slots=True)
class Inspection:
    """The result of inspecting one shard."""

    stats: ShardStats
    problems: list[Problem] = field(default_factory=list)
    uids: list[str] = field(default_factory=list)
    """The uids of all samples in order, including samples that cannot be parsed."""
    layouts: dict[frozenset[str], list[tuple[int, str]]] = field(default_factory=dict)
    """The samples (position, uid) by their set of columns.

    The width of the embeddings is one of the columns, see `compare_columns`.
    """
    counts: dict[frozenset[str], int] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)
    """Number of members that the layout does not have, by key."""
    drawn: list[Drawn] = field(default_factory=list)
    """The samples to score teachers on."""


class HashingReader:
    """Hashes a stream while it is read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self.bytes = 0

    def read(self, size: int = -1) -> bytes:
        """Read, hash and count bytes."""
        block = self._stream.read(size)
        self._hash.update(block)
        self.bytes += len(block)
        return block

    def seekable(self) -> bool:
        """Return False: skipped bytes would be missing from the hash."""
        return False

    def hexdigest(self) -> str:
        """Read to the end, and return the SHA-256 of the whole file."""
        while self.read(1 << 20):
            pass
        return self._hash.hexdigest()


def inspect(path: str, rules: Rules) -> Inspection:
    """Open everything in the shard at `path`, and return the result.

    Raises:
        MissingDependencyError: a package that is needed to open it is not installed.
    """
    name = name_of(path)
    inspection = Inspection(ShardStats(name=name))
    augmentation, draw = _augmentation(rules), Draw(rules.score_samples)
    try:
        for position, (uid, sample, dtype, error) in enumerate(_samples(path, inspection)):
            inspection.stats.samples += 1
            inspection.uids.append(uid)
            if sample is None:
                inspection.problems.append(Problem("unreadable", name, uid, error, position))
                continue
            problems = list(problems_of(sample, rules, augmentation))
            inspection.problems += [
                Problem(kind, name, uid, why, position) for kind, why in problems
            ]
            _count(inspection, sample, dtype, position, odd="shape" in dict(problems))
            if not problems:
                draw.offer(sample)
    except (DataError, OSError) as error:
        inspection.problems.append(Problem("tar", name, "", _tail(error, path)))
    inspection.drawn = draw.heap
    inspection.stats.columns = sorted(set(columns_only(set().union(*inspection.counts))))
    return inspection


def problems_of(
    sample: Sample, rules: Rules, augmentation: Augmentation | None
) -> Iterator[tuple[str, str]]:
    """Yield (kind, reason) for each problem of one sample, without comparing it with others."""
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
        yield from _problem_of_image(sample.image, "")
    for number, view in enumerate((rules.decode_images and sample.views) or ()):
        yield from _problem_of_image(view, f"view {number}: ", rules.view_size)
    if rules.view_size and not sample.views:
        yield "missing", "it has no views"


def _problem_of_image(data: bytes, what: str, side: int = 0) -> Iterator[tuple[str, str]]:
    try:
        width, height = open_image(data).size
    except MissingDependencyError:
        raise
    except ImageError as error:
        yield "image", what + str(error).removeprefix("image bytes: ")
        return
    if side and (width, height) != (side, side):
        yield "image", f"{what}{width} x {height} pixels, index.json says {side} x {side}"


def _augmentation(rules: Rules) -> Augmentation | None:
    if rules.augmentation is None:
        return None
    from pocketclip.augment import Augmentation

    return Augmentation.from_config(rules.augmentation)


def _samples(path: str, inspection: Inspection) -> Iterator[tuple[str, Sample | None, str, str]]:
    """Yield (uid, sample or None, dtype, error), and set the statistics of the file."""
    with storage.open_read(path) as raw:
        if path.lower().endswith(LINES):
            for sample in read_lines(raw, path):
                yield sample.uid, sample, "float32", ""
            raw.seek(0)
            stream = HashingReader(raw)
        else:
            stream = HashingReader(raw)
            try:
                for group in groups(_count_ignored(stream, path, inspection)):  # type: ignore[arg-type]
                    for key, size in group.sizes.items():
                        _count_member(inspection, key, size)
                    yield _parsed(group, path)
            finally:
                _set_totals(stream, inspection)
            return
        _set_totals(stream, inspection)


def _set_totals(stream: HashingReader, inspection: Inspection) -> None:
    inspection.stats.sha256 = stream.hexdigest()
    inspection.stats.bytes = stream.bytes
    overhead = stream.bytes - sum(inspection.stats.parts.values())
    inspection.stats.parts = dict(sorted({**inspection.stats.parts, "tar": overhead}.items()))


def _parsed(group: Group, path: str) -> tuple[str, Sample | None, str, str]:
    try:
        sample, dtype = sample_of(group, path)
    except DataError as error:
        return group.uid, None, "", _tail(error, path)
    return group.uid, sample, dtype, ""


def _count_ignored(stream: BinaryIO, path: str, inspection: Inspection) -> Iterator[Member]:
    """Yield all members, and count those that belong to no sample."""
    for member in members(stream, path):
        if not split_name(member.name)[0]:
            base = member.name.rpartition("/")[2]
            _count_member(inspection, base.partition(".")[2].lower() or base, member.size)
        yield member


def _count_member(inspection: Inspection, key: str, size: int) -> None:
    part = PART_OF.get(key, "other")
    if part == "other":
        inspection.ignored[key] = inspection.ignored.get(key, 0) + 1
    inspection.stats.parts[part] = inspection.stats.parts.get(part, 0) + size


def _count(inspection: Inspection, sample: Sample, dtype: str, position: int, *, odd: bool) -> None:
    names = columns(sample)
    rows = sample.embeddings.get("image_emb", sample.embeddings.get("text_emb"))
    if rows is not None and rows.ndim == 2:
        width = int(rows.shape[1])
        names.add(_ODD if odd else f"{_WIDTH}{width}")
        inspection.stats.dims = max(inspection.stats.dims, width)
    layout = frozenset(names)
    inspection.counts[layout] = inspection.counts.get(layout, 0) + 1
    inspection.layouts.setdefault(layout, []).append((position, sample.uid))
    both = {*filter(None, inspection.stats.dtype.split("+")), *filter(None, dtype.split("+"))}
    inspection.stats.dtype = "+".join(sorted(both))


def columns_only(layout: Iterable[str]) -> list[str]:
    """Return the columns of a layout, without the width of embeddings."""
    return [column for column in layout if not column.startswith(_WIDTH)]


def compare_columns(layout: frozenset[str], expected: set[str]) -> tuple[str, str] | None:
    """Return the problem (kind, reason) of samples with these columns, or None."""
    lacks = expected - layout
    names = sorted(columns_only(lacks))
    if names:
        return "missing", f"lacks {', '.join(names)}"
    for column in lacks if _ODD not in layout else ():
        return "shape", f"its embeddings are not {column.removeprefix(_WIDTH)} wide, as most are"
    return None


def _tail(error: Exception, path: str) -> str:
    """Return an error's text in one line, without the path, which the problem has already."""
    return " ".join(str(error).split()).removeprefix(f"{path}: ")


def expected_columns(
    layouts: Sequence[tuple[frozenset[str], int]], declared: Sequence[str]
) -> set[str]:
    """Return the columns that each sample should have: those that the index or most samples have.

    Args:
        layouts: sets of columns, and the number of samples that have each.
        declared: the index's columns; empty without an index.
    """
    total = sum(count for _, count in layouts)
    sums: dict[str, int] = {}
    for layout, count in layouts:
        for column in layout:
            sums[column] = sums.get(column, 0) + count
    common = {column for column, count in sums.items() if count * 2 > total}
    # An index lists the columns of any sample. Metadata, URLs and further captions are optional.
    core = {c for c in declared if not c.startswith("text_") or c == "text_emb"}
    return (common | core) - {"meta", "url"}
