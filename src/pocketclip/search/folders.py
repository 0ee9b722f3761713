"""Which folders of the library a user means.

Names that differ only in how their accents are composed (NFC, NFD) are the same folder: macOS
and Linux write them differently.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pocketclip.errors import QueryError
from pocketclip.formats.escaping import name_text
from pocketclip.search.indexing.roots import known_roots, place_of
from pocketclip.search.store.database import Database


class Place(NamedTuple):
    """A folder of a root."""

    root: int
    below: bytes
    """Relative, with slashes; empty: the root itself."""


def folder_condition(
    database: Database, folders: Sequence[str | os.PathLike[str]]
) -> tuple[str, tuple[Any, ...]]:
    """Return SQL over `files f`: whether a file is in one of the folders, at any depth.

    Raises:
        QueryError: no file of a folder is in the library.
    """
    return _in_one_of(database, [p for folder in folders for p in places_of(database, folder)])


def folder_names_condition(database: Database, names: Sequence[str]) -> tuple[str, tuple[Any, ...]]:
    """Return SQL over `files f`: whether a file is in one of the folders that a stranger names.

    Raises:
        QueryError: no file of a folder is in the library; whether there is such a folder on the
            disk makes no difference.
    """
    return _in_one_of(
        database, [place for name in names for place in _named_places(database, name)]
    )


def _in_one_of(database: Database, places: Sequence[Place]) -> tuple[str, tuple[Any, ...]]:
    _offer_comparison(database)
    tests = [_test(place) for place in places]
    values = tuple(value for _, own in tests for value in own)
    return f"({' OR '.join(sql for sql, _ in tests)})", values


def _test(place: Place) -> tuple[str, tuple[Any, ...]]:
    """Return SQL over `files f`: whether a file is in a folder."""
    if not place.below:
        return "f.root = ?", (place.root,)
    if place.below.isascii():
        low, high = place.below + b"/", place.below + b"0"  # "0" follows "/"
        return "(f.root = ? AND f.path >= ? AND f.path < ?)", (place.root, low, high)
    return "(f.root = ? AND pc_is_below(f.path, ?))", (place.root, _composed(place.below) + b"/")


def _offer_comparison(database: Database) -> None:
    with database.reading() as connection:
        connection.create_function("pc_is_below", 2, _is_below, deterministic=True)


def places_of(database: Database, folder: str | os.PathLike[str]) -> list[Place]:
    """Return what a folder is in the library: a part of a root, or the roots inside it.

    Args:
        database: the library.
        folder: a path; one that is not absolute is taken from the current folder, and if it
            leads to nothing in the library, from each root.

    Raises:
        QueryError: no file of it is in the library.
    """
    text = os.fsdecode(folder)
    with database.reading() as connection:
        roots = connection.execute("SELECT id, path FROM roots ORDER BY path").fetchall()
    found = list[Place]()
    if text:
        path = os.path.expanduser(text)  # noqa: PTH111
        real, plain = os.path.realpath(path), os.path.abspath(path)  # noqa: PTH100
        for one in dict.fromkeys((real, plain)):
            found += _from_absolute(roots, os.fsencode(one))
        place = place_of(known_roots(database), Path(real))  # also if it is mounted twice
        if place is not None:
            found.append(Place(place[0].id, place[1]))
        found = _with_files(database, found)
        below = os.fsencode(os.path.normpath(text)).replace(os.fsencode(os.sep), b"/")
        if not found and not os.path.isabs(path) and below.split(b"/")[0] not in (b".", b".."):  # noqa: PTH117
            found = _with_files(database, [Place(root, below) for root, _ in roots])
    if not found:
        raise QueryError(_unknown(database, text))
    return found


def _named_places(database: Database, name: str) -> list[Place]:
    """Return the folders below the roots with this path, else those of roots of this name."""
    below = [part for part in os.fsencode(name).split(b"/") if part not in (b"", b".")]
    found = list[Place]()
    if b".." not in below and not name.startswith(("/", "~", "\\")) and "\0" not in name:
        with database.reading() as connection:
            roots = connection.execute("SELECT id, path FROM roots ORDER BY path").fetchall()
        if below:
            found = _with_files(database, [Place(root, b"/".join(below)) for root, _ in roots])
        if below and not found:
            wanted = [_composed(part) for part in below]
            own = [root for root, path in roots if _names(path)[-1:] == wanted[:1]]
            found = _with_files(database, [Place(root, b"/".join(below[1:])) for root in own])
    if not found:
        advice = "write its path below a folder that the library indexes"
        raise QueryError(f"the library has no photographs of that folder: {advice}")
    return found


def _from_absolute(roots: Iterable[tuple[int, bytes]], folder: bytes) -> list[Place]:
    wanted, found = _names(folder), []
    for root, path in roots:
        own = _names(path)
        if wanted[: len(own)] == own:
            below = [part for part in folder.split(b"/") if part][len(own) :]
            found.append(Place(root, b"/".join(below)))
        elif own[: len(wanted)] == wanted:
            found.append(Place(root, b""))
    return found


def _with_files(database: Database, places: Iterable[Place]) -> list[Place]:
    """Return the places that hold a known file, absent ones included."""
    _offer_comparison(database)
    found = []
    with database.reading() as connection:
        for place in dict.fromkeys(places):
            sql, values = _test(place)
            if connection.execute(f"SELECT 1 FROM files f WHERE {sql} LIMIT 1", values).fetchone():
                found.append(place)
    return found


def _unknown(database: Database, text: str) -> str:
    """Return the message, with folders of that name at other places."""
    if text and os.path.isfile(os.path.expanduser(text)):  # noqa: PTH111, PTH113
        return f"{text} is a file: give the folder that it is in"
    last = _names(os.fsencode(os.path.normpath(text)))[-1:]
    similar = set[bytes]()
    if last and last[0] not in (b".", b".."):
        with database.reading() as connection:
            for (path,) in connection.execute("SELECT path FROM files WHERE absent = 0"):
                parts = path.split(b"/")[:-1]
                for at, part in enumerate(parts):
                    if _composed(part).lower() == last[0].lower():
                        similar.add(b"/".join(parts[: at + 1]))
    shown = [name_text(os.fsdecode(one)) for one in sorted(similar)[:3]]
    advice = (
        f"did you mean {' or '.join(shown)}?"
        if shown
        else f"index it with `pocketclip index {text or 'FOLDER'}`"
    )
    name = database.location.name
    return f"no photographs of the folder {text!r} are in the library {name}: {advice}"


def _names(path: bytes) -> list[bytes]:
    return [_composed(part) for part in path.split(b"/") if part]


def _composed(name: bytes) -> bytes:
    """Return a name with composed accents (NFC); bytes that are not UTF-8 stay as they are."""
    if name.isascii():
        return name
    text = unicodedata.normalize("NFC", name.decode("utf-8", "surrogateescape"))
    return text.encode("utf-8", "surrogateescape")


def _is_below(path: bytes, prefix: bytes) -> bool:
    return _composed(path).startswith(prefix)
