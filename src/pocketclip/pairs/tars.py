"""Pairs from webdataset tars, ours and the published ones among them.

A sample is what follows one another under the same key: the name up to the last dot before its
suffix, folders included, see `pocketclip.formats.tar`. The image is the member with an image's
suffix, the caption `txt` (or a key of `json`), the URL `url.txt` (or `url` in `json`).
Reinforcements in it are passed over.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from pocketclip import storage
from pocketclip.errors import ParseError
from pocketclip.formats.json_text import load_json
from pocketclip.formats.tar import MAX_MEMBER, Member, TarError, keyed, members, split_name
from pocketclip.pairs.base import (
    IMAGE_SUFFIXES,
    MAX_TEXT,
    Draft,
    PairOptions,
    PairShard,
    cell_text,
    clean_uid,
    collect_captions,
    digest_parts,
    matches,
    plain,
)
from pocketclip.pairs.loading import completed, is_url, with_bytes
from pocketclip.types import Bad, Pair

_CAPTION_KEYS = ("caption", "text", "txt", "title", "alt_text")
_URL_KEYS = ("url", "image_url")
_NO_META = {"__key__"}
"""Bytes of the largest `json`, `txt` and `url.txt`: 16 MiB."""
MAX_JSON_MEMORY = 1 << 28
"""Bytes of the objects that a `json` may become, as estimated: 256 MiB."""


class CutError(Exception):
    """A file of records ends before it should, or is damaged; says what and where."""


class _Found:
    """What was read of one sample."""

    def __init__(self) -> None:
        self.parts: dict[str, bytes] = {}
        self.faults: list[str] = []

    def add(self, suffix: str, member: Member) -> None:
        fault = member.fault
        limit = MAX_TEXT if suffix in ("txt", "json", "url.txt") else MAX_MEMBER
        if not fault and len(member.data) > limit:
            fault = f"has {member.size:,} bytes, more than the limit of {limit:,}"
        elif not fault and sum(map(len, self.parts.values())) + len(member.data) > MAX_MEMBER:
            fault = f"makes the sample larger than the limit of {MAX_MEMBER:,} bytes"
        if fault:
            self.faults.append(f"its {suffix} {fault}")
        else:
            self.parts[suffix] = member.data


@dataclass(frozen=True, kw_only=True)
class TarShard(PairShard):
    """A tar. If it is cut or damaged, what is whole before comes, then a Bad named after it."""

    path: str
    options: PairOptions

    def __iter__(self) -> Iterator[Pair | Bad]:
        return completed(self._drafts(), self.options.fetch)

    def _drafts(self) -> Iterator[Pair | Bad | Draft]:
        seen: set[str] = set()
        current, found = "", _Found()
        some = False
        with storage.open_read(self.path) as stream:
            try:
                for key, suffix, member in _members(stream, self.path, self.options):
                    # The name of the next sample shows that the one before is whole.
                    if key != current and current:
                        yield from self._sample(current, found, seen)
                        found = _Found()
                    current, some = key, True
                    found.add(suffix, member)
            except TarError as error:
                if current and error.spares(current):
                    yield from self._sample(current, found, seen)
                    current = ""
                lost = f"; the sample {current} before it is not whole" if current else ""
                yield Bad(uid=self.name, reason=f"{error}{lost}")
                return
        if current:
            yield from self._sample(current, found, seen)
        if not some:
            yield Bad(uid=self.name, reason=f"{self.path}: the tar holds no samples")

    def _sample(self, key: str, found: _Found, seen: set[str]) -> Iterator[Pair | Bad | Draft]:
        uid, parts = clean_uid(key), found.parts
        try:
            facts = load_json(
                parts.get("json", b"{}"),
                what="its json",
                max_bytes=MAX_TEXT,
                max_memory=MAX_JSON_MEMORY,
                constants=True,
            )
        except ParseError as error:
            yield Bad(uid=uid, reason=f"its json cannot be read: {error}")
            return
        facts = facts if isinstance(facts, dict) else {}
        if not all(matches(facts.get(name), value) for name, value in self.options.where.items()):
            return
        column = self.options.uid_column
        if column is not None:
            given = _given_uid(column, parts, facts)
            if not given:
                yield Bad(uid=uid, reason=f"no uid: there is no {column}")
                return
            uid = clean_uid(given)
        if uid in seen:
            yield Bad(uid=uid, reason=f"duplicate uid {uid}: an earlier sample has it already")
            return
        seen.add(uid)
        if found.faults:
            yield Bad(uid=uid, reason="; ".join(found.faults))
            return
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
        StorageError: it is missing, or the store cannot be reached.
    """
    size = storage.size(path)
    base = path.replace("\\", "/").rpartition("/")[2]
    fingerprint = digest_parts(base, str(size), options.identity())
    return [TarShard(name=name, fingerprint=fingerprint, size=None, path=path, options=options)]


def _given_uid(column: str, parts: dict[str, bytes], facts: dict[str, Any]) -> str:
    value: Any = parts.get(column.lower(), b"").decode("utf-8", "replace") or facts.get(column)
    return "" if value is None or isinstance(value, (dict, list)) else cell_text(value).strip()


def _image_suffixes(options: PairOptions) -> tuple[str, ...]:
    return IMAGE_SUFFIXES if options.image_column is None else (options.image_column.lower(),)


def _members(
    stream: BinaryIO, path: str, options: PairOptions
) -> Iterator[tuple[str, str, Member]]:
    """Yield (key, suffix, member) of each file; what no pair needs is not read.

    Raises:
        TarError: the archive ends early, or is damaged.
    """
    named = [options.image_column or "", *options.caption_columns, options.uid_column or ""]
    columns = frozenset(name.lower() for name in named if name)
    wanted = {*_image_suffixes(options), *columns, "txt", "json", "url.txt"}
    packed = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    source = cast(BinaryIO, _Forwards(gzip.GzipFile(fileobj=stream))) if packed else stream

    def needed(name: str) -> bool:
        return split_name(name, columns)[1] in wanted

    yield from keyed(members(source, path, load=needed), columns)


class _Forwards:
    """A stream that is read forwards only: to seek in packed data is to unpack it anew."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self.read = stream.read

    def seekable(self) -> bool:
        return False
