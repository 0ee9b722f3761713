"""Telling a library that a root is at another place now: one row changes, and nothing is read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketclip.errors import LibraryError, count_of
from pocketclip.formats.escaping import name_text
from pocketclip.search.indexing.roots import Root, known_roots, list_of_roots, place_of, root_at
from pocketclip.search.store.database import Database

_TRIED = 1000  # known files that are looked for at the new place


@dataclass(frozen=True, slots=True)
class MoveReport:
    """A root that was moved."""

    old: Path
    new: Path
    files: int
    """The number of its files that the library knows, without absent ones."""

    def facts(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {"old": name_text(self.old), "new": name_text(self.new), "files": self.files}


def move_root(
    database: Database, old: str | os.PathLike[str], new: str | os.PathLike[str]
) -> MoveReport:
    """Record that the folder of a root was moved, or is mounted at another place.

    Args:
        database: the library's file.
        old: the root as the library knows it, which need not be there any more.
        new: the folder that has its files now.

    Raises:
        LibraryError: `old` is no root; `new` is not there, has none of the root's files, or is in,
            around, or the same as another root. Or another process writes. Nothing was changed.
    """
    with database.writing():
        known = known_roots(database)
        root = root_at(known, old)
        if root is None:
            raise LibraryError(_unknown(database, old, known))
        place = Path(os.path.realpath(Path(new).expanduser()))
        if not place.is_dir():
            what = "a file" if place.exists() else "not there"
            raise LibraryError(f"{new} is {what}: give the folder that has the photographs now")
        _refuse_overlap(place, root, known)
        files = _refuse_other_folder(database, root, place)
        with database.transaction() as connection:
            connection.execute(
                "UPDATE roots SET path = ? WHERE id = ?", (os.fsencode(place), root.id)
            )
    return MoveReport(root.path, place, files)


def _unknown(database: Database, old: str | os.PathLike[str], known: list[Root]) -> str:
    name = database.location.name
    within = place_of(known, Path(os.path.realpath(Path(old).expanduser())))
    if within is not None:
        return (
            f"{old} is a folder in the root {within[0].path}, and only whole roots are moved: run "
            "`pocketclip index` with its new place, which recognises the files by their bytes"
        )
    return f"{old} is no root of the library {name}; {list_of_roots(known)}"


def _refuse_overlap(place: Path, root: Root, known: list[Root]) -> None:
    for other in known:
        if other.id == root.id:
            continue
        if place == other.path:
            relation = "is"
        elif place.is_relative_to(other.path):
            relation = "is in"
        elif other.path.is_relative_to(place):
            relation = "has in it"
        else:
            continue
        raise LibraryError(
            f"{place} {relation} the root {other.path}: run `pocketclip index {place}`, which "
            f"recognises the files by their bytes, then `pocketclip forget --root {root.path}`"
        )


def _refuse_other_folder(database: Database, root: Root, place: Path) -> int:
    """Refuse a folder with none of the root's files; return how many of them are known."""
    with database.reading() as connection:
        (count,) = connection.execute(
            "SELECT count(*) FROM files WHERE root = ? AND absent = 0", (root.id,)
        ).fetchone()
        # The newest rows: those are the least likely to have been removed since.
        rows = connection.execute(
            "SELECT path FROM files WHERE root = ? AND absent = 0 ORDER BY id DESC LIMIT ?",
            (root.id, _TRIED),
        ).fetchall()
    if rows and not any((place / os.fsdecode(path)).exists() for (path,) in rows):
        raise LibraryError(
            f"{place} has none of {count_of(len(rows), 'file')} of the root {root.path} that were "
            "looked for: give the folder that its files are in now"
        )
    return int(count)
