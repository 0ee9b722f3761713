"""Turns rows into pairs: reads, fetches or base64-decodes their images."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from pocketclip import storage
from pocketclip.errors import DataError, StorageError
from pocketclip.formats.fields import kind_of
from pocketclip.pairs.base import Draft, PairOptions, PairShard, collect_captions, is_empty, plain
from pocketclip.pairs.columns import Columns
from pocketclip.pairs.stored_captions import add_stored
from pocketclip.storage.http import Fetcher, FetchOptions
from pocketclip.storage.stores import OBJECT_STORES, NotThereError
from pocketclip.types import Bad, Pair

_BASE64 = re.compile(r"[A-Za-z0-9+/\-_\s]{400,}={0,2}\s*")
_STORE_READERS = 16
"""Number of objects read from a store concurrently."""
_LARGEST_IMAGE = 1 << 28


def is_url(text: str) -> bool:
    """Return whether `text` is an http(s) URL."""
    return text[:8].lower().startswith(("http://", "https://"))


def pair_of_row(
    uid: str, row: Mapping[str, Any], columns: Columns, options: PairOptions, folder: str
) -> Pair | Bad | Draft:
    """Return the pair of a row; a draft if its image has to be read or fetched.

    Relative image paths are relative to `folder`.
    """
    captions = collect_captions((name, row.get(name)) for name in columns.captions)
    if captions is None and not options.needs_captions:
        captions = {}
    if captions is None:
        value = row.get(columns.captions[0])
        blank = is_empty(value) or isinstance(value, (str, list, tuple))
        reason = "empty caption" if blank else f"the caption is {kind_of(value)}, not text"
        return Bad(uid=uid, reason=reason)
    try:
        add_stored(captions, columns.stored, row)
    except DataError as error:
        return Bad(uid=uid, reason=str(error))
    url = row.get(columns.url) if columns.url else None
    meta = {name: plain(row.get(name)) for name in options.meta_columns}
    pair = Pair(
        uid=uid,
        image=None,
        captions=captions,
        url=url if isinstance(url, str) and is_url(url) else None,
        meta=meta,
    )
    return _with_image(pair, row.get(columns.image), folder)


def _with_image(pair: Pair, value: Any, folder: str) -> Pair | Bad | Draft:
    if isinstance(value, Mapping):  # as Hugging Face datasets store images
        value = value.get("bytes") or value.get("path")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return with_bytes(pair, bytes(value))
    if isinstance(value, str) and value.strip():
        return _from_text(pair, value.strip(), folder)
    if is_empty(value):
        if pair.url is not None:
            return Draft(pair, pair.url)
        return Bad(uid=pair.uid, reason="no image")
    kind = type(value).__name__
    return Bad(uid=pair.uid, reason=f"the image is of type {kind}, not a path, URL or bytes")


def _from_text(pair: Pair, text: str, folder: str) -> Pair | Bad | Draft:
    if is_url(text):
        pair.url = text
        return Draft(pair, text)
    if text[:5].lower() == "data:":
        text = text.partition(",")[2]
    # A path of this length would contain a dot or another character that base64 lacks.
    elif not _BASE64.fullmatch(text):
        pair.meta.setdefault("filepath", text)
        path = text if storage.is_absolute(text) else storage.join(folder, text)
        problem = _refusal(path, folder)
        return Bad(uid=pair.uid, reason=problem) if problem else Draft(pair, path)
    try:
        data = base64.b64decode(text, altchars=b"-_" if re.search("[-_]", text) else None)
    except (binascii.Error, ValueError) as error:
        return Bad(uid=pair.uid, reason=f"the image is not base64: {error}")
    return with_bytes(pair, data)


def _refusal(path: str, folder: str) -> str:
    """Return why an image path from a table is not opened, or an empty text if it is allowed.

    Files, URLs and objects of S3-like stores are allowed, and for a table on another host, files
    on that host. fsspec reads `::` as one path within another, which is not.
    """
    if not storage.is_remote(path):
        return ""
    scheme, _, location = path.partition("://")
    if "::" in path:
        return f"{path[:200]}: nested paths (::) are not read"
    own_scheme, _, own_location = folder.partition("://")
    same_scheme = storage.is_remote(folder) and own_scheme.lower() == scheme.lower()
    same_host = same_scheme and location.split("/")[0] == own_location.split("/")[0]
    if scheme.lower() in OBJECT_STORES or same_host:
        return ""
    return (
        f"{path[:200]}: images are not read from {scheme}://; give files, http(s) URLs or "
        "objects of a store"
    )


def with_bytes(pair: Pair, data: bytes) -> Pair | Bad:
    """Return `pair` with its image; a Bad if the image is empty."""
    if not data:
        return Bad(uid=pair.uid, reason="the image is empty (0 bytes)")
    pair.image = data
    return pair


@dataclass(frozen=True, kw_only=True)
class FileShard(PairShard):
    """A file, local or in a store, whose pairs `_drafts` reads."""

    path: str

    @property
    def origin(self) -> str:
        """The file that it reads."""
        return self.path

    def __iter__(self) -> Iterator[Pair | Bad]:
        return completed(self._drafts(), self.options.fetch)


def completed(drafts: Iterable[Pair | Bad | Draft], options: FetchOptions) -> Iterator[Pair | Bad]:
    """Yield `drafts` in order with their images; URLs and objects are loaded ahead.

    The SHA-256 of a fetched image is recorded in `meta["sha256"]`, as images on the web change.

    Raises:
        StorageError: a store cannot be reached. A missing object is a Bad instead.
    """
    waiting: deque[tuple[Pair | Bad | Draft, Future[Any] | None]] = deque()
    with ExitStack() as stack:
        fetcher: Fetcher | None = None
        readers: ThreadPoolExecutor | None = None
        for draft in drafts:
            future: Future[Any] | None = None
            if isinstance(draft, Draft) and is_url(draft.source):
                fetcher = fetcher or stack.enter_context(Fetcher(options))
                future = fetcher.submit(draft.source)
            elif isinstance(draft, Draft) and storage.is_remote(draft.source):
                if readers is None:
                    readers = ThreadPoolExecutor(_STORE_READERS)
                    stack.callback(readers.shutdown, wait=True, cancel_futures=True)
                future = readers.submit(_read, draft.source)
            waiting.append((draft, future))
            # Pairs that need no loading are yielded at once if nothing before them is pending.
            while waiting and (waiting[0][1] is None or len(waiting) >= options.concurrency):
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())


def _finished(draft: Pair | Bad | Draft, future: Future[Any] | None) -> Pair | Bad:
    if not isinstance(draft, Draft):
        return draft
    data = _read(draft.source) if future is None else future.result()
    if isinstance(data, str):
        return Bad(uid=draft.pair.uid, reason=data)
    if is_url(draft.source):
        draft.pair.meta["sha256"] = hashlib.sha256(data).hexdigest()
    return with_bytes(draft.pair, data)


def _read(path: str) -> bytes | str:
    """Return a file's bytes, or the reason why it cannot be read."""
    try:
        return storage.read_bytes(path, max_bytes=_LARGEST_IMAGE, regular=True)
    except NotThereError as error:
        return str(error)
    except StorageError as error:
        if storage.is_remote(path):
            raise  # it concerns all pairs, and may be temporary
        return str(error)
