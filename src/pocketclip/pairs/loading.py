"""From a row to a pair: its image read, fetched or decoded from base64."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from pocketclip import storage
from pocketclip.errors import StorageError
from pocketclip.formats.fields import kind_of
from pocketclip.pairs.base import Columns, Draft, PairOptions, collect_captions, is_empty, plain
from pocketclip.storage.http import Fetcher, FetchOptions
from pocketclip.storage.stores import OBJECT_STORES, NotThereError
from pocketclip.types import Bad, Pair

_BASE64 = re.compile(r"[A-Za-z0-9+/\-_\s]{400,}={0,2}\s*")
_STORE_READERS = 16
"""Objects read from a store at the same time."""
_LARGEST_IMAGE = 1 << 28


def is_url(text: str) -> bool:
    """Return whether `text` is to be fetched from a web server."""
    return text[:8].lower().startswith(("http://", "https://"))


def pair_of_row(
    uid: str, row: Mapping[str, Any], columns: Columns, options: PairOptions, folder: str
) -> Pair | Bad | Draft:
    """Return what a row stands for; its image, where it is elsewhere, is not read yet.

    Relative paths are relative to `folder`.
    """
    captions = collect_captions((name, row.get(name)) for name in columns.captions)
    if captions is None:
        value = row.get(columns.captions[0])
        blank = is_empty(value) or isinstance(value, (str, list, tuple))
        reason = "empty caption" if blank else f"the caption is {kind_of(value)}, not text"
        return Bad(uid=uid, reason=reason)
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
    if isinstance(value, Mapping):  # how Hugging Face's datasets keep images
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
    # A path of this length would have a dot or another sign that base64 does not know.
    elif not _BASE64.fullmatch(text):
        pair.meta.setdefault("filepath", text)
        place = text if storage.is_absolute(text) else storage.join(folder, text)
        problem = _not_read(place, folder)
        return Bad(uid=pair.uid, reason=problem) if problem else Draft(pair, place)
    try:
        data = base64.b64decode(text, altchars=b"-_" if re.search("[-_]", text) else None)
    except (binascii.Error, ValueError) as error:
        return Bad(uid=pair.uid, reason=f"the image is not base64: {error}")
    return with_bytes(pair, data)


def _not_read(place: str, folder: str) -> str:
    """Return why `place` is neither dialled nor read, if it is of a kind that tables do not name.

    Files, web addresses and object stores are; a table in another kind of store may name that
    store's. fsspec takes `::` for one address within another.
    """
    if not storage.is_remote(place):
        return ""
    scheme, _, rest = place.partition("://")
    if "::" in place:
        return f"{place[:200]}: addresses within addresses are not read"
    own, _, own_rest = folder.partition("://")
    same = storage.is_remote(folder) and own.lower() == scheme.lower()
    if scheme.lower() in OBJECT_STORES or (same and rest.split("/")[0] == own_rest.split("/")[0]):
        return ""
    return (
        f"{place[:200]}: images are not read by {scheme}://; give files, http(s) addresses or "
        "objects of a store"
    )


def with_bytes(pair: Pair, data: bytes) -> Pair | Bad:
    """Return `pair` with its image, or why that is none."""
    if not data:
        return Bad(uid=pair.uid, reason="the image is empty (0 bytes)")
    pair.image = data
    return pair


def completed(drafts: Iterable[Pair | Bad | Draft], options: FetchOptions) -> Iterator[Pair | Bad]:
    """Yield `drafts` in order with their images: URLs and objects are loaded some ahead.

    The SHA-256 of a fetched image is recorded in `meta["sha256"]`: the web forgets.

    Raises:
        StorageError: a store cannot be reached. (That an object is missing is a Bad.)
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
            # What needs no waiting, with nothing before it, goes out at once.
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
    """Return a file's bytes, or why there are none."""
    try:
        return storage.read_bytes(path, max_bytes=_LARGEST_IMAGE, regular=True)
    except NotThereError as error:
        return str(error)
    except StorageError as error:
        if storage.is_remote(path):
            raise  # it concerns all of them, and may be over tomorrow
        return str(error)
