"""Local copies of an object store's shards; the least recently used ones are removed.

A copy is identified by the shard's path and its content: the hash in the set's index, or the
store's version of the object. A lock file beside each copy records its verification and last use.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

from pocketclip import storage
from pocketclip.errors import DataError, StorageError
from pocketclip.formats.json_text import read_json
from pocketclip.storage import locks
from pocketclip.storage.local import digest_file, remove_abandoned, write_whole
from pocketclip.storage.user_cache import user_cache

CACHE_BYTES = 50 << 30
"""Approximate size of all copies together, in bytes: 50 GiB."""


class ShardCache:
    """A folder of fetched shards, shared by any number of processes on this machine.

    Args:
        folder: None: `shards` in the user's cache, see `pocketclip.storage.user_cache`.
        max_bytes: size of all copies to keep.

    Raises:
        StorageError: `folder` is None and the user has no home directory.
    """

    def __init__(self, folder: str | None, *, max_bytes: int = CACHE_BYTES) -> None:
        shared = Path(folder) if folder else user_cache("shards")
        if shared is None:
            raise StorageError(
                "there is no home directory for copies of shards: set data.cache_dir"
            )
        self.folder = shared
        self.max_bytes = max_bytes

    def local(self, path: str, size: int, *, sha256: str = "", version: str | None = None) -> Path:
        """Return the local file of a shard; a remote one is fetched if its copy is not intact.

        Args:
            path: the shard, local or remote.
            size: its size in bytes.
            sha256: the hash of its content from the set's index, to verify what is fetched; empty
                if not known.
            version: the store's version of it (`storage.version`), if there is no hash.

        Raises:
            DataError: the shard differs from the index, or was replaced during the run.
            StorageError: it cannot be fetched, or the disk is full.
        """
        if not storage.is_remote(path):
            return Path(path[7:] if path[:7].lower() == "file://" else path)
        key = f"{path} {size} {sha256 or version or ''}"
        target = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.tar"
        note = target.with_suffix(".lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            note.touch()  # if the file system has no locks
            with locks.exclusive(note):
                if not _is_whole(target, size, sha256):
                    note.write_text("", "utf-8")
                    self._make_room(size)
                    _fetch(path, target, size)
                    _check(path, target, sha256, version)
                os.utime(note)  # its last use
        except OSError as error:
            raise StorageError(
                f"{target} cannot be written ({error.strerror or error}); free some space, or set "
                "data.cache_dir to another folder"
            ) from error
        return target

    def _make_room(self, size: int) -> None:
        remove_abandoned(self.folder)
        copies = []
        for file in self.folder.glob("*.tar"):
            with contextlib.suppress(OSError):  # another process may just have removed it
                copies.append((_last_used(file), file.stat().st_size, file))
        total = size + sum(bytes_ for _, bytes_, _ in copies)
        for _, bytes_, file in sorted(copies):
            if total <= self.max_bytes:
                return
            with contextlib.suppress(OSError):
                lock = locks.acquire(file.with_suffix(".lock"), create=True)
                if lock is None:
                    continue  # another process is fetching it
                try:
                    file.unlink()  # processes that map it keep its pages
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
            raise StorageError(f"{path}: received {out.tell()} of {size} bytes; try again")


def _check(path: str, target: Path, sha256: str, version: str | None) -> None:
    """Verify a shard that was just fetched, and record that."""
    actual = digest_file(target)
    replaced = version is not None and storage.version(path) != version
    if (sha256 and actual != sha256) or replaced:
        target.unlink()
        why = (
            "was replaced during the run"
            if replaced
            else "differs from its index (its hash differs)"
        )
        raise DataError(f"{path} {why}; start again, or run `pocketclip audit` on the folder")
    _record(target, actual)


def _record(target: Path, sha256: str) -> None:
    facts = {"sha256": sha256, "file": _state(target)}
    target.with_suffix(".lock").write_text(json.dumps(facts) + "\n", "utf-8")


def _state(target: Path) -> list[int]:
    """Return size, time of change and inode, one of which changes when the file does."""
    about = target.stat()
    return [about.st_size, about.st_mtime_ns, about.st_ino]


def _is_whole(target: Path, size: int, sha256: str) -> bool:
    """Return whether the copy is intact; it is hashed only if size, time or inode changed."""
    try:
        record = read_json(target.with_suffix(".lock"))
        known, state = str(record["sha256"]), record["file"]
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
            _record(target, known)
    except FileNotFoundError:
        return False
    return True
