"""The files of one commit in the Hugging Face hub's cache, as a file system of fsspec."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem


class SnapshotFiles(AbstractFileSystem):  # type: ignore[misc]  # fsspec is not typed
    """Files below a folder, named as `HubFiles` names them.

    Args:
        root: the name of the repository at its commit.
        folder: the snapshot.
    """

    protocol = "hf"
    cachable = False

    def __init__(self, root: str, folder: Path, **options: Any) -> None:
        super().__init__(**options)
        self._root, self._folder = root, folder

    def _local(self, name: str) -> Path:
        inner = self._strip_protocol(name).removeprefix(self._root).strip("/")
        return self._folder / inner if inner else self._folder

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return the facts of a file or folder: name, size, type, etag."""
        name, local = self._strip_protocol(path), self._local(path)
        try:
            about = local.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(errno.ENOENT, "not in the cache", name) from None
        if local.is_dir():
            return {"name": name, "size": 0, "type": "directory"}
        # The cache names contents by their etag; on Windows there may be copies instead of links.
        etag = local.resolve().name if local.is_symlink() else f"{about.st_mtime_ns}"
        return {"name": name, "size": about.st_size, "type": "file", "etag": etag}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """Return the entries of a folder that were downloaded."""
        name, local = self._strip_protocol(path), self._local(path)
        try:
            entries = sorted(os.listdir(local))  # noqa: PTH208 - names only
        except NotADirectoryError:
            found = [self.info(name)]
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "not in the cache", name) from None
        else:
            found = [self.info(f"{name}/{entry}") for entry in entries]
        return found if detail else [entry["name"] for entry in found]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        return LocalFileSystem().open(str(self._local(path)), mode)
