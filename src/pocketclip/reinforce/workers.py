"""Worker processes that decode and augment while the model computes."""

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

from pocketclip import devices
from pocketclip.cluster.worker import ActorUnusableError
from pocketclip.errors import ConfigError
from pocketclip.pairs.read_ahead import read_ahead
from pocketclip.reinforce.prepare import Plan, Prepared, prepare
from pocketclip.types import Bad, Pair


class WorkersDiedError(ActorUnusableError):
    """A decode worker died and the pool is unusable."""


MAX_WORKERS = 1024


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


class Workers:
    """A pool of processes that prepare images ahead of the model, in order.

    The processes start at once, so that they are ready when the models are loaded.

    Args:
        count: number of processes; 0: none, `map` works in this process; None: one per core.
        ahead: number of prepared images that may wait for the model.

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
            # Not `fork`: the model's threads do not survive it.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(count, mp_context=context, initializer=_watch_parent)
            with _ignoring_interrupts():
                for _ in range(count):  # one more process starts with each
                    self._pool.submit(_do_nothing)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def map(
        self, pairs: Iterable[Pair | Bad], plan: Plan
    ) -> Iterator[tuple[Pair | Bad, Prepared | Bad]]:
        """Yield each pair with its prepared image, or with the reason for having none, in order.

        Raises:
            WorkersDiedError: a worker process died.
        """
        if self._pool is None:
            for pair in pairs:
                image = _image_of(pair)
                yield pair, image if isinstance(image, Bad) else prepare(pair.uid, image, plan)
            return
        waiting: deque[tuple[Pair | Bad, Future[Prepared | Bad] | Bad]] = deque()
        source = read_ahead(pairs, self.ahead)
        try:
            for pair in source:
                waiting.append((pair, self._submit(pair, plan)))
                # Yield the oldest; the others are prepared while the model computes.
                while len(waiting) > self.ahead:
                    yield _result(*waiting.popleft())
            while waiting:
                yield _result(*waiting.popleft())
        except BrokenProcessPool as error:
            raise WorkersDiedError(
                "a worker process died, perhaps out of memory (or a script calls this without "
                'if __name__ == "__main__"); finished shards are kept: run again with fewer workers'
            ) from error
        finally:
            source.close()
            for _, future in waiting:
                if isinstance(future, Future):
                    future.cancel()

    def _submit(self, pair: Pair | Bad, plan: Plan) -> Future[Prepared | Bad] | Bad:
        image = _image_of(pair)
        if isinstance(image, Bad):
            return image
        assert self._pool is not None
        return self._pool.submit(prepare, pair.uid, image, plan)


def _result(
    pair: Pair | Bad, future: Future[Prepared | Bad] | Bad
) -> tuple[Pair | Bad, Prepared | Bad]:
    return pair, future if isinstance(future, Bad) else future.result()


def _image_of(pair: Pair | Bad) -> bytes | Bad:
    """Return the bytes of a pair's image, or the reason why it has none."""
    if isinstance(pair, Bad):
        return pair
    return Bad(uid=pair.uid, reason="no image") if pair.image is None else pair.image


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
