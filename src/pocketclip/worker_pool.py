"""Worker processes that prepare items ahead of their use, in order.

    with WorkerPool(4, ahead=32) as pool:
        for name, pixels in pool.map(decode, ((name, (path,)) for name, path in files)):
            ...

Reinforcing and materialising prepare their images with it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from pocketclip import devices
from pocketclip.cluster.worker import ActorUnusableError
from pocketclip.errors import ConfigError
from pocketclip.pairs.read_ahead import read_ahead

_T = TypeVar("_T")
_R = TypeVar("_R")
MAX_WORKERS = 1024


class WorkersDiedError(ActorUnusableError):
    """A worker process died and the pool is unusable."""


class WorkerPool:
    """A pool of processes that compute results ahead of their use, in order; a context manager.

    The processes start at once, so that they are ready when they are needed. They ignore Ctrl-C:
    the pool ends them.

    Args:
        count: number of processes; 0: none, `map` works in this process; None: one per core.
        ahead: number of results that may wait to be used.

    Raises:
        ConfigError: `count` is negative, or above 1,024.
    """

    def __init__(self, count: int | None = None, *, ahead: int = 32) -> None:
        self.ahead = ahead
        count = devices.cores() if count is None else count
        if not 0 <= count <= MAX_WORKERS:
            raise ConfigError(f"workers must be from 0 to {MAX_WORKERS:,}, not {count}")
        self._pool: ProcessPoolExecutor | None = None
        if count:
            # Not `fork`: a model's threads do not survive it.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(count, mp_context=context, initializer=_watch_parent)
            with _ignoring_interrupts():
                for _ in range(count):  # one more process starts with each
                    self._pool.submit(_do_nothing)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def map(
        self, function: Callable[..., _R], items: Iterable[tuple[_T, tuple[Any, ...] | None]]
    ) -> Iterator[tuple[_T, _R | None]]:
        """Yield each item with its result, in order.

        Args:
            function: is called in the processes, which must be able to import it.
            items: each with the arguments of its call; None: there is none, and no result.

        Raises:
            WorkersDiedError: a worker process died.
        """
        if self._pool is None:
            for item, arguments in items:
                yield item, None if arguments is None else function(*arguments)
            return
        waiting: deque[tuple[_T, Future[_R] | None]] = deque()
        source = read_ahead(items, self.ahead)

        def oldest() -> tuple[_T, _R | None]:
            item, future = waiting.popleft()
            return item, None if future is None else future.result()

        try:
            for item, arguments in source:
                future = None if arguments is None else self._pool.submit(function, *arguments)
                waiting.append((item, future))
                # Yield the oldest; the others are computed meanwhile.
                while len(waiting) > self.ahead:
                    yield oldest()
            while waiting:
                yield oldest()
        except BrokenProcessPool as error:
            raise WorkersDiedError(
                "a worker process died, perhaps out of memory (or a script calls this without "
                'if __name__ == "__main__"); finished shards are kept: run again with fewer workers'
            ) from error
        finally:
            source.close()
            for _, left in waiting:
                if left is not None:
                    left.cancel()


@contextlib.contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Make processes that start in here ignore Ctrl-C from their first moment: we end them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _do_nothing() -> None:
    pass


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A killed parent cannot stop its workers: each worker watches its parent.
    threading.Thread(target=_exit_after, args=(parent.join,), daemon=True).start()


def _exit_after(wait: Callable[[], None]) -> None:
    wait()
    os._exit(1)
