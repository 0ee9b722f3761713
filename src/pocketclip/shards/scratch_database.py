"""A SQLite database for one run: fast, and lost if the run is."""

from __future__ import annotations

import sqlite3
from pathlib import Path


def open_scratch_database(path: Path) -> sqlite3.Connection:
    """Create a database without a journal, with a cache of 64 MiB."""
    connection = sqlite3.connect(path)
    for setting in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-65536"):
        connection.execute(f"PRAGMA {setting}")
    return connection


def storable(text: str) -> str:
    """Return `text` with `?` for lone surrogates, which SQLite does not take."""
    return text.encode("utf-8", "replace").decode()
