"""Pairs from webdataset tars, ours and the published ones among them.

A sample is a run of consecutive members with the same key: the path up to the suffix, see
`pocketclip.formats.tar`. The image is the member with an image suffix, the caption `txt` (or a key
of `json`), the URL `url.txt` (or `url` in `json`). Reinforcements are ignored, but for the captions
of `PairOptions.captions_from`: they come from `syn.json` (or from `json`), together with the pair's
own captions that a reinforced set stores there.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from pocketclip import storage
from pocketclip.errors import DataError, ParseError
from pocketclip.formats.json_text import load_json
from pocketclip.formats.tar import MAX_MEMBER, Member, TarError, keyed, members, split_name
from pocketclip.pairs.base import (
    IMAGE_SUFFIXES,
    MAX_TEXT,
    Draft,
    PairOptions,
    cell_text,
    clean_uid,
    collect_captions,
    digest_parts,
    matches,
    plain,
)
from pocketclip.pairs.loading import FileShard, is_url, with_bytes
from pocketclip.pairs.stored_captions import add_own, add_stored, choose_keys, key_of
from pocketclip.types import Bad, Pair

_CAPTION_KEYS = ("caption", "text", "txt", "title", "alt_text")
_URL_KEYS = ("url", "image_url")
_NO_META = {"__key__"}
MAX_JSON_MEMORY = 1 << 28
"""Limit on the memory of a parsed `json` member, as estimated: 256 MiB."""


class CutError(Exception):
    """A file of records is truncated or damaged; the message says where."""


class _Members:
    """The members of one sample, with faults."""

    def __init__(self) -> None:
        self.parts: dict[str, bytes] = {}
        self.faults: list[str] = []

    def add(self, suffix: str, member: Member) -> None:
        fault = member.fault
        limit = MAX_TEXT if suffix in ("txt", "json", "syn.json", "url.txt") else MAX_MEMBER
        if not fault and len(member.data) > limit:
            fault = f"has {member.size:,} bytes, more than the limit of {limit:,}"
        elif not fault and sum(map(len, self.parts.values())) + len(member.data) > MAX_MEMBER:
            fault = f"makes the sample larger than the limit of {MAX_MEMBER:,} bytes"
        if fault:
            self.faults.append(f"its {suffix} {fault}")
        else:
            self.parts[suffix] = member.data


@dataclass(frozen=True, kw_only=True)
class TarShard(FileShard):
    """A tar. If it is damaged, its complete pairs come first, then a Bad with the shard's name."""

    def _drafts(self) -> Iterator[Pair | Bad | Draft]:
        seen: set[str] = set()
        current, gathered = "", _Members()
        has_samples = False
        with storage.open_read(self.path) as stream:
            try:
                for key, suffix, member in _members(stream, self.path, self.options):
                    # A new key shows that the previous sample is complete.
                    if key != current and current:
                        yield from self._sample(current, gathered, seen)
                        gathered = _Members()
                    current, has_samples = key, True
                    gathered.add(suffix, member)
            except TarError as error:
                if current and error.spares(current):
                    yield from self._sample(current, gathered, seen)
                    current = ""
                lost = f"; the last sample, {current}, is incomplete" if current else ""
                yield Bad(uid=self.name, reason=f"{error}{lost}")
                return
        if current:
            yield from self._sample(current, gathered, seen)
        if not has_samples:
            yield Bad(uid=self.name, reason=f"{self.path}: the tar holds no samples")

    def _sample(self, key: str, gathered: _Members, seen: set[str]) -> Iterator[Pair | Bad | Draft]:
        uid, parts = clean_uid(key), gathered.parts
        try:
            facts = _json_of(parts, "json")
        except ParseError as error:
            yield Bad(uid=uid, reason=f"its json cannot be read: {error}")
            return
        if not all(matches(facts.get(name), value) for name, value in self.options.where.items()):
            return
        column = self.options.uid_column
        if column is not None:
            text = _uid_text(column, parts, facts)
            if not text:
                yield Bad(uid=uid, reason=f"no uid: there is no {column}")
                return
            uid = clean_uid(text)
        if uid in seen:
            yield Bad(uid=uid, reason=f"duplicate uid {uid}: an earlier sample has the same uid")
            return
        seen.add(uid)
        if gathered.faults:
            yield Bad(uid=uid, reason="; ".join(gathered.faults))
            return
        yield self._pair(uid, parts, facts)

    def _pair(self, uid: str, parts: dict[str, bytes], facts: dict[str, Any]) -> Pair | Bad | Draft:
        try:
            values = list(self._captions(parts, facts))
            captions = collect_captions(values)
            if captions is None and not self.options.needs_captions:
                captions = {}
            if captions is not None and self.options.captions_from:
                self._add_stored(captions, parts, facts)
            url = parts["url.txt"].decode().strip() if "url.txt" in parts else None
        except UnicodeDecodeError:
            return Bad(uid=uid, reason="one of its texts is not UTF-8")
        except (ParseError, DataError) as error:
            return Bad(uid=uid, reason=str(error))
        if captions is None:
            if values[0][1] is None:
                return Bad(uid=uid, reason=f"no caption: there is no {values[0][0]}")
            return Bad(uid=uid, reason="empty caption")
        urls = [facts.get(key) for key in _URL_KEYS]
        url = url or next((text for text in urls if isinstance(text, str)), None)
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
            return Bad(uid=uid, reason="no image, only a URL; fetching is off")
        return Draft(pair, url)

    def _add_stored(
        self, captions: dict[str, list[str]], parts: dict[str, bytes], facts: dict[str, Any]
    ) -> None:
        """Add the captions that a reinforced set stores.

        Raises:
            ParseError, DataError: they cannot be read, or those that are wanted are missing.
        """
        record = _json_of(parts, "syn.json")
        if not self.options.caption_columns:
            add_own(captions, record)
        wanted = self.options.captions_from
        stored = {key: value for key, value in facts.items() if key_of(key, wanted)} | record
        chosen = choose_keys(stored, wanted, "its syn.json")
        add_stored(captions, {n: key for n, key in chosen.items() if key not in captions}, stored)

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
            data = parts.get(name.lower())
            yield name, facts.get(name) if data is None else data.decode("utf-8-sig")


def _json_of(parts: dict[str, bytes], member: str) -> dict[str, Any]:
    """Return the object in a JSON member; an empty one if there is none.

    Raises:
        ParseError: it is damaged or too large.
    """
    value = load_json(
        parts.get(member, b"{}"),
        what=f"its {member}",
        max_bytes=MAX_TEXT,
        max_memory=MAX_JSON_MEMORY,
        constants=True,
    )
    return value if isinstance(value, dict) else {}


def open_tar(path: str, name: str, options: PairOptions, size: int | None = None) -> list[TarShard]:
    """Return the single shard of a tar, in a list.

    Args:
        path: the tar.
        name: the shard's name.
        options: how it is read.
        size: the tar's size in bytes; None: looked up.

    Raises:
        StorageError: the tar is missing, or the store cannot be reached.
    """
    size = storage.size(path) if size is None else size
    base = path.replace("\\", "/").rpartition("/")[2]
    fingerprint = digest_parts(base, str(size), options.identity())
    return [TarShard(name=name, fingerprint=fingerprint, size=None, path=path, options=options)]


def _uid_text(column: str, parts: dict[str, bytes], facts: dict[str, Any]) -> str:
    value: Any = parts.get(column.lower(), b"").decode("utf-8", "replace") or facts.get(column)
    return "" if value is None or isinstance(value, (dict, list)) else cell_text(value).strip()


def _image_suffixes(options: PairOptions) -> tuple[str, ...]:
    return IMAGE_SUFFIXES if options.image_column is None else (options.image_column.lower(),)


def _members(
    stream: BinaryIO, path: str, options: PairOptions
) -> Iterator[tuple[str, str, Member]]:
    """Yield (key, suffix, member) of each file; the bytes of unneeded members are not read.

    Raises:
        TarError: the archive is truncated or damaged.
    """
    named = [options.image_column or "", *options.caption_columns, options.uid_column or ""]
    columns = frozenset(name.lower() for name in named if name)
    suffixes = {*_image_suffixes(options), *columns, "txt", "json", "url.txt"}
    suffixes |= {"syn.json"} if options.captions_from else set()
    packed = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    source = cast(BinaryIO, _Forwards(gzip.GzipFile(fileobj=stream))) if packed else stream

    def needed(name: str) -> bool:
        return split_name(name, columns)[1] in suffixes

    yield from keyed(members(source, path, load=needed), columns)


class _Forwards:
    """A stream that cannot seek: seeking in compressed data would decompress it again."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self.read = stream.read

    def seekable(self) -> bool:
        return False
