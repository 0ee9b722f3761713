"""File locks, which the system releases when their process ends for any reason.

    with locks.claim(folder, "a training"):
        ...  # no other process trains into this folder

A lock belongs to the open file (`flock`), not to its content: process numbers repeat, and in
containers every process is number 1. Windows and some network file systems have no such locks.
There nothing is refused, and files left by killed processes are not removed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pocketclip.errors import PocketclipError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""Name of the lock file in a claimed folder; it is removed when the folder is released."""
_held: set[int] = set()
log = logging.getLogger(__name__)


def host() -> str:
    """Return the name of this machine, or of this container."""
    return platform.node() or "unknown"


class NoLocksError(OSError):
    """The system or the file system has no locks."""


def acquire(path: Path, *, create: bool = False, wait: bool = False) -> int | None:
    """Lock a file.

    Args:
        path: the file.
        create: create the file if it is missing.
        wait: wait until no other process holds the lock.

    Returns:
        A file descriptor for `release`, or None if another process holds the lock.

    Raises:
        FileNotFoundError: the file does not exist and `create` is false.
        NoLocksError: the system or the file system has no locks.
        OSError: the file cannot be opened.
    """
    if fcntl is None:
        raise NoLocksError("this system has no file locks")
    while True:
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            current = _is_at(descriptor, path)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            raise NoLocksError(error.errno, error.strerror, str(path)) from error
        except BaseException:  # interrupted while waiting
            os.close(descriptor)
            raise
        if current:
            _held.add(descriptor)
            return descriptor
        os.close(descriptor)  # the previous holder removed the file


def is_held(path: Path) -> bool | None:
    """Return whether somebody holds a file's lock; None where the system has no locks.

    Who tries to acquire it in this very moment finds it held: ask only of a lock that its owner
    waits for, or whose failure does no harm.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def release(descriptor: int) -> None:
    """Release a lock; does nothing for a lock that a forked process inherited."""
    if descriptor in _held:
        _held.discard(descriptor)
        os.close(descriptor)


def sign(descriptor: int) -> None:
    """Write the holder into a locked file, for people to read; nothing depends on it."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    text = f"{host()}\nprocess {os.getpid()}, since {since} UTC\n"
    with contextlib.suppress(OSError):  # a full disk
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode("utf-8", "replace"), 0)


def signature(path: Path) -> tuple[str, str]:
    """Return the machine and process that `sign` wrote; empty texts if they cannot be read."""
    try:
        with path.open("rb") as stream:
            text = stream.read(500).decode("utf-8", "replace")
    except OSError:
        return "", ""
    lines = ["".join(c if c.isprintable() else "?" for c in line) for line in text.split("\n")]
    return lines[0], lines[1] if len(lines) > 1 else ""


@contextlib.contextmanager
def exclusive(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Let only one process at a time run the block, if the file system has locks.

    Without locks every process runs it, and nothing tells them apart.

    Args:
        path: the file to lock, which is created if it is missing, and stays.
        on_wait: called once if another process runs the block, before waiting for it.

    Raises:
        OSError: the file cannot be opened.
    """
    try:
        lock = acquire(path, create=True)
        if lock is None:
            if on_wait is not None:
                on_wait()
            lock = acquire(path, create=True, wait=True)
    except NoLocksError:
        lock = None
    try:
        yield
    finally:
        if lock is not None:
            release(lock)


@contextlib.contextmanager
def claim(folder: Path, what: str) -> Iterator[None]:
    """Hold `folder` so that no other process can claim it; a missing folder is created.

    Args:
        folder: a local folder.
        what: the activity, for the message: "a training".

    Raises:
        PocketclipError: another process has claimed it; the message names that process.
        OSError: the folder cannot be created.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    try:
        descriptor = acquire(path, create=True)
    except OSError as error:
        why = error.strerror or error
        log.warning("%s cannot be locked (%s): do not start a second command there", folder, why)
        yield
        return
    if descriptor is None:
        machine, process = signature(path)
        who = f" ({process}, on {machine})" if process else ""
        raise PocketclipError(
            f"{folder}: {what} is running there{who}; wait until it ends, or choose another folder"
        )
    try:
        sign(descriptor)
        yield
    finally:
        _give_up(path, descriptor, folder if is_new else None)


def _give_up(path: Path, descriptor: int, folder: Path | None) -> None:
    if descriptor not in _held:
        return  # a forked process
    with contextlib.suppress(OSError):
        path.unlink()
        if folder is not None:
            folder.rmdir()  # if nothing was written
    release(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _forget() -> None:
    # A forked process inherits the descriptors and would hold the locks longer than its parent.
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
