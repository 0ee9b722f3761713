"""Threads for what would hold the event loop up, with a limit on what waits for them.

workers = Workers(2, waiting=64, name="search")
result = await workers.run(function, argument)
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from pocketclip.serve.errors import RequestError, ending

T = TypeVar("T")


class Workers:
    """A few threads; its methods belong to one event loop.

    Args:
        threads: how many calls run at a time.
        waiting: how many more may wait.
        name: of the threads.
    """

    def __init__(self, threads: int, *, waiting: int, name: str) -> None:
        self._most = threads + waiting
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._guard = threading.Lock()
        self._held = 0

    async def run(
        self, function: Callable[..., T], *args: Any, discard: Callable[[T], object] | None = None
    ) -> T:
        """Return what a function returns that is called in a thread.

        A call that is cancelled while it waits is dropped.

        Args:
            function: what to call.
            args: its arguments.
            discard: called with the result if nobody waits for it any more, to close it.

        Raises:
            RequestError: too much waits (429).
        """
        future = self.submit(function, *args)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if discard is not None:
                future.add_done_callback(lambda done: _discard(done, discard))
            raise

    def submit(self, function: Callable[..., T], *args: Any, bounded: bool = True) -> Future[T]:
        """Return the future of a call.

        Args:
            function: what to call.
            args: its arguments.
            bounded: False for a part of what was begun already: it may always wait.

        Raises:
            RequestError: too much waits (429), or the threads have ended (503).
        """
        with self._guard:
            if bounded and self._held >= self._most:
                raise RequestError(
                    429, "too many requests wait; try again later", code="queue_full",
                    retry_after=1,
                )  # fmt: skip
            self._held += 1
        try:
            future = self._pool.submit(function, *args)
        except RuntimeError:
            self._release()
            raise ending() from None
        future.add_done_callback(self._release)
        return future

    def _release(self, _future: object = None) -> None:
        with self._guard:
            self._held -= 1

    def close(self) -> None:
        """End the threads; waits for what runs."""
        self._pool.shutdown(cancel_futures=True)


def _discard(future: Future[T], discard: Callable[[T], object]) -> None:
    if not future.cancelled() and future.exception() is None:
        discard(future.result())
