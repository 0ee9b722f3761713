"""What `pocketclip index` prints: progress, the summary of a run, the status of a library."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketclip.cli._progress import duration
from pocketclip.cli.output import note, progress_bar, say
from pocketclip.errors import count_of
from pocketclip.formats.escaping import escape_controls
from pocketclip.progress import ProgressReporter

if TYPE_CHECKING:
    from pocketclip.search.indexing.status import RootStatus, Status
    from pocketclip.search.records import IndexReport

_SHOWN = 20  # paths of a kind
_SECONDS_BETWEEN_LINES = 30.0


class IndexProgress(ProgressReporter):
    """Files done, rate and time left: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._begun = self._last = time.monotonic()

    def __enter__(self) -> IndexProgress:
        if sys.stderr.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

            self._bar = progress_bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}", markup=False),
                TimeRemainingColumn(),
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def stage(self, text: str) -> None:
        """Begin a bar, or write a line."""
        self._begun = self._last = time.monotonic()
        if self._bar is None:
            note(text)
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(escape_controls(text), total=None, rate="")

    def remark(self, text: str) -> None:
        """Write a line."""
        if self._bar is None:
            note(text)
        else:
            self._bar.console.print(escape_controls(text))

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Move the bar, or write a line if the last one is half a minute old."""
        now = time.monotonic()
        rate = done / max(now - self._begun, 1e-9)
        if self._bar is not None:
            text = f"{rate:.1f} per s" if total else ""
            self._bar.update(self._task, completed=done, total=total or None, rate=text)
        elif total and now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            left = duration((total - done) / max(rate, 1e-9))
            _note(f"{done:,} of {total:,} {note}, {rate:.1f} per s, about {left} left")


_note = note  # a parameter has its name


def print_report(report: IndexReport, library: str) -> None:
    """Print the summary of a run.

    Args:
        report: what the run did.
        library: the library's name.
    """
    if report.interrupted:
        say("interrupted: everything that was encoded is kept; run it again to go on")
    rate = ""
    if report.encoded:
        per_second = report.encoded / max(report.seconds, 1e-9)
        rate = f" in {duration(report.seconds)} ({per_second:.1f} per s)"
    if report.found_nothing:
        say(f"library {library}: no photograph was found there")
    else:
        say(f"library {library}: encoded {count_of(report.encoded, 'photograph')}{rate}")
    known = {
        "moved": report.moved, "copied": report.copied, "back": report.returned,
        "touched": report.touched, "unchanged": report.unchanged,
    }  # fmt: skip
    listed = ", ".join(f"{count:,} {what}" for what, count in known.items() if count)
    if listed:
        say(f"not encoded again: {listed}")
    if report.changed:
        say(f"changed since the last run: {count_of(report.changed, 'file')}")
    if report.absent:
        say(
            f"absent: {count_of(report.absent, 'file')}, kept and left out of searches "
            "(`pocketclip forget --absent` removes what is known of them)"
        )
    if report.excluded:
        say(
            f"left out from now on: {count_of(report.excluded, 'file')} that a rule excludes; what "
            "is known of them is kept (`pocketclip forget` removes it)"
        )
    _print_reasons("unreadable", report.unreadable)
    if report.known_unreadable:
        say(
            f"unreadable in earlier runs: {count_of(report.known_unreadable, 'file')}, not tried "
            "again (--retry does)"
        )
    for message, count in report.unsupported.items():
        say(f"left out: {count_of(count, 'file')}: {message}")
    _print_reasons("folders that could not be listed", report.unlisted)
    for path, reason in report.missing_roots:
        say(f"{path}: {reason}; what is known of it is kept")
    if report.gone:
        say(f"gone before they were read: {count_of(report.gone, 'file')}")
    _print_passed_over(report.passed_over, report.examples)


def _print_reasons(title: str, reasons: Sequence[tuple[Path, str]], indent: str = "") -> None:
    if not reasons:
        return
    say(f"{indent}{title}: {len(reasons):,}")
    for path, reason in reasons[:_SHOWN]:
        say(f"{indent}  {path}: {reason}")
    if len(reasons) > _SHOWN:
        say(f"{indent}  and {len(reasons) - _SHOWN:,} more; --json lists all")


def _print_passed_over(counts: dict[str, int], examples: dict[str, Path]) -> None:
    from pocketclip.storage.photos import passed_over_text

    if counts:
        named = {kind: path.name for kind, path in examples.items()}
        say(f"passed over: {passed_over_text(counts, named)}")


def print_status(status: Status) -> None:
    """Print what a library has, and what the next run would find."""
    say(f"library: {status.library}")
    if status.model is None:
        say("model: none yet")
    else:
        say(f"model: {status.model}, from {status.model_source or 'Python'}")
        say(f"embedding space: {status.space_id}, width {status.embed_dim}")
        say(f"encoded by: {', '.join(status.encoders) or 'nothing yet'}")
    duplicates = f", {count_of(status.duplicates, 'duplicate')}" if status.duplicates else ""
    say(
        f"photographs: {status.photographs:,} files, {status.contents:,} different"
        f"{duplicates}, {count_of(status.vectors, 'embedding')}"
    )
    if status.to_encode:
        say(f"to be encoded: {status.to_encode:,}")
    sizes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in status.sizes.items() if size)
    say(f"on disk: {sizes}")
    for root in status.roots:
        _print_root(root)


def _print_root(root: RootStatus) -> None:
    say()
    say(f"{root.path}")
    if root.exclude:
        say(f"  leaves out: {', '.join(root.exclude)}")
    if root.missing is not None:
        say(f"  {root.missing}; {count_of(root.photographs, 'file')} known, all kept")
        return
    counts = {
        "new": root.new, "changed": root.changed, "probably moved": root.moved, "gone": root.gone,
        "back": root.returned, "absent": root.absent, "excluded": root.excluded,
        "to be read again": root.read_again, "unchanged": root.unchanged,
        "in folders that cannot be listed": root.unknown,
    }  # fmt: skip
    say(
        "  "
        + (", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "empty")
    )
    _print_reasons("unreadable", root.unreadable, "  ")
    _print_reasons("folders that cannot be listed", root.unlisted, "  ")
    if root.passed_over:
        from pocketclip.storage.photos import passed_over_text

        named = {kind: path.name for kind, path in root.examples.items()}
        say(f"  passed over: {passed_over_text(root.passed_over, named)}")
