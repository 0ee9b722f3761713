"""Shards of object stores on the local disk: whole files, the least recently used ones removed.

A file is known by the shard's path and by what tells its content: the hash in the set's index, or
the store's own mark. Beside each stands a lock file, which tells whether the file was verified and
when it was used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pocketclip import storage
from pocketclip.errors import DataError, StorageError
from pocketclip.formats.json_text import read_json
from pocketclip.storage import locks
from pocketclip.storage.local import digest_file, remove_abandoned, write_whole

CACHE_BYTES = 50 << 30
"""The shards of object stores that are kept at a time, about."""


class ShardCache:
    """A folder of fetched shards, shared by any number of processes of this machine.

    Args:
        folder: where; None: `pocketclip/shards` in the user's cache.
        most: bytes of shards to keep.
    """

    def __init__(self, folder: str | None, *, most: int = CACHE_BYTES) -> None:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        self.folder = Path(folder) if folder else Path(base) / "pocketclip" / "shards"
        self.most = most

    def local(self, path: str, size: int, *, sha256: str = "", version: str | None = None) -> Path:
        """Return the local file of a shard, fetched if it is remote and not here, or damaged.

        Args:
            path: the shard.
            size: in bytes.
            sha256: of its content, where the set's index says it: what is fetched is held
                against it.
            version: what `storage.version` says of it, where the index does not.

        Raises:
            DataError: the shard is not the one that the index describes, or was replaced.
            StorageError: it cannot be fetched, or there is no room for it.
        """
        if not storage.is_remote(path):
            return Path(path[7:] if path[:7].lower() == "file://" else path)
        key = f"{path} {size} {sha256 or version or ''}"
        target = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.tar"
        note = target.with_suffix(".lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _alone(note):
                if not _is_whole(target, size, sha256):
                    note.write_text("", "utf-8")
                    self._make_room(size)
                    _fetch(path, target, size)
                    _check(path, target, sha256, version)
                os.utime(note)  # the last one used
        except OSError as error:
            raise StorageError(
                f"{target}: cannot be written ({error.strerror or error}); free space, or set "
                "data.cache_dir to another folder"
            ) from error
        return target

    def _make_room(self, size: int) -> None:
        remove_abandoned(self.folder)
        found = []
        for file in self.folder.glob("*.tar"):
            with contextlib.suppress(OSError):  # another process may remove it just now
                found.append((_last_used(file), file.stat().st_size, file))
        total = size + sum(bytes_ for _, bytes_, _ in found)
        for _, bytes_, file in sorted(found):
            if total <= self.most:
                return
            with contextlib.suppress(OSError):
                lock = locks.acquire(file.with_suffix(".lock"), create=True)
                if lock is None:
                    continue  # it is being fetched
                try:
                    file.unlink()  # who has it mapped keeps its pages
                    total -= bytes_
                    file.with_suffix(".lock").unlink()
                finally:
                    locks.release(lock)


def _last_used(file: Path) -> int:
    note = file.with_suffix(".lock")
    return (note if note.exists() else file).stat().st_mtime_ns


def _fetch(path: str, target: Path, size: int) -> None:
    with write_whole(target, tidy=False) as temporary, temporary.open("wb") as out:
        with storage.open_read(path) as stream:
            shutil.copyfileobj(stream, out, 1 << 22)
        if out.tell() != size:
            raise StorageError(f"{path}: {out.tell()} of {size} bytes came; try again")


def _check(path: str, target: Path, sha256: str, version: str | None) -> None:
    """Verify what was just fetched, and note that it was."""
    found = digest_file(target)
    replaced = version is not None and storage.version(path) != version
    if (sha256 and found != sha256) or replaced:
        target.unlink()
        why = "is not the one that its index describes (its hash differs)"
        raise DataError(
            f"{path} {'was replaced during the run' if replaced else why}; begin again, or run "
            "`pocketclip audit` on the folder"
        )
    _note(target, found)


def _note(target: Path, sha256: str) -> None:
    facts = {"sha256": sha256, "file": _state(target)}
    target.with_suffix(".lock").write_text(json.dumps(facts) + "\n", "utf-8")


def _state(target: Path) -> list[int]:
    """Return what changes when the file does."""
    about = target.stat()
    return [about.st_size, about.st_mtime_ns, about.st_ino]


def _is_whole(target: Path, size: int, sha256: str) -> bool:
    """Return whether the file is here, as it was fetched; it is hashed only if it was touched."""
    try:
        noted = read_json(target.with_suffix(".lock"))
        known, state = str(noted["sha256"]), noted["file"]
    except (OSError, ValueError, KeyError, TypeError):
        known, state = sha256, None
    if not known or (sha256 and known != sha256):
        return False
    try:
        now = _state(target)
        if now[0] != size:
            return False
        if now != state:
            if digest_file(target) != known:
                return False
            _note(target, known)
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time into the block, where the system can."""
    try:
        lock = locks.acquire(path, create=True, wait=True)
    except locks.NoLocksError:  # each fetches the shard then, and the last one wins
        path.touch()
        yield
        return
    assert lock is not None
    try:
        yield
    finally:
        locks.release(lock)
