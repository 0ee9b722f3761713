"""What the verbs take and show: photographs by path, folder or pattern; progress; JSON."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pocketclip.cli.output import note, progress_bar
from pocketclip.errors import PocketclipError
from pocketclip.formats.escaping import argument_text, escape_controls

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder
    from pocketclip.types import Embeddings


def photographs(inputs: Sequence[str]) -> list[Path]:
    """Return the files that `inputs` name: files, folders (searched within) and patterns.

    What was passed over in folders is counted on standard error.

    Raises:
        PocketclipError: an empty input; a folder or pattern without any photograph.
        OSError: a folder cannot be read.
    """
    from pocketclip.storage.photos import find_photographs

    found = find_photographs(inputs)
    for sentence in found.passed_over:
        note(sentence)
    return found.paths


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, which end at LF or CR LF and nowhere else.

    Raises:
        PocketclipError: it is not UTF-8 text, is larger than `storage.MAX_BYTES`, or holds too
            many lines.
        OSError: it cannot be read.
    """
    from pocketclip.formats.lines import load_lines
    from pocketclip.storage import MAX_BYTES

    with path.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1) if path.stat().st_size <= MAX_BYTES else None
    if data is None or len(data) > MAX_BYTES:
        raise PocketclipError(f"{path} is larger than {MAX_BYTES:,} bytes; split it into parts")
    return load_lines(data, what=str(path))


def encode_photographs(
    encoder: Encoder, photos: Sequence[Path]
) -> Iterator[tuple[list[Path], Embeddings, list[tuple[Path, str]]]]:
    """Yield, per batch, the photographs that were read, their embeddings, and the bad ones."""
    with progress(len(photos), "photographs") as advance:
        for good, embeddings, bad in encoder.encode_stream(photos):
            read = [photos[i] for i in good]
            yield read, embeddings, [(photos[i], str(error)) for i, error in bad]
            advance(len(good) + len(bad))


class Advance(Protocol):
    """Counts work that was done."""

    def __call__(self, count: int, /) -> None:
        """Add `count`."""


@contextmanager
def progress(total: int | None, unit: str, title: str = "") -> Iterator[Advance]:
    """Show progress on standard error: a bar on a terminal, else a line a minute.

    Args:
        total: how many there are; None where nobody knows before the end.
        unit: what is counted.
        title: what is being done, where there are several things to do.
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
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def report_bad(bad: Sequence[tuple[Path, str]]) -> None:
    """Name each skipped input on standard error."""
    for _, reason in bad:
        note(f"skipped: {reason}")


def check_some(good: Sequence[object], bad: Sequence[tuple[Path, str]]) -> None:
    """Refuse to go on where no photograph could be read.

    Raises:
        PocketclipError: there are bad ones and no good ones.
    """
    if bad and not good:
        many = f"none of the {len(bad)} photographs" if len(bad) > 1 else "the photograph"
        raise PocketclipError(f"nothing was done: {many} could {'not ' * (len(bad) == 1)}be read")


def text_arguments(arguments: Sequence[str], what: str) -> list[str]:
    """Return arguments of the command line that are texts, not paths, in any locale.

    Raises:
        PocketclipError: one is not UTF-8.
    """
    texts = []
    for argument in arguments:
        text = argument_text(argument)
        if text is None:
            raise PocketclipError(f"{what} {argument} is not UTF-8 text")
        texts.append(text)
    return texts
