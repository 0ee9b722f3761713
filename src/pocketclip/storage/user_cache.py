"""The user's cache: copies and results that can be fetched or computed again."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache(name: str) -> Path | None:
    """Return a folder of the user's cache; it need not exist yet.

    The cache is `POCKETCLIP_CACHE`, else `pocketclip` within `XDG_CACHE_HOME`, else
    `~/.cache/pocketclip`.

    Args:
        name: the folder within the cache.

    Returns:
        None for a user without a home directory, as in some containers.
    """
    own = os.environ.get("POCKETCLIP_CACHE")
    base = own or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/pocketclip"
    try:
        return Path(base).expanduser() / name
    except RuntimeError:
        return None
