"""Shards of object stores on the local disk: whole files, the least recently used ones removed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pocketclip import storage
from pocketclip.errors import StorageError
from pocketclip.files import write_whole

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

    def local(self, path: str, size: int) -> Path:
        """Return the local file of a shard of `size` bytes, fetched if it is remote and not here.

        Raises:
            StorageError: it cannot be fetched, or there is no room for it.
        """
        if not storage.is_remote(path):
            return Path(path[7:] if path[:7].lower() == "file://" else path)
        name = hashlib.sha256(f"{path} {size}".encode()).hexdigest()[:32]
        target = self.folder / f"{name}.tar"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _alone(target.with_suffix(".lock")):
                if not target.is_file() or target.stat().st_size != size:
                    self._make_room(size)
                    _fetch(path, target, size)
        except OSError as error:
            raise StorageError(
                f"{target}: cannot be written ({error.strerror or error}); free space, or set "
                "data.cache_dir to another folder"
            ) from error
        with contextlib.suppress(OSError):
            os.utime(target)  # the last one used
        return target

    def _make_room(self, size: int) -> None:
        found = []
        for file in self.folder.glob("*.tar"):
            with contextlib.suppress(OSError):  # another process may remove it just now
                about = file.stat()
                found.append((about.st_mtime_ns, about.st_size, file))
        total = size + sum(bytes_ for _, bytes_, _ in found)
        for _, bytes_, file in sorted(found):
            if total <= self.most:
                return
            with contextlib.suppress(OSError):  # who has it mapped keeps its pages
                file.unlink()
                total -= bytes_


def _fetch(path: str, target: Path, size: int) -> None:
    with write_whole(target) as temporary, temporary.open("wb") as out:
        with storage.open_read(path) as stream:
            shutil.copyfileobj(stream, out, 1 << 22)
        if out.tell() != size:
            raise StorageError(f"{path}: {out.tell()} of {size} bytes came; try again")


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time into the block, where the system can."""
    try:
        import fcntl
    except ImportError:  # each fetches the shard then, and the last one wins
        yield
        return
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go when it is closed, or the process dies
        yield
