"""Read shards: tar or jsonl, single ones or folders, local or in an object store.

for sample in read("DataCompDR-12M/{00000..00012}.tar"):
    sample.uid, sample.image, sample.captions["syn_text"], sample.embeddings["image_emb"]
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.shards.codec import MEMBERS
from pocketclip.shards.index import Index, read_index
from pocketclip.shards.jsonl import SUFFIXES as LINES
from pocketclip.shards.jsonl import read_lines
from pocketclip.shards.layout import PART_OF, parse
from pocketclip.shards.tar import Group, groups, members
from pocketclip.types import Sample

SUFFIXES = (".tar", *LINES)
_LISTS = ("bad", "dropped", "manifest", "unmatched")


def read(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Iterator[Sample]:
    """Yield the samples of shards, one at a time; memory does not grow.

    Args:
        source: a tar or jsonl (`.gz`, `.zst`) shard, a folder of them (its `index.json` says
            which, if there is one), a pattern (`{00..12}`, `*`), a `.json` list, any of these
            in an object store, or a list of several.

    Raises:
        DataError: a shard is missing, truncated or damaged (the message names it and the member),
            or there are no samples. The samples yielded before are good. `audit` reports all
            problems.
        MissingDependencyError: bfloat16 embeddings without torch, `.zst` without zstandard.
        StorageError: a path cannot be reached, or a pattern matches nothing.
    """
    paths, is_empty = shard_paths(source), True
    for path in paths:
        for sample in read_shard(path):
            is_empty = False
            yield sample
    if is_empty:
        raise DataError(f"{paths[0] if paths else source}: no samples in {len(paths)} shards")


def read_shard(path: str) -> Iterator[Sample]:
    """Yield the samples of one shard.

    Raises:
        DataError: as `read`.
    """
    with storage.open_read(path) as stream:
        if path.lower().endswith(LINES):
            yield from read_lines(stream, path)
            return
        for group in groups(members(stream, path)):
            yield sample_of(group, path)[0]


def sample_of(group: Group, path: str) -> tuple[Sample, str]:
    """Return the sample of a group of members, and the stored dtype of its embeddings.

    Raises:
        DataError: a member is damaged; the message names shard and member.
    """
    try:
        group.check(PART_OF)
        return parse(group.members, group.uid)
    except DataError as error:
        raise DataError(f"{path}: {group.uid}.{error}") from error


def load_packed(group: Group, path: str) -> tuple[Sample, tuple[str, bytes] | None, str]:
    """Return a sample, the member (key, bytes) of its embeddings, and their stored dtype.

    There is no member without embeddings, or if it cannot be copied as it is: further ground truths
    need keys of their own, which the member of another writer may not have.

    Raises:
        DataError: as `sample_of`.
    """
    sample, dtype = sample_of(group, path)
    member = next((key for key in MEMBERS if key in group.members), None)
    if member is None or len(sample.captions.get("text", [])) > 1:
        return sample, None, dtype
    return sample, (member, group.members[member]), dtype


class Folders:
    """Folders of shards: each is listed once, and its index is read once, whoever asks."""

    def __init__(self) -> None:
        self._sizes: dict[str, dict[str, int]] = {}
        self._indexes: dict[str, Index | None] = {}

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of all shards in a folder by their paths, sorted, see `shards_in`."""
        key = folder.rstrip("/")
        if key not in self._sizes:
            self._sizes[key] = dict(_listed_shards(folder))
        return self._sizes[key]

    def index(self, folder: str) -> Index | None:
        """Return the index of a folder, see `read_index`."""
        key = folder.rstrip("/")
        if key not in self._indexes:
            self._indexes[key] = read_index(folder, others=False)
        return self._indexes[key]


def shard_paths(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    folders: Folders | None = None,
) -> list[str]:
    """Return the paths of the shards in `source`, in order.

    Args:
        source: as `read` takes it.
        folders: what is known of the folders already; it is added to.

    Raises:
        DataError: a folder has no shards, or lacks one that its index lists.
        StorageError: a path cannot be reached, or a pattern matches nothing.
    """
    folders = folders or Folders()
    if not isinstance(source, (str, os.PathLike)):
        return [path for one in source for path in shard_paths(one, folders)]
    out: list[str] = []
    for path in storage.expand(os.fspath(source)):
        if path.lower().endswith(SUFFIXES):
            out.append(path)
        elif storage.is_folder(path):
            out += folder_shards(path, folders)
        elif not storage.exists(path):
            raise DataError(f"{path}: no such shard or folder")
        else:
            raise DataError(f"{path} is not a shard: names of shards end in {', '.join(SUFFIXES)}")
    return out


def folder_shards(folder: str, folders: Folders | None = None) -> list[str]:
    """Return the shards in a folder: those of its index, or without one all of them, sorted.

    Raises:
        DataError: the folder has none, or lacks one that its index lists.
    """
    folders = folders or Folders()
    existing = folders.sizes(folder)
    index = folders.index(folder)
    if index is not None:
        paths = [storage.join(folder, shard.name) for shard in index.shards]
        names = set(map(name_of, existing))
        missing = [p for p in paths if name_of(p) not in names]
        if missing:
            raise DataError(
                f"{missing[0]} is missing, but {folder}/index.json lists it: run "
                "`pocketclip audit` on the folder"
            )
        return paths
    if not existing:
        raise DataError(f"{folder}: no shards in this folder ({', '.join(SUFFIXES)})")
    return list(existing)


def shards_in(folder: str) -> list[str]:
    """Return all shards in a folder, sorted, without looking at its index.

    Lists beside shards (`dropped.jsonl`, `00000000.bad.jsonl`, ...) are no shards, and in a folder
    with tars no jsonl file is one.
    """
    return [path for path, _ in _listed_shards(folder)]


def _listed_shards(folder: str) -> list[tuple[str, int]]:
    files = storage.list_sizes(folder, SUFFIXES)
    tars = [file for file in files if file[0].lower().endswith(".tar")]
    return tars or [file for file in files if _is_shard(name_of(file[0]))]


def _is_shard(name: str) -> bool:
    suffix = next(s for s in SUFFIXES if name.lower().endswith(s))
    stem = name[: -len(suffix)]
    return "." not in stem and stem not in _LISTS


def name_of(path: str) -> str:
    """Return the file name of a path, local or remote."""
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def home_of(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> str | None:
    """Return the folder of the shards of `source`, or None if there are several."""
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        if not text.lower().endswith(SUFFIXES) and storage.is_folder(text):
            return text
    homes = {path.replace("\\", "/").rpartition("/")[0] or "." for path in shard_paths(source)}
    return homes.pop() if len(homes) == 1 else None
