"""Photographs without captions, local or in an object store: their list, and shards of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.formats.escaping import name_text
from pocketclip.pairs.base import Draft, PairOptions, PairShard, clean_uid, digest_parts
from pocketclip.pairs.loading import completed, is_url
from pocketclip.pairs.opening import is_pairs, open_pairs
from pocketclip.storage.photos import IMAGE_SUFFIXES, find_photographs, is_hidden
from pocketclip.types import Bad, Pair


@dataclass(frozen=True, slots=True)
class Photograph:
    """A photograph in a list."""

    uid: str
    path: str
    size: int | None = None
    """In bytes; None if the list does not say."""

    def draft(self) -> Draft:
        """Return the pair, without its image yet."""
        return Draft(Pair(uid=self.uid), self.path)


@dataclass(frozen=True, kw_only=True)
class PhotographShard(PairShard):
    """Some photographs of a list, in its order."""

    photographs: tuple[Photograph, ...]

    @property
    def origin(self) -> str:
        """The first photograph."""
        return self.photographs[0].path

    def __iter__(self) -> Iterator[Pair | Bad]:
        return completed(self._drafts(), self.options.fetch)

    def _drafts(self) -> Iterator[Pair | Bad | Draft]:
        return (photograph.draft() for photograph in self.photographs)


def open_image_shards(
    sources: Sequence[str], options: PairOptions
) -> tuple[Sequence[PairShard], list[str]]:
    """Return shards of images, with or without captions, and what was skipped in folders.

    Args:
        sources: photographs (files, folders, patterns), or pairs as `open_pairs` takes them.
        options: how pairs are read; `shard_size` applies to photographs too.

    Raises:
        DataError: both kinds are given, or there are no images.
        PocketclipError: see `open_pairs` and `list_photographs`.
    """
    options = replace(options, needs_captions=False)
    if hold_pairs(sources):
        return open_pairs(sources, options), []
    photographs, passed_over = list_photographs(sources)
    step = options.shard_size
    return [
        _shard(number, tuple(photographs[start : start + step]), options)
        for number, start in enumerate(range(0, len(photographs), step))
    ], passed_over


def _shard(number: int, chunk: tuple[Photograph, ...], options: PairOptions) -> PhotographShard:
    parts = [part for one in chunk for part in (one.uid, one.path, str(one.size))]
    return PhotographShard(
        name=f"{number:08d}",
        fingerprint=digest_parts(*parts),
        size=len(chunk),
        options=options,
        photographs=chunk,
    )


def hold_pairs(sources: Sequence[str]) -> bool:
    """Return whether sources are tables, tars or records, not photographs.

    Raises:
        DataError: there are both.
    """
    pairs = [source for source in sources if is_pairs(source)]
    if pairs and len(pairs) < len(sources):
        other = next(source for source in sources if source not in pairs)
        raise DataError(
            f"{pairs[0]} holds pairs and {other} is or holds photographs: give one kind at a time"
        )
    return bool(pairs)


def list_photographs(sources: Sequence[str]) -> tuple[list[Photograph], list[str]]:
    """Return the photographs that sources name, and a sentence per folder with skipped files.

    The uid of a photograph is its path within its folder without extension, as in `open_pairs`; if
    two would get the same one, the later one gets more of its path.

    Raises:
        DataError: a folder of a store holds no photographs.
        StorageError: an object is missing, or the store cannot be reached.
        PocketclipError: see `find_photographs` and `storage.list_sizes`.
    """
    found: dict[str, tuple[str, int | None]] = {}
    passed_over: list[str] = []
    for source in sources:
        if storage.is_remote(source):
            for path, named in _in_store(source).items():
                found.setdefault(path, named)
            continue
        listing = find_photographs([source])
        passed_over += listing.passed_over
        root = Path(source) if Path(source).is_dir() else None
        for photo in listing.paths:
            inside = photo.relative_to(root) if root is not None else Path(photo.name)
            found.setdefault(str(photo), (name_text(inside), _size(photo)))
    uids: set[str] = set()
    photographs = []
    for path, (name, size) in found.items():
        uid = next(uid for uid in _uids(name, path) if uid not in uids)
        uids.add(uid)
        photographs.append(Photograph(uid, path, size))
    return photographs, passed_over


def _size(photo: Path) -> int | None:
    try:
        return os.stat(photo).st_size  # noqa: PTH116
    except OSError:
        return None  # reading it will say why


def _uids(name: str, path: str) -> Iterator[str]:
    stem = name.rpartition(".")[0] or name
    yield clean_uid(stem.replace("\\", "/"))
    yield clean_uid(name.replace("\\", "/"))
    yield f"{clean_uid(stem)[:100]}_{digest_parts(path)[:16]}"


def _in_store(source: str) -> dict[str, tuple[str, int | None]]:
    if not storage.is_folder(source):
        paths = storage.expand(source)
        alone = paths == [source] and not is_url(source)  # many web servers tell no size
        sizes = {source: storage.size(source)} if alone else {}  # which says if it is missing
        return {path: (path.rpartition("/")[2], sizes.get(path)) for path in paths}
    start = len(storage.join(source, "x")) - 1
    listed = sorted(storage.list_sizes(source, IMAGE_SUFFIXES, recursive=True))
    kept = [(p, s) for p, s in listed if not any(map(is_hidden, p[start:].split("/")))]
    if not kept:
        raise DataError(f"{source}: no photographs in this folder")
    return {path: (path[start:], size) for path, size in kept}
