"""Files and folders that only the user may read."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path


def private_folder(folder: Path) -> None:
    """Create a folder that only the user can enter (0700), and its missing parents likewise.

    Raises:
        OSError: it cannot be created.
    """
    missing = [folder, *folder.parents]
    for parent in reversed([path for path in missing if not path.exists()]):
        with contextlib.suppress(FileExistsError):
            parent.mkdir(mode=0o700)


def private_file(file: Path) -> None:
    """Create an empty file that only the user can read (0600), if it does not exist.

    Raises:
        OSError: it cannot be created.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def others_can_read(path: Path) -> bool:
    """Return whether a file or folder is open to others than its owner; False if it is missing."""
    try:
        return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)
    except OSError:
        return False
