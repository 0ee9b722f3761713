"""A library's SQLite file: its tables, its one writer, its readers.

    database = Database.open(locate("photos"))
    with database.writing(), database.transaction() as connection: ...

Write-ahead log: readers see the last commit and never wait. One process writes at a time, which a
lock of the operating system ensures; what that lock's file says is for the message only. A library
on a read-only disk can be searched.

`contents` holds what is known of the bytes of a photograph, once, however many files have them.
`files` holds where those bytes are. So a renamed, moved or copied file takes its vector along.

The tables are in `pocketclip.search.store.schema`.

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
| `contents.perceptual_hash` | 63 bits, see `pocketclip.search.indexing.perceptual_hash` |
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from pocketclip.errors import LibraryError
from pocketclip.search.store import schema
from pocketclip.search.store.connections import Connections
from pocketclip.search.store.location import (
    Location,
    check_file,
    is_unused,
    refuse_network,
    size_of,
)  # fmt: skip
from pocketclip.search.store.origin import write_origin
from pocketclip.search.store.sqlite_errors import MEND, explained
from pocketclip.search.store.writer import acquire, hold
from pocketclip.storage import locks
from pocketclip.storage.private import private_folder

_CHUNK = 500  # ids per query
_BUSY_S = 10  # of two commits one waits; a checkpoint may take as long
_SHARED_BYTES = 1 << 20  # SQLite needs 32 KiB and more for the memory that is shared
_CREATION_S = 10  # another process that creates the same library takes less
_LOG_BYTES = 64 << 20  # from here on the log is emptied after a commit, if no reader needs it
_MARK = (
    "INSERT OR REPLACE INTO sessions "
    "SELECT value + 1, random() FROM facts WHERE name = 'generation'"
)


class Database:
    """A library's file; every thread gets a connection of its own.

    Attributes:
        location: its files.
        read_only: whether its disk or folder cannot be written to.
    """

    def __init__(self, location: Location) -> None:
        self.location = location
        self.read_only = False
        self._options = "mode=rw"
        self._connections = Connections(self._connect, self._closed_error)
        self._turn = threading.RLock()
        self._writer: int | None = None
        self._full: int | None = None
        self._is_marked = False
        _open.add(self)

    @classmethod
    def open(cls, location: Location, *, lock: int | None = None) -> Database:
        """Open an existing library; one of an older version is changed to this one.

        Args:
            location: its files.
            lock: the lock of the one writer (`store.writer.hold`), if this process has it.

        Raises:
            LibraryError: there is none, it is damaged, or it is of a newer version.
        """
        refuse_network(location)
        check_file(location)
        database = cls(location)
        database._writer = lock
        database._choose_mode()
        try:
            database._find_room()
            with database.reading() as connection:
                if schema.version_of(connection, location.file) < schema.VERSION:
                    with database.writing():
                        schema.migrate(connection, location)
                schema.check_tables(connection, location.file)
        except BaseException:
            database.close()
            raise
        return database

    @classmethod
    def create(cls, location: Location) -> Database:
        """Open a library; a missing one is created, empty.

        Raises:
            LibraryError: it is on a network file system, damaged, of a newer version, or cannot be
                created.
        """
        refuse_network(location)
        if is_unused(location):
            try:
                private_folder(location.file.parent)
                _create(location)
            except OSError as error:
                raise LibraryError(
                    f"{location.file} cannot be created ({error.strerror or error}): choose "
                    "another place with --library PATH.sqlite"
                ) from error
        return cls.open(location)

    def _choose_mode(self) -> None:
        """Choose how the file is opened, by what may be written."""
        location = self.location
        if os.access(location.file, os.W_OK) and os.access(location.file.parent, os.W_OK):
            return
        self.read_only = True
        if not size_of(location.log):
            # Nobody can write, so SQLite needs neither its log nor the memory beside the file.
            self._options = "mode=ro&immutable=1"
            return
        self._options = "mode=ro"
        if not location.shared.exists():
            raise LibraryError(
                f"{location.file} and its log {location.log.name} were not closed by their last "
                "writer, and their folder cannot be written to: copy both to another folder"
            )

    def _find_room(self) -> None:
        """Read without SQLite's shared memory if the disk has no room for it.

        That is safe as long as nobody writes: there is no log, and the lock is kept.
        """
        try:
            with self.reading() as connection:
                connection.execute("PRAGMA user_version").fetchone()
        except LibraryError as error:
            has_room = shutil.disk_usage(self.location.file.parent).free > _SHARED_BYTES
            if has_room or not isinstance(error.__cause__, sqlite3.OperationalError):
                raise
            if self.read_only or self._writer is not None or size_of(self.location.log):
                raise
            self._full = acquire(self.location)
            if self._full is None:
                raise
            self._connections.close()
            self._options, self.read_only = "mode=ro&immutable=1", True
            self._connections = Connections(self._connect, self._closed_error)

    @property
    def connection(self) -> sqlite3.Connection:
        """This thread's connection; to be used within one of the contexts below.

        Raises:
            LibraryError: the library was closed.
        """
        return self._connections.own()

    def _closed_error(self) -> LibraryError:
        return LibraryError(f"{self.location.file} was closed: open the library again")

    def _connect(self) -> sqlite3.Connection:
        connection = schema.connect(self.location.file, self._options, _BUSY_S)
        try:
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")  # finds damage earlier
            connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
        except UnicodeDecodeError as error:  # SQLite's message quotes what it found
            connection.close()
            raise sqlite3.DatabaseError("malformed database schema") from error
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Yield this thread's connection; SQLite's errors become a `LibraryError`."""
        with explained(self.location.file), self._connections.using() as connection:
            yield connection

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Yield this thread's connection; everything that the block reads is of one commit.

        The log grows while a snapshot is open, so leave the block soon.
        """
        with self.reading() as connection:
            if connection.in_transaction:
                yield connection
                return
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                _roll_back(connection)

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the library as its one writer; another thread of this object waits for it.

        Raises:
            LibraryError: another process writes, which the message names; or it is read-only.
        """
        with self._turn:
            if self._writer is not None:
                with self._connections.using() as connection:
                    yield connection  # a part of a longer writing of this thread
                return
            if self.read_only:
                why = (
                    "its disk is full" if self._full else "it, its folder or its disk is read-only"
                )
                raise LibraryError(f"{self.location.file} cannot be changed: {why}")
            with hold(self.location) as lock:
                self._writer = lock
                self._is_marked = False
                try:
                    with self.reading() as connection:
                        yield connection
                finally:
                    self._writer = None
                    self._settle()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit the block's changes together, or none if it raises.

        Raises:
            LibraryError: SQLite's error, explained.
        """
        assert self._writer is not None, "only within `writing`"
        with self.reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                if not self._is_marked:
                    connection.execute(_MARK)
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                _roll_back(connection)
                raise
        self._is_marked = True
        if (size_of(self.location.log) or 0) > _LOG_BYTES:
            self._empty_log()

    def _settle(self) -> None:
        """Leave the files as a reader, or a repair, likes them; what fails is tried again later."""
        self._empty_log()
        if self._is_marked:
            with (
                contextlib.suppress(sqlite3.Error, LibraryError, OSError),
                self._connections.using() as connection,
            ):
                write_origin(connection, self.location)

    def _empty_log(self) -> None:
        """Move the log's commits into the file; without waiting for readers, who may prevent it."""
        with (
            contextlib.suppress(sqlite3.Error, LibraryError),
            self._connections.using() as connection,
        ):
            if connection.in_transaction:
                return
            connection.execute("PRAGMA busy_timeout = 0")
            try:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                connection.execute(f"PRAGMA busy_timeout = {int(_BUSY_S * 1000)}")

    def fact(self, name: str) -> Any:
        """Return a fact of the library, such as `space_id`; None if it has none."""
        with self.reading() as connection:
            row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def set_fact(self, name: str, value: str | int | float | bytes | None) -> None:
        """Record a fact; within a `transaction`."""
        self.connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def generation(self) -> int:
        """Return the number of changes of vectors so far.

        Raises:
            LibraryError: the library has lost it.
        """
        value = self.fact("generation")
        if not isinstance(value, int):
            raise LibraryError(f"{self.location.file}: it is damaged (no generation): {MEND}")
        return value

    def token(self, generation: int) -> int:
        """Return what tells a generation from another one with the same number.

        After a power failure, or without its log, a library can lose its last commits, and later
        count the same generations again with other vectors. What is derived from a generation
        notes its token too, and is stale if the library has another one.
        """
        with self.reading() as connection:
            row = connection.execute(
                "SELECT token FROM sessions WHERE first <= ? ORDER BY first DESC LIMIT 1",
                (generation,),
            ).fetchone()
        return 0 if row is None else int(row[0])

    def close(self) -> None:
        """Close the connections of all threads; one that is in use, when its thread is done."""
        self._connections.close()
        if self._full is not None:
            locks.release(self._full)
            self._full = None

    def _leave_to_parent(self) -> None:
        self._turn = threading.RLock()
        self._writer = self._full = None
        self._connections.leave_to_parent()


_open: weakref.WeakSet[Database] = weakref.WeakSet()


def open_databases() -> list[Database]:
    """Return what this process has not closed yet, of all libraries."""
    return [database for database in list(_open) if not database._connections.are_closed]


def _after_fork() -> None:
    for database in list(_open):
        database._leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _create(location: Location) -> None:
    """Create an empty library, or wait for another process that does."""
    last = time.monotonic() + _CREATION_S
    while is_unused(location):
        try:
            with hold(location), explained(location.file):
                if size_of(location.file) in (None, 0):
                    schema.create(location.file)
                return
        except LibraryError:
            lock = acquire(location)  # raises if the reason is another one
            if lock is not None:
                locks.release(lock)
            if lock is not None or time.monotonic() > last:
                raise
        time.sleep(0.02)


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        # After some errors SQLite did so itself; that of the caller is the one to report.
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


def chunks_of_ids(ids: Sequence[int]) -> Iterator[tuple[str, Sequence[int]]]:
    """Yield parts of ids, each with its placeholders in SQL: a query takes a limited number."""
    for begin in range(0, len(ids), _CHUNK):
        chunk = ids[begin : begin + _CHUNK]
        yield ", ".join("?" * len(chunk)), chunk
