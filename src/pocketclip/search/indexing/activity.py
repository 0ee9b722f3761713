"""What a run of indexing does now, or the last one did, for other processes to read.

    with recorded(location, reporter, report) as reporter:
        reporter.progress(12, 5421, "files")      # in the process that indexes

    read_activity(location).done                  # in any other

One record of JSON in `NAME.progress`, which its run keeps locked: so a run that was killed is told
from one that goes on, and a library that is read costs the run nothing. It is written at most
twice a second. Nothing depends on it; what cannot be written is left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from pocketclip.progress import ProgressReporter
from pocketclip.search.records import IndexReport
from pocketclip.search.store.location import Location
from pocketclip.storage import locks
from pocketclip.storage.private import private_file

Outcome = Literal["running", "done", "interrupted", "failed", "killed"]
_SECONDS = 0.5  # between two records
_BYTES = 1024  # of a record, filled with spaces: one write, so that no reader finds half of it
_TRIES = 3
_UNLOCKED_SECONDS = 60.0  # where there are no locks, an older record is that of a killed run


@dataclass(slots=True)
class Activity:
    """A run of indexing."""

    outcome: Outcome
    stage: str
    """For people, such as `reading 5,421 files`."""
    done: int
    """Units of the stage that are finished."""
    total: int
    """All of its units; 0: not known yet."""
    encoded: int
    """Photographs that went through the model, as far as they are committed."""
    failed: int
    """Files that could not be read or decoded, as far as that is committed."""
    started: float
    """When the run began, in seconds since 1970."""
    updated: float
    """When this was recorded; of a run that has ended, its end."""
    rate: float | None
    """Units per second since the stage began; None if too little is known."""


@contextlib.contextmanager
def recorded(
    location: Location, reporter: ProgressReporter, report: IndexReport
) -> Iterator[ProgressReporter]:
    """Record what the block reports, and pass it on to another reporter.

    Args:
        location: of the library.
        reporter: receives everything too.
        report: whose counts are recorded; it says at the end whether the run was interrupted.
    """
    record = _Record(location)
    recorder = _Recorder(record, reporter, report)
    outcome: Outcome = "failed"
    try:
        recorder.write()
        yield recorder
        outcome = "interrupted" if report.interrupted else "done"
    except KeyboardInterrupt:
        outcome = "interrupted"
        raise
    finally:
        recorder.write(outcome)
        record.close()


def read_activity(location: Location) -> Activity | None:
    """Return what the run that goes on does, else what the last one did; None if none is known."""
    for _ in range(_TRIES):
        try:
            with location.progress.open("rb") as stream:
                text = stream.read(_BYTES)
        except OSError:
            return None
        try:
            found = Activity(**json.loads(text))
        except (ValueError, TypeError):
            time.sleep(0.01)  # it is being written
            continue
        if found.outcome == "running" and not _goes_on(location, found):
            found.outcome = "killed"
        return found
    return None


def _goes_on(location: Location, found: Activity) -> bool:
    held = locks.is_held(location.progress)
    return time.time() - found.updated < _UNLOCKED_SECONDS if held is None else held


class _Record:
    """The file, locked; without one if it cannot be had."""

    def __init__(self, location: Location) -> None:
        self._file: int | None = None
        self._is_locked = True
        with contextlib.suppress(OSError):
            private_file(location.progress)
            try:
                # A reader that asks whether it is held has it for microseconds.
                self._file = locks.acquire(location.progress, wait=True)
            except locks.NoLocksError:
                self._is_locked = False
                self._file = os.open(location.progress, os.O_RDWR | os.O_CLOEXEC)

    def write(self, activity: Activity) -> None:
        if self._file is not None:
            text = json.dumps(asdict(activity)).encode()
            if len(text) <= _BYTES:
                with contextlib.suppress(OSError):  # a full disk
                    os.pwrite(self._file, text.ljust(_BYTES), 0)

    def close(self) -> None:
        if self._file is not None:
            if self._is_locked:
                locks.release(self._file)
            else:
                os.close(self._file)


class _Recorder(ProgressReporter):
    """Passes on what is reported, and records it now and then."""

    def __init__(self, record: _Record, inner: ProgressReporter, report: IndexReport) -> None:
        self._record, self._inner, self._report = record, inner, report
        self._started, self._written, self._since = time.time(), 0.0, time.monotonic()
        self._stage, self._done, self._total = "starting", 0, 0

    def stage(self, text: str) -> None:
        self._stage, self._done, self._total = text, 0, 0
        self._since = time.monotonic()
        self._inner.stage(text)
        self.write()

    def remark(self, text: str) -> None:
        self._inner.remark(text)

    def progress(self, done: int, total: int, note: str = "") -> None:
        self._done, self._total = done, total
        self._inner.progress(done, total, note)
        if time.monotonic() - self._written >= _SECONDS:
            self.write()

    def write(self, outcome: Outcome = "running") -> None:
        self._written = time.monotonic()
        seconds = self._written - self._since
        self._record.write(
            Activity(
                outcome=outcome, stage=self._stage, done=self._done, total=self._total,
                encoded=self._report.encoded, failed=len(self._report.unreadable),
                started=self._started, updated=time.time(),
                rate=self._done / seconds if self._done and seconds >= 1 else None,
            )
        )  # fmt: skip
