"""Locks on files, which the system releases when their process ends, however it ends.

    with locks.claim(folder, "a training"):
        ...  # nobody else trains into this folder

A lock is a property of the open file (`flock`), not of what the file says: process numbers repeat,
and in containers every process is number 1. Windows and some network file systems have no such
locks. Nothing is refused there, and nothing that a killed process left is removed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from pocketclip.errors import PocketclipError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""The file in a claimed folder; it is removed when the folder is released."""
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
        create: make it where it is missing.
        wait: until no other process holds the lock.

    Returns:
        What `release` takes, a file descriptor; or None if another process holds the lock.

    Raises:
        FileNotFoundError: there is no such file, and `create` is false.
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
        except BaseException:  # interrupted while it waited
            os.close(descriptor)
            raise
        if current:
            _held.add(descriptor)
            return descriptor
        os.close(descriptor)  # the file was removed by whoever held it before


def release(descriptor: int) -> None:
    """Release a lock; one that a forked process inherited is not its to release."""
    if descriptor in _held:
        _held.discard(descriptor)
        os.close(descriptor)


def sign(descriptor: int) -> None:
    """Write into a locked file who holds it; people read it, and nothing depends on it."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    text = f"{host()}\nprocess {os.getpid()}, since {since} UTC\n"
    with contextlib.suppress(OSError):  # a full disk
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode("utf-8", "replace"), 0)


def signature(path: Path) -> tuple[str, str]:
    """Return machine and process that `sign` wrote, as far as they can be read."""
    try:
        with path.open("rb") as stream:
            text = stream.read(500).decode("utf-8", "replace")
    except OSError:
        return "", ""
    lines = ["".join(c if c.isprintable() else "?" for c in line) for line in text.split("\n")]
    return lines[0], lines[1] if len(lines) > 1 else ""


@contextlib.contextmanager
def claim(folder: Path, what: str) -> Iterator[None]:
    """Hold `folder`, so that no other process can claim it; it is made where it is missing.

    Args:
        folder: a local folder.
        what: what is done there, for the message: "a training".

    Raises:
        PocketclipError: another process has claimed it; the message names that process.
        OSError: the folder cannot be made.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    try:
        held = acquire(path, create=True)
    except OSError as error:
        why = error.strerror or error
        log.warning("%s cannot be locked (%s): start nothing else there meanwhile", folder, why)
        yield
        return
    if held is None:
        machine, process = signature(path)
        who = f" ({process}, on {machine})" if process else ""
        raise PocketclipError(
            f"{folder}: {what} is at work there{who}; wait until it has ended, or choose another "
            "folder"
        )
    try:
        sign(held)
        yield
    finally:
        _give_up(path, held, folder if made else None)


def _give_up(path: Path, held: int, folder: Path | None) -> None:
    if held not in _held:
        return  # a forked process
    with contextlib.suppress(OSError):
        path.unlink()
        if folder is not None:
            folder.rmdir()  # if nothing was written
    release(held)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _forget() -> None:
    # A forked process has copies of the descriptors, and would keep the locks after its parent.
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
