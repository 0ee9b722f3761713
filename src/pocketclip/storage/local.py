"""Files and folders are written whole or not at all.

What is being written lies in a temporary folder beside its place, and is moved there when it is
complete (see `pocketclip.storage.temporary`). A folder that is replaced changes places with its
successor in one step; where the system cannot do that, it is called `.NAME.KERNEL-RANDOM.old` for a
moment.
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

from pocketclip.errors import PocketclipError
from pocketclip.storage.exchange import exchange
from pocketclip.storage.temporary import UNIQUE, TemporaryFolder, is_own_folder, stem_of, unique
from pocketclip.storage.temporary import remove_abandoned as remove_abandoned

OwnFiles = Callable[[Path], Collection[str]]
"""Returns the files of a folder that may be replaced, relative and with slashes."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def write_whole(path: str | os.PathLike[str], *, tidy: bool = True) -> Iterator[Path]:
    """Yield a temporary path; on success flush it to disk and rename it to `path`.

    A link is followed: the file it leads to is replaced, and the link stays. The target is never
    seen half-written: if the block raises (or the process is interrupted), the temporary file is
    removed and whatever stood at `path` before is untouched. Errors that would name the temporary
    path name `path`.

    Args:
        path: the file.
        tidy: remove what killed processes left of the same file. It takes a look at the whole
            folder: whoever writes many files into one calls `remove_abandoned` once.

    Raises:
        OSError: the folder does not exist, the disk is full, or `path` is a device or pipe.
    """
    target = _target_of(Path(path))
    if tidy:
        remove_abandoned(target.parent, target.name)
    with _named(target), _beside(target) as temporary:
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)


@contextlib.contextmanager
def write_whole_folder(
    path: str | os.PathLike[str], own_files: OwnFiles | None = None
) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes `path`'s place.

    An older folder at `path` is replaced only once the new one is complete, and only if it holds
    nothing but what may be replaced. Where the system can exchange two folders at once, there is
    a whole folder at `path` at every moment; elsewhere, `recover` puts the older one back if the
    process is killed between two steps. Missing parents are made.

    Args:
        path: the folder.
        own_files: says which files of an older folder may be replaced; None: those that the new
            one has as well.

    Raises:
        PocketclipError: there are other files in `path`.
        OSError: the place cannot be written to, or the disk is full; the error names `path`.
    """
    target = Path(path).resolve()  # where a link leads; a link itself would be replaced
    target.parent.mkdir(parents=True, exist_ok=True)
    if own_files is not None:
        refuse_others(target, own_files)
    else:
        tidy_folder(target)
    with _named(target), _beside(target) as temporary:
        temporary.mkdir()
        yield temporary
        _sync_tree(temporary)
        # Once more: something may have come during the work.
        refuse_others(target, own_files or (lambda _: files_in(temporary)))
        _move_to(temporary, target)
        _sync_folder(target.parent)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out, before any work, whether `write_whole(path)` will be able to write.

    What stands at `path` stays as it is.

    Raises:
        OSError: it will not; the error names `path`. There is no such folder, `path` is a folder
            itself, or the place is read-only.
    """
    target = _target_of(Path(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    with _named(target):
        with contextlib.suppress(FileNotFoundError):
            os.lstat(target)  # fails if the name is too long, or a parent is a file
        TemporaryFolder.beside(target).remove()


def _target_of(path: Path) -> Path:
    """Return the file that is replaced: `path`, or what it leads to if it is a link.

    Raises:
        OSError: it is a device, pipe or socket, which would be lost.
    """
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "a device or pipe is not replaced by a file", str(path))
    return path


def other_entries(folder: Path, own: Collection[str]) -> list[str]:
    """Return what is in a folder, at any depth, that is not one of the files `own`.

    Args:
        folder: the folder; one that does not exist holds nothing.
        own: files, relative and with slashes.

    Returns:
        Relative paths; of a folder that holds none of `own`, its own path alone.
    """
    parents = {parent.as_posix() for name in own for parent in Path(name).parents}
    found = []
    for base, folders, names in os.walk(folder):
        for names_of_kind, allowed in ((folders, parents), (names, own)):
            for name in sorted(names_of_kind):
                path = Path(base, name)
                relative = path.relative_to(folder).as_posix()
                # A link to a folder is no folder of ours.
                if relative not in allowed or (allowed is parents and path.is_symlink()):
                    found.append(relative)
                    if allowed is parents:
                        folders.remove(name)
    return found


def refuse_others(
    folder: Path, own_files: OwnFiles, error: type[PocketclipError] = PocketclipError
) -> None:
    """Refuse to replace a folder that holds anything but its own files.

    Args:
        folder: the folder; one that does not exist, or is empty, may be replaced.
        own_files: says which files of it may be replaced.
        error: the class to raise.

    Raises:
        PocketclipError: it holds something else, is a file, the current folder, or a mount point.
    """
    tidy_folder(folder)
    if os.path.lexists(folder) and not folder.is_dir():
        raise error(f"{folder} is a file, not a folder; choose another place")
    if os.path.ismount(folder):
        raise error(f"{folder} is a mount point, which cannot be replaced; name a folder in it")
    with contextlib.suppress(FileNotFoundError):  # the current folder was removed
        if folder.resolve() == Path.cwd():
            raise error(f"{folder} is the current folder, which would be replaced; name another")
    others = other_entries(folder, own_files(folder))
    if others:
        raise error(
            f"{folder} holds other files ({others[0]!r}), which would be lost; choose an empty or "
            "new folder"
        )


def tidy_folder(folder: Path) -> None:
    """Remove what killed processes left beside a folder and in it, or put it back from there."""
    remove_abandoned(folder.parent, folder.name)
    recover(folder)
    remove_abandoned(folder)


def digest_file(path: Path) -> str:
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


def recover(path: str | os.PathLike[str]) -> None:
    """Put a folder back that a process had moved aside when it was killed.

    Whoever reads a folder that `write_whole_folder` writes calls this first. It does nothing if
    there is anything at `path`.
    """
    # No such folder, nothing may be changed, or (until Python 3.13) links in a circle.
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        if Path(path).exists():
            return
        target = Path(path).resolve()  # where a link leads
        former = re.compile(
            re.escape(f".{stem_of(target.name)}.")
            + rf"(?:{UNIQUE}|\d+\.[0-9a-f]+)\.old"  # the second is of older versions
        )
        found = [
            Path(entry.path)
            for entry in os.scandir(target.parent)
            if former.fullmatch(entry.name) and is_own_folder(entry)
        ]
        if found:
            max(found, key=lambda p: p.stat().st_ctime_ns).rename(target)
            log.warning("%s was put back: a process was killed while it replaced it", target)


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder beside `target`, which is removed at the end."""
    folder = TemporaryFolder.beside(target)
    try:
        yield folder.path / target.name
    finally:
        folder.remove()


@contextlib.contextmanager
def _named(target: Path) -> Iterator[None]:
    """Let errors name `target` where they would name a temporary path beside it."""
    temporary = re.compile(
        re.escape(str(target.parent / f".{stem_of(target.name)}."))
        + rf"{UNIQUE}\.tmp(?:[/\\](?:lock\b|{re.escape(target.name)}))?"
    )

    def told(text: object) -> object:
        return temporary.sub(lambda _: str(target), text) if isinstance(text, str) else text

    try:
        yield
    except Exception as error:
        error.args = tuple(map(told, error.args))  # other libraries put it into their text
        if isinstance(error, OSError) and error.filename is not None:
            error.filename = told(os.fspath(error.filename))
            if error.filename == error.filename2:
                del error.filename2
        raise


def files_in(folder: Path) -> set[str]:
    """Return all files in a folder, at any depth: relative, with slashes."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}


def _move_to(new: Path, target: Path) -> None:
    """Move the folder `new` to `target`; what was there is in `new`, or gone."""
    if os.path.lexists(target) and exchange(new, target):
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
                # A reader put the old one back, or another writer was faster.
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
