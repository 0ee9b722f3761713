"""Which photographs a search may find: by folder, time and camera.

    filters = Filters(folders=["Italy"], since="2023", until="2024-05")
    allowed_contents(database, filters, matrix.ids)    # (N,) bool

Filters apply to files: a photograph is searched for if one of its files, there now, passes all.

The time of a photograph is what the camera's clock showed; without that, the time of the file, as
a clock here shows it. Both are compared with the days of the calendar that the user names.

N: contents that have a vector.
"""

from __future__ import annotations

import datetime
import os
import re
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import QueryError
from pocketclip.search.arguments import listed
from pocketclip.search.folders import folder_condition, folder_names_condition
from pocketclip.search.indexing.walk import stored_time
from pocketclip.search.store.database import Database

Moment = str | datetime.date | datetime.datetime
_MOMENT = re.compile(
    r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2})(?:[T ](\d{1,2}):(\d{2})(?::(\d{2}))?)?)?)?"
)
_MOST_THREADS = 64
_OF_FILES = "FROM files f WHERE f.absent = 0 AND f.content IS NOT NULL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What a photograph must be to be searched for; by default anything."""

    folders: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = ()
    """It is in one of these, at any depth: paths, or paths below a root of the library."""
    folder_names: str | Sequence[str] = ()
    """The same for the questions of others: paths below a root, or the name of a root with what is
    below it. They are looked for in the library only, never on the disk."""
    since: Moment | None = None
    """The first moment: `2024`, `2024-05`, `2024-05-01`, `2024-05-01T14:30`, or a date."""
    until: Moment | None = None
    """The last one, included: `2024` lasts until the end of the year."""
    camera: str | None = None
    """A part of the name of its camera, in upper or lower case."""

    def __bool__(self) -> bool:
        given = (self.since, self.until, self.camera)
        return bool(self.folders or self.folder_names) or any(one is not None for one in given)


class Condition(NamedTuple):
    """A filter as an SQL expression over `files f`."""

    name: str
    sql: str
    values: tuple[Any, ...]


def conditions(database: Database, filters: Filters) -> list[Condition]:
    """Return the filters in the order in which they are applied; for this thread's connection.

    Raises:
        QueryError: a time cannot be read, a folder is not in the library, or `since` is later
            than `until`.
    """
    made = []
    if filters.folders:
        made.append(Condition("in", *folder_condition(database, listed(filters.folders))))
    if filters.folder_names:
        names = listed(filters.folder_names)
        made.append(Condition("in", *folder_names_condition(database, names)))
    since = None if filters.since is None else span_of(filters.since)[0]
    until = None if filters.until is None else span_of(filters.until)[1]
    if since is not None and until is not None and since >= until:
        raise QueryError(
            f"{filters.since} (since) is after {filters.until} (until)", "`since` is after `until`"
        )
    if since is not None or until is not None:
        offer_file_time(database)
    if since is not None:
        made.append(_time_condition("since", ">=", since))
    if until is not None:
        made.append(_time_condition("until", "<", until))
    if filters.camera is not None:
        made.append(_camera_condition(database, filters.camera))
    return made


def allowed_contents(
    database: Database, filters: Filters, ids: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return which contents (N,) have a file, there now, that the filters accept.

    Args:
        database: the library.
        filters: the filters.
        ids: ids (N,) of contents, ascending.

    Raises:
        QueryError: as `conditions`.
    """
    return allowed_by(database, conditions(database, filters), ids)


def allowed_by(
    database: Database, made: Sequence[Condition], ids: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return which contents (N,) have a file, there now, that fulfils all conditions."""
    where = "".join(f" AND {condition.sql}" for condition in made)
    values = [value for condition in made for value in condition.values]
    allowed = np.zeros(len(ids), np.bool_)
    with database.reading() as connection:
        # One text of all numbers: a row for each would take four times as long.
        sql = f"SELECT group_concat(f.content) {_OF_FILES}{where}"
        [numbers] = connection.execute(sql, values).fetchone()
    if numbers and len(ids):
        contents = np.fromstring(numbers, np.int64, sep=",")
        at = np.searchsorted(ids, contents)
        at[at == len(ids)] = 0
        allowed[at[ids[at] == contents]] = True
    return allowed


class Present:
    """Which contents have a file that is there; asked again only after something changed."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}

    def __call__(self, database: Database, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which contents (N,) have a file that is not absent; the array is shared."""
        with database.reading() as connection:
            [version] = connection.execute("PRAGMA data_version").fetchone()
            state = (version, connection.total_changes)
            # SQLite's versions are those of a connection, and every thread has its own.
            known = self._known.get(id(connection))
            if known and known.of is connection and known.ids is ids and known.state == state:
                return known.allowed
            allowed = allowed_by(database, (), ids)
            if len(self._known) >= _MOST_THREADS:
                self._known.clear()
            self._known[id(connection)] = _Known(connection, ids, state, allowed)
            return allowed


class _Known(NamedTuple):
    of: sqlite3.Connection
    ids: NDArray[np.int64]
    state: tuple[int, int]
    allowed: NDArray[np.bool_]


def removed_by(
    database: Database, made: Sequence[Condition], ids: NDArray[np.int64]
) -> dict[str, int]:
    """Return how many photographs each condition removed of those that the ones before it left.

    `absent` comes first: photographs whose files are not there now.
    """
    left, removed = len(ids), dict[str, int]()
    for count in range(len(made) + 1):
        now = int(allowed_by(database, made[:count], ids).sum())
        removed["absent" if count == 0 else made[count - 1].name] = left - now
        left = now
    return removed


def span_of(moment: Moment) -> tuple[datetime.datetime, datetime.datetime]:
    """Return when a year, month, day, minute or second begins, and when the next one does.

    Raises:
        QueryError: it cannot be read.
    """
    if isinstance(moment, datetime.datetime):
        exact = moment.replace(tzinfo=None)
        return exact, _later(lambda: exact + datetime.timedelta(microseconds=1))
    text = moment.isoformat() if isinstance(moment, datetime.date) else moment
    found = _MOMENT.fullmatch(text.strip())
    parts = [int(part) for part in found.groups() if part is not None] if found else []
    try:
        first = datetime.datetime(*([*parts, 1, 1][: max(3, len(parts))]))  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        advice = "write 2024, 2024-05, 2024-05-01 or 2024-05-01T14:30"
        raise QueryError(f"{text!r} is no date: {advice}", f"this is no date: {advice}") from error
    if len(parts) == 1:
        return first, _later(lambda: first.replace(year=first.year + 1))
    if len(parts) == 2:
        return first, _later(lambda: (first + datetime.timedelta(days=31)).replace(day=1))
    step = {3: 86400, 5: 60, 6: 1}[len(parts)]
    return first, _later(lambda: first + datetime.timedelta(seconds=step))


def _later(compute: Callable[[], datetime.datetime]) -> datetime.datetime:
    try:
        return compute()
    except (ValueError, OverflowError):
        return datetime.datetime.max


def clock_seconds(moment: datetime.datetime) -> float:
    """Return the seconds from 1970 to what a clock shows, read as if it were UTC."""
    return (moment - datetime.datetime(1970, 1, 1)) / datetime.timedelta(seconds=1)


def _time_condition(name: str, sign: str, moment: datetime.datetime) -> Condition:
    try:
        seconds = moment.timestamp()  # of a clock here
    except (OSError, OverflowError, ValueError):
        seconds = clock_seconds(moment)
    # `IN (SELECT ...)` reads an index only; a join would read the vectors' pages.
    sql = (
        f"(f.content IN (SELECT id FROM contents WHERE taken {sign} ?) OR "
        f"(f.content IN (SELECT id FROM contents WHERE taken IS NULL) AND "
        f"CASE f.mtime_ns WHEN -1 THEN pc_mtime_ns(f.root, f.path) ELSE f.mtime_ns END {sign} ?))"
    )
    nanoseconds = round(seconds * 1e9)
    # A number that SQLite has no integer for is compared as a float.
    limit = nanoseconds if stored_time(nanoseconds) == nanoseconds else float(nanoseconds)
    return Condition(name, sql, (clock_seconds(moment), limit))


def offer_file_time(database: Database) -> None:
    """Let SQL ask for the time of a file that was written while it was indexed, see `scan`."""
    with database.reading() as connection:
        roots = dict(connection.execute("SELECT id, path FROM roots"))

        def mtime_ns(root: int, path: bytes) -> int | None:
            try:
                state = os.stat(os.path.join(roots[root], path))  # noqa: PTH116, PTH118
                return stored_time(state.st_mtime_ns)
            except (OSError, KeyError, ValueError):
                return None

        connection.create_function("pc_mtime_ns", 2, mtime_ns)


def _camera_condition(database: Database, camera: str) -> Condition:
    wanted = camera.strip().casefold()
    if not wanted:
        raise QueryError("the name of the camera is empty")
    with database.reading() as connection:
        known = connection.execute("SELECT DISTINCT camera FROM contents WHERE camera IS NOT NULL")
        names = [name for (name,) in known if wanted in name.casefold()]
    marks = ", ".join("?" * len(names))
    sql = f"f.content IN (SELECT id FROM contents WHERE camera IN ({marks}))"
    return Condition("camera", sql, tuple(names))
