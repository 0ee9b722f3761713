"""Render the stored views of a reinforced dataset once, at a student's size.

    report = materialise("dr", "dr224", size=224)
    report.bytes, report.psnr_lowest

A training on the result reads one small image per sample in place of replaying an augmentation.
Captions and embeddings are carried along unchanged. The same seed chooses the same views and
captions as on the original set. The views are those of the exact replay; JPEG changes them a
little, lossless WebP does not. They are of one size: a student of another size needs another set.

The result is a set of shards (`pocketclip.shards`) whose samples have `view0`, `view1`, ... in
place of the image, and whose `index.json` says `materialised`. A run that was stopped continues
with its first unfinished shard when it is started again.

Shapes: A stored augmentations, S side of a view.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pocketclip import storage
from pocketclip.errors import ConfigError, DataError, ParseError
from pocketclip.formats.json_text import digest_json, load_json
from pocketclip.formats.tar import BLOCK, padded
from pocketclip.shards.claims import OutputFolder
from pocketclip.shards.codec import encode, first_rows, without_deflation
from pocketclip.shards.index import Index, Materialised, write_index
from pocketclip.shards.layout import PART_OF, VIEW_KEYS
from pocketclip.shards.reader import load_packed, name_of
from pocketclip.shards.tar import Group, groups, members
from pocketclip.shards.writer import ShardStats, ShardWriter
from pocketclip.train.rendered_views import (
    ENCODINGS,
    MAX_PSNR,
    QUALITY,
    RenderedViews,
    RenderPlan,
    render_views,
)
from pocketclip.train.sections import MAX_SIDE
from pocketclip.train.size_estimate import Estimate, estimate_size
from pocketclip.train.sources import ShardSource, augmentation_of
from pocketclip.types import Sample
from pocketclip.worker_pool import WorkerPool

STATE = "materialise.json"
LEFT_OUT = "left_out.jsonl"
_NOTES = ".materialise.json"  # beside each finished shard, until all are finished
_EXAMPLES = 10


@dataclass(slots=True, kw_only=True)
class MaterialiseReport:
    """The result of `materialise`."""

    out: str
    size: int
    """S, in pixels."""
    encoding: str
    quality: int | None
    shards: int = 0
    samples: int = 0
    views: int = 0
    """Of all samples together."""
    bytes: int = 0
    """Of all shards."""
    parts: dict[str, int] = field(default_factory=dict)
    """Bytes of all shards by part."""
    source_bytes: int = 0
    """Of the shards that they were made of."""
    left_out: int = 0
    """Samples that could not be rendered; `left_out.jsonl` names each."""
    examples: list[str] = field(default_factory=list)
    """The first of those, with the reason."""
    psnr_mean: float = MAX_PSNR
    """PSNR of the stored views against the exact ones in dB, the mean over all views; 100 where
    there is no difference."""
    psnr_lowest: float = MAX_PSNR
    """The lowest of any view."""


@dataclass(slots=True)
class _Loaded:
    """A sample of the original set, cut to the views that are wanted."""

    sample: Sample
    packed: tuple[str, bytes] | None
    dtype: str
    problem: str = ""
    """Why it cannot be rendered; empty if it can."""


@dataclass(slots=True, kw_only=True)
class _Notes:
    """What is known of a finished shard."""

    source: str
    """Its name in the original set."""
    stats: dict[str, Any] | None = None
    """None if no sample of it could be rendered."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Uid and reason."""
    views: int = 0
    psnr_sum: float = 0.0
    psnr_lowest: float = MAX_PSNR
    source_bytes: int = 0


def materialise(
    source: str | Sequence[str],
    out: str,
    *,
    size: int,
    encoding: str = "jpeg",
    quality: int | None = None,
    views: int | None = None,
    workers: int | None = None,
    on_start: Callable[[Estimate], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> MaterialiseReport:
    """Write the views of a reinforced dataset to a new set of shards, and return a report.

    Args:
        source: tar shards with images, augmentations and embeddings, as training takes them.
        out: a new folder, or that of an unfinished run with the same arguments; local or in an
            object store.
        size: S, the side of the student's images, in pixels.
        encoding: `jpeg`, or `webp` for lossless files.
        quality: of JPEG, from 1 to 100; None: 90.
        views: the most views per sample, the first ones; None: all. With fewer than all, training
            chooses other views than on the original set.
        workers: number of processes that render; 0: none besides this one; None: one per core.
        on_start: called once, after a few samples were rendered.
        on_progress: called with the number of samples done since the last call.

    Raises:
        ConfigError: a bad size, encoding, quality or number of views.
        DataError: the set cannot be rendered, or `out` is the set itself or holds other files.
        StorageError: a path cannot be read or written, or the disk is too small.
        WorkersDiedError: a worker process died.
    """
    plan = _checked_plan(size, encoding, quality, views)
    opened = ShardSource(source, None)
    try:
        augmentation = augmentation_of(opened, source)
        if opened.materialised is not None:
            raise DataError(
                f"{source} holds rendered views already: give the set that it was made of"
            )
        index = opened.index or Index()
        paths, sizes, identity = opened.paths, opened.sizes, opened.identity
    finally:
        opened.close()
    made = Materialised(
        size=size, encoding=encoding, quality=plan.quality, views=views, source=identity
    )
    plan = replace(plan, augmentation=json.dumps(augmentation.config, sort_keys=True))
    job_identity = _identity(paths, index, made)
    _check_out(out, paths)
    folder = OutputFolder(path=out, state=STATE, job="materialisation")
    finished = folder.finished(job_identity)
    if finished is not None:
        return MaterialiseReport(**finished)
    with WorkerPool(workers) as pool:
        job = _Job(out, index, plan, views, pool, on_progress or (lambda _count: None))
        notes = job.finished(paths)
        left = {path: n for path, n in zip(paths, sizes, strict=True) if name_of(path) not in notes}
        estimate = estimate_size(left, sum(sizes), out, job.size_of)
        folder.claim(job_identity)
        if on_start is not None:
            on_start(estimate)
        for path in paths:
            name = name_of(path)
            if name in notes:
                stats = notes[name].stats or {}
                job.on_progress(stats.get("samples", 0) + len(notes[name].left_out))
            else:
                notes[name] = job.render_shard(path)
    return _finish(folder, [notes[name_of(path)] for path in paths], index, made, job_identity)


def _checked_plan(size: int, encoding: str, quality: int | None, views: int | None) -> RenderPlan:
    if not 0 < size <= MAX_SIDE:
        raise ConfigError(f"the size must be from 1 to {MAX_SIDE:,} pixels, not {size}")
    if encoding not in ENCODINGS:
        raise ConfigError(f"unknown encoding {encoding}: use {' or '.join(ENCODINGS)}")
    if encoding != "jpeg" and quality is not None:
        raise ConfigError(f"{encoding} is lossless and has no quality: leave --quality out")
    if quality is not None and not 1 <= quality <= 100:
        raise ConfigError(f"the quality must be from 1 to 100, not {quality}")
    if views is not None and not 1 <= views <= len(VIEW_KEYS):
        raise ConfigError(f"the number of views must be from 1 to {len(VIEW_KEYS)}, not {views}")
    default = QUALITY if encoding == "jpeg" else None
    return RenderPlan("", size, encoding, default if quality is None else quality)


def _identity(paths: Sequence[str], index: Index, made: Materialised) -> str:
    """Return a hash of everything that decides the result."""
    names = [name_of(path) for path in paths]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"two shards are named {twice}: materialise their folders one by one")
    facts = {
        "version": 1,
        "shards": names,
        "augmentation": index.augmentation,
        "teachers": index.teachers,
        **asdict(made),
    }
    return digest_json(facts)


def _check_out(out: str, paths: Sequence[str]) -> None:
    target = storage.absolute(out).rstrip("/\\")
    for path in paths:
        home = path.replace("\\", "/").rpartition("/")[0] or "."
        same = storage.absolute(home).rstrip("/\\") == target
        if not same and not storage.is_remote(out) and not storage.is_remote(home):
            same = Path(out).exists() and Path(out).samefile(home)
        if same:
            raise DataError(f"{out} is the dataset itself: choose another --out")


class _Job:
    """Renders the set shard by shard."""

    def __init__(
        self,
        out: str,
        index: Index,
        plan: RenderPlan,
        views: int | None,
        pool: WorkerPool,
        on_progress: Callable[[int], None],
    ) -> None:
        self.out, self.index, self.plan, self.views = out, index, plan, views
        self.pool, self.on_progress = pool, on_progress

    def finished(self, paths: Sequence[str]) -> dict[str, _Notes]:
        """Return the notes of the shards that an earlier run finished, by name."""
        existing = {name_of(path): size for path, size in storage.list_sizes(self.out)}
        out = {}
        for path in paths:
            name = name_of(path)
            if name + _NOTES not in existing:
                continue
            notes = _read_notes(storage.join(self.out, name + _NOTES))
            if notes.stats is None or existing.get(name) == notes.stats["bytes"]:
                out[name] = notes
        return out

    def render_shard(self, path: str) -> _Notes:
        """Write the shard of `path` and its notes, which mark it as finished."""
        name = name_of(path)
        notes = _Notes(source=name, source_bytes=storage.size(path))
        with storage.open_read(path) as stream, contextlib.ExitStack() as stack:
            writer: ShardWriter | None = None
            loaded = (self.load(group, path) for group in groups(members(stream, path)))
            for one, rendered in self.pool.map(render_views, map(self.call, loaded)):
                problem = one.problem or (rendered if isinstance(rendered, str) else "")
                if not problem:
                    assert isinstance(rendered, RenderedViews)
                    if writer is None:  # here, so that no empty shard is written
                        writer = stack.enter_context(self._writer(name, one.dtype))
                    problem = _write(writer, one, rendered, notes)
                if problem:
                    notes.left_out.append((one.sample.uid, problem))
                self.on_progress(1)
        notes.stats = None if writer is None else asdict(writer.stats)
        text = json.dumps(asdict(notes)).encode() + b"\n"
        storage.write_bytes(storage.join(self.out, name + _NOTES), text, tidy=False)
        return notes

    def size_of(self, group: Group, path: str) -> int | str:
        """Return how many bytes a sample takes in a shard, or why it cannot be rendered."""
        one, arguments = self.call(self.load(group, path))
        if arguments is None:
            return one.problem
        rendered = render_views(*arguments)
        if isinstance(rendered, str):
            return rendered
        replaced = ("image",) if one.packed is None else ("image", "embeddings")
        own = [size for key, size in group.sizes.items() if PART_OF.get(key) not in replaced]
        new = [*rendered.views, *(() if one.packed is None else (one.packed[1],))]
        return sum(BLOCK + padded(size) for size in (*own, *map(len, new)))

    def _writer(self, name: str, dtype: str) -> ShardWriter:
        return ShardWriter(
            storage.join(self.out, name),
            dtype=dtype.split("+")[0] or "bfloat16",
            teacher_dims=self.index.teacher_dims,
        )

    def load(self, group: Group, path: str) -> _Loaded:
        """Return a sample with the views that are wanted."""
        try:
            sample, packed, dtype = load_packed(group, path)
        except DataError as error:
            return _Loaded(Sample(uid=group.uid), None, "", str(error).removeprefix(f"{path}: "))
        params = sample.param_aug or []
        if sample.image is None:
            return _Loaded(sample, None, "", "it has no image")
        if not params:
            return _Loaded(sample, None, "", "it has no stored augmentation")
        if self.views is None and len(params) > len(VIEW_KEYS):
            problem = f"it has {len(params)} augmentations, of which --views takes {len(VIEW_KEYS)}"
            return _Loaded(sample, None, "", problem)
        if self.views is not None and self.views < len(params):
            embeddings = dict(sample.embeddings)
            if "image_emb" in embeddings:
                embeddings["image_emb"] = embeddings["image_emb"][: self.views]
            sample = replace(sample, param_aug=params[: self.views], embeddings=embeddings)
            if packed is not None and packed[0] == "npz":
                # Quantised values would not be the same when they are encoded again.
                packed = "npz", first_rows(packed[1], "image_emb", self.views)
            elif packed is not None:
                packed = encode(embeddings, dtype.split("+")[0])
        return _Loaded(sample, None if packed is None else without_deflation(packed), dtype)

    def call(self, one: _Loaded) -> tuple[_Loaded, tuple[Any, ...] | None]:
        """Return the sample with the arguments of `render_views`, if it can be rendered."""
        image, params = one.sample.image, one.sample.param_aug
        return one, None if one.problem else (image, params, self.plan)


def _write(writer: ShardWriter, one: _Loaded, rendered: RenderedViews, notes: _Notes) -> str:
    """Write a sample and count its views; return why it cannot be written, or an empty text."""
    sample = replace(one.sample, image=None, views=rendered.views)
    try:
        writer.write(sample, packed=one.packed, packed_dtype=one.dtype)
    except DataError as error:
        return str(error).removeprefix(f"{sample.uid}: ")
    notes.views += len(rendered.views)
    notes.psnr_sum += sum(rendered.psnr)
    notes.psnr_lowest = min(notes.psnr_lowest, *rendered.psnr)
    return ""


def _read_notes(path: str) -> _Notes:
    try:
        return _Notes(**load_json(storage.read_bytes(path), what=path, surrogates=True))
    except (ParseError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): remove it and run again") from error


def _finish(
    folder: OutputFolder, notes: Sequence[_Notes], index: Index, made: Materialised, identity: str
) -> MaterialiseReport:
    """Write the index and the list of samples that were left out; return the report."""
    out = folder.path
    new = Index(
        teachers=index.teachers,
        captioners=index.captioners,
        augmentation=index.augmentation,
        materialised=made,
        config_hash=identity,
    )
    new.add(ShardStats(**one.stats) for one in notes if one.stats is not None)
    if not new.samples:
        uid, reason = next(left for one in notes for left in one.left_out)
        raise DataError(f"no sample can be rendered; the first, {uid}: {reason}")
    left = [
        {"file": one.source, "uid": uid, "reason": reason}
        for one in notes
        for uid, reason in one.left_out
    ]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in left)
    path = storage.join(out, LEFT_OUT)
    if left:
        storage.write_bytes(path, lines.encode("utf-8", "backslashreplace"), tidy=False)
    views = sum(one.views for one in notes)
    report = MaterialiseReport(
        out=out,
        size=made.size,
        encoding=made.encoding,
        quality=made.quality,
        shards=len(new.shards),
        samples=new.samples,
        views=views,
        bytes=sum(shard.bytes for shard in new.shards),
        parts=new.parts,
        source_bytes=sum(one.source_bytes for one in notes),
        left_out=len(left),
        examples=[f"{one['uid']}: {one['reason']}" for one in left[:_EXAMPLES]],
        psnr_mean=sum(one.psnr_sum for one in notes) / views,
        psnr_lowest=min(one.psnr_lowest for one in notes),
    )
    write_index(out, new)
    folder.finish(identity, asdict(report))
    for one in notes:
        storage.remove(storage.join(out, one.source + _NOTES))
    return report
