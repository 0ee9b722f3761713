"""SQLite's errors as one sentence that says what to do next."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from pocketclip.errors import LibraryError

MEND = "mend it with `pocketclip index --repair`"


@contextlib.contextmanager
def explained(file: Path) -> Iterator[None]:
    """Turn SQLite's errors about a library's file into a `LibraryError`.

    Raises:
        LibraryError: SQLite's error, explained.
    """
    try:
        yield
    except sqlite3.ProgrammingError:
        raise  # a mistake of ours
    except sqlite3.DatabaseError as error:
        raise LibraryError(f"{file}: {_advice(error)}") from error


def _advice(error: sqlite3.DatabaseError) -> str:
    text = str(error)
    if "full" in text:
        return "the disk is full: make room; what was committed is kept"
    if "locked" in text or "busy" in text:
        return "another process holds it: try again"
    if "readonly" in text or "unable to open" in text:
        return f"{text}: check that you may write to it and to its folder"
    if "disk I/O" in text:
        return (
            "the disk cannot be read or written (disk I/O error): see whether it is full, over a "
            "quota, or gone; what was committed is kept"
        )
    if "not a database" in text:
        return f"it is not a library, or its beginning is damaged: {MEND}, or move it away"
    if isinstance(error, (sqlite3.OperationalError, sqlite3.IntegrityError)):
        return f"{text}: check it with `pocketclip index --check`"
    return f"it is damaged ({text}): {MEND}"
