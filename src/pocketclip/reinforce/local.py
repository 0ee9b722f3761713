"""Worker processes that decode and augment while the model computes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import TypeVar

from pocketclip import devices
from pocketclip.errors import ConfigError, PocketclipError
from pocketclip.reinforce.prepare import Plan, Prepared, prepare
from pocketclip.types import Bad, Pair

_T = TypeVar("_T")


class WorkersDiedError(PocketclipError):
    """A process that decoded images is gone; the others will not do."""


MOST_WORKERS = 1024


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Let processes that start in here ignore Ctrl-C from their first moment: we end them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Workers:
    """A pool of processes that prepare images ahead of the model, in order.

    They start at once, so that they are ready when the models are loaded. With `count` 0
    everything happens in this process, when it is asked for.

    Raises:
        ConfigError: `count` is negative, or above 1,024.
    """

    def __init__(self, count: int | None = None, *, ahead: int = 32) -> None:
        self.ahead = ahead
        """How many images may be waiting for the model."""
        count = devices.cores() if count is None else count
        if not 0 <= count <= MOST_WORKERS:
            raise ConfigError(f"workers is {count}; it is from 0 to {MOST_WORKERS:,}")
        self._pool: ProcessPoolExecutor | None = None
        if count:
            # Not by fork: the model's threads do not survive it.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start)
            with _deaf():
                for _ in range(count):  # one more process starts with each
                    self._pool.submit(_nothing)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def map(
        self, pairs: Iterable[Pair | Bad], plan: Plan
    ) -> Iterator[tuple[Pair | Bad, Prepared | Bad]]:
        """Yield each pair with what was made of it, in the order of `pairs`.

        Raises:
            WorkersDiedError: a worker process died.
        """
        if self._pool is None:
            for pair in pairs:
                image = _image(pair)
                yield pair, image if isinstance(image, Bad) else prepare(pair.uid, image, plan)
            return
        waiting: deque[tuple[Pair | Bad, Future[Prepared | Bad] | Bad]] = deque()
        source = _in_a_thread(pairs, self.ahead)
        try:
            for pair in source:
                waiting.append((pair, self._submit(pair, plan)))
                # Hand over what is due; the rest is prepared while the model computes.
                while len(waiting) > self.ahead:
                    yield _result(*waiting.popleft())
            while waiting:
                yield _result(*waiting.popleft())
        except BrokenProcessPool as error:
            raise WorkersDiedError(
                "a worker process died, for want of memory perhaps (or a script calls this without "
                'if __name__ == "__main__"); finished shards are kept: run again with fewer workers'
            ) from error
        finally:
            source.close()
            for _, future in waiting:
                if isinstance(future, Future):
                    future.cancel()

    def _submit(self, pair: Pair | Bad, plan: Plan) -> Future[Prepared | Bad] | Bad:
        image = _image(pair)
        if isinstance(image, Bad):
            return image
        assert self._pool is not None
        return self._pool.submit(prepare, pair.uid, image, plan)


def _result(
    pair: Pair | Bad, future: Future[Prepared | Bad] | Bad
) -> tuple[Pair | Bad, Prepared | Bad]:
    return pair, future if isinstance(future, Bad) else future.result()


def _image(pair: Pair | Bad) -> bytes | Bad:
    """Return the image of a pair, or why there is nothing to prepare."""
    if isinstance(pair, Bad):
        return pair
    return Bad(uid=pair.uid, reason="no image") if pair.image is None else pair.image


def _nothing() -> None:
    pass


def _start() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A parent that was killed cannot tell its workers to end: each watches for it.
    threading.Thread(target=_end_with, args=(parent.join,), daemon=True).start()


def _end_with(wait: Callable[[], None]) -> None:
    wait()
    os._exit(1)


_END = object()


def _in_a_thread(items: Iterable[_T], ahead: int) -> Generator[_T, None, None]:
    """Yield `items`, read by a thread, so that a slow disk or network does not keep the model."""
    waiting: queue.Queue[object] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(item: object) -> None:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def read() -> None:
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    return
            put(_END)
        except BaseException as error:
            put(_Failure(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error
