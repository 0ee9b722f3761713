"""Opens a photograph of a library for somebody else: the indexed file, and never another one.

    with open_photo(database, content) as photo:
        data = photo.read(0, photo.size)

A content is asked for by its id. One of its files is opened beneath its root, component by
component, without following a link: what was put in its place since it was indexed, be it a link, a
folder or a pipe, is not opened. A file that is not as it was indexed is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from pocketclip.errors import LibraryError
from pocketclip.search.indexing.walk import READ_AGAIN, is_current
from pocketclip.search.store.database import Database

_MOST_FILES = 64  # of one content that are tried
_CHUNK = 1 << 20  # bytes
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# A pipe in its place is opened without waiting for a writer, and then refused.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class PhotoError(LibraryError):
    """A photograph that is not handed out; no message names a path."""


class UnknownPhotoError(PhotoError):
    """No photograph has this id, or none of its files is there now."""


class ChangedPhotoError(PhotoError):
    """Its file changed since it was indexed."""


@dataclass(frozen=True, slots=True)
class PhotoFile:
    """An opened photograph, as it was indexed."""

    descriptor: int
    size: int
    """Bytes."""
    digest: bytes
    """Of the bytes that were indexed, see `reading.content_digest`."""
    format: str | None
    """As Pillow names it: `JPEG`, `HEIF`, ..."""
    name: bytes
    """The name of the file, without folders."""
    state: os.stat_result
    """Of the file when it was opened."""

    def read(self, offset: int, count: int) -> bytes:
        """Return up to `count` bytes from `offset`; fewer where the file ends.

        Raises:
            ChangedPhotoError: the file was written to since it was opened.
            OSError: the disk cannot be read.
        """
        data = os.pread(self.descriptor, count, offset)
        if not _same(self.state, os.fstat(self.descriptor)):
            raise ChangedPhotoError("the photograph was changed while it was read")
        return data

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)

    def __enter__(self) -> PhotoFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_photo(database: Database, content: int) -> PhotoFile:
    """Open a file of a content; if one is gone or has changed, another one with the same bytes.

    Args:
        database: the library.
        content: the id, see `Hit.content`.

    Raises:
        UnknownPhotoError: there is no such photograph, or no file of it is there now.
        ChangedPhotoError: the files that are there are not as they were indexed, or are links.
        LibraryError: the library cannot be read.
    """
    if not 0 < content < 1 << 63:
        raise _unknown()
    with database.reading() as connection:
        rows = connection.execute(
            "SELECT roots.path, f.path, f.size, f.mtime_ns, c.digest, c.format FROM files f "
            "JOIN contents c ON c.id = f.content JOIN roots ON roots.id = f.root "
            "WHERE f.content = ? AND f.absent = 0 AND c.error IS NULL "
            "ORDER BY roots.path, f.path LIMIT ?",
            (content, _MOST_FILES),
        ).fetchall()
    is_there = False  # of contents with an error nothing is handed out: they are no photographs
    for root, path, size, mtime_ns, digest, format_ in rows:
        try:
            descriptor = open_beneath(root, path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError):
            is_there = True  # a link, or it cannot be read
            continue
        try:
            state = os.fstat(descriptor)
            if _is_as_indexed(descriptor, state, size, mtime_ns, digest):
                name = path.rpartition(b"/")[2]
                photo = PhotoFile(descriptor, size, digest, format_, name, state)
                descriptor = -1
                return photo
            is_there = True
        finally:
            if descriptor >= 0:
                os.close(descriptor)
    if is_there:
        raise ChangedPhotoError(
            f"photograph {content} is not as it was indexed, or cannot be read: run `pocketclip "
            "index`, and search again"
        )
    raise _unknown()


def _unknown() -> UnknownPhotoError:
    return UnknownPhotoError(
        "there is no photograph with this id, or its file is not there now: search again"
    )


def _is_as_indexed(
    descriptor: int, before: os.stat_result, size: int, mtime_ns: int, digest: bytes
) -> bool:
    if not stat.S_ISREG(before.st_mode) or not is_current(before, size, mtime_ns):
        return False
    if mtime_ns != READ_AGAIN:
        return True
    # It was written just before it was indexed, so its time tells nothing.
    try:
        return _digest(descriptor) == digest and _same(before, os.fstat(descriptor))
    except OSError:
        return False


def _digest(descriptor: int) -> bytes:
    hashed, offset = hashlib.blake2b(digest_size=32), 0
    while chunk := os.pread(descriptor, _CHUNK, offset):
        hashed.update(chunk)
        offset += len(chunk)
    return hashed.digest()


def _same(before: os.stat_result, after: os.stat_result) -> bool:
    return (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)


def open_beneath(root: bytes, path: bytes) -> int:
    """Return a descriptor of a regular file below a folder, opened for reading.

    Args:
        root: an absolute path; links in it are the user's own, and followed.
        path: relative, with slashes; no part of it may be a link, empty, `.` or `..`.

    Raises:
        OSError: a part is not there (ENOENT, ENOTDIR), or a link (ELOOP, ENOTDIR), or it cannot be
            read.
        ValueError: the path is not one of a file below a folder, or the file is not regular.
    """
    *folders, name = path.split(b"/")
    if any(part in (b"", b".", b"..") or b"\0" in part for part in (*folders, name)):
        raise ValueError("no path below a folder")
    with contextlib.ExitStack() as stack:
        parent = stack.enter_context(_opened(root, _FOLDER))
        for folder in folders:
            parent = stack.enter_context(_opened(folder, _FOLDER | os.O_NOFOLLOW, parent))
        descriptor = os.open(name, _FILE, dir_fd=parent)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a regular file")
        os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def _opened(path: bytes, flags: int, parent: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, flags, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
