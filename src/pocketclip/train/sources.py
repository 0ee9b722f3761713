"""Random access to training samples: reinforced shards, plain tar shards, raw pairs.

A source knows the sizes of its shards once it is opened, and then reads any sample directly, in
any process. The offsets of a shard's samples are scanned once and kept in a temporary folder for
all worker processes. Shards of an object store are fetched whole, see `shard_cache`; raw pairs
in other files than tars are read by `raw_pairs`.
"""

from __future__ import annotations

import dataclasses
import logging
import weakref
from collections import OrderedDict
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from pocketclip import storage
from pocketclip.augment import Augmentation
from pocketclip.errors import ConfigError, DataError
from pocketclip.formats.json_text import digest_json
from pocketclip.pairs import PairOptions
from pocketclip.shards.index import Index, describe_published, how_to_embed
from pocketclip.shards.layout import IMAGE_KEYS, PART_OF, VIEW_KEYS, parse
from pocketclip.shards.random_access import MappedShard
from pocketclip.shards.reader import Folders, name_of, shard_paths
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


class _Views(Sequence[bytes]):
    """The views of one sample of a materialised set; only one that is taken is read."""

    def __init__(self, members: Mapping[str, bytes]) -> None:
        self._members = members
        self._count = sum(PART_OF.get(key) == "views" for key in members)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        return self._members[VIEW_KEYS[number]]


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
        index: the set's index without the list of its shards; None if it has none.
        identity: a hash that changes when the samples do.
        materialised: how its views were rendered; None if the set holds images.

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
        folders = Folders()
        self.paths = shard_paths(source, folders)
        other = [path for path in self.paths if not path.lower().endswith(".tar")]
        if other:
            raise DataError(
                f"{other[0]}: training reads tar shards; convert it with `pocketclip join`"
            )
        self._ignored = frozenset(_UNUSED if reinforced else (*_UNUSED, *_REINFORCED))
        self._of_captions = self._ignored | {*IMAGE_KEYS, *VIEW_KEYS, "paug.json"}
        self._cache = ShardCache(cache_dir)
        self._warned = False
        self._mapped: OrderedDict[int, MappedShard] = OrderedDict()
        scans = TemporaryFolder.scratch("scans")
        self._scans = scans.path
        self._tidy = weakref.finalize(self, scans.remove)
        self.index: Index | None = None
        self.sizes: list[int] = []
        # Three lists of numbers and texts: worker processes may get copies, for 100,000 shards.
        self._bytes: list[int] = []
        self._hashes: list[str] = []
        self._versions: dict[int, str | None] = {}
        try:
            self.identity = digest_json(list(self._open_all(folders)))[:16]
        except BaseException:
            self.close()
            raise
        if not sum(self.sizes):
            raise DataError(f"{source}: the shards hold no samples")
        self.materialised = self.index.materialised if self.index is not None else None
        if self.materialised is not None and not reinforced:
            self.close()
            raise DataError(
                f"{source} holds rendered views in place of its images: train on it with "
                "data.reinforced=true, or without it on the set that it was made of"
            )

    def __getstate__(self) -> dict[str, object]:
        # Memory maps stay in their process; only the process that made the folder removes it.
        return {**self.__dict__, "_mapped": OrderedDict(), "_tidy": None}

    def read(self, shard: int, index: int) -> Sample:
        """Return a sample.

        Raises:
            ShardError: the shard is truncated or has changed.
            DataError: the sample is damaged.
        """
        if self.materialised is None:
            return self._read(shard, index, self._ignored)
        uid, members = self._shard(shard).read_lazily(index)
        ignored = self._ignored | {"paug.json"}  # the views have been made
        sample = self._parse(shard, uid, {
            key: members[key] for key in members
            if key not in ignored and PART_OF.get(key) != "views"
        })  # fmt: skip
        sample.views = _Views(members)
        return sample

    def read_captions(self, shard: int, index: int) -> Sample:
        """Return a sample with its captions and embeddings, without image and augmentation.

        Raises:
            ShardError: the shard is truncated or has changed.
            DataError: the sample is damaged.
        """
        return self._read(shard, index, self._of_captions)

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
        uid, parts = self._shard(shard).read(index, ignored)
        return self._parse(shard, uid, parts)

    def _parse(self, shard: int, uid: str, parts: Mapping[str, bytes]) -> Sample:
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

    def _open_all(self, folders: Folders) -> Iterator[list[object]]:
        """Collect each shard's size; yield what identifies the shard."""
        known: dict[str, tuple[dict[str, int], dict[str, ShardStats]]] = {}
        for number, path in enumerate(self.paths):
            home, name = path.replace("\\", "/").rpartition("/")[0] or ".", name_of(path)
            if home not in known:
                index = folders.index(home)
                sizes = {name_of(file): size for file, size in folders.sizes(home).items()}
                known[home] = sizes, {shard.name: shard for shard in index.shards} if index else {}
                self._describe(home, index, first=len(known) == 1)
            sizes, listed = known[home]
            if name not in sizes:
                raise DataError(f"{path}: no such shard")
            stats = listed.get(name)
            self._bytes.append(sizes[name])
            self._hashes.append(self._hash_of(number, path, stats))
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

    def _hash_of(self, number: int, path: str, stats: ShardStats | None) -> str:
        """Return the hash of a remote shard; if it is not known, note the store's version of it."""
        if not storage.is_remote(path):
            return ""
        if stats is not None and stats.sha256:
            return stats.sha256
        version = self._versions[number] = storage.version(path)
        if version is None and not self._warned:
            self._warned = True
            log.warning(
                "%s: neither an index.json nor the store identifies its content; if you replace "
                "it by another shard of the same size, empty data.cache_dir", path,
            )  # fmt: skip
        return ""

    def _describe(self, home: str, index: Index | None, *, first: bool) -> None:
        if index is None:
            index = describe_published(home)
        if first:
            self.index = None if index is None else dataclasses.replace(index, shards=[])
            return
        ours, theirs = (
            (one.teachers, one.augmentation, _rendering(one)) if one else None
            for one in (self.index, index)
        )
        if ours != theirs:
            raise DataError(
                f"{home}: its teachers or augmentation, or how its views were rendered, differ "
                "from those of the other folders; train on sets with the same reinforcement"
            )

    def _shard(self, number: int) -> MappedShard:
        mapped = self._mapped.pop(number, None)
        if mapped is None:
            path = self.paths[number]
            scan = self._scans / f"{number}.npy" if self._scans.is_dir() else None
            try:
                local = self._cache.local(
                    path, self._bytes[number],
                    sha256=self._hashes[number], version=self._versions.get(number),
                )  # fmt: skip
                mapped = MappedShard(local, name=path, cache=scan)
            except DataError as error:
                raise ShardError(str(error)) from error
        self._mapped[number] = mapped
        if len(self._mapped) > _MAX_OPEN:
            self._mapped.popitem(last=False)[1].close()
        if number < len(self.sizes) and len(mapped) != self.sizes[number]:
            raise ShardError(
                f"{self.paths[number]} has {len(mapped)} samples, its index says "
                f"{self.sizes[number]}; run `pocketclip audit` on the folder"
            )
        return mapped


def _rendering(index: Index) -> tuple[int, str, int | None] | None:
    made = index.materialised
    return None if made is None else (made.size, made.encoding, made.quality)


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
