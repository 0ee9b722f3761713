"""Where samples lie, and how the n-th of a shard is read: reinforced shards, tars, tables, folders.

A source knows the sizes of its shards when it is opened and reads any sample at once afterwards,
in whatever process. Shards of an object store are fetched whole into a bounded folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from pocketclip import storage
from pocketclip.augment import Augmentation
from pocketclip.errors import DataError, StorageError
from pocketclip.files import write_whole
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.pairs.base import Draft
from pocketclip.shards.index import Index, describe
from pocketclip.shards.mapped import MappedShard
from pocketclip.shards.reader import home_of, name_of, shard_paths
from pocketclip.shards.sample import parse
from pocketclip.types import Bad, Pair, Sample

_OPEN = 64  # mapped shards per process
CACHE_BYTES = 50 << 30
"""The shards of object stores that are kept at a time; the least recently used ones go."""


class ShardSource:
    """Samples of tar shards.

    Attributes:
        sizes: samples per shard.
        index: what is known of the folder, or None.
        identity: changes when the samples do.

    Raises:
        DataError: there are none, or they are not tars.
        StorageError: they cannot be reached.
    """

    def __init__(self, source: str | Sequence[str], cache_dir: str | None) -> None:
        self.paths = shard_paths(source)
        other = [path for path in self.paths if not path.lower().endswith(".tar")]
        if other:
            raise DataError(
                f"{other[0]}: training reads tar shards; write these as tars with "
                "`pocketclip join`"
            )
        home = home_of(source)
        self.index: Index | None = describe(home) if home is not None else None
        self.cache = _Cache(cache_dir)
        known = {shard.name: shard for shard in self.index.shards} if self.index else {}
        self._mapped: OrderedDict[int, MappedShard] = OrderedDict()
        self.sizes, facts = [], []
        for number, path in enumerate(self.paths):
            shard = known.get(name_of(path))
            if shard is not None:
                self.sizes.append(shard.samples)
                facts.append([shard.name, shard.samples, shard.sha256])
            else:
                size = storage.size(path)
                self.sizes.append(len(self._shard(number)))
                facts.append([name_of(path), self.sizes[-1], size])
        self.identity = _digest(facts)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_mapped": OrderedDict()}  # maps stay in their process

    def read(self, shard: int, index: int) -> Sample:
        """Return a sample.

        Raises:
            DataError: it is damaged.
        """
        mapped = self._shard(shard)
        if index >= len(mapped):
            raise DataError(
                f"{self.paths[shard]}: {len(mapped)} samples, {self.sizes[shard]} by the index; "
                "run `pocketclip audit` on the folder"
            )
        uid, parts = mapped.read(index)
        try:
            return parse(parts, uid)[0]
        except DataError as error:
            raise DataError(f"{self.paths[shard]}: {uid}.{error}") from error

    def image(self, sample: Sample) -> bytes:
        """Return the sample's encoded image."""
        if sample.image is None:
            raise DataError(
                "the shards hold no images; join them with `pocketclip join` first"
            )
        return sample.image

    def _shard(self, number: int) -> MappedShard:
        found = self._mapped.pop(number, None)
        if found is None:
            path = self.paths[number]
            found = MappedShard(self.cache.local(path), name=path)
        self._mapped[number] = found
        if len(self._mapped) > _OPEN:
            self._mapped.popitem(last=False)[1].close()
        return found

    def close(self) -> None:
        """Let go of the files."""
        while self._mapped:
            self._mapped.popitem()[1].close()


class PairSource:
    """Raw pairs of tables and folders; their images are read when they are wanted.

    Attributes:
        sizes: usable pairs per shard.
        identity: changes when the rows do.
        bad: how many rows cannot be used.
        index: None, as there is none.

    Raises:
        DataError: there are none, or their images are inside of the table.
    """

    index: Index | None = None

    def __init__(self, source: str | Sequence[str], options: PairOptions) -> None:
        shards = open_pairs(source, options)
        self.bad = 0
        self._rows: list[list[tuple[str, str, dict[str, list[str]]]]] = []
        for shard in shards:
            rows = []
            for draft in shard.drafts():
                if isinstance(draft, Bad):
                    self.bad += 1
                elif isinstance(draft, Draft):
                    rows.append((draft.pair.uid, draft.source, draft.pair.captions))
                else:
                    raise DataError(_inside(draft, source))
            if rows:
                self._rows.append(rows)
        self.sizes = [len(rows) for rows in self._rows]
        if not self.sizes:
            raise DataError(f"{source}: no pair that can be used ({self.bad} cannot)")
        self.identity = _digest([[shard.name, shard.fingerprint] for shard in shards])

    def read(self, shard: int, index: int) -> Sample:
        """Return a pair without its image; `url` says where that is."""
        uid, place, captions = self._rows[shard][index]
        return Sample(uid=uid, url=place, captions=captions)

    def image(self, sample: Sample) -> bytes:
        """Return the sample's encoded image.

        Raises:
            DataError: it cannot be read.
        """
        assert sample.url is not None
        if sample.url[:8].lower().startswith(("http://", "https://")):
            raise DataError(
                f"{sample.url}: training does not fetch from the web; `pocketclip reinforce` or "
                "`pocketclip join --fetch` stores the images"
            )
        try:
            return storage.read_bytes(sample.url)
        except StorageError as error:
            raise DataError(str(error)) from error

    def close(self) -> None:
        """Nothing is open."""


def _inside(pair: Pair, source: str | Sequence[str]) -> str:
    return (
        f"{source}: the images are stored inside ({pair.uid}); plain training reads tables of "
        "paths, folders and tars; `pocketclip reinforce` writes such tars"
    )


def open_source(
    source: str | Sequence[str], *, reinforced: bool, options: PairOptions, cache_dir: str | None
) -> ShardSource | PairSource:
    """Return shards, or with `reinforced` false also raw pairs, whichever `source` names."""
    if reinforced or _names_tars(source):
        return ShardSource(source, cache_dir)
    return PairSource(source, options)


def _names_tars(source: str | Sequence[str]) -> bool:
    first = source if isinstance(source, str) else source[0]
    if first.lower().endswith(".tar"):
        return True
    table = first.lower().endswith((".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"))
    return not table and storage.is_folder(first) and bool(storage.list_files(first, (".tar",)))


def augmentation_of(source: ShardSource | PairSource, place: object) -> Augmentation:
    """Return the augmentation that the parameters of reinforced shards were drawn by.

    Raises:
        DataError: nothing beside the shards says it.
    """
    index = source.index
    if index is None or index.augmentation is None:
        raise DataError(
            f"{place}: neither an index.json nor a config.json says how the augmentations were "
            "drawn; put the set's config.json beside its shards"
        )
    return Augmentation.from_config(index.augmentation)


class _Cache:
    """Shards of object stores on the local disk, whole files, least recently used ones removed."""

    def __init__(self, folder: str | None) -> None:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        self.folder = Path(folder) if folder else Path(base) / "pocketclip" / "shards"

    def local(self, path: str) -> Path:
        """Return the local file of a shard, fetched if it is remote and not there yet.

        Raises:
            StorageError: it cannot be fetched.
        """
        if not storage.is_remote(path):
            return Path(path)
        size = storage.size(path)
        name = hashlib.sha256(f"{path} {size}".encode()).hexdigest()[:32]
        target = self.folder / f"{name}.tar"
        if target.is_file() and target.stat().st_size == size:
            os.utime(target)
            return target
        self.folder.mkdir(parents=True, exist_ok=True)
        self._make_room(size)
        with write_whole(target) as temporary, temporary.open("wb") as out:
            with storage.open_read(path) as stream:
                while block := stream.read(1 << 22):
                    out.write(block)
            if out.tell() != size:
                raise StorageError(f"{path}: {out.tell()} of {size} bytes came; try again")
        return target

    def _make_room(self, size: int) -> None:
        files = sorted(self.folder.glob("*.tar"), key=lambda file: file.stat().st_mtime)
        total = size + sum(file.stat().st_size for file in files)
        for file in files:
            if total <= CACHE_BYTES:
                return
            total -= file.stat().st_size
            file.unlink(missing_ok=True)  # a process that has it mapped keeps its pages


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
