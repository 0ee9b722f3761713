"""What the verbs show: everything that is printed goes through here.

Names, labels and captions come from elsewhere. They cannot move the cursor, colour the terminal,
break a line or become markup, and there is no terminal, pipe or locale that they do not fit. One
call of `say` or `note` is one line. Answers go to standard output, all else to standard error.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from pocketclip.errors import PocketclipError
from pocketclip.formats.escaping import dump_json, escape_controls

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

USUAL_WIDTH = 80
"""Characters of a terminal that does not say how wide it is."""
_NARROWEST = 20  # a smaller width is a mistake, and nothing would fit
_FOLDED = 12  # characters that a folded column keeps at least


class LostOutputError(PocketclipError):
    """Standard output takes no more: it is closed, its disk is full, or its reader is gone."""

    def __init__(self, reason: str, *, reader_gone: bool = False) -> None:
        super().__init__(f"standard output: {reason}")
        self.reader_gone = reader_gone


class Bold(str):
    """A cell of a table that stands out."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    title: str
    right: bool = False
    """Whether it is aligned to the right."""
    folds: bool = False
    """Whether a terminal that is too narrow may fold its cells over several lines."""
    dim: bool = False


def set_up() -> None:
    """Prepare the streams, warnings and the log of a process; call it before anything is printed.

    Raises:
        LostOutputError: standard output is closed.
    """
    if sys.stderr is None:  # closed: `print` would write to standard output instead
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.addLevelName(logging.WARNING, "warning")
    logging.basicConfig(handlers=[_Notes()], level=logging.WARNING)
    warnings.showwarning = _note_warning
    flush()


def say(text: str = "", *, dim: bool = False) -> None:
    """Print one line on standard output.

    Raises:
        LostOutputError: it cannot be written.
    """
    text = escape_controls(text)
    if dim and on_terminal():
        from rich.text import Text

        _write(_rendered(Text(text), width=len(text) * 2 + 1, style="dim"))
    else:
        _write(text + "\n")


def note(text: str) -> None:
    """Print one line on standard error, where progress, warnings and errors go."""
    # That a message cannot be shown must not end the work.
    with contextlib.suppress(OSError, ValueError):
        print(escape_controls(text), file=sys.stderr, flush=True)


def overwrite(text: str) -> None:
    """Print on the open line of a terminal's standard error, over what stood there."""
    with contextlib.suppress(OSError, ValueError):
        print(f"\r{escape_controls(text)}", end="", file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Print one JSON document on standard output, see `pocketclip.formats.escaping.dump_json`.

    Raises:
        LostOutputError: it cannot be written.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    ascii_only = codecs.lookup(encoding).name != "utf-8"
    _write(dump_json(value, indent=2, ascii_only=ascii_only) + "\n")


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on standard output.

    A file or pipe gets one line per row, whatever its length. A terminal that is too narrow gets
    the columns that fold folded; nothing is ever cut.

    Args:
        columns: their titles may have several lines.
        rows: cells per row, each one line; `Bold` ones stand out.

    Raises:
        LostOutputError: it cannot be written.
    """
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    titles = ["\n".join(map(escape_controls, column.title.split("\n"))) for column in columns]
    cells = [[escape_controls(cell) for cell in row] for row in rows]
    natural = [
        max(map(cell_len, [*titles[i].split("\n"), *(row[i] for row in cells)]))
        for i in range(len(columns))
    ]
    gaps = 2 * (len(columns) - 1)
    width = sum(natural) + gaps
    if on_terminal():
        least = [
            min(size, _FOLDED) if column.folds else size
            for size, column in zip(natural, columns, strict=True)
        ]
        width = min(width, max(width_of(sys.stdout), sum(least) + gaps))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title, column in zip(titles, columns, strict=True):
        table.add_column(
            Text(title), justify="right" if column.right else "left", overflow="fold",
            no_wrap=not column.folds, style="dim" if column.dim else "",
        )  # fmt: skip
    for row, texts in zip(rows, cells, strict=True):
        table.add_row(
            *(
                Text(text, style="bold" if isinstance(cell, Bold) else "")
                for cell, text in zip(row, texts, strict=True)
            )
        )
    _write(_rendered(table, width=width))


def progress_bar(*columns: str | ProgressColumn) -> Progress:
    """Return a bar on standard error that vanishes when it is done.

    Args:
        columns: of rich; a text that comes from elsewhere is escaped first.
    """
    from rich.progress import Progress

    return Progress(
        *columns,
        console=_console(sys.stderr, width_of(sys.stderr)),
        transient=True,
        redirect_stdout=False,  # answers would go to standard error
    )


def on_terminal() -> bool:
    """Return whether standard output is a terminal, on which tables fold."""
    return sys.stdout.isatty()


def table_width() -> int | None:
    """Return the width that a table's parts should fit in; None: it may be as wide as it is.

    A terminal has one; for a file or pipe, COLUMNS may say one.
    """
    return width_of(sys.stdout) if on_terminal() else _wanted_width()


def width_of(terminal: TextIO) -> int:
    """Return how many characters wide a terminal is; COLUMNS decides if it makes sense."""
    wanted = _wanted_width()
    if wanted is not None:
        return wanted
    try:
        found = os.get_terminal_size(terminal.fileno()).columns
    except (OSError, ValueError):
        return USUAL_WIDTH
    return found if found >= _NARROWEST else USUAL_WIDTH


def _wanted_width() -> int | None:
    text = os.environ.get("COLUMNS", "")
    wanted = int(text) if text.isdecimal() and len(text) < 6 else 0
    return wanted if wanted >= _NARROWEST else None


def flush() -> None:
    """Hand over what was printed.

    Raises:
        LostOutputError: it cannot be written.
    """
    _write("")


def _write(text: str) -> None:
    if sys.stdout is None:
        raise LostOutputError("closed; send it to /dev/null if it is not wanted")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        # What is left in the buffer would fail once more when the process ends.
        with contextlib.suppress(OSError, ValueError):
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, sys.stdout.fileno())
            os.close(sink)
        reason = getattr(error, "strerror", None) or str(error)
        gone = isinstance(error, BrokenPipeError)
        raise LostOutputError(reason, reader_gone=gone) from error


def _rendered(what: Any, *, width: int, style: str | None = None) -> str:
    """Return what rich prints, whose content has no markup."""
    console = _console(sys.stdout, width)
    with console.capture() as captured:
        console.print(what, style=style)
    return captured.get()


def _console(stream: TextIO, width: int) -> Console:
    from rich.console import Console

    # With both sizes given, no environment variable has a say.
    return Console(file=stream, width=width, height=25, markup=False, emoji=False, highlight=False)


class _Notes(logging.Handler):
    """The log, as notes."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(_Lines("%(levelname)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Note a record: its message in one line, a traceback in its own."""
        for line in self.format(record).split("\n"):
            note(line)


class _Lines(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return escape_controls(super().formatMessage(record))


def _note_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    note(f"warning: {message}")
