"""The roots of a library: the folders that it indexes, none within another one.

A path within a known root means that part of the root. A path that contains known roots becomes a
root that takes them over, with everything that is known of their files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketclip.errors import LibraryError
from pocketclip.formats.escaping import name_text
from pocketclip.search.indexing.rules import Rules, anchored, compile_patterns
from pocketclip.search.indexing.walk import left_out
from pocketclip.search.store.database import Database


@dataclass(frozen=True, slots=True)
class Root:
    """A folder that a library indexes."""

    id: int
    path: Path
    """A real path: absolute, without links."""
    exclude: tuple[str, ...]
    """Patterns of what is left out; see `pocketclip.search.indexing.rules`."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a path that is to be indexed means."""

    path: Path
    """Of the root."""
    below: bytes
    """The folder of the root, relative to it; empty for the whole root."""
    root_id: int | None
    """None: the root is new."""
    absorbs: tuple[int, ...] = ()
    """Known roots in it, which it takes over."""


def known_roots(database: Database) -> list[Root]:
    """Return the roots of a library, by path."""
    with database.reading() as connection:
        rows = connection.execute("SELECT id, path, exclude FROM roots ORDER BY path").fetchall()
    return [
        Root(row, Path(os.fsdecode(path)), tuple(json.loads(exclude)))
        for row, path, exclude in rows
    ]


def rules_of(database: Database, root_id: int) -> Rules:
    """Return what a known root leaves out."""
    with database.reading() as connection:
        path, exclude = connection.execute(
            "SELECT path, exclude FROM roots WHERE id = ?", (root_id,)
        ).fetchone()
        before = path.rstrip(b"/") + b"/"
        inside = connection.execute(
            "SELECT path FROM roots WHERE path > ? AND path < ?", (before, before[:-1] + b"0")
        ).fetchall()  # "0" follows "/"
    own_roots = frozenset(inner[len(before) :] for (inner,) in inside)
    return Rules(tuple(json.loads(exclude)), own_roots)


def rules_for(path: Path, exclude: Sequence[str], roots: Sequence[Root]) -> Rules:
    """Return what a folder leaves out as a root beside the known `roots`."""
    inside = (_relative(path, root.path) for root in roots)
    return Rules(tuple(exclude), frozenset(folder for folder in inside if folder))


def resolve_root(database: Database, path: str | os.PathLike[str]) -> Target:
    """Return which root, or which part of one, a path means; nothing is written.

    Args:
        database: the library's file.
        path: a folder, or a link to one; `~` is the user's home.

    Raises:
        LibraryError: it is a file, or neither there nor known.
    """
    real = _real_folder(path)
    roots = known_roots(database)
    outer = place_of(roots, real)
    if outer is None:
        check_folder(path)
        root, below = Root(0, real, ()), b""
    else:
        root, below = outer
    inner = [other for other in roots if _relative(real, other.path)]
    absorbs = [
        other.id
        for other in inner
        # A drive that is away stays a root of its own: as a part of another root that is listed
        # whole, all its files would be absent.
        if has_entries(other.path)
        and left_out(root.path, Rules(root.exclude), _relative(root.path, other.path) or b"")
        is None
    ]
    return Target(root.path, below, root.id or None, tuple(absorbs))


def check_folder(path: str | os.PathLike[str]) -> None:
    """Refuse a path that a new library cannot index.

    Raises:
        LibraryError: there is no such folder.
    """
    try:
        os.stat(_real_folder(path))  # noqa: PTH116
    except FileNotFoundError:
        raise LibraryError(f"{path}: there is no such folder") from None
    except OSError as error:
        raise LibraryError(f"{path} cannot be read: {error.strerror or error}") from error


def _real_folder(path: str | os.PathLike[str]) -> Path:
    if not os.fspath(path):
        raise LibraryError('an empty path: give a folder ("." for the current one)')
    try:
        real = os.path.realpath(os.path.expanduser(path))  # noqa: PTH111 - knows every "~"
    except ValueError as error:
        raise LibraryError(f"{path} is no path: {error}") from error
    # Of a folder that cannot be reached, such as a drive that is away, these are false.
    if os.path.exists(real) and not os.path.isdir(real):  # noqa: PTH110, PTH112
        raise LibraryError(f"{path} is a file: give the folder that it is in")
    return Path(real)


def place_of(roots: Sequence[Root], real: Path) -> tuple[Root, bytes] | None:
    """Return the known root that a real path is in, and where in it; the innermost one.

    Neither the path nor the root need be there.
    """
    by_path = {root.path: root for root in roots}
    if real in by_path:
        return by_path[real], b""
    identities = {identity_of(root.path): root for root in roots}
    below: list[str] = []
    for folder in (real, *real.parents):
        # By identity too: file systems may not tell capital letters, and a folder may be mounted
        # at two places.
        identity = identity_of(folder)
        root = by_path.get(folder) or (identities.get(identity) if identity else None)
        if root is not None:
            return root, os.fsencode("/".join(_spelled(root.path, below[::-1])))
        below.append(folder.name)
    return None


def root_at(roots: Sequence[Root], path: str | os.PathLike[str]) -> Root | None:
    """Return the root that a path means, which need not be there; None if it is no root."""
    whole = Path(path).expanduser()
    # A path that was given to the library as a link may be anything by now.
    for place in (Path(os.path.realpath(whole)), whole.absolute()):
        found = place_of(roots, place)
        if found is not None and not found[1]:
            return found[0]
    return None


def list_of_roots(roots: Sequence[Root]) -> str:
    """Return the roots for the end of a message."""
    if not roots:
        return "it has no roots"
    shown = ", ".join(str(root.path) for root in roots[:10])
    return f"its roots are: {shown}{', ...' if len(roots) > 10 else ''}"


def _spelled(root: Path, parts: Sequence[str]) -> Iterator[str]:
    """Yield the names of a path as their folders have them, which may differ in capital letters."""
    folder = root
    for part in parts:
        name = part
        try:
            with os.scandir(folder) as entries:
                names = {entry.name: entry.inode() for entry in entries}
            if part not in names:
                inode = (folder / part).stat().st_ino
                name = next((other for other, own in names.items() if own == inode), part)
        except OSError:
            pass  # listing it reports the problem
        folder /= name
        yield name


def identity_of(folder: Path) -> tuple[int, int] | None:
    """Return the device and inode of a folder; None if it is not there."""
    try:
        state = folder.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _relative(outer: Path, inner: Path) -> bytes | None:
    """Return the path of `inner` from `outer`; None if it is not in it, empty if they are equal."""
    if inner == outer:
        return b""
    before = os.path.join(outer, "")  # noqa: PTH118 - ends with a slash, and many times faster
    text = os.fspath(inner)
    return os.fsencode(text[len(before) :]) if text.startswith(before) else None


def has_entries(folder: Path | bytes) -> bool:
    """Return whether a folder is there and not empty."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def register_root(database: Database, target: Target, exclude: Sequence[str] = ()) -> int:
    """Record a root, with the roots that it takes over; within `Database.writing`.

    Args:
        database: the library's file.
        target: what `resolve_root` returned.
        exclude: patterns of what to leave out from `target.below`, added to those that are stored;
            an empty one removes those before it.

    Returns:
        The id of the root.

    Raises:
        LibraryError: a pattern cannot be used.
    """
    try:
        compile_patterns(exclude)
    except ValueError as error:
        raise LibraryError(f"--exclude: {error}") from error
    roots = {root.id: root for root in known_roots(database)}
    patterns: list[str] = []
    with database.transaction() as connection:
        root_id = target.root_id
        if root_id is None:
            added = connection.execute(
                "INSERT INTO roots (path) VALUES (?)", (os.fsencode(target.path),)
            )
            root_id = int(added.lastrowid or 0)
        else:
            patterns += roots[root_id].exclude
        for inner in target.absorbs:
            below = _relative(target.path, roots[inner].path) or b""
            # Of a file that the outer root knew at the same path, the inner one knows more.
            connection.execute(
                "UPDATE OR REPLACE files SET root = ?, path = CAST(? || path AS BLOB) "
                "WHERE root = ?",
                (root_id, below + b"/", inner),
            )
            connection.execute("DELETE FROM roots WHERE id = ?", (inner,))
            patterns += [anchored(pattern, below) for pattern in roots[inner].exclude]
        for pattern in exclude:
            if pattern:
                patterns.append(_from_root(pattern, target))
            else:
                patterns.clear()
        connection.execute(
            "UPDATE roots SET exclude = ? WHERE id = ?",
            (json.dumps(list(dict.fromkeys(patterns))), root_id),
        )
    return root_id


def _from_root(pattern: str, target: Target) -> str:
    """Return a pattern as it is stored; one that begins with the root's path is from the root."""
    text, path = name_text(pattern), name_text(target.path).rstrip("/")
    if text.startswith(f"{path}/"):
        return text.removeprefix(path)
    return anchored(text, target.below)
