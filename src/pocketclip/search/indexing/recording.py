"""Writes what was read and encoded into the library, a batch at a time.

A batch is one transaction: contents with their vectors, and the files that have them. Writing one
twice changes nothing, so it can be written again after an interruption of unknown outcome.
"""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pocketclip.search.indexing.reading import Reading
from pocketclip.search.indexing.walk import READ_AGAIN
from pocketclip.search.model import describe_encoder
from pocketclip.search.records import IndexReport
from pocketclip.search.store.database import Database

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder
    from pocketclip.search.thumbnail_store import ThumbnailStore

PHOTOGRAPHS, FILES, SECONDS = 32, 2048, 5.0
"""A batch is written when it has so many new photographs or files, or is that old. A process that
is killed loses at most these photographs, and those encoded ahead (`reading.FILES_AHEAD`)."""
NEEDS_EXTRA = "%need pillow-heif%"
"""SQL pattern of the error of a format that needs an extra; see `images`."""
_MOVES = 200  # absent copies of a photograph among which the moved one is looked for


class Recorder:
    """The pending batch; also says which bytes are new (`reading.Contents`).

    Args:
        database: the library, of which this process is the writer.
        encoder: whose vectors they are.
        report: counts what is written.
        thumbnails: where those of the readings are kept, after the commit; None: they are not.
    """

    def __init__(
        self, database: Database, encoder: Encoder, report: IndexReport,
        thumbnails: ThumbnailStore | None = None,
    ) -> None:  # fmt: skip
        self._database = database
        self._connection = database.connection
        self._encoder = describe_encoder(encoder)
        self._report = report
        self._thumbnails = thumbnails
        self.failed = 0
        """Number of files with a content that cannot be read."""
        self._guard = threading.Lock()  # of the connection, and of what is claimed
        self._claimed: set[bytes | None] = set()
        self._entries: list[Reading] = []
        self._photographs = 0
        self._since = time.monotonic()

    def claim(self, digest: bytes) -> bool:
        """Return whether to decode bytes: they are new, and nobody else was told to."""
        with self._guard:
            if digest in self._claimed:
                return False
            row = self._connection.execute(
                "SELECT vector IS NULL AND error IS NULL FROM contents WHERE digest = ?", (digest,)
            ).fetchone()
            if row is not None and not row[0]:
                return False
            self._claimed.add(digest)
            return True

    def query(self, sql: str, values: Sequence[Any]) -> list[Any]:
        """Return the rows of a query, while other threads claim."""
        with self._guard:
            return self._connection.execute(sql, values).fetchall()

    def add(self, reading: Reading) -> None:
        """Add a reading to the batch; what was claimed is decoded, and encoded if it can be."""
        if not self._entries:
            self._since = time.monotonic()
        self._photographs += reading.claimed
        self._entries.append(reading)

    def write_if_due(self) -> None:
        """Write the batch if it is large or old enough.

        Raises:
            LibraryError: it cannot be written; the message says why.
        """
        old = bool(self._entries) and time.monotonic() - self._since >= SECONDS
        if old or self._photographs >= PHOTOGRAPHS or len(self._entries) >= FILES:
            self.write()

    def write(self) -> None:
        """Write the batch in one transaction.

        Raises:
            LibraryError: it cannot be written; the message says why.
        """
        if not self._entries:
            return
        counted = IndexReport()
        with self._guard:
            with self._database.transaction() as connection:
                later = self._write(connection, counted)
            self._keep_thumbnails(counted)
            done = {reading.digest for reading in self._entries if reading.claimed}
            self._claimed -= done
            self._entries = later
        self._photographs, self._since = 0, time.monotonic()
        self._report.add(counted)

    def _keep_thumbnails(self, counted: IndexReport) -> None:
        made = {
            reading.digest: reading.thumbnail
            for reading in self._entries
            if reading.digest and reading.thumbnail and reading.vector is not None
        }
        if self._thumbnails is not None and made:
            counted.thumbnails += self._thumbnails.keep(made)

    def _write(self, connection: sqlite3.Connection, counted: IndexReport) -> list[Reading]:
        """Write the entries; return those whose bytes are still being decoded for another file."""
        encoder = _row_of_encoder(connection, self._encoder)
        for reading in self._entries:
            if reading.claimed:
                _write_content(connection, reading, encoder)
                counted.encoded += reading.vector is not None
        later = []
        for reading in self._entries:
            if reading.digest is None:
                _write_trouble(connection, reading, counted)
                continue
            content = connection.execute(
                "SELECT id, error FROM contents WHERE digest = ?", (reading.digest,)
            ).fetchone()
            if content is None:
                later.append(reading)
                continue
            is_news = _write_file(connection, reading, content[0], counted)
            if content[1] is not None and is_news:
                self.failed += 1
                if not needs_extra(content[1]):
                    counted.unreadable.append((reading.candidate.file, content[1]))
        return later


def needs_extra(error: str) -> bool:
    """Return whether an error is that of a format that needs an extra."""
    return NEEDS_EXTRA.strip("%") in error


def _row_of_encoder(connection: sqlite3.Connection, description: str) -> int:
    connection.execute("INSERT OR IGNORE INTO encoders (description) VALUES (?)", (description,))
    row = connection.execute("SELECT id FROM encoders WHERE description = ?", (description,))
    return int(row.fetchone()[0])


def _write_content(connection: sqlite3.Connection, reading: Reading, encoder: int) -> None:
    vector = reading.vector
    values = {
        "digest": reading.digest,
        "size": reading.size,
        "vector": None if vector is None else vector.astype("<f2").tobytes(),
        "encoder": None if vector is None else encoder,
        "error": reading.error,
        **dataclasses.asdict(reading.facts),
        "perceptual_hash": reading.perceptual_hash,
    }
    names = list(values)
    connection.execute(
        f"INSERT INTO contents ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) "
        f"ON CONFLICT (digest) DO UPDATE SET "
        + ", ".join(f"{name} = excluded.{name}" for name in names[2:]),
        list(values.values()),
    )


def _write_trouble(connection: sqlite3.Connection, reading: Reading, counted: IndexReport) -> None:
    """Write that a file cannot be read; what is known of it stays."""
    counted.unchanged -= reading.candidate.again
    if reading.gone:
        counted.gone += 1
        return
    assert reading.trouble is not None
    counted.unreadable.append((reading.candidate.file, reading.trouble))
    if reading.stays:
        candidate = reading.candidate
        connection.execute(
            "INSERT INTO files (root, path, size, mtime_ns, error) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (root, path) DO UPDATE SET size = excluded.size, "
            "mtime_ns = excluded.mtime_ns, error = excluded.error, absent = 0",
            (candidate.root, candidate.path, reading.size, reading.mtime_ns, reading.trouble),
        )


def _write_file(
    connection: sqlite3.Connection, reading: Reading, content: int, counted: IndexReport
) -> bool:
    """Write which content a file has, and count how it came to have it.

    Returns:
        False for a file that had these bytes before, which were not decoded again.
    """
    candidate = reading.candidate
    state = (content, reading.size, reading.mtime_ns)
    known = connection.execute(
        "SELECT id, content, size, mtime_ns FROM files WHERE root = ? AND path = ?",
        (candidate.root, candidate.path),
    ).fetchone()
    if known is not None:
        row, before, size, mtime_ns = known
        connection.execute(
            "UPDATE files SET content = ?, size = ?, mtime_ns = ?, absent = 0, error = NULL "
            "WHERE id = ?",
            (*state, row),
        )
        if candidate.again:  # counted as unchanged so far
            counted.unchanged -= reading.claimed or before != content
        elif before == content and not reading.claimed:
            same = size == reading.size and mtime_ns in (READ_AGAIN, reading.mtime_ns)
            counted.unchanged += same
            counted.touched += not same
        if before is None:
            counted.copied += not reading.claimed
        elif before != content:
            counted.changed += 1
        return reading.claimed or before != content
    moved = _moved_from(connection, content, candidate.path)
    if moved is not None:
        connection.execute(
            "UPDATE files SET root = ?, path = ?, content = ?, size = ?, mtime_ns = ?, "
            "absent = 0, error = NULL WHERE id = ?",
            (candidate.root, candidate.path, *state, moved),
        )
        counted.moved += 1
        return True
    connection.execute(
        "INSERT INTO files (root, path, content, size, mtime_ns) VALUES (?, ?, ?, ?, ?)",
        (candidate.root, candidate.path, *state),
    )
    counted.copied += not reading.claimed
    return True


def _moved_from(connection: sqlite3.Connection, content: int, path: bytes) -> int | None:
    """Return the row of an absent file with this content, one of the same name first."""
    name = os.path.basename(path)  # noqa: PTH119 - bytes
    absent = connection.execute(
        "SELECT id, path FROM files WHERE content = ? AND absent = 1 LIMIT ?", (content, _MOVES)
    ).fetchall()
    if not absent:
        return None
    same = [row for row, before in absent if os.path.basename(before) == name]  # noqa: PTH119
    return int(min(same or [row for row, _ in absent]))
