"""Prefetching: read and load batches in threads ahead of the consumer, in order, in bounded memory.

for batch in prefetch(examples, decode, size=64):
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
"""Batches that are loading or loaded while one is consumed."""
READING = 1
"""Batches that are being read or waiting to be loaded, besides those."""
_CLOSING_SECONDS = 1.0


def prefetch(
    examples: Iterable[E],
    load: Callable[[E], V],
    *,
    size: int,
    workers: int | None = None,
) -> Generator[list[tuple[E, V]], None, None]:
    """Yield batches of examples in their order, each example with the result of `load`.

    One thread reads `examples` and others load; they wait for the consumer only when they are far
    ahead. Close the iterator (`contextlib.closing`) to stop early; closing does not wait for calls
    of `load` that have begun. A read error is raised after everything that was read before it.

    Args:
        examples: read from a single thread, not the caller's.
        load: called from several threads at once; its exceptions are raised here.
        size: batch size; the last batch may be smaller.
        workers: threads that load; None for one per core.
    """
    reader = _Reader(examples, size)
    pool = ThreadPoolExecutor(workers or os.cpu_count(), "pocketclip-load")
    pending: deque[list[tuple[E, Future[V]]]] = deque()
    try:
        for batch in reader.batches():
            pending.append([(example, pool.submit(load, example)) for example in batch])
            if len(pending) > LOADING:
                yield [(example, future.result()) for example, future in pending.popleft()]
        while pending:
            yield [(example, future.result()) for example, future in pending.popleft()]
        if reader.error is not None:
            raise reader.error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        reader.close()


class _Reader(Generic[E]):
    """Reads batches from an iterator in its own thread, one batch ahead."""

    def __init__(self, examples: Iterable[E], size: int) -> None:
        self.error: Exception | None = None
        """The error that ended the reading early."""
        self._source = iter(examples)
        self._size = size
        self._stopped = threading.Event()
        self._thread = ThreadPoolExecutor(1, "pocketclip-read")

    def batches(self) -> Iterator[list[E]]:
        next_batch = self._thread.submit(self._read_batch)
        while True:
            batch = next_batch.result()
            full = len(batch) == self._size
            if full:
                next_batch = self._thread.submit(self._read_batch)
            if batch:
                yield batch
            if not full:
                return

    def _read_batch(self) -> list[E]:
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
        """Stop after the current example, and close the files behind the iterator."""
        self._stopped.set()
        closing = self._thread.submit(getattr(self._source, "close", lambda: None))
        self._thread.shutdown(wait=False)
        wait([closing], timeout=_CLOSING_SECONDS)
