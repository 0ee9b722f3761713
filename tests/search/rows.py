"""Rows of a library, written without a model."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.search.store.database import Database

_numbers = itertools.count(1)


def add_root(database: Database, path: Path | bytes) -> int:
    """Add a root, and return its id."""
    with database.writing(), database.transaction() as connection:
        row = connection.execute("INSERT INTO roots (path) VALUES (?)", (os.fsencode(path),))
        return int(row.lastrowid or 0)


def add_content(
    database: Database, vector: NDArray[Any] | None = None, *, digest: bytes = b"", **facts: Any
) -> int:
    """Add a content, and return its id; by default with a vector of its own."""
    if vector is None:
        vector = np.random.default_rng(next(_numbers)).standard_normal(8)
        vector /= np.linalg.norm(vector)
    values = {
        "digest": digest or next(_numbers).to_bytes(32, "big"),
        "size": 1, "vector": np.asarray(vector, "<f2").tobytes(), **facts,
    }  # fmt: skip
    names = ", ".join(values)
    with database.writing(), database.transaction() as connection:
        sql = f"INSERT INTO contents ({names}) VALUES ({', '.join('?' * len(values))})"
        return int(connection.execute(sql, list(values.values())).lastrowid or 0)


def add_file(
    database: Database, root: int, path: bytes, content: int, *, mtime_ns: int = 10**18,
    absent: int = 0, size: int = 1,
) -> None:  # fmt: skip
    """Add a file of a content."""
    with database.writing(), database.transaction() as connection:
        connection.execute(
            "INSERT INTO files (root, path, size, mtime_ns, content, absent) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (root, path, size, mtime_ns, content, absent),
        )
