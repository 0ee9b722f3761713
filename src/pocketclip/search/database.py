"""A library's SQLite file: its tables, its one writer, its readers.

    database = Database.open(locate("photos"))
    with database.writing(), database.transaction() as connection: ...

Write-ahead log: readers see the last commit and never wait. One process writes at a time, which a
lock of the operating system ensures; what that lock's file says is for the message only.

`contents` holds what is known of the bytes of a photograph, once, however many files have them.
`files` holds where those bytes are. So a renamed, moved or copied file takes its vector along.

| column | unit |
|---|---|
| `files.path` | bytes, relative to the root, with slashes |
| `files.mtime_ns` | nanoseconds since 1970; -1: read the file again |
| `contents.digest` | BLAKE2b of the whole file, 32 bytes |
| `contents.vector` | D little-endian float16, of unit length; NULL: unreadable, or to be encoded |
| `contents.changed` | the generation in which the vector was set; the triggers keep it |
| `contents.taken` | seconds from 1970 to the camera's clock, read as if it showed UTC |
| `contents.taken_offset` | minutes that the camera's clock was ahead of UTC; NULL if unknown |
| `contents.latitude`, `longitude` | degrees, north and east positive |
| `contents.perceptual_hash` | 64 bits, as a signed integer |
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from typing import Any

from pocketclip.errors import LibraryError
from pocketclip.search.location import Location, private_file, private_folder, refuse_network
from pocketclip.storage import locks

APPLICATION_ID = 0x50434C50  # "PCLP", in the header of the file
VERSION = 1
"""Version of the tables, SQLite's `user_version`."""
_BUSY_MS = 10_000  # of two commits one waits; a checkpoint may take as long
_TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE roots (
  id INTEGER PRIMARY KEY,
  path BLOB NOT NULL UNIQUE,
  exclude TEXT NOT NULL DEFAULT '[]'
);
CREATE TABLE encoders (id INTEGER PRIMARY KEY, description TEXT NOT NULL UNIQUE);
CREATE TABLE contents (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  digest BLOB NOT NULL UNIQUE,
  size INTEGER NOT NULL,
  vector BLOB,
  changed INTEGER,
  encoder INTEGER REFERENCES encoders(id),
  error TEXT,
  width INTEGER, height INTEGER, format TEXT, orientation INTEGER,
  taken REAL, taken_offset INTEGER, camera TEXT, latitude REAL, longitude REAL,
  perceptual_hash INTEGER
);
CREATE TABLE files (
  id INTEGER PRIMARY KEY,
  root INTEGER NOT NULL REFERENCES roots(id),
  path BLOB NOT NULL,
  size INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL,
  content INTEGER REFERENCES contents(id),
  absent INTEGER NOT NULL DEFAULT 0,
  error TEXT,
  UNIQUE (root, path)
);
CREATE INDEX files_content ON files(content);
CREATE INDEX contents_changed ON contents(changed) WHERE vector IS NOT NULL;
-- The matrix is of one generation: any change of a vector begins the next. `vectors` counts them.
-- `removed` is the generation of the last removal: a later matrix lacks only what changed since.
-- INSERT OR REPLACE would go round these triggers: use ON CONFLICT.
CREATE TRIGGER vector_added AFTER INSERT ON contents WHEN NEW.vector IS NOT NULL
BEGIN
  UPDATE facts SET value = value + 1 WHERE name IN ('generation', 'vectors');
  UPDATE contents SET changed = (SELECT value FROM facts WHERE name = 'generation')
    WHERE id = NEW.id;
END;
CREATE TRIGGER vector_changed AFTER UPDATE OF vector ON contents WHEN NEW.vector IS NOT OLD.vector
BEGIN
  UPDATE facts SET value = value + 1 WHERE name = 'generation';
  UPDATE facts SET value = value + (NEW.vector IS NOT NULL) - (OLD.vector IS NOT NULL)
    WHERE name = 'vectors';
  UPDATE facts SET value = (SELECT value FROM facts WHERE name = 'generation')
    WHERE name = 'removed' AND NEW.vector IS NULL;
  UPDATE contents SET changed = (SELECT value FROM facts WHERE name = 'generation')
    WHERE id = NEW.id;
END;
CREATE TRIGGER vector_removed AFTER DELETE ON contents WHEN OLD.vector IS NOT NULL
BEGIN
  UPDATE facts SET value = value + 1 WHERE name = 'generation';
  UPDATE facts SET value = value - 1 WHERE name = 'vectors';
  UPDATE facts SET value = (SELECT value FROM facts WHERE name = 'generation')
    WHERE name = 'removed';
END;
INSERT INTO facts VALUES ('generation', 0), ('vectors', 0), ('removed', 0);
"""


class Database:
    """A library's file; every thread gets a connection of its own."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._own = threading.local()
        self._all: list[sqlite3.Connection] = []
        self._guard = threading.Lock()
        self._turn = threading.RLock()
        self._writer: int | None = None

    @classmethod
    def open(cls, location: Location) -> Database:
        """Open an existing library.

        Raises:
            LibraryError: there is none, it is damaged, or it is of a newer version.
        """
        if not location.file.exists():
            raise LibraryError(
                f"there is no library {location.name} ({location.file}): make one with "
                "`pocketclip index FOLDER`"
            )
        refuse_network(location.file)
        database = cls(location)
        with database.reading():
            database._check_version()
        return database

    @classmethod
    def create(cls, location: Location) -> Database:
        """Open a library; a missing one is created, empty.

        Raises:
            LibraryError: it is on a network file system, damaged, or of a newer version.
            OSError: it cannot be created.
        """
        refuse_network(location.file)
        private_folder(location.file.parent)
        private_file(location.file)
        database = cls(location)
        with database.reading() as connection:
            if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                with database.writing():
                    database._create_tables()
            database._check_version()
        return database

    def _create_tables(self) -> None:
        connection = self.connection
        if connection.execute("PRAGMA user_version").fetchone()[0]:
            return  # another process was faster
        connection.execute("PRAGMA journal_mode = WAL")
        with self.transaction():
            for statement in _statements(_TABLES):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")

    def _check_version(self) -> None:
        application = self.connection.execute("PRAGMA application_id").fetchone()[0]
        version = self.connection.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION_ID:
            raise LibraryError(f"{self.location.file} is not a library of pocketclip")
        if version > VERSION:
            raise LibraryError(
                f"{self.location.file} was written by a newer pocketclip (version {version}, this "
                f"one reads {VERSION}): update it with `pip install -U pocketclip`"
            )

    @property
    def connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        own = getattr(self._own, "connection", None)
        if own is None:
            own = self._connect()
            self._own.connection = own
            with self._guard:
                self._all.append(own)
        return own

    def _connect(self) -> sqlite3.Connection:
        # Transactions are begun by hand; a connection is closed by whichever thread closes all.
        connection = sqlite3.connect(
            f"{self.location.file.as_uri()}?mode=rw", uri=True, isolation_level=None,
            timeout=_BUSY_MS / 1000, check_same_thread=False,
        )  # fmt: skip
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        return connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Yield this thread's connection; SQLite's errors become a `LibraryError`."""
        with self._explained():
            yield self.connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the library as its one writer; another thread of this object waits for it.

        Raises:
            LibraryError: another process writes; the message names it.
        """
        with self._turn:
            if self._writer is not None:
                yield self.connection  # a part of a longer writing of this thread
            else:
                with self._as_writer():
                    yield self.connection

    @contextlib.contextmanager
    def _as_writer(self) -> Iterator[None]:
        private_file(self.location.lock)
        try:
            lock = locks.acquire(self.location.lock, create=True)
        except locks.NoLocksError as error:
            raise LibraryError(
                f"{self.location.lock} cannot be locked ({error.strerror or error}): choose "
                "another place with --library PATH.sqlite"
            ) from error
        if lock is None:
            machine, process = locks.signature(self.location.lock)
            who = f" ({process}, on {machine})" if process else ""
            raise LibraryError(
                f"another process writes to the library {self.location.name}{who}: wait until it "
                "ends; searching works meanwhile"
            )
        self._writer = lock
        try:
            locks.sign(lock)
            with self._explained():
                yield
        finally:
            self._writer = None
            locks.release(lock)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit the block's changes together, or none if it raises.

        Raises:
            LibraryError: SQLite's error, explained.
        """
        assert self._writer is not None, "only within `writing`"
        connection = self.connection
        with self._explained():
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def fact(self, name: str) -> Any:
        """Return a fact of the library, such as `space_id`; None if it has none."""
        with self.reading() as connection:
            row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def set_fact(self, name: str, value: str | int | float | None) -> None:
        """Record a fact; within a `transaction`."""
        self.connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def generation(self) -> int:
        """Return the number of changes of vectors so far."""
        return int(self.fact("generation"))

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._guard:
            for connection in self._all:
                connection.close()
            self._all.clear()
        self._own = threading.local()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn SQLite's errors into one that says what to do next."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            file = self.location.file
            text = str(error)
            if "full" in text:
                advice = "the disk is full: make room; what was committed is kept"
            elif "locked" in text or "busy" in text:
                advice = "another process holds it: try again"
            elif "readonly" in text or "unable to open" in text:
                advice = f"{text}: check that you may write to it and to its folder"
            elif isinstance(error, sqlite3.OperationalError):
                advice = f"{text}: check it with `pocketclip index --check`"
            else:
                advice = f"it is damaged ({text}): mend it with `pocketclip index --repair`"
            raise LibraryError(f"{file}: {advice}") from error


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a script; `executescript` would commit the transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
