"""Pairs from a folder with `x.jpg` next to `x.txt`, including its subfolders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.pairs.base import (
    IMAGE_SUFFIXES,
    MAX_TEXT,
    Draft,
    PairOptions,
    PairShard,
    clean_uid,
    digest_parts,
)
from pocketclip.pairs.loading import completed
from pocketclip.types import Bad, Pair

_TEXT = ("txt",)


@dataclass(frozen=True, slots=True)
class _Entry:
    uid: str
    image: str = ""
    """Relative to the folder, with slashes."""
    text: str = ""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class FolderShard(PairShard):
    """Some images of a folder, in the order of their names."""

    folder: str
    entries: tuple[_Entry, ...]

    @property
    def origin(self) -> str:
        """The folder that it reads."""
        return self.folder

    def __iter__(self) -> Iterator[Pair | Bad]:
        return completed(self._drafts(), self.options.fetch)

    def _drafts(self) -> Iterator[Pair | Bad | Draft]:
        for entry in self.entries:
            if entry.problem:
                yield Bad(uid=entry.uid, reason=entry.problem)
                continue
            data = storage.read_bytes(storage.join(self.folder, *entry.text.split("/")))
            try:
                caption = data.decode("utf-8-sig").strip()
            except UnicodeDecodeError:
                yield Bad(uid=entry.uid, reason=f"{entry.text} is not UTF-8")
                continue
            if not caption:
                yield Bad(uid=entry.uid, reason="empty caption")
                continue
            pair = Pair(uid=entry.uid, image=None, captions={"text": [caption]})
            # File names need not be UTF-8, JSON must be.
            name = entry.image.encode("utf-8", "backslashreplace").decode("utf-8")
            pair.meta["filepath"] = name
            yield Draft(pair, storage.join(self.folder, *entry.image.split("/")))


def open_folder(folder: str, name: str | None, options: PairOptions) -> list[FolderShard]:
    """Return the shards of a folder.

    The uid is the path within the folder without extension, cleaned by `clean_uid`. If two images
    get the same uid, the second is Bad.

    Args:
        folder: local or in an object store.
        name: prefix of shard names and uids, if there are other inputs.
        options: how pairs are read.

    Raises:
        DataError: no image has a text.
        StorageError: the folder cannot be listed.
    """
    if options.captions_from:
        raise DataError(
            f"{folder}: a folder of images has no captions beside x.txt; captions of an earlier "
            "run are in its shards or its table"
        )
    suffixes = tuple(f".{suffix}" for suffix in (*IMAGE_SUFFIXES, *_TEXT))
    sizes = dict(storage.list_sizes(folder, suffixes, recursive=True))
    start = len(storage.join(folder, "x")) - 1
    names = {path[start:].replace("\\", "/"): size for path, size in sizes.items()}
    entries = _entries(names, f"{name}_" if name else "")
    if not any(entry.image and entry.text for entry in entries):
        raise DataError(
            f"{folder}: no image has a text of the same name (x.jpg, x.txt) and there are no tars; "
            "for a table, give the path of its file"
        )
    shards: list[FolderShard] = []
    for index in range(0, len(entries), options.shard_size):
        chunk = entries[index : index + options.shard_size]
        identities = [
            f"{e.uid}:{e.image}:{names.get(e.image)}:{_text_identity(folder, e, names)}"
            for e in chunk
        ]
        shards.append(
            FolderShard(
                name=f"{name + '_' if name else ''}{len(shards):08d}",
                fingerprint=digest_parts(options.identity(), *identities),
                size=len(chunk),
                folder=folder,
                entries=tuple(chunk),
                options=options,
            )
        )
    return shards


def _text_identity(folder: str, entry: _Entry, sizes: dict[str, int]) -> str:
    """Return the fingerprint of a caption file: of its text if local, else only its size."""
    if not entry.text or entry.problem or storage.is_remote(folder):
        return str(sizes.get(entry.text))
    return digest_parts(storage.read_bytes(storage.join(folder, *entry.text.split("/"))))


def _entries(sizes: dict[str, int], prefix: str) -> list[_Entry]:
    images: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    for name in sorted(sizes):
        stem, _, suffix = name.rpartition(".")
        if suffix.lower() in _TEXT:
            texts[stem] = name
        else:
            images.setdefault(stem, []).append(name)
    entries: list[_Entry] = []
    owners: dict[str, str] = {}
    for stem in sorted({*images, *texts}):
        uid = prefix + clean_uid(stem)
        for image in images.get(stem, [""]):
            text, problem = texts.get(stem, ""), ""
            if not image:
                problem = f"there is no image for {text}"
            elif not text:
                problem = f"there is no text for {image}"
            elif sizes[text] > MAX_TEXT:
                problem = f"{text} is larger than {MAX_TEXT:,} bytes"
            elif uid in owners:
                problem = f"duplicate uid {uid}: {owners[uid]} has the same uid"
            owners.setdefault(uid, image or text)
            entries.append(_Entry(uid, image, text, problem))
    return entries
