"""What a library has, read from its file alone: quickly, also while another process indexes.

`pocketclip.search.indexing.status` lists the folders too, and says what indexing would find.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from pocketclip.search.indexing.roots import has_entries
from pocketclip.search.indexing.status import count_photographs
from pocketclip.search.store.database import Database

_LEAST_AGE = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class RootOverview:
    """A folder that a library indexes."""

    path: Path
    files: int
    """Photographs in it, copies included."""
    away: bool
    """Whether it is not there now, or empty."""


@dataclass(frozen=True, slots=True)
class Overview:
    """What a library has."""

    model: str | None
    """Name of the model's configuration; None if nothing was indexed yet."""
    space_id: str | None
    embed_dim: int | None
    files: int
    """Files that are indexed and there."""
    contents: int
    """Different photographs among them."""
    vectors: int
    """Photographs with a vector, those of absent files included."""
    to_encode: int
    """Photographs that wait for a vector."""
    unreadable: int
    """Files that could not be read or decoded."""
    roots: tuple[RootOverview, ...]


@dataclass(frozen=True, slots=True)
class Choices:
    """By what the photographs of a library can be filtered, with the number of files of each."""

    folders: tuple[tuple[str, int], ...]
    """Paths below their roots, and the names of roots, for `Filters.folder_names`; by path. A
    file counts for all folders that it is in. Names that are not UTF-8 are left out."""
    cameras: tuple[tuple[str, int], ...]
    """The most frequent first."""
    years: tuple[tuple[int, int], ...]
    """In which the camera's clock was, the last first."""
    more_folders: int
    """Folders that are left out, as there are too many."""


def read_overview(database: Database) -> Overview:
    """Return what a library has.

    Raises:
        LibraryError: it cannot be read.
    """
    with database.snapshot() as connection:
        counts = count_photographs(connection)
        facts = dict(
            connection.execute(
                "SELECT name, value FROM facts "
                "WHERE name IN ('model', 'space_id', 'embed_dim', 'vectors')"
            )
        )
        roots = connection.execute(
            "SELECT path, (SELECT COUNT(content) FROM files f WHERE f.root = roots.id "
            "AND f.absent = 0 AND f.error IS NULL AND f.content NOT IN "
            "(SELECT id FROM contents WHERE error IS NOT NULL)) FROM roots ORDER BY path"
        ).fetchall()
    return Overview(
        model=facts.get("model"), space_id=facts.get("space_id"),
        embed_dim=facts.get("embed_dim"), files=counts.files, contents=counts.contents,
        vectors=facts.get("vectors", 0), to_encode=counts.to_encode, unreadable=counts.unreadable,
        roots=tuple(
            RootOverview(Path(os.fsdecode(path)), files, not has_entries(path))
            for path, files in roots
        ),
    )  # fmt: skip


class Overviews:
    """Remembers the counts until the library changes, and for a second at least; for one thread.

    Counting hundreds of thousands of files takes a tenth of a second, and many may ask.
    """

    def __init__(self) -> None:
        self._known: Overview | None = None
        self._version, self._read = -1, -_LEAST_AGE

    def __call__(self, database: Database) -> Overview:
        """Return what `read_overview` returns."""
        with database.reading() as connection:
            [version] = connection.execute("PRAGMA data_version").fetchone()
        is_old = time.monotonic() - self._read >= _LEAST_AGE
        if self._known is None or (version != self._version and is_old):
            self._known = read_overview(database)
            self._version, self._read = version, time.monotonic()
            return self._known
        roots = (replace(root, away=not has_entries(root.path)) for root in self._known.roots)
        return replace(self._known, roots=tuple(roots))


def unreadable_files(database: Database, most: int) -> list[tuple[Path, str]]:
    """Return files that could not be read or decoded, each with the reason; by path.

    Args:
        database: the library.
        most: the number of files.
    """
    with database.snapshot() as connection:
        rows = connection.execute(
            "SELECT roots.path, f.path, c.error FROM contents c "
            "CROSS JOIN files f ON f.content = c.id JOIN roots ON roots.id = f.root "
            "WHERE c.error IS NOT NULL AND f.error IS NULL AND f.absent = 0 LIMIT ?",
            (most,),
        ).fetchall()
        rows += connection.execute(
            "SELECT roots.path, f.path, f.error FROM files f JOIN roots ON roots.id = f.root "
            "WHERE f.error IS NOT NULL AND f.absent = 0 LIMIT ?",
            (most,),
        ).fetchall()
    found = [
        (Path(os.fsdecode(root)) / os.fsdecode(path), reason) for root, path, reason in rows[:most]
    ]
    return sorted(found, key=lambda one: os.fsencode(one[0]))


def read_choices(database: Database, *, most: int = 500) -> Choices:
    """Return by what the photographs can be filtered.

    Args:
        database: the library.
        most: the number of folders, and of cameras; the fullest folders are kept.
    """
    folders: Counter[bytes] = Counter()
    with database.snapshot() as connection:
        roots = dict(connection.execute("SELECT id, path FROM roots"))
        for root, path in connection.execute(
            "SELECT root, path FROM files WHERE absent = 0 AND content IS NOT NULL"
        ):
            folders[roots[root].rstrip(b"/").rpartition(b"/")[2]] += 1
            at = path.find(b"/")
            while at >= 0:
                folders[path[:at]] += 1
                at = path.find(b"/", at + 1)
        cameras = connection.execute(
            "SELECT camera, COUNT(*) FROM contents WHERE camera IS NOT NULL "
            "GROUP BY camera ORDER BY COUNT(*) DESC, camera LIMIT ?",
            (most,),
        ).fetchall()
        years = connection.execute(
            "SELECT CAST(strftime('%Y', taken, 'unixepoch') AS INTEGER), COUNT(*) FROM contents "
            "WHERE taken IS NOT NULL GROUP BY 1 ORDER BY 1 DESC LIMIT ?",
            (most,),
        ).fetchall()
    named = [(name, count) for folder, count in folders.items() if (name := _text(folder))]
    named.sort(key=lambda one: (-one[1], one[0]))
    return Choices(
        folders=tuple(sorted(named[:most])),
        cameras=tuple(cameras),
        years=tuple((year, count) for year, count in years if year is not None),
        more_folders=len(folders) - min(most, len(named)),
    )


def _text(name: bytes) -> str | None:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return None
