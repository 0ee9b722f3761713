"""Searches for duplicates behind a server: one at a time, in a thread, the last ones kept.

    job = jobs.ask(limits)
    await job.wait(1.0)
    job.report            # None while it runs

Hundreds of thousands of photographs take longer than a request may. So a request begins a search,
and later ones ask how far it is, and page through what it found, which stays the same meanwhile. A
search that nobody asks about any more is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from pocketclip.progress import ProgressReporter
from pocketclip.serve.errors import RequestError, ending

if TYPE_CHECKING:
    from pocketclip.search.duplicates.records import DuplicateReport
    from pocketclip.search.library import Library
    from pocketclip.search.similar import DuplicateLimits

_KEPT = 3  # finished searches
_WAITING = 4
_FORGOTTEN_SECONDS = 15.0  # without a question


class _GivenUpError(Exception):
    pass


class DuplicateJob(ProgressReporter):
    """A search for duplicates, and what it found."""

    def __init__(self, library: Library, limits: DuplicateLimits) -> None:
        self.id = secrets.token_urlsafe(9)
        self.limits = limits
        self.report: DuplicateReport | None = None
        """What was found; None while it runs."""
        self.text, self.done, self.total = "waiting", 0, 0
        """What it does, and how far it is; `total` 0: not known."""
        self.version: tuple[int, int] | None = None
        """Of the library, when it began; see `version_of`."""
        self.asked = time.monotonic()
        self.is_stopped = False
        self.future: Future[None] | None = None
        self._library = library

    def run(self) -> None:
        """Search; in a thread."""
        self._go_on()
        self.version = version_of(self._library)
        self.report = self._library.duplicates(limits=self.limits, reporter=self)

    def stage(self, text: str) -> None:
        """Note what begins."""
        self.text, self.done, self.total = text, 0, 0
        self._go_on()

    def progress(self, done: int, total: int, note: str = "") -> None:  # noqa: ARG002
        """Note how far it is."""
        self.done, self.total = done, total
        self._go_on()

    def _go_on(self) -> None:
        if self.is_stopped or time.monotonic() - self.asked > _FORGOTTEN_SECONDS:
            raise _GivenUpError

    async def wait(self, seconds: float) -> None:
        """Wait until it has ended, or some seconds.

        Raises:
            PocketclipError: the search failed.
        """
        assert self.future is not None
        self.asked = time.monotonic()
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def end(_future: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(ended.set)

        self.future.add_done_callback(end)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ended.wait(), seconds)
        if self.future.done():
            self.future.result()

    @property
    def is_over(self) -> bool:
        """Whether it ended without finding anything out."""
        future = self.future
        return future is not None and (
            future.cancelled() or (future.done() and future.exception() is not None)
        )


class DuplicateJobs:
    """The searches of a library.

    Args:
        library: whose.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._guard = threading.Lock()
        self._jobs: list[DuplicateJob] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="duplicates")

    def find(self, report: str) -> DuplicateJob | None:
        """Return a search by its id; None if it is not kept any more."""
        with self._guard:
            return next((job for job in self._jobs if job.id == report and not job.is_over), None)

    def ask(self, limits: DuplicateLimits, *, again: bool = False) -> DuplicateJob:
        """Return the last search with some limits; it is begun if there is none.

        Args:
            limits: what counts.
            again: begin a new one also if one has ended.

        Raises:
            RequestError: 429, too many wait; 503, the server is ending.
        """
        with self._guard:
            self._jobs = [job for job in self._jobs if not job.is_over]
            same = [job for job in self._jobs if job.limits == limits]
            if same and not (again and same[-1].report is not None):
                return same[-1]
            if sum(job.report is None for job in self._jobs) >= _WAITING:
                raise RequestError(
                    429, "other searches for duplicates wait already; try again later",
                    code="queue_full", retry_after=5,
                )  # fmt: skip
            job = DuplicateJob(self._library, limits)
            try:
                job.future = self._pool.submit(job.run)
            except RuntimeError:
                raise ending() from None
            finished = [job for job in self._jobs if job.report is not None]
            for old in finished[: max(0, len(finished) - _KEPT + 1)]:
                self._jobs.remove(old)
            self._jobs.append(job)
            return job

    def close(self) -> None:
        """Give up what runs, and wait until it has ended."""
        with self._guard:
            for job in self._jobs:
                job.is_stopped = True
        self._pool.shutdown(cancel_futures=True)


def version_of(library: Library) -> tuple[int, int]:
    """Return what changes with the photographs of a library: vectors, and files that are there."""
    with library.database.reading() as connection:
        [files] = connection.execute("SELECT COUNT(*) FROM files WHERE absent = 0").fetchone()
    return library.database.generation(), int(files)
