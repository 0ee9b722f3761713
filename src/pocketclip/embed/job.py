"""The job: each shard of images becomes one parquet file of vectors.

A shard is a pure function of its images and the model, and its file is written whole or not at all.
A run can therefore be killed at any moment and started again. The same files come from one process
and from a cluster.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from pocketclip import storage
from pocketclip.cluster import Cluster, Driver, Worker, open_driver
from pocketclip.cluster.local import LocalDriver
from pocketclip.cluster.worker import OnProgress
from pocketclip.embed.vector_files import (
    BadImage,
    ShardReport,
    check_written,
    open_folder,
    stem_of,
    write_shard,
)
from pocketclip.errors import DataError, EmbeddingError
from pocketclip.formats.arrow import import_pyarrow
from pocketclip.formats.escaping import name_text
from pocketclip.infer.encoder import Encoder
from pocketclip.infer.own_process import load_for_process
from pocketclip.pairs import PairShard
from pocketclip.pairs.base import Draft
from pocketclip.pairs.loading import completed
from pocketclip.pairs.read_ahead import read_ahead
from pocketclip.types import Bad, Pair

VERSION = 1
"""Version of what a file means; one of the facts."""
_BATCHES_AT_ONCE = 8
"""Batches per call of the encoder, which decodes the next batch while it computes one."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The model, and how it runs; see `pocketclip.load`."""

    model: str
    model_name: str | None = None
    backend: str = "auto"
    device: str = "auto"
    threads: int | None = None
    batch_size: int = 32
    revision: str | None = None
    offline: bool = False

    def load(self) -> Encoder:
        """Return the model, ready to embed images.

        Raises:
            PocketclipError: see `pocketclip.load`.
        """
        encoder = load_for_process(**dataclasses.asdict(self))
        encoder.load("image")
        return encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The result of a run."""

    facts: dict[str, Any]
    """Of the model, as `embeddings.json` holds them."""
    reports: list[ShardReport]
    skipped: int
    """Shards that were finished before this run."""
    others: int
    """Files of other inputs in the folder."""


def _ignore(*_: Any) -> None:
    pass


def run(
    shards: Sequence[PairShard],
    settings: Settings,
    out: str,
    cluster: Cluster | None = None,
    *,
    on_start: Callable[[int, int, int], None] = _ignore,
    on_progress: OnProgress = _ignore,
    on_shard: Callable[[int], None] = _ignore,
) -> Summary:
    """Embed shards of images, skipping those that are finished.

    Args:
        shards: from `pocketclip.pairs.photographs.open_image_shards`.
        settings: the model.
        out: a folder or an object store.
        cluster: where to run; None: in this process. Every machine must reach the images, the
            model and `out` under the same paths, which must be absolute unless this call starts
            the cluster.
        on_start: called once: number of shards, of finished ones, and of images in the latter.
        on_progress: called with the progress in images, and bad ones among them; negative after
            an actor died.
        on_shard: called with the number of images of each finished shard.

    Raises:
        ConfigError: `out` holds files of another job.
        DataError: there are no images, or a shard changed.
        MissingDependencyError: pyarrow or ray is not installed.
        PocketclipError: the model, the images, `out` or the cluster cannot be reached, or actors
            died more often than `cluster.retries` allows. Finished shards are kept.
    """
    import_pyarrow()
    if not shards:
        raise DataError("no images: the input is empty")
    with _driver(settings, storage.absolute(out), cluster, on_progress) as driver:
        actors = 1 if cluster is None else min(cluster.min_actors, len(shards))
        facts = driver.wait_ready(actors)
        folder = open_folder(shards, facts, out)
        finished = dict(folder.finished)
        before = sum(report.samples + report.bad for report in finished.values())
        on_start(len(shards), len(finished), before)
        for report in driver.run_tasks(folder.pending):
            finished[report.name] = report
            on_shard(report.samples + report.bad)
    check_written(shards, facts, out)
    return Summary(
        facts=facts,
        reports=[finished[shard.name] for shard in shards],
        skipped=len(folder.finished),
        others=folder.others,
    )


@contextlib.contextmanager
def _driver(
    settings: Settings, out: str, cluster: Cluster | None, on_progress: OnProgress
) -> Iterator[Driver | LocalDriver]:
    try:
        if cluster is None:
            yield LocalDriver(_Worker(settings, out), on_progress)
            return
        if settings.threads is None:  # a bundle would take all cores of the machine
            settings = dataclasses.replace(settings, threads=max(1, int(cluster.cpus)))
        with open_driver(_Worker, (settings, out), cluster, on_progress) as driver:
            yield driver
    finally:
        storage.remove_abandoned(out)


class _Worker(Worker):
    """A model, and the progress of its current shard."""

    def __init__(self, settings: Settings, out: str) -> None:
        super().__init__()
        self.settings, self.out = settings, out

    def load(self) -> dict[str, Any]:
        """Load the model, and return the facts of its embeddings."""
        self.encoder = self.settings.load()
        self._facts = facts_of(self.encoder)
        return self._facts

    def work(self, task: PairShard, count: OnProgress) -> ShardReport:
        """Embed a shard."""
        return embed_shard(task, self.encoder, self._facts, self.out, count)


def facts_of(encoder: Encoder) -> dict[str, Any]:
    """Return everything about a model that decides the embeddings, as JSON types."""
    bundle = encoder.bundle
    return {
        "version": VERSION,
        "model": encoder.config.name,
        "space_id": encoder.space_id,
        "embed_dim": encoder.embed_dim,
        "precision": "fp32" if bundle is None else bundle.precision,
        "kind": "image",
        "dtype": "float16",
    }


def embed_shard(
    shard: PairShard,
    encoder: Encoder,
    facts: dict[str, Any],
    out: str,
    on_progress: OnProgress = _ignore,
) -> ShardReport:
    """Embed the images of a shard, and write its file into `out`.

    Raises:
        DataError: an embedding is not finite; nothing of this shard was written.
        PocketclipError, OSError: as `run`.
    """
    columns: dict[str, list[str]] = {"id": [], "path": []}
    blocks = [np.empty((0, encoder.embed_dim), np.float32)]
    bad: list[BadImage] = []
    size = _BATCHES_AT_ONCE * encoder.batch_size
    source = read_ahead(_images(shard), size)
    with contextlib.closing(source):
        for group in _groups(source, size):
            good: list[tuple[Pair, str]] = []
            for item, path in group:
                if isinstance(item, Bad):
                    bad.append(BadImage(id=item.uid, path=path, reason=item.reason))
                else:
                    good.append((item, path))
            on_progress(len(group) - len(good), len(group) - len(good))
            try:
                for rows, embeddings, failed in encoder.encode_stream([p.image for p, _ in good]):
                    columns["id"] += [good[row][0].uid for row in rows]
                    columns["path"] += [good[row][1] for row in rows]
                    blocks.append(embeddings)
                    for row, error in failed:
                        pair, path = good[row]
                        reason = str(error).removeprefix("image bytes: ")
                        bad.append(BadImage(id=pair.uid, path=path, reason=reason))
                    on_progress(len(rows) + len(failed), len(failed))
            except EmbeddingError as error:
                raise DataError(
                    f"shard {shard.name}, in the images from {good[0][1]}: {error}"
                ) from error
    write_shard(out, stem_of(shard, facts), columns, np.concatenate(blocks), facts, bad)
    samples = len(columns["id"])
    return ShardReport(name=shard.name, samples=samples, bad=len(bad))


def _images(shard: PairShard) -> Iterator[tuple[Pair | Bad, str]]:
    """Yield each image with its path or URL, or that of the file that holds it."""
    paths: deque[str] = deque()

    def noted() -> Iterator[Pair | Bad | Draft]:
        for item in shard.drafts():
            paths.append(name_text(item.source if isinstance(item, Draft) else shard.origin))
            yield item

    for item in completed(noted(), shard.options.fetch):
        yield item, paths.popleft()


def _groups(items: Iterator[_T], size: int) -> Iterator[list[_T]]:
    while group := list(islice(items, size)):
        yield group
