"""Many files at once: each request to a store, a network or a cold disk takes a while."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pocketclip.errors import StorageError
from pocketclip.storage.paths import is_remote, list_sizes, read_bytes, size

T = TypeVar("T")
_AT_ONCE = 32
_SLICE = 64  # files per thread at a time
_PAGE = 1000  # files that a store lists per request


def read_many(paths: Sequence[str]) -> Iterator[bytes]:
    """Yield the contents of small files in order; a few dozen are read at a time.

    Raises:
        StorageError: as `read_bytes`.
    """
    return _each(read_bytes, paths)


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
    listed |= zip(missing, _each(size, missing), strict=True)
    return [listed[path] for path in paths]


def _each(work: Callable[[str], T], paths: Sequence[str]) -> Iterator[T]:
    def do(some: Sequence[str]) -> list[T]:
        return [work(path) for path in some]

    slices = (paths[at : at + _SLICE] for at in range(0, len(paths), _SLICE))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        waiting = deque[Future[list[T]]]()
        try:
            for some in slices:
                waiting.append(pool.submit(do, some))
                if len(waiting) > 2 * _AT_ONCE:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
