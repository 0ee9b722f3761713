"""The one process that writes to a library: a lock of the operating system, free when it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pocketclip.errors import LibraryError
from pocketclip.search.store.location import Location
from pocketclip.storage import locks
from pocketclip.storage.private import private_file


@contextlib.contextmanager
def hold(location: Location) -> Iterator[int]:
    """Be the one process that may write to a library.

    Raises:
        LibraryError: another process writes, which the message names; or there are no locks.
    """
    lock = acquire(location)
    if lock is None:
        machine, process = locks.signature(location.lock)
        who = f" ({process}, on {machine})" if process else ""
        raise LibraryError(
            f"another process writes to the library {location.name}{who}: wait until it ends; "
            "searching works meanwhile"
        )
    try:
        locks.sign(lock)
        _refuse_second_name(location)
        yield lock
    finally:
        locks.release(lock)


def acquire(location: Location) -> int | None:
    """Return the lock of the one writer, for `locks.release`; None if another process has it.

    Raises:
        LibraryError: there are no locks, or the lock's file cannot be opened.
    """
    try:
        private_file(location.lock)
        return locks.acquire(location.lock, create=True)
    except locks.NoLocksError as error:
        raise LibraryError(
            f"{location.lock} cannot be locked ({error.strerror or error}): choose another place "
            "with --library PATH.sqlite"
        ) from error
    except OSError as error:
        raise LibraryError(
            f"{location.lock} cannot be opened ({error.strerror or error}), so nothing can be "
            "changed: see who may write to it and to its folder"
        ) from error


def _refuse_second_name(location: Location) -> None:
    """Refuse to change a file that has a second name, with a lock and a log of its own."""
    with contextlib.suppress(OSError):
        if location.file.stat().st_nlink > 1:
            raise LibraryError(
                f"{location.file} has a second name (a hard link), under which it could be written "
                "to at the same time: make a copy of its own (`cp`), and use that"
            )
