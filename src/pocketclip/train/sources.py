"""Random access to training samples: reinforced shards, plain tar shards, raw pairs.

A source knows the sizes of its shards once it is opened, and then reads any sample directly, in
any process. The offsets of a shard's samples are scanned once and kept in a temporary folder for
all worker processes. Shards of an object store are fetched whole, see `shard_cache`; raw pairs
in other files than tars are read by `raw_pairs`.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Container, Iterator, Sequence
from typing import Any

from pocketclip import storage
from pocketclip.augment import Augmentation
from pocketclip.errors import ConfigError, DataError
from pocketclip.formats.json_text import digest_json
from pocketclip.pairs import PairOptions
from pocketclip.shards.index import Index, describe, how_to_embed, read_index
from pocketclip.shards.layout import IMAGE_KEYS, parse
from pocketclip.shards.random_access import MappedShard
from pocketclip.shards.reader import name_of, shard_paths
from pocketclip.shards.writer import ShardStats
from pocketclip.storage.temporary import TemporaryFolder
from pocketclip.train.raw_pairs import PairSource
from pocketclip.train.shard_cache import ShardCache
from pocketclip.types import Sample

_MAX_OPEN = 128  # mapped shards per process; each takes a file descriptor and address space
log = logging.getLogger(__name__)
_UNUSED = ("json", "url.txt")
_REINFORCED = ("npz", "pth.gz", "paug.json")


class ShardError(DataError):
    """A whole shard is unusable, so skipping single samples does not help."""


class _AllBut:
    """A container of all keys but some."""

    def __init__(self, *keys: str) -> None:
        self._keys = keys

    def __contains__(self, key: object) -> bool:
        return key not in self._keys


class ShardSource:
    """Samples of tar shards.

    Attributes:
        sizes: number of samples of each shard.
        index: the set's index; None if it has none.
        identity: a hash that changes when the samples do.

    Args:
        source: as `pocketclip.shards` takes it; several folders must have been reinforced with
            the same teachers and augmentation.
        cache_dir: the folder for copies of remote shards; None: the user's cache.
        reinforced: whether to read stored augmentations and embeddings.

    Raises:
        DataError: there are no shards, they are not tars, or one differs from the index.
        StorageError: they cannot be reached.
    """

    def __init__(
        self, source: str | Sequence[str], cache_dir: str | None, *, reinforced: bool = True
    ) -> None:
        self.paths = shard_paths(source)
        other = [path for path in self.paths if not path.lower().endswith(".tar")]
        if other:
            raise DataError(
                f"{other[0]}: training reads tar shards; convert it with `pocketclip join`"
            )
        self._ignored = _UNUSED if reinforced else (*_UNUSED, *_REINFORCED)
        self._cache = ShardCache(cache_dir)
        self._warned = False
        self._mapped: OrderedDict[int, MappedShard] = OrderedDict()
        scans = TemporaryFolder.scratch("scans")
        self._scans = scans.path
        self._tidy = weakref.finalize(self, scans.remove)
        self.index: Index | None = None
        self.sizes: list[int] = []
        self._contents: list[dict[str, Any]] = []
        try:
            self.identity = digest_json(list(self._open_all()))[:16]
        except BaseException:
            self.close()
            raise
        if not sum(self.sizes):
            raise DataError(f"{source}: the shards hold no samples")

    def __getstate__(self) -> dict[str, object]:
        # Memory maps stay in their process; only the process that made the folder removes it.
        return {**self.__dict__, "_mapped": OrderedDict(), "_tidy": None}

    def read(self, shard: int, index: int) -> Sample:
        """Return a sample.

        Raises:
            ShardError: the shard is truncated or has changed.
            DataError: the sample is damaged.
        """
        return self._read(shard, index, self._ignored)

    def read_captions(self, shard: int, index: int) -> Sample:
        """Return a sample with its captions and embeddings, without image and augmentation.

        Raises:
            ShardError: the shard is truncated or has changed.
            DataError: the sample is damaged.
        """
        return self._read(shard, index, (*self._ignored, *IMAGE_KEYS, "paug.json"))

    def first_caption(self, shard: int, index: int) -> str | None:
        """Return a sample's first ground-truth caption, or None; other members are not read.

        Raises:
            ShardError: the shard is truncated or has changed.
            DataError: the caption is damaged.
        """
        for ignored in (_AllBut("txt"), _AllBut("txt", "syn.json")):
            truth = self._read(shard, index, ignored).captions.get("text")
            if truth:
                return truth[0]
        return None

    def _read(self, shard: int, index: int, ignored: Container[str]) -> Sample:
        mapped = self._shard(shard)
        if len(mapped) != self.sizes[shard]:
            raise ShardError(
                f"{self.paths[shard]} has {len(mapped)} samples, its index says "
                f"{self.sizes[shard]}; run `pocketclip audit` on the folder"
            )
        uid, parts = mapped.read(index, ignored)
        try:
            return parse(parts, uid)[0]
        except DataError as error:
            raise DataError(f"{self.paths[shard]}: {uid}.{error}") from error

    def image(self, sample: Sample) -> bytes:
        """Return the sample's encoded image."""
        if sample.image is None:
            raise DataError("the shards hold no images; join them with `pocketclip join` first")
        return sample.image

    def close(self) -> None:
        """Close the files."""
        while self._mapped:
            self._mapped.popitem()[1].close()
        if self._tidy is not None:
            self._tidy()

    def _open_all(self) -> Iterator[list[object]]:
        """Collect each shard's size; yield what identifies the shard."""
        folders: dict[str, tuple[dict[str, int], Index | None]] = {}
        for number, path in enumerate(self.paths):
            home, name = path.replace("\\", "/").rpartition("/")[0] or ".", name_of(path)
            if home not in folders:
                sizes = {name_of(p): size for p, size in storage.list_sizes(home, (".tar",))}
                folders[home] = sizes, read_index(home, others=False)
                self._describe(home, first=len(folders) == 1)
            sizes, index = folders[home]
            if name not in sizes:
                raise DataError(f"{path}: no such shard")
            stats = next((s for s in index.shards if s.name == name), None) if index else None
            self._contents.append(self._content(path, sizes[name], stats))
            if stats is None:
                self.sizes.append(len(self._shard(number)))
                yield [name, self.sizes[-1], sizes[name]]
                continue
            if stats.bytes and stats.bytes != sizes[name]:
                raise ShardError(
                    f"{path} has {sizes[name]:,} bytes, its index says {stats.bytes:,}: it was "
                    "truncated or changed; run `pocketclip audit` on the folder"
                )
            self.sizes.append(stats.samples)
            yield [name, stats.samples, stats.sha256]

    def _content(self, path: str, size: int, stats: ShardStats | None) -> dict[str, Any]:
        """Return what identifies a shard's content, as arguments of `ShardCache.local`."""
        if not storage.is_remote(path):
            return {"size": size}
        if stats is not None and stats.sha256:
            return {"size": size, "sha256": stats.sha256}
        version = storage.version(path)
        if version is None and not self._warned:
            self._warned = True
            log.warning(
                "%s: neither an index.json nor the store identifies its content; if you replace "
                "it by another shard of the same size, empty data.cache_dir", path,
            )  # fmt: skip
        return {"size": size, "version": version}

    def _describe(self, home: str, *, first: bool) -> None:
        index = describe(home)
        if first:
            self.index = index
            return
        ours = (self.index.teachers, self.index.augmentation) if self.index else None
        if ours != ((index.teachers, index.augmentation) if index else None):
            raise DataError(
                f"{home}: its teachers or augmentation differ from those of the other folders; "
                "train on sets with the same reinforcement"
            )

    def _shard(self, number: int) -> MappedShard:
        mapped = self._mapped.pop(number, None)
        if mapped is None:
            path = self.paths[number]
            scan = self._scans / f"{number}.npy" if self._scans.is_dir() else None
            try:
                local = self._cache.local(path, **self._contents[number])
                mapped = MappedShard(local, name=path, cache=scan)
            except DataError as error:
                raise ShardError(str(error)) from error
        self._mapped[number] = mapped
        if len(self._mapped) > _MAX_OPEN:
            self._mapped.popitem(last=False)[1].close()
        return mapped


def open_source(
    source: str | Sequence[str], *, reinforced: bool, options: PairOptions, cache_dir: str | None
) -> ShardSource | PairSource:
    """Return the shards that `source` names or, with `reinforced` false, possibly raw pairs."""
    if reinforced or _names_tars(source):
        if options.where or options.image_column or options.caption_columns:
            raise ConfigError(
                f"{source}: data.where, data.image_column and data.caption_columns are for tables; "
                "tar shards have no columns"
            )
        return ShardSource(source, cache_dir, reinforced=reinforced)
    return PairSource(source, options)


def _names_tars(source: str | Sequence[str]) -> bool:
    first = source if isinstance(source, str) else source[0]
    if first.lower().endswith(".tar"):
        return True
    table = first.lower().endswith((".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"))
    return not table and storage.is_folder(first) and bool(storage.list_files(first, (".tar",)))


def augmentation_of(source: ShardSource | PairSource, name: object) -> Augmentation:
    """Return the augmentation that the stored parameters of reinforced shards were drawn from.

    Args:
        source: the opened shards.
        name: their path, for errors.

    Raises:
        DataError: no file beside the shards describes it.
    """
    index = source.index
    if index is not None and index.is_captions_only:
        raise DataError(
            f"{name} holds captions alone, without augmentations and embeddings: train on the set "
            f"that a second run makes of it, `{how_to_embed(str(name))}`, or on its images and "
            "captions with data.reinforced=false"
        )
    if index is None or index.augmentation is None:
        raise DataError(
            f"{name}: neither an index.json nor a config.json describes the augmentation; put the "
            "set's config.json beside its shards"
        )
    return Augmentation.from_config(index.augmentation)
