"""Everything that the verbs print.

Names, labels and captions come from others. They can never move the cursor, colour the terminal,
break a line or become markup, and they print in every terminal, pipe and locale. One call of `say`
or `note` prints one line. Answers go to standard output, everything else to standard error.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import logging
import os
import sys
import textwrap
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
"""The width of a terminal that does not report one, in characters."""
_NARROWEST = 20  # a smaller width is a mistake: nothing would fit
_FOLDED = 12  # the smallest width of a folded column


class LostOutputError(PocketclipError):
    """Standard output cannot be written: it is closed, its disk is full, or its reader is gone."""

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
    """Whether its cells are aligned to the right."""
    folds: bool = False
    """Whether its cells may be folded over several lines in a narrow terminal."""
    dim: bool = False


def set_up() -> None:
    """Prepare the streams, warnings and the log of a process; call it before anything is printed.

    Raises:
        LostOutputError: standard output is closed.
    """
    if sys.stderr is None:  # closed: `print` would use standard output instead
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
    """Print one line on standard error: progress, warnings and errors."""
    # A message that cannot be printed must not end the work.
    with contextlib.suppress(OSError, ValueError):
        print(escape_controls(text), file=sys.stderr, flush=True)


def overwrite(text: str) -> None:
    """Replace the open line of standard error on a terminal."""
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


def write_bytes(data: bytes) -> None:
    """Write bytes on standard output as they are: names for another program, pictures.

    Raises:
        LostOutputError: it cannot be written.
    """
    flush()
    _write(data)


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on standard output.

    A file or pipe gets one line per row, of any length. A narrow terminal gets folded columns;
    nothing is ever cut.

    Args:
        columns: the columns; a title may have several lines.
        rows: the cells of each row, each of one line; `Bold` ones are emphasised.

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


def say_paragraph(text: str) -> None:
    """Print an explanation below a table, dimmed and wrapped to the usual width."""
    for line in textwrap.wrap(text, USUAL_WIDTH):
        say(line, dim=True)


def figure_text(value: float) -> str:
    """Return a figure for a table: one decimal, and three digits of what is below 10."""
    return f"{value:.3g}" if 0 < abs(value) < 9.995 else f"{value:.1f}"


def progress_bar(*columns: str | ProgressColumn) -> Progress:
    """Return a bar on standard error that vanishes at the end.

    Args:
        columns: of rich; escape texts from others before.
    """
    from rich.progress import Progress

    return Progress(
        *columns,
        console=_console(sys.stderr, width_of(sys.stderr)),
        transient=True,
        redirect_stdout=False,  # answers would go to standard error
    )


def on_terminal() -> bool:
    """Return whether standard output is a terminal, where tables fold."""
    return sys.stdout.isatty()


def table_width() -> int | None:
    """Return the width to fit tables in, or None for any width.

    A terminal has a width; for a file or pipe, COLUMNS may set one.
    """
    return width_of(sys.stdout) if on_terminal() else _columns_width()


def width_of(terminal: TextIO) -> int:
    """Return the width of a terminal in characters; a sensible COLUMNS takes precedence."""
    width = _columns_width()
    if width is not None:
        return width
    try:
        width = os.get_terminal_size(terminal.fileno()).columns
    except (OSError, ValueError):
        return USUAL_WIDTH
    return width if width >= _NARROWEST else USUAL_WIDTH


def _columns_width() -> int | None:
    text = os.environ.get("COLUMNS", "")
    width = int(text) if text.isdecimal() and len(text) < 6 else 0
    return width if width >= _NARROWEST else None


def flush() -> None:
    """Flush standard output.

    Raises:
        LostOutputError: it cannot be written.
    """
    _write("")


def _write(text: str | bytes) -> None:
    if sys.stdout is None:
        raise LostOutputError("closed; redirect it to /dev/null if you do not need it")
    try:
        if isinstance(text, str):
            sys.stdout.write(text)
        else:
            sys.stdout.buffer.write(text)
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        # The rest of the buffer would fail again when the process ends.
        with contextlib.suppress(OSError, ValueError):
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, sys.stdout.fileno())
            os.close(sink)
        reason = getattr(error, "strerror", None) or str(error)
        reader_gone = isinstance(error, BrokenPipeError)
        raise LostOutputError(reason, reader_gone=reader_gone) from error


def _rendered(what: Any, *, width: int, style: str | None = None) -> str:
    """Return rich's rendering of something without markup."""
    console = _console(sys.stdout, width)
    with console.capture() as captured:
        console.print(what, style=style)
    return captured.get()


def _console(stream: TextIO, width: int) -> Console:
    from rich.console import Console

    # With both sizes set, rich reads no environment variable.
    return Console(file=stream, width=width, height=25, markup=False, emoji=False, highlight=False)


class _Notes(logging.Handler):
    """Prints the log as notes."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(_Lines("%(levelname)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record: its message on one line, a traceback on its own lines."""
        for line in self.format(record).split("\n"):
            note(line)


class _Lines(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return escape_controls(super().formatMessage(record))


def _note_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    note(f"warning: {message}")
