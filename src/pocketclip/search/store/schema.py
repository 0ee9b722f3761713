"""The tables of a library: making them, recognising them, and changing those of older versions.

A migration is a list of steps for one version. All steps of all versions run in one transaction,
after a copy of the library was written beside it: a step that fails, or a kill, changes nothing.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pocketclip.errors import LibraryError
from pocketclip.search.store.location import Location
from pocketclip.storage.local import write_whole
from pocketclip.storage.private import private_file

APPLICATION_ID = 0x50434C50  # "PCLP", in the header of the file
VERSION = 1
"""Version of the tables, SQLite's `user_version`."""
MIGRATIONS: Mapping[int, Sequence[Callable[[sqlite3.Connection], object]]] = {}
"""The steps from each older version to the next one; each gets a connection in a transaction."""
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
-- With `absent` and of all facts that are filtered by, so that a search reads these indexes instead
-- of the tables, whose pages hold paths and vectors.
CREATE INDEX files_content ON files(content, absent);
CREATE INDEX contents_filters ON contents(camera, taken);
-- A run with nothing to do must not read the pages of all vectors.
CREATE INDEX contents_pending ON contents(id) WHERE vector IS NULL AND error IS NULL;
CREATE INDEX contents_failed ON contents(id) WHERE error IS NOT NULL;
-- Every writer that changes vectors marks where its generations begin. After the last commits were
-- lost with the log, the same numbers come again, with another token.
CREATE TABLE sessions (first INTEGER PRIMARY KEY, token INTEGER NOT NULL);
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
COLUMNS = {
    "facts": ("name", "value"),
    "roots": ("id", "path", "exclude"),
    "encoders": ("id", "description"),
    "contents": (
        "id", "digest", "size", "vector", "changed", "encoder", "error", "width", "height",
        "format", "orientation", "taken", "taken_offset", "camera", "latitude", "longitude",
        "perceptual_hash",
    ),
    "sessions": ("first", "token"),
    "files": ("id", "root", "path", "size", "mtime_ns", "content", "absent", "error"),
}  # fmt: skip
"""The columns of each table, in their order in the file."""
_TRIGGERS = ("vector_added", "vector_changed", "vector_removed")


def connect(file: Path, options: str = "mode=rw", timeout: float = 0) -> sqlite3.Connection:
    """Return a connection to a file, whatever its name; transactions are begun by hand.

    Args:
        file: an absolute path.
        options: SQLite's, of the URI.
        timeout: seconds to wait for a lock.
    """
    # A connection is closed by whichever thread closes all.
    return sqlite3.connect(
        f"{file.as_uri()}?{options}", uri=True, isolation_level=None, timeout=timeout,
        check_same_thread=False,
    )  # fmt: skip


def create(file: Path) -> None:
    """Write an empty library, whole or not at all.

    Raises:
        LibraryError: SQLite cannot share memory there, which its readers need.
        OSError, sqlite3.Error: it cannot be written.
    """
    with write_whole(file) as temporary:
        private_file(temporary)
        with contextlib.closing(connect(temporary)) as connection:
            connection.execute("PRAGMA page_size = 4096")
            # Without a log for now: closing would copy it into the file, and not say if it failed.
            connection.execute("BEGIN")
            for statement in _statements(_TABLES):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute("COMMIT")
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                raise LibraryError(
                    f"{file}: SQLite can keep no write-ahead log there: choose another place with "
                    "--library PATH.sqlite"
                )


def version_of(connection: sqlite3.Connection, file: Path) -> int:
    """Return the version of a library's tables.

    Raises:
        LibraryError: the file is not a library, or of a newer version.
        sqlite3.DatabaseError: it is damaged.
    """
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if application != APPLICATION_ID:
        raise LibraryError(
            f"{file} is not a library of pocketclip, but a database of another program: choose "
            "another place with --library PATH.sqlite"
        )
    if version > VERSION:
        raise LibraryError(
            f"{file} was written by a newer pocketclip (version {version}, this one reads "
            f"{VERSION}): update it with `pip install -U pocketclip`"
        )
    return version


def check_tables(connection: sqlite3.Connection, file: Path) -> None:
    """Check that the tables of this version are there.

    Raises:
        LibraryError: one is missing, or differs.
        sqlite3.DatabaseError: the file is damaged.
    """
    try:
        for table, columns in COLUMNS.items():
            connection.execute(f"SELECT {', '.join(columns)} FROM {table} LIMIT 0")
    except sqlite3.OperationalError as error:
        if "no such" not in str(error):
            raise
        wrong = str(error)
    else:
        found = {
            name for (name,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'contents'"
            )
        }  # fmt: skip
        missing = [name for name in _TRIGGERS if name not in found]
        if not missing:
            return
        wrong = f"no such trigger: {missing[0]}"
    raise LibraryError(
        f"{file} lacks tables of a library ({wrong}): mend it with `pocketclip index --repair`"
    )


def migrate(connection: sqlite3.Connection, location: Location) -> None:
    """Change the tables of an older version to this one; by the one writer.

    Raises:
        LibraryError: the copy that comes before cannot be written, or there is no way from that
            version. Nothing was changed.
        sqlite3.Error: a step failed. Nothing was changed.
    """
    version = version_of(connection, location.file)
    steps: list[Callable[[sqlite3.Connection], object]] = []
    for older in range(version, VERSION):
        if older not in MIGRATIONS:
            raise LibraryError(
                f"{location.file} is damaged (it says it is of version {version}): mend it with "
                "`pocketclip index --repair`"
            )
        steps += MIGRATIONS[older]
    if version == VERSION:
        return  # another process was faster
    try:
        back_up(connection, location.backup)
    except OSError as error:
        raise LibraryError(
            f"{location.backup} cannot be written ({error.strerror or error}), and without this "
            "copy the library is not changed to the new version: make room"
        ) from error
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in steps:
            step(connection)
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def back_up(connection: sqlite3.Connection, file: Path) -> None:
    """Copy a library to one file, whole or not at all.

    Raises:
        OSError, sqlite3.Error: it cannot be written.
    """
    with write_whole(file) as temporary:
        private_file(temporary)
        with contextlib.closing(connect(temporary)) as target:
            connection.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a script; `executescript` would commit the transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
