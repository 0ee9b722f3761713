"""Temporary folders that are told apart: those in use, and those that a killed process left.

    .NAME.KERNEL-RANDOM.tmp/lock          locked while its process lives
                            NAME          what becomes NAME beside the folder
    TMPDIR/pocketclip-PURPOSE.KERNEL-RANDOM.tmp/

KERNEL stands for the running system: containers of one machine have the same, and see each other's
locks, whatever their names and process numbers are.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pocketclip.storage import locks

_LOCK = "lock"
_LONGEST = 180  # bytes of a name that are kept in the temporary one; 255 is the usual limit


def _kernel() -> str:
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8")
    except OSError:
        text = locks.host()
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]


KERNEL = _kernel()
UNIQUE = r"[0-9a-f]{8}-[0-9a-f]{8}"
_OURS = re.compile(r"(\..+|pocketclip-[a-z]+)\.([0-9a-f]{8})-[0-9a-f]{8}\.(tmp|old)", re.DOTALL)
_CUT = re.compile(r"~[0-9a-f]{8}$")


def unique() -> str:
    """Return a part of a name that no other temporary folder has."""
    return f"{KERNEL}-{secrets.token_hex(4)}"


class TemporaryFolder:
    """A temporary folder, locked as long as this process uses it.

    If the process is killed, `remove_abandoned` removes the folder.

    Attributes:
        path: the folder.

    Args:
        parent: where it is made.
        stem: how its name begins.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, parent: Path, stem: str) -> None:
        self._owner = os.getpid()
        self._lock: int | None = None
        for _ in range(100):
            self.path = parent / f"{stem}.{unique()}.tmp"
            self.path.mkdir(mode=0o700)
            try:
                self._lock = locks.acquire(self.path / _LOCK, create=True)
            except FileNotFoundError:  # somebody took the empty folder for an abandoned one
                continue
            except OSError:  # no locks here: nobody can take it for an abandoned one
                return
            if self._lock is not None:
                locks.sign(self._lock)
                return
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(self.path))

    @classmethod
    def beside(cls, target: Path) -> TemporaryFolder:
        """Make one beside `target`, from which a file can be renamed to it."""
        return cls(target.parent, f".{stem_of(target.name)}")

    @classmethod
    def scratch(cls, purpose: str) -> TemporaryFolder:
        """Make one in the system's folder for temporary files (TMPDIR).

        Those of the same user that killed processes left there are removed.
        """
        place = Path(tempfile.gettempdir())
        remove_abandoned(place)
        return cls(place, f"pocketclip-{purpose}")

    def remove(self) -> None:
        """Remove the folder; not in a forked process, to which it does not belong."""
        if os.getpid() != self._owner:
            return
        _remove_locked(self.path)
        if self._lock is not None:
            locks.release(self._lock)
            self._lock = None


@contextlib.contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """Yield a temporary folder, which is removed at the end, or by a later process after a kill.

    Raises:
        OSError: it cannot be made.
    """
    folder = TemporaryFolder.scratch(purpose)
    try:
        yield folder.path
    finally:
        folder.remove()


def remove_abandoned(folder: str | os.PathLike[str], name: str | None = None) -> None:
    """Remove the temporary folders in `folder` whose process was killed before it could.

    What it had moved aside and not replaced is put back. A folder whose lock is held is in use.
    Those of other users and of other machines are left alone, and all of them where the file
    system has no locks.

    Args:
        folder: the folder.
        name: only what was to become this file or folder of it.
    """
    stem = None if name is None else f".{stem_of(name)}"
    used, old = set(), []
    for path, found in _temporaries(Path(folder)):
        if stem is not None and found[1] != stem:
            continue
        if found[3] == "old":
            old.append((path, found[1]))
        elif not _remove_if_abandoned(path, same_kernel=found[2] == KERNEL):
            used.add(found[1])
    for path, owner in old:
        if owner in used:
            continue  # its process may be about to need it
        target = path.parent / (name or owner[1:])
        if os.path.lexists(target):
            shutil.rmtree(path, ignore_errors=True)
        elif not _CUT.search(owner):
            with contextlib.suppress(OSError):  # somebody else was faster
                path.rename(target)


def is_own_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder of this user, and no link."""
    if not entry.is_dir(follow_symlinks=False):
        return False
    return os.name != "posix" or entry.stat(follow_symlinks=False).st_uid == os.geteuid()


def _temporaries(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    out = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _OURS.fullmatch(entry.name)
            if found and is_own_folder(entry):
                out.append((Path(entry.path), found))
    return out


def _remove_if_abandoned(path: Path, *, same_kernel: bool) -> bool:
    """Return whether nobody uses the temporary folder `path`, which then is removed."""
    try:
        lock = locks.acquire(path / _LOCK)
    except FileNotFoundError:
        # Its process was killed between two steps, or is between them now: then it makes another.
        with contextlib.suppress(OSError):
            path.rmdir()
        return not path.exists()
    except OSError:
        return False
    if lock is None:
        return False
    try:
        # A lock that a process on another machine holds may not be seen here. A machine that
        # was started again has another kernel and the same name.
        if not same_kernel and locks.signature(path / _LOCK)[0] != locks.host():
            return False
        _remove_locked(path)
    finally:
        locks.release(lock)
    return True


def _remove_locked(path: Path) -> None:
    """Remove a temporary folder; the lock goes last, so that a kill leaves it for the next."""
    with contextlib.suppress(OSError):
        for entry in list(path.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != _LOCK:
                entry.unlink()
        (path / _LOCK).unlink()
    with contextlib.suppress(OSError):
        path.rmdir()


def stem_of(name: str) -> str:
    """Return `name`, or a shorter one where a temporary name made of it would be too long."""
    if len(os.fsencode(name)) <= _LONGEST:
        return name
    mark = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    while len(os.fsencode(name)) > _LONGEST:
        name = name[:-1]
    return f"{name}~{mark}"
