"""Pairs from webdataset tars, ours and the published ones among them.

A sample is what follows one another under the same name up to the first dot. The image is the
member with an image's extension, the caption `txt` (or a key of `json`), the URL `url.txt` (or
`url` in `json`). Reinforcements in it are passed over.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, cast

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.pairs.base import (
    IMAGE_SUFFIXES,
    Draft,
    PairOptions,
    PairShard,
    as_text,
    clean_uid,
    collect_captions,
    digest,
    plain,
)
from pocketclip.pairs.loading import completed, is_url, with_bytes
from pocketclip.types import Bad, Pair

_CAPTION_KEYS = ("caption", "text", "txt", "title", "alt_text")
_URL_KEYS = ("url", "image_url")
_NO_META = {"__key__"}


class CutError(Exception):
    """An archive ends before it should, or is damaged; says what and where."""


@dataclass(frozen=True, kw_only=True)
class TarShard(PairShard):
    """A tar. If it is cut or damaged, what is whole before comes, then a Bad named after it."""

    path: str
    options: PairOptions

    def __iter__(self) -> Iterator[Pair | Bad]:
        return completed(self._drafts(), self.options.fetch)

    def _drafts(self) -> Iterator[Pair | Bad | Draft]:
        seen: set[str] = set()
        current, parts = "", dict[str, bytes]()
        with storage.open_read(self.path) as stream:
            try:
                for key, suffix, read in _members(stream, self.options):
                    # The name of the next sample shows that the one before is whole.
                    if key != current and current:
                        yield from self._sample(current, parts, seen)
                        parts = {}
                    current = key
                    if read is not None:
                        parts[suffix] = read()
            except CutError as error:
                lost = f"; the sample {current} before it is not whole" if current else ""
                yield Bad(uid=self.name, reason=f"{self.path}: {error}{lost}")
                return
        if current:
            yield from self._sample(current, parts, seen)

    def _sample(
        self, key: str, parts: dict[str, bytes], seen: set[str]
    ) -> Iterator[Pair | Bad | Draft]:
        uid = clean_uid(key.rpartition("/")[2])
        told = parts.get("json", b"{}")
        try:
            facts = json.loads(told)
        except (ValueError, RecursionError):
            yield Bad(uid=uid, reason="its json cannot be read")
            return
        facts = facts if isinstance(facts, dict) else {}
        where = self.options.where.items()
        if any(as_text(facts.get(name)) != as_text(value) for name, value in where):
            return
        if uid in seen:
            yield Bad(uid=uid, reason=f"duplicate uid {uid}: an earlier sample has it already")
            return
        seen.add(uid)
        yield self._pair(uid, parts, facts)

    def _pair(self, uid: str, parts: dict[str, bytes], facts: dict[str, Any]) -> Pair | Bad | Draft:
        try:
            found = list(self._captions(parts, facts))
            captions = collect_captions(found)
            url = parts["url.txt"].decode().strip() if "url.txt" in parts else None
        except UnicodeDecodeError:
            return Bad(uid=uid, reason="a text of it is not UTF-8")
        if captions is None:
            if found[0][1] is None:
                return Bad(uid=uid, reason=f"no caption: there is no {found[0][0]}")
            return Bad(uid=uid, reason="empty caption")
        given = [facts.get(key) for key in _URL_KEYS]
        url = url or next((text for text in given if isinstance(text, str)), None)
        meta = {name: plain(fact) for name, fact in facts.items() if name not in _NO_META}
        pair = Pair(uid=uid, image=None, captions=captions, url=url, meta=meta)
        images = [suffix for suffix in parts if suffix in _image_suffixes(self.options)]
        if len(images) > 1:
            return Bad(
                uid=uid, reason=f"several images ({', '.join(images)}): choose an --image-column"
            )
        if images:
            return with_bytes(pair, parts[images[0]])
        if url is None or not is_url(url):
            return Bad(uid=uid, reason="no image")
        if not self.options.fetch_missing:
            return Bad(uid=uid, reason="no image, only its URL, and fetching was not asked for")
        return Draft(pair, url)

    def _captions(
        self, parts: dict[str, bytes], facts: dict[str, Any]
    ) -> Iterator[tuple[str, Any]]:
        if not self.options.caption_columns:
            if "txt" in parts:
                yield "txt", parts["txt"].decode("utf-8-sig")
            else:
                yield "txt", next((facts[key] for key in _CAPTION_KEYS if facts.get(key)), None)
            return
        for name in self.options.caption_columns:
            found = parts.get(name.lower())
            yield name, facts.get(name) if found is None else found.decode("utf-8-sig")


def open_tar(path: str, name: str, options: PairOptions) -> list[TarShard]:
    """Return the one shard of a tar.

    Raises:
        DataError: a column of uids is asked for: in a tar they are the members' names.
        StorageError: it is missing, or the store cannot be reached.
    """
    if options.uid_column is not None:
        raise DataError(f"{path}: --uid-column is for tables; in a tar the names are the uids")
    size = storage.size(path)
    base = path.replace("\\", "/").rpartition("/")[2]
    fingerprint = digest(base, str(size), options.identity())
    return [TarShard(name=name, fingerprint=fingerprint, size=None, path=path, options=options)]


def _image_suffixes(options: PairOptions) -> tuple[str, ...]:
    return IMAGE_SUFFIXES if options.image_column is None else (options.image_column.lower(),)


def _members(
    stream: BinaryIO, options: PairOptions
) -> Iterator[tuple[str, str, Callable[[], bytes] | None]]:
    """Yield (name up to the first dot, extension in small letters, reader) of each file.

    What no pair needs has no reader. Hidden files are passed over.

    Raises:
        CutError: the archive ends early, or is damaged; also from a reader.
    """
    wanted = {*_image_suffixes(options), "txt", "json", "url.txt"}
    wanted |= {name.lower() for name in options.caption_columns}
    packed = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    plain_stream = cast(BinaryIO, gzip.GzipFile(fileobj=stream)) if packed else stream
    with _explained(stream, "not a tar"):
        archive: Any = tarfile.open(fileobj=plain_stream, mode="r:")  # noqa: SIM115
    while True:
        with _explained(stream):
            member = archive.next()
        if member is None:
            break
        archive.members.clear()  # it would remember them all
        folder, _, base = member.name.rpartition("/")
        stem, _, suffix = base.partition(".")
        if member.isfile() and stem and not folder.startswith(("PaxHeader", "__MACOSX")):
            key, suffix = f"{folder}/{stem}" if folder else stem, suffix.lower()
            reader = partial(_read, stream, archive, member) if suffix in wanted else None
            yield key, suffix, reader
    if not packed:  # what is packed knows its end itself
        _check_end(stream, archive.offset)


def _read(stream: BinaryIO, archive: Any, member: tarfile.TarInfo) -> bytes:
    with _explained(stream):
        data = bytes(archive.extractfile(member).read())
        if len(data) < member.size:
            raise EOFError
    return data


@contextlib.contextmanager
def _explained(stream: BinaryIO, otherwise: str = "") -> Iterator[None]:
    try:
        yield
    except (zlib.error, gzip.BadGzipFile) as error:
        raise CutError(f"the tar is damaged: {error}") from error
    except (tarfile.TarError, EOFError) as error:
        end = _end(stream)
        reason = otherwise if end else "the tar is empty (0 bytes)"
        raise CutError(reason or f"the tar is cut at byte {end:,}") from error


def _end(stream: BinaryIO) -> int:
    return stream.seek(0, io.SEEK_END)


def _check_end(stream: BinaryIO, offset: int) -> None:
    """Raise unless the archive ends at `offset` as one should: tarfile takes any end for one."""
    stream.seek(offset)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise CutError(f"the tar is cut at byte {offset + len(block):,}")
    if block.strip(b"\0"):
        raise CutError(f"the tar is damaged at byte {offset:,}")
