"""Detects git-LFS pointers: small text files in place of large files."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pocketclip.errors import CheckpointError, PocketclipError

LFS_ADVICE = (
    "is a git-LFS pointer, not the file itself: run `git lfs pull` in its repository, or download "
    "the file by hand"
)
"""The advice for a file that `is_lfs_pointer` recognises, after its path."""


def is_lfs_pointer(head: bytes) -> bool:
    """Return whether a file that begins with `head` (at least 100 bytes) is a git-LFS pointer.

    A repository cloned without git-lfs has such files, of about 130 bytes, in place of large ones.
    """
    return head.removeprefix(b"\xef\xbb\xbf").startswith(b"version https://git-lfs.github.com/")


def check_lfs_pointer(path: Path, error: type[PocketclipError] = CheckpointError) -> None:
    """Raise `error` if a file is a git-LFS pointer; unreadable files pass."""
    with contextlib.suppress(OSError), path.open("rb") as handle:
        if is_lfs_pointer(handle.read(100)):
            raise error(f"{path} {LFS_ADVICE}")
