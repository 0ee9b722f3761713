"""Progress on standard error: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from pocketclip.cli.output import note, overwrite, progress_bar
from pocketclip.formats.escaping import escape_controls
from pocketclip.progress import ProgressReporter

if TYPE_CHECKING:
    from pocketclip.pairs import PairShard


class Advance(Protocol):
    """Counts finished work."""

    def __call__(self, count: int, /) -> None:
        """Add `count`."""


@contextmanager
def progress(total: int | None, unit: str, title: str = "") -> Iterator[Advance]:
    """Show the progress of one piece of work: a bar on a terminal, else a line a minute.

    Args:
        total: the number of units; None if it is not known before the end.
        unit: what is counted.
        title: the name of the work, where there are several pieces of it.
    """
    if total is not None and total < 2:
        yield lambda _count: None
    elif sys.stderr.isatty():
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            *((TextColumn("{task.description}", markup=False),) if title else ()),
            BarColumn(),
            MofNCompleteColumn(),
            unit,
            TimeElapsedColumn() if total is None else TimeRemainingColumn(),
        )
        with progress_bar(*columns) as bar:
            task = bar.add_task(escape_controls(title), total=total)
            yield lambda count: bar.advance(task, count)
    else:
        yield _line_a_minute(total, unit, title)


def _line_a_minute(total: int | None, unit: str, title: str) -> Advance:
    begun = last = time.monotonic()
    done = 0

    def advance(count: int, /) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last < 60:
            return
        last = now
        of, left = "", f"{done / (now - begun):.1f} per s"
        if total is not None:
            of, left = f" of {total}", f"about {(now - begun) / done * (total - done):.0f} s left"
        note(f"{title}{': ' if title else ''}{done}{of} {unit}, {left}")

    return advance


def duration(seconds: float) -> str:
    """Return a time for people: hours and minutes, or minutes and seconds."""
    minutes, remainder = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {remainder} s"


class _Bar:
    """A bar on a terminal; `self._bar` is None elsewhere."""

    def __init__(self) -> None:
        self._bar: Any = None

    def _open(self, description: str, total: int | None, *, remaining: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        self._bar = progress_bar(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}", markup=False),
            *((TimeRemainingColumn(),) if remaining else ()),
        )
        self._bar.start()
        self._task = self._bar.add_task(description, total=total)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


class PairProgress(_Bar):
    """The progress of shards: pairs and shards done, rate, time left, and bad pairs."""

    SECONDS_BETWEEN_LINES = 60.0

    def __init__(self, shards: Sequence[PairShard], unit: str = "pairs") -> None:
        super().__init__()
        self.unit = unit
        sizes = [shard.size for shard in shards]
        self.known = None not in sizes
        self.total = sum(size for size in sizes if size is not None) if self.known else None
        self.shards = len(shards)
        self.done = self.bad = self.before = 0
        self.finished: list[int] = []
        """The number of pairs of each shard that this run finished."""
        self.begun = self.last = time.monotonic()

    def __enter__(self) -> PairProgress:
        if sys.stderr.isatty():
            self._open("loading the models", self.total, remaining=True)
        return self

    def start(self, shards: int, finished: int, pairs_finished: int) -> None:
        """Start counting; an earlier run may have finished some shards."""
        self.begun = self.last = time.monotonic()
        self.before, self.shards_before = pairs_finished, finished
        if finished:
            note(f"{finished} of {shards} shards are finished already")
        if self._bar is not None:
            self._bar.advance(self._task, pairs_finished)

    def finish(self, pairs: int) -> None:
        """Count a finished shard; only then is the size of a tar known."""
        self.finished.append(pairs)
        if not self.known:
            left = self.shards - self.shards_before - len(self.finished)
            mean = sum(self.finished) / len(self.finished)
            self.total = round(self.before + sum(self.finished) + left * mean)
            if self._bar is not None:
                self._bar.update(self._task, total=self.total)

    def add(self, done: int, bad: int) -> None:
        """Count pairs, and the bad ones among them."""
        self.done += done
        self.bad += bad
        now = time.monotonic()
        rate = self.done / max(now - self.begun, 1e-9)
        text = f"{rate:.1f} {self.unit}/s, {self.bad} bad"
        if self._bar is not None:
            self._bar.update(self._task, advance=done, description=text)
        elif now - self.last >= self.SECONDS_BETWEEN_LINES:
            self.last = now
            of = left = ""
            if self.total is not None:
                remaining = self.total - self.before - self.done
                about = "" if self.known else "about "
                of = f" of {about}{self.total}"
                left = f", about {duration(remaining / max(rate, 1e-9))} left"
            else:
                number = self.shards_before + len(self.finished) + 1
                of = f" (shard {number} of {self.shards})"
            note(f"{self.before + self.done}{of} {self.unit}, {text}{left}")


class TrainingProgress(_Bar):
    """The progress of training: the records of the run's log."""

    SECONDS_BETWEEN_LINES = 30.0

    def __init__(self) -> None:
        super().__init__()
        self._last = 0.0

    def __enter__(self) -> TrainingProgress:
        if sys.stderr.isatty() and int(os.environ.get("RANK", "0")) == 0:
            self._open("starting", None, remaining=False)
        return self

    def log(self, record: Mapping[str, Any]) -> None:
        """Show a record of the log."""
        text = describe_record(record)
        if self._bar is not None:
            self._bar.update(
                self._task, total=record["steps"], completed=record["step"], description=text
            )
            return
        now = time.monotonic()
        if now - self._last >= self.SECONDS_BETWEEN_LINES or record["step"] == record["steps"]:
            self._last = now
            note(f"step {record['step']} of {record['steps']}: {text}")


def describe_record(record: Mapping[str, Any]) -> str:
    """Return a log record in short: losses, rate, share of time waiting for data, time left."""
    terms = [
        f"{name.removesuffix('_loss')} {value:.3f}"
        for name, value in record.items()
        if name.endswith("_loss") and value
    ]
    return (
        f"loss {record['loss']:.3f} ({', '.join(terms)}), {record['samples_per_second']:.1f} "
        f"samples/s, {100 * record['data_wait']:.0f} % waiting for data, "
        f"{duration(record['seconds_left'])} left"
    )


class Notes(ProgressReporter):
    """Writes remarks to standard error, and nothing else."""

    def remark(self, text: str) -> None:
        """Write a line."""
        note(text)


class ConsoleReporter(ProgressReporter):
    """Writes stages with their times to standard error, and on a terminal each one's progress."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.on_terminal = sys.stderr.isatty()
        self.line_is_open = False

    def stage(self, text: str) -> None:
        """Write a line."""
        self.end()
        note(f"[{time.monotonic() - self.start:4.0f} s] {text}")

    def remark(self, text: str) -> None:
        """Write a line."""
        self.end()
        note(text)

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Replace the progress line."""
        if self.on_terminal:
            line = f"         {done:,}{f' of {total:,}' if total else ''} {note}"
            overwrite(f"{line:<76}")
            self.line_is_open = True

    def end(self) -> None:
        """End an open line."""
        if self.line_is_open:
            note("")
        self.line_is_open = False
