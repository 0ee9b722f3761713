"""Where a library is: its file by name, and where it must not be.

A library is one SQLite file, `NAME.sqlite`. Beside it are `NAME.lock`, which one writer holds,
`NAME.progress`, which says what the last run of indexing did or does, and `NAME.derived/`, with
what can be made from the file again: the matrix and the thumbnails.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from pocketclip.errors import LibraryError
from pocketclip.search.store.file_systems import network_of
from pocketclip.search.store.sqlite_errors import MEND
from pocketclip.storage.user_data import user_data

DEFAULT_NAME = "photos"
SUFFIX = ".sqlite"
_BACKUP = ".backup"
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9 _.-]{0,98}[A-Za-z0-9_-])?")
_LONGEST_NAME = 200  # bytes; file systems allow 255, and names of temporary files are longer
_LONGEST_PATH = 470  # bytes of path and name, for many builds of SQLite allow 512 in its log's and
# temporary files' paths, which have the name twice


@dataclass(frozen=True, slots=True)
class Location:
    """The files of a library."""

    file: Path

    @property
    def name(self) -> str:
        """The library's name: its file name without the suffix."""
        return self.file.name.removesuffix(SUFFIX)

    @property
    def lock(self) -> Path:
        """The file that the one writer locks."""
        return self.file.with_name(f"{self.name}.lock")

    @property
    def derived(self) -> Path:
        """The folder of what can be made again."""
        return self.file.with_name(f"{self.name}.derived")

    @property
    def progress(self) -> Path:
        """The file that tells other processes what a run of indexing does."""
        return self.file.with_name(f"{self.name}.progress")

    @property
    def log(self) -> Path:
        """SQLite's write-ahead log, which holds the last commits."""
        return self.file.with_name(f"{self.file.name}-wal")

    @property
    def shared(self) -> Path:
        """The memory that SQLite's readers and writer share."""
        return self.file.with_name(f"{self.file.name}-shm")

    @property
    def backup(self) -> Path:
        """The copy that is made before a migration."""
        return self.file.with_name(f"{self.name}{_BACKUP}{SUFFIX}")

    def damaged(self) -> list[Path]:
        """Return the damaged files that repairs kept aside, the oldest first."""
        pattern = re.compile(re.escape(f"{self.file.name}.damaged") + r"(-\d+)?")
        try:
            files = [path for path in self.file.parent.iterdir() if pattern.fullmatch(path.name)]
        except OSError:
            return []
        return sorted(files, key=lambda path: (len(path.name), path.name))


def locate(library: str | os.PathLike[str] | None = None) -> Location:
    """Return where a library is, or would be.

    A link to a library means that library, with its lock and its folder of derived files.

    Args:
        library: a name, for a file in the user's data folder; a path, which has a slash or ends in
            `.sqlite`; None for the library `photos`.

    Raises:
        LibraryError: it is neither a name nor a path, its name is too long, or it is a link to
            nothing.
        StorageError: the user has no data folder.
    """
    text = os.fspath(library) if library is not None else DEFAULT_NAME
    if text.endswith(SUFFIX) or "/" in text or os.sep in text:
        return _checked(_resolve(text))
    if not _NAME.fullmatch(text) or text.endswith(_BACKUP):
        raise LibraryError(
            f"{text!r} is no name of a library: use letters, digits, spaces, '-', '_' and '.', "
            f"or a path that ends in {SUFFIX}"
        )
    return _checked(_resolve(str(user_data("libraries") / f"{text}{SUFFIX}")))


def _resolve(text: str) -> Path:
    try:
        path = Path(text).expanduser().absolute()
        if path.suffix != SUFFIX:
            raise LibraryError(
                f"{text}: a library is a file that ends in {SUFFIX}, or a name without slashes"
            )
        resolved = path.resolve()
        if path.is_symlink() and not os.path.lexists(resolved):
            raise LibraryError(
                f"{path} is a link to {resolved}, which is not there: connect its drive, or remove "
                "the link"
            )
    except OSError as error:
        raise LibraryError(f"{text}: {error.strerror or error}") from error
    except (RuntimeError, ValueError) as error:  # links in a circle, no such user, a NUL
        raise LibraryError(f"{text!r} is no path of a library: {error}") from error
    return resolved


def _checked(file: Path) -> Location:
    location = Location(file)
    if location.name.endswith(_BACKUP):
        raise LibraryError(
            f"{file} is the backup of a library, which `pocketclip index --repair` uses: copy it "
            "to another name to open it"
        )
    if len(os.fsencode(file.name)) > _LONGEST_NAME:
        raise LibraryError(
            f"{file.name}: a library's file name has at most {_LONGEST_NAME} bytes; choose a "
            "shorter one"
        )
    if len(os.fsencode(file)) + len(os.fsencode(file.name)) > _LONGEST_PATH:
        raise LibraryError(f"{file}: this path is too long for SQLite; choose a shorter one")
    return location


def libraries() -> list[Location]:
    """Return the libraries in the user's data folder, by name."""
    folder = user_data("libraries").resolve()
    if not folder.is_dir():
        return []
    found = [Location(file) for file in sorted(folder.glob(f"*{SUFFIX}"))]
    return [location for location in found if not location.name.endswith(_BACKUP)]


def refuse_network(location: Location) -> None:
    """Refuse a library on a network file system; photographs may be on one.

    Raises:
        LibraryError: the file system of its file, of its folder of derived files, or of the
            nearest existing parent, is one.
    """
    for path in (location.file, location.derived):
        kind = network_of(path)
        if kind is not None:
            raise LibraryError(
                f"{path} is on a network file system ({kind}), where SQLite loses data: choose "
                "another place with --library PATH.sqlite, or POCKETCLIP_DATA (photographs may be "
                "on a network)"
            )


def is_unused(location: Location) -> bool:
    """Return whether there is no library; an empty file is taken if nothing of one is beside it."""
    size = size_of(location.file)
    if size is None:
        return size_of(location.log) is None and not os.path.lexists(location.file)
    beside = (location.log, location.lock, location.backup, location.derived)
    return size == 0 and location.file.is_file() and not any(map(os.path.lexists, beside))


def check_file(location: Location) -> None:
    """Check that a file can be a library, before SQLite opens it.

    It is not opened for that: closing it would release the locks of this process's connections.

    Raises:
        LibraryError: it is missing, empty, no file, or cannot be read.
    """
    file = location.file
    try:
        found = file.stat()
    except FileNotFoundError as error:
        if size_of(location.log):
            raise LibraryError(
                f"{file} is missing, but its log {location.log.name} is there: put the file back, "
                f"or {MEND}"
            ) from error
        raise LibraryError(
            f"there is no library {location.name} ({file}): make one with `pocketclip index FOLDER`"
        ) from error
    except OSError as error:
        raise LibraryError(f"{file} cannot be read: {error.strerror or error}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "folder" if stat.S_ISDIR(found.st_mode) else "device or pipe"
        raise LibraryError(f"{file} is a {kind}, not a library: choose another name")
    if not os.access(file, os.R_OK):
        raise LibraryError(f"{file} cannot be read: see who may read it")
    if not found.st_size:
        raise LibraryError(f"{file} is damaged: it is empty (0 bytes); {MEND}, or remove it")


def size_of(path: Path) -> int | None:
    """Return the size of a file in bytes; None if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return None
