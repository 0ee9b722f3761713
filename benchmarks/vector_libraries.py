"""Fills a library with generated vectors, quickly; for `search_vectors.py`, tests and trials.

python benchmarks/vector_libraries.py 100000 /tmp/library.sqlite
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketclip.search.store.database import Database
from pocketclip.search.store.location import locate

_STEP = 10_000


def generate_vectors(
    count: int, width: int = 512, *, seed: int = 0, clusters: int = 0
) -> NDArray[np.float16]:
    """Return float16 vectors (count, width) of unit length.

    Args:
        count: the number of vectors.
        width: their width.
        seed: of the random numbers.
        clusters: the number of directions around which they lie; 0 for vectors in all directions.
    """
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(clusters, 1), width), dtype=np.float32) * bool(clusters)
    out = np.empty((count, width), np.float16)
    for start in range(0, count, _STEP):
        size = min(_STEP, count - start)
        rows = rng.standard_normal((size, width), dtype=np.float32)
        rows += centres[rng.integers(0, len(centres), size)]
        out[start : start + size] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return out


def add_vectors(database: Database, vectors: NDArray[np.float16]) -> None:
    """Add a content and a file per vector (N, D): `/photos/00/00/000000.jpg` and so on.

    The files do not exist on the disk. Their times are an hour apart.
    """
    fresh = database.fact("embed_dim") is None
    with database.writing():
        for start in range(0, len(vectors), _STEP):
            with database.transaction() as connection:
                if fresh:
                    database.set_fact("embed_dim", vectors.shape[1])
                    database.set_fact("space_id", "generated")
                    database.set_fact("model", "generated")
                    connection.execute(
                        "INSERT OR IGNORE INTO roots (path) VALUES (?)", (b"/photos",)
                    )
                fresh = False
                first = connection.execute(
                    "SELECT coalesce(max(id), 0) + 1 FROM contents"
                ).fetchone()[0]
                rows = [
                    (first + i, b"%032d" % (first + i), 2_000_000 + first + i, row.tobytes(),
                     1.2e9 + 3600.0 * (first + i))
                    for i, row in enumerate(vectors[start : start + _STEP])
                ]  # fmt: skip
                connection.executemany(
                    "INSERT INTO contents (id, digest, size, vector, width, height, format, "
                    "orientation, taken) VALUES (?, ?, ?, ?, 4000, 3000, 'JPEG', 1, ?)", rows
                )  # fmt: skip
                connection.executemany(
                    "INSERT INTO files (root, path, size, mtime_ns, content) "
                    "VALUES (1, ?, ?, ?, ?)",
                    [
                        (b"%02d/%02d/%06d.jpg" % (i % 100, i // 100 % 100, i), size,
                         int(taken) * 10**9, i)
                        for i, _, size, _, taken in rows
                    ],
                )  # fmt: skip


def make_library(
    file: Path, count: int, width: int = 512, *, seed: int = 0, clusters: int = 0
) -> Database:
    """Create a library at a path that ends in `.sqlite` with generated vectors, and return it."""
    database = Database.create(locate(file))
    for start in range(0, count, 100_000):
        size = min(100_000, count - start)
        add_vectors(database, generate_vectors(size, width, seed=seed + start, clusters=clusters))
    return database


if __name__ == "__main__":
    make_library(Path(sys.argv[2]), int(sys.argv[1]), clusters=1000).close()
