"""The user's data: what cannot be fetched or computed again at no cost, such as a photo library."""

from __future__ import annotations

import os
from pathlib import Path

from pocketclip.errors import StorageError


def user_data(name: str) -> Path:
    """Return a folder of the user's data; it need not exist yet.

    The data are in `POCKETCLIP_DATA`, else `pocketclip` within `XDG_DATA_HOME`, else
    `~/.local/share/pocketclip`.

    Args:
        name: the folder within the data.

    Raises:
        StorageError: the user has no home directory, as in some containers.
    """
    own = os.environ.get("POCKETCLIP_DATA")
    base = own or f"{os.environ.get('XDG_DATA_HOME') or '~/.local/share'}/pocketclip"
    try:
        return Path(base).expanduser() / name
    except RuntimeError as error:
        raise StorageError(
            "there is no home directory for your data: set POCKETCLIP_DATA to a folder"
        ) from error
