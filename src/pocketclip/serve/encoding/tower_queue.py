"""The queue of a tower: who may wait, whose turn it is, and what was done.

Everything here belongs to one event loop and needs no lock; only the work itself is in threads.
"""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Protocol, TypeVar

from pocketclip.serve.encoding.engine_stats import TowerStats
from pocketclip.serve.errors import RequestError, ending

T = TypeVar("T")
_LONGEST_RETRY = 60
_NEWEST = 0.2  # weight of the newest call in the mean time per item


class Job(Protocol):
    """The inputs of one call of `Engine`."""

    waiting: int
    """Inputs whose encoding has not begun."""

    @property
    def future(self) -> asyncio.Future[Any]:
        """The answer; when it is done, cancelled too, nothing of the job is begun any more."""
        ...


class TowerQueue:
    """Jobs that wait for one tower, and the thread that runs it: one call at a time on all cores.

    Args:
        limit: number of inputs that may wait; a job that finds none waiting is always accepted.
    """

    plural: ClassVar[str]

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"encode-{self.plural}")
        self._outside: deque[tuple[int, asyncio.Future[None]]] = deque()  # who waits for room
        self._tasks: set[asyncio.Task[None]] = set()
        self._jobs: deque[Any] = deque()  # in turn
        self._is_closed = False
        self._seconds_per_item = 0.05
        self.waiting = self.running = self.encoded = self.dropped = self.refused = 0
        self.seconds = 0.0

    def stats(self) -> TowerStats:
        """Return what waits and what was done."""
        return TowerStats(
            self.waiting, self.running, self.encoded, self.dropped, self.refused,
            self.seconds,
        )  # fmt: skip

    async def _finish(self, job: Job, *, wait: bool) -> Any:
        """Queue a job, and return its answer.

        Args:
            job: the inputs.
            wait: wait until there is room, behind those who do so already.

        Raises:
            RequestError: there is no room (429), or the queue is closed (503).
        """
        await self._enter(job.waiting, wait=wait)
        self._add(job)
        self._start()
        try:
            return await job.future
        except asyncio.CancelledError:
            self.dropped += job.waiting
            raise
        finally:
            self._drop(job)
            self._leave(job, job.waiting)
            self._start()

    def _add(self, job: Any) -> None:
        """Accept a job."""
        self._jobs.append(job)

    def _drop(self, job: Any) -> None:
        """Forget a job that is finished, failed or was cancelled."""
        self._jobs.remove(job)

    def _end_turn(self, job: Any) -> None:
        """Let all others go first, those too that came while it was this job's turn."""
        if job in self._jobs:
            self._jobs.remove(job)
            self._jobs.append(job)

    def _start(self) -> None:
        """Start what can be started now."""
        raise NotImplementedError

    async def _enter(self, count: int, *, wait: bool) -> None:
        if self._is_closed:
            raise ending()
        if not self._outside and self._fits(count):
            self.waiting += count
            return
        if not wait:
            self.refused += count
            raise RequestError(
                429, f"too many {self.plural} wait to be encoded: try again later",
                code="queue_full", retry_after=self._estimate(count),
            )  # fmt: skip
        admitted = asyncio.get_running_loop().create_future()
        self._outside.append((count, admitted))
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted.done() and not admitted.cancelled():  # admitted at the same moment
                self.waiting -= count
            self.dropped += count
            self._admit()
            raise
        if self._is_closed:  # just after it was admitted
            self.waiting -= count
            raise ending()

    def _fits(self, count: int) -> bool:
        return not self.waiting or self.waiting + count <= self._limit

    def _admit(self) -> None:
        while self._outside:
            count, admitted = self._outside[0]
            if not admitted.done():  # else it was cancelled
                if not self._fits(count):
                    return
                self.waiting += count
                admitted.set_result(None)
            self._outside.popleft()

    def _estimate(self, count: int) -> int:
        """Return the seconds after which there will be room for `count` inputs."""
        ahead = self.waiting + sum(outside for outside, _ in self._outside)
        excess = min(ahead, ahead + count - self._limit)
        return max(1, min(_LONGEST_RETRY, math.ceil(excess * self._seconds_per_item)))

    def _leave(self, job: Job, count: int) -> None:
        """Note that `count` inputs of a job wait no longer."""
        job.waiting -= count
        self.waiting -= count
        self._admit()

    def _call(
        self,
        job: Any,
        count: int,
        function: Callable[[], T],
        answer: Callable[[T | Exception], None],
    ) -> None:
        """Run the tower in its thread.

        Args:
            job: whose turn it is.
            count: number of inputs, of all jobs.
            function: encodes them.
            answer: gets what it returned or raised, on the event loop.
        """
        self.running += count
        timed = functools.partial(_timed, function)
        future = asyncio.get_running_loop().run_in_executor(self._pool, timed)
        self._spawn(self._follow(job, count, future, answer))

    async def _follow(
        self,
        job: Any,
        count: int,
        future: asyncio.Future[tuple[T | Exception, float]],
        answer: Callable[[T | Exception], None],
    ) -> None:
        try:
            result, seconds = await future
        finally:
            self.running -= count
        self.seconds += seconds
        if not isinstance(result, Exception):
            self.encoded += count
            self._seconds_per_item += _NEWEST * (seconds / count - self._seconds_per_item)
        self._end_turn(job)
        self._start()  # before the answers are written: the tower should not wait for that
        answer(result)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps no reference
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """End: who waits gets a RequestError (503), and so does everybody who comes."""
        self._is_closed = True
        for _, admitted in self._outside:
            if not admitted.done():
                admitted.set_exception(ending())
        self._outside.clear()
        for job in list(self._jobs):
            settle(job, error=ending())
        self._pool.shutdown(wait=False, cancel_futures=True)


def _timed(function: Callable[[], T]) -> tuple[T | Exception, float]:
    began = time.perf_counter()
    result: T | Exception
    try:
        result = function()
    except Exception as error:
        result = error
    return result, time.perf_counter() - began


def settle(job: Job, result: Any = None, error: BaseException | None = None) -> None:
    """Answer a job, unless it is answered or cancelled."""
    if job.future.done():
        return
    if error is not None:
        job.future.set_exception(error)
    else:
        job.future.set_result(result)
