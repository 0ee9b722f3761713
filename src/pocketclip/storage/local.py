"""Writes local files and folders whole or not at all.

They are written in a temporary folder next to the target and moved to it when complete (see
`pocketclip.storage.temporary`). A folder is replaced by exchanging it with the new one in a single
step; if the system cannot do that, the old one is briefly renamed to `.NAME.KERNEL-RANDOM.old`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import mmap
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from pocketclip.errors import NO_ROOM, PocketclipError
from pocketclip.storage.atomic_swap import atomic_swap
from pocketclip.storage.temporary import UNIQUE, TemporaryFolder, is_own_folder, stem_of, unique
from pocketclip.storage.temporary import remove_abandoned as remove_abandoned

OwnFiles = Callable[[Path], Collection[str]]
"""Returns the files of a folder that may be replaced, as relative paths with slashes."""

FileStamp = tuple[int, int, int]
"""What `file_stamp` returns."""

log = logging.getLogger(__name__)


def file_stamp(about: os.stat_result) -> FileStamp:
    """Return what is another one when a file is replaced or rewritten: inode, size and time."""
    return about.st_ino, about.st_size, about.st_mtime_ns


@contextlib.contextmanager
def write_whole(path: str | os.PathLike[str], *, tidy: bool = True) -> Iterator[Path]:
    """Yield a temporary path; on success flush it to disk and rename it to `path`.

    A link is followed: its target is replaced and the link stays. The target is never half-written:
    if the block raises or the process is interrupted, the temporary file is removed and an older
    file at `path` remains. Errors name `path` instead of the temporary path.

    Args:
        path: the file.
        tidy: remove temporary files that killed processes left of the same file. This scans the
            whole folder: to write many files into one folder, call `remove_abandoned` once.

    Raises:
        OSError: the folder does not exist, the disk is full, or `path` is a device or pipe.
    """
    target = _target_of(Path(path))
    if tidy:
        remove_abandoned(target.parent, target.name)
    with _naming(target), _temporary_path(target) as temporary:
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)


@contextlib.contextmanager
def write_whole_folder(
    path: str | os.PathLike[str], own_files: OwnFiles | None = None
) -> Iterator[Path]:
    """Yield a temporary folder next to `path`; on success it replaces `path`.

    An older folder at `path` is replaced when the new one is complete, and only if all its files
    may be replaced. If the system can exchange two folders, a complete folder is at `path` at
    every moment; otherwise `recover` restores the older one if the process is killed between two
    steps. Missing parents are created.

    Args:
        path: the folder.
        own_files: returns the files of an older folder that may be replaced; by default those that
            the new folder has too.

    Raises:
        PocketclipError: `path` holds other files.
        OSError: the folder is not writable, or the disk is full; the error names `path`.
    """
    target = Path(path).resolve()  # follows a link, which would be replaced itself otherwise
    target.parent.mkdir(parents=True, exist_ok=True)
    if own_files is not None:
        refuse_others(target, own_files)
    else:
        tidy_folder(target)
    with _naming(target), _temporary_path(target) as temporary:
        temporary.mkdir()
        yield temporary
        _sync_tree(temporary)
        # Checked again: files may have been added meanwhile.
        refuse_others(target, own_files or (lambda _: files_in(temporary)))
        _move_to(temporary, target)
        _sync_folder(target.parent)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Check before any work that `write_whole(path)` can write; `path` is not changed.

    Raises:
        OSError: the folder of `path` does not exist or is not writable, or `path` is a folder
            itself; the error names `path`.
    """
    target = _target_of(Path(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    with _naming(target):
        with contextlib.suppress(FileNotFoundError):
            os.lstat(target)  # fails if the name is too long, or a parent is a file
        TemporaryFolder.beside(target).remove()


def _target_of(path: Path) -> Path:
    """Return the file to replace: `path`, or its target if it is a link.

    Raises:
        OSError: the file is a device, pipe or socket, which would be lost.
    """
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(
            errno.EINVAL, "this is a device or pipe, which is not replaced by a file", str(path)
        )
    return path


def other_entries(folder: Path, own: Collection[str]) -> list[str]:
    """Return the entries of a folder, at any depth, that are not among the files `own`.

    Args:
        folder: the folder; it need not exist.
        own: relative paths of files, with slashes.

    Returns:
        Relative paths; for a subfolder with none of `own`, only the path of the subfolder.
    """
    parents = {parent.as_posix() for name in own for parent in Path(name).parents}
    others = []
    for base, folders, names in os.walk(folder):
        for names_of_kind, allowed in ((folders, parents), (names, own)):
            for name in sorted(names_of_kind):
                path = Path(base, name)
                relative = path.relative_to(folder).as_posix()
                # A link to a folder is not one of our folders.
                if relative not in allowed or (allowed is parents and path.is_symlink()):
                    others.append(relative)
                    if allowed is parents:
                        folders.remove(name)
    return others


def refuse_others(
    folder: Path, own_files: OwnFiles, error: type[PocketclipError] = PocketclipError
) -> None:
    """Refuse to replace a folder that holds other files than those that may be replaced.

    Args:
        folder: the folder; it may be replaced if it is empty or does not exist.
        own_files: returns the files in it that may be replaced.
        error: the class to raise.

    Raises:
        PocketclipError: it holds other files, or is a file, the current folder or a mount point.
    """
    tidy_folder(folder)
    if os.path.lexists(folder) and not folder.is_dir():
        raise error(f"{folder} is a file, not a folder; choose another path")
    if os.path.ismount(folder):
        raise error(f"{folder} is a mount point, which cannot be replaced; choose a folder in it")
    with contextlib.suppress(FileNotFoundError):  # the current folder was removed
        if folder.resolve() == Path.cwd():
            raise error(f"{folder} is the current folder, which would be replaced; choose another")
    others = other_entries(folder, own_files(folder))
    if others:
        raise error(
            f"{folder} holds other files ({others[0]!r}), which would be lost; choose an empty or "
            "new folder"
        )


def tidy_folder(folder: Path) -> None:
    """Clean up after killed processes: remove temporary files, restore a moved folder."""
    remove_abandoned(folder.parent, folder.name)
    recover(folder)
    remove_abandoned(folder)


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file.

    The file is mapped and hashed in one call: with chunks, a thread would wait for the
    interpreter's lock after each.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as handle:
        if not os.fstat(handle.fileno()).st_size:
            return hashlib.sha256().hexdigest()  # an empty file cannot be mapped
        with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return hashlib.sha256(mapped).hexdigest()


def recover(path: str | os.PathLike[str]) -> None:
    """Restore a folder that a killed process had moved aside.

    Call this before reading a folder that `write_whole_folder` writes. It does nothing if `path`
    exists.
    """
    # The parent is missing or read-only, or (until Python 3.13) links form a circle.
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        if Path(path).exists():
            return
        target = Path(path).resolve()  # follows links
        former = re.compile(
            re.escape(f".{stem_of(target.name)}.")
            + rf"(?:{UNIQUE}|\d+\.[0-9a-f]+)\.old"  # the second form is of older versions
        )
        candidates = [
            Path(entry.path)
            for entry in os.scandir(target.parent)
            if former.fullmatch(entry.name) and is_own_folder(entry)
        ]
        if candidates:
            max(candidates, key=lambda p: p.stat().st_ctime_ns).rename(target)
            log.warning("%s was restored: a process was killed while replacing it", target)


@contextlib.contextmanager
def _temporary_path(target: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder next to `target`; the folder is removed at the end."""
    folder = TemporaryFolder.beside(target)
    try:
        yield folder.path / target.name
    finally:
        folder.remove()


@contextlib.contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Make errors name `target` instead of its temporary path."""
    temporary = re.compile(
        re.escape(str(target.parent / f".{stem_of(target.name)}."))
        + rf"{UNIQUE}\.tmp(?:[/\\](?:lock\b|{re.escape(target.name)}))?"
    )

    def renamed(text: object) -> object:
        return temporary.sub(lambda _: str(target), text) if isinstance(text, str) else text

    try:
        yield
    except Exception as error:
        error.args = tuple(map(renamed, error.args))  # libraries mention the path in messages
        if not isinstance(error, OSError):
            raise
        if error.filename is None and error.errno in NO_ROOM:
            error.filename = str(target)  # a write to an open file knows no path
        elif error.filename is not None:
            error.filename = renamed(os.fspath(error.filename))
            if error.filename == error.filename2:
                del error.filename2
        raise


def files_in(folder: Path) -> set[str]:
    """Return the relative paths, with slashes, of all files in a folder at any depth."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}


def _move_to(new: Path, target: Path) -> None:
    """Move the folder `new` to `target`; an older `target` ends up at `new` or is removed."""
    if os.path.lexists(target) and atomic_swap(new, target):
        return
    aside = []
    try:
        for _ in range(100):
            old = target.with_name(f".{stem_of(target.name)}.{unique()}.old")
            with contextlib.suppress(FileNotFoundError):
                target.rename(old)
                aside.append(old)
            try:
                new.rename(target)
                break
            except OSError as error:
                # A reader restored the old one, or another writer was faster.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        else:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(target))
    except BaseException:
        recover(target)
        raise
    for old in aside:
        shutil.rmtree(old, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            _sync_folder(path)
        elif path.is_file() and not path.is_symlink():
            with path.open("rb+") as handle:
                os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    # Without this the rename itself may be lost in a power failure. Windows cannot open folders.
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
