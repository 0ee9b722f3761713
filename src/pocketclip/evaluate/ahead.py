"""Read and load ahead of whoever consumes: in threads, in order, in a bounded memory.

for batch in load_ahead(examples, decode, size=64):
    for example, loaded in batch: ...
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Generic, TypeVar

E = TypeVar("E")
V = TypeVar("V")

LOADING = 2
"""Batches that are being loaded, or are loaded already, while one is consumed."""
READING = 1
"""Batches that are being read, or are read already, besides these."""
_CLOSING_SECONDS = 1.0


def load_ahead(
    examples: Iterable[E],
    load: Callable[[E], V],
    *,
    size: int,
    workers: int | None = None,
) -> Generator[list[tuple[E, V]], None, None]:
    """Yield examples in their order, in batches, each with what `load` made of it.

    One thread reads `examples`, others load: neither waits for the consumer, unless they are far
    ahead. Close the iterator (`contextlib.closing`) to stop them before the end; it does not wait
    for what has begun. An error of reading is raised after all that was read before it.

    Args:
        examples: read from a single thread, which is not the caller's.
        load: called in several threads at once; what it raises is raised here.
        size: of a batch; the last one may be smaller.
        workers: threads that load; None for one per core.
    """
    reader = _Reader(examples, size)
    pool = ThreadPoolExecutor(workers or os.cpu_count(), "pocketclip-load")
    waiting: deque[list[tuple[E, Future[V]]]] = deque()
    try:
        for batch in reader.batches():
            waiting.append([(example, pool.submit(load, example)) for example in batch])
            if len(waiting) > LOADING:
                yield [(example, future.result()) for example, future in waiting.popleft()]
        while waiting:
            yield [(example, future.result()) for example, future in waiting.popleft()]
        if reader.error is not None:
            raise reader.error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        reader.close()


class _Reader(Generic[E]):
    """Takes batches off an iterator in a thread of its own, one ahead."""

    def __init__(self, examples: Iterable[E], size: int) -> None:
        self.error: Exception | None = None
        """What ended the reading before its time."""
        self._source = iter(examples)
        self._size = size
        self._stopped = threading.Event()
        self._thread = ThreadPoolExecutor(1, "pocketclip-read")

    def batches(self) -> Iterator[list[E]]:
        following = self._thread.submit(self._take)
        while True:
            batch = following.result()
            whole = len(batch) == self._size
            if whole:
                following = self._thread.submit(self._take)
            if batch:
                yield batch
            if not whole:
                return

    def _take(self) -> list[E]:
        batch: list[E] = []
        try:
            for example in islice(self._source, self._size):
                batch.append(example)
                if self._stopped.is_set():
                    break
        except Exception as error:  # raised in the consumer's thread, at its place in the order
            self.error = error
        return batch

    def close(self) -> None:
        """Stop after the example that is being read, and close the files behind the iterator."""
        self._stopped.set()
        closing = self._thread.submit(getattr(self._source, "close", lambda: None))
        self._thread.shutdown(wait=False)
        wait([closing], timeout=_CLOSING_SECONDS)
