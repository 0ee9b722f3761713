"""Temporary folders: those in use are distinguished from those that killed processes left.

    .NAME.KERNEL-RANDOM.tmp/lock          locked while its process runs
                            NAME          becomes NAME next to the folder
    TMPDIR/pocketclip-PURPOSE.KERNEL-RANDOM.tmp/

KERNEL identifies the running system. Containers on one machine share it and see each other's locks,
regardless of their names and process numbers.
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
_MAX_STEM_BYTES = 180  # of the name within the temporary name; the usual limit is 255


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
    """Return a unique suffix for the name of a temporary folder."""
    return f"{KERNEL}-{secrets.token_hex(4)}"


class TemporaryFolder:
    """A temporary folder, locked while this process uses it.

    If the process is killed, `remove_abandoned` removes the folder.

    Attributes:
        path: the folder.

    Args:
        parent: the folder to create it in.
        stem: the beginning of its name.

    Raises:
        OSError: it cannot be created.
    """

    def __init__(self, parent: Path, stem: str) -> None:
        self._owner = os.getpid()
        self._lock: int | None = None
        for _ in range(100):
            self.path = parent / f"{stem}.{unique()}.tmp"
            self.path.mkdir(mode=0o700)
            try:
                self._lock = locks.acquire(self.path / _LOCK, create=True)
            except FileNotFoundError:  # another process removed the empty folder as abandoned
                continue
            except OSError:  # without locks, no process removes abandoned folders
                return
            if self._lock is not None:
                locks.sign(self._lock)
                return
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(self.path))

    @classmethod
    def beside(cls, target: Path) -> TemporaryFolder:
        """Create one next to `target`, so that a file in it can be renamed to `target`."""
        return cls(target.parent, f".{stem_of(target.name)}")

    @classmethod
    def scratch(cls, purpose: str) -> TemporaryFolder:
        """Create one in the system's temporary folder (TMPDIR).

        Folders of the same user that killed processes left there are removed.
        """
        parent = Path(tempfile.gettempdir())
        remove_abandoned(parent)
        return cls(parent, f"pocketclip-{purpose}")

    def remove(self) -> None:
        """Remove the folder, unless called in a forked process, which does not own it."""
        if os.getpid() != self._owner:
            return
        _remove_locked(self.path)
        if self._lock is not None:
            locks.release(self._lock)
            self._lock = None


@contextlib.contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """Yield a temporary folder; it is removed at the end, or after a kill by a later process.

    Raises:
        OSError: the folder cannot be created.
    """
    folder = TemporaryFolder.scratch(purpose)
    try:
        yield folder.path
    finally:
        folder.remove()


def remove_abandoned(folder: str | os.PathLike[str], name: str | None = None) -> None:
    """Remove the temporary folders in `folder` that killed processes left.

    Folders that these had moved aside and not replaced are restored. A folder whose lock is held
    is in use. Those of other users and machines are left alone; without file locks, all are.

    Args:
        folder: the folder.
        name: consider only temporary folders for this file or folder.
    """
    stem = None if name is None else f".{stem_of(name)}"
    used, old = set(), []
    for path, match in _temporaries(Path(folder)):
        if stem is not None and match[1] != stem:
            continue
        if match[3] == "old":
            old.append((path, match[1]))
        elif not _remove_if_abandoned(path, same_kernel=match[2] == KERNEL):
            used.add(match[1])
    for path, owner in old:
        if owner in used:
            continue  # its process may need it soon
        target = path.parent / (name or owner[1:])
        if os.path.lexists(target):
            shutil.rmtree(path, ignore_errors=True)
        elif not _CUT.search(owner):
            with contextlib.suppress(OSError):  # another process was faster
                path.rename(target)


def is_own_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder of this user, and not a link."""
    if not entry.is_dir(follow_symlinks=False):
        return False
    return os.name != "posix" or entry.stat(follow_symlinks=False).st_uid == os.geteuid()


def _temporaries(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    out = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _OURS.fullmatch(entry.name)
            if match and is_own_folder(entry):
                out.append((Path(entry.path), match))
    return out


def _remove_if_abandoned(path: Path, *, same_kernel: bool) -> bool:
    """Remove the temporary folder `path` if no process uses it; return whether it was removed."""
    try:
        lock = locks.acquire(path / _LOCK)
    except FileNotFoundError:
        # Its process was killed before locking it, or is about to lock it and will retry.
        with contextlib.suppress(OSError):
            path.rmdir()
        return not path.exists()
    except OSError:
        return False
    if lock is None:
        return False
    try:
        # A lock held on another machine may be invisible here. After a restart, a machine has
        # another kernel id but the same name.
        if not same_kernel and locks.signature(path / _LOCK)[0] != locks.host():
            return False
        _remove_locked(path)
    finally:
        locks.release(lock)
    return True


def _remove_locked(path: Path) -> None:
    """Remove a temporary folder, the lock last, so that after a kill another process can finish."""
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
    """Return `name`, shortened if a temporary name with it would be too long."""
    if len(os.fsencode(name)) <= _MAX_STEM_BYTES:
        return name
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    while len(os.fsencode(name)) > _MAX_STEM_BYTES:
        name = name[:-1]
    return f"{name}~{digest}"
