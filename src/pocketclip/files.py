"""Files are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

_HOST = re.sub(r"[^A-Za-z0-9-]", "-", platform.node()) or "host"


@contextlib.contextmanager
def write_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it.

    The target is never seen half-written: if the block raises (or the process is interrupted),
    the temporary file is removed and whatever stood at `path` before is untouched.

    Raises:
        OSError: the folder does not exist, or the disk is full.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{_HOST}-{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out, before any work, whether `write_whole(path)` will be able to write.

    What stands at `path` stays as it is.

    Raises:
        OSError: it will not; the error names `path`. There is no such folder, `path` is a folder
            itself, or the place is read-only.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    probe = target.with_name(f".{secrets.token_hex(8)}.tmp")
    with contextlib.suppress(FileNotFoundError):
        os.lstat(target)  # fails if the name is too long, or a parent is a file
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        probe.unlink()
    except OSError as error:
        error.filename = str(target)
        raise


def digest(path: Path) -> str:
    """Return the SHA-256 of a file.

    In one call on the mapped file: read in pieces, a thread that hashes would wait for the
    interpreter's lock after each.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as handle:
        if not os.fstat(handle.fileno()).st_size:
            return hashlib.sha256().hexdigest()  # nothing cannot be mapped
        with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return hashlib.sha256(mapped).hexdigest()


def remove_abandoned(folder: str | os.PathLike[str]) -> None:
    """Remove the temporary files in `folder` whose process was killed before it could.

    Only those of this machine: nobody knows here whether a process of another one lives.
    """
    for path in Path(folder).glob(".*.tmp"):
        parts = path.name.split(".")
        host, _, pid = parts[-3].rpartition("-") if len(parts) >= 5 else ("", "", "")
        if host == _HOST and pid.isdecimal() and path.is_file() and not is_alive(int(pid)):
            path.unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Return whether this machine has a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _sync_folder(folder: Path) -> None:
    # Without this the rename itself may be lost in a power failure. Windows cannot open folders.
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def write_whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes `path`'s place.

    An older folder at `path` is replaced only once the new one is complete; missing parents are
    made.

    Raises:
        OSError: the place cannot be written to, or the disk is full.
    """
    target = Path(path).resolve()  # where a link leads; a link itself would be replaced
    target.parent.mkdir(parents=True, exist_ok=True)
    unique = f"{os.getpid()}.{secrets.token_hex(4)}"
    temporary = target.with_name(f".{target.name}.{unique}.tmp")
    old = target.with_name(f".{target.name}.{unique}.old")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
        if target.exists():
            target.replace(old)
        try:
            temporary.replace(target)
        except BaseException:
            if old.exists():
                old.replace(target)
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    _sync_folder(target.parent)
