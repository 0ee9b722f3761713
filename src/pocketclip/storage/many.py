"""Many files at once: each request to a store, a network or a cold disk takes a while."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pocketclip.errors import StorageError
from pocketclip.storage.paths import is_remote, list_sizes, read_bytes, size

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
_AT_ONCE = 32
_SLICE = 64  # items per thread at a time, at most
_PAGE = 1000  # files that a store lists per request


def read_many(paths: Sequence[str]) -> Iterator[bytes]:
    """Yield the contents of small files in order; a few dozen are read at a time.

    Raises:
        StorageError: as `read_bytes`.
    """
    return map_many(read_bytes, paths)


def sizes_of(paths: Sequence[str]) -> list[int]:
    """Return the size of each file in bytes.

    A store is asked for the listing of a folder if many of its files are wanted, not for each one.

    Raises:
        StorageError: as `size`.
    """
    # Web servers list nothing, or in HTML.
    stored = [p for p in paths if is_remote(p) and not p.lower().startswith(("http:", "https:"))]
    listed: dict[str, int] = {}
    for home, count in Counter(path.rpartition("/")[0] for path in stored).items():
        if count >= _PAGE:
            with contextlib.suppress(StorageError):  # to read may be allowed, and to list not
                listed |= list_sizes(home)
    missing = [path for path in paths if path not in listed]
    listed |= zip(missing, map_many(size, missing), strict=True)
    return [listed[path] for path in paths]


def map_many(work: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> Iterator[ResultT]:
    """Yield what `work` returns for each item, in order; a few dozen are worked on at a time.

    Raises:
        Exception: as `work`.
    """

    def do(some: Sequence[ItemT]) -> list[ResultT]:
        return [work(item) for item in some]

    step = max(1, min(_SLICE, len(items) // _AT_ONCE))  # few items are for as many threads
    slices = (items[at : at + step] for at in range(0, len(items), step))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        waiting = deque[Future[list[ResultT]]]()
        try:
            for some in slices:
                waiting.append(pool.submit(do, some))
                if len(waiting) > 2 * _AT_ONCE:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
