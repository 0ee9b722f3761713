"""What `caption` reads: photographs, or tables and tars of images, in the order they are given."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

from pocketclip import storage
from pocketclip.errors import StorageError
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.pairs.base import Draft
from pocketclip.pairs.loading import is_url
from pocketclip.pairs.photographs import hold_pairs, list_photographs
from pocketclip.types import Bad, Pair

_LOOKED_AT = 10


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images of an input.

    Attributes:
        drafts: begins an iteration.
        total: the number of images; None if it is not known before the end.
        are_pairs: whether they come from tables or tars.
        have_captions: whether they have captions of their own.
        options: how they are read.
        passed_over: one sentence with counts per folder in which files were skipped.
    """

    drafts: Callable[[], Iterator[Pair | Bad | Draft]]
    total: int | None
    are_pairs: bool
    have_captions: bool = False
    options: PairOptions
    passed_over: Sequence[str] = ()


def open_images(sources: Sequence[str], options: PairOptions) -> Images:
    """Open photographs (files, folders, patterns) or pairs (tables, tars), local or in a store.

    The uid of a photograph is its path within its folder without extension, as in `open_pairs`; if
    two would get the same one, the later one gets more of its path.

    Raises:
        DataError: both kinds are given, there are no images, or columns cannot be guessed.
        PocketclipError: see `open_pairs` and `find_photographs`.
    """
    if not hold_pairs(sources):
        photos, passed_over = list_photographs(sources)
        return Images(
            drafts=lambda: (photo.draft() for photo in photos),
            total=len(photos),
            are_pairs=False,
            options=options,
            passed_over=passed_over,
        )
    options = replace(options, needs_captions=False)
    shards = open_pairs(sources, options)
    sizes = [shard.size for shard in shards if shard.size is not None]

    def drafts() -> Iterator[Pair | Bad | Draft]:
        return chain.from_iterable(shard.drafts() for shard in shards)

    looked_at = (pair_of(item) for item in islice(drafts(), _LOOKED_AT))
    return Images(
        drafts=drafts,
        total=sum(sizes) if len(sizes) == len(shards) else None,
        are_pairs=True,
        have_captions=any(pair is not None and pair.captions for pair in looked_at),
        options=options,
    )


def pair_of(item: Pair | Bad | Draft) -> Pair | None:
    """Return the pair of an item, perhaps without its image yet; None if it is bad."""
    return item.pair if isinstance(item, Draft) else item if isinstance(item, Pair) else None


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image as a table of captions knows it, to notice that it was replaced.

    Attributes:
        source: a path or URL; empty for an image within its table or tar.
        version: what changes when the file is replaced: the time of its last change, or what an
            object store reports; None without one, or if the file cannot be reached.
        data: the bytes, where they are at hand.
    """

    source: str
    version: str | None = None
    data: bytes | None = None

    @classmethod
    def of(cls, item: Pair | Draft) -> ImageFile:
        """Return the image of an item."""
        if isinstance(item, Pair):
            return cls("", None, item.image or b"")
        version = None
        if not is_url(item.source):
            with contextlib.suppress(StorageError):  # reading it will say why
                found = storage.version(item.source)
                # Two pictures of one time may still differ in size.
                version = f"{storage.size(item.source)} {found}" if found else None
        return cls(item.source, version)

    @property
    def on_the_web(self) -> bool:
        """Whether it would have to be fetched."""
        return is_url(self.source)

    def digest(self) -> str | None:
        """Return the hash of the bytes; None if they cannot be read."""
        if self.data is not None:
            return digest_of(self.data)
        try:
            return digest_of(storage.read_bytes(self.source, regular=True))
        except StorageError:
            return None

    def facts(self, digest: str) -> dict[str, str]:
        """Return what a table keeps of it."""
        return {"sha256": digest} | ({"version": self.version} if self.version else {})


def digest_of(data: bytes) -> str:
    """Return the first 16 digits of the SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


def source_of(item: Pair | Bad | Draft) -> str:
    """Return the path or URL of an image that is not in its table or tar, else an empty text."""
    return item.source if isinstance(item, Draft) else ""
