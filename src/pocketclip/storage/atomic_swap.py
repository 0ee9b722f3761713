"""Swaps two folders in one atomic step, so that their paths exist at every moment."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # Linux, <linux/fs.h>
_RENAME_SWAP = 2  # macOS, <sys/stdio.h>


def atomic_swap(one: Path, other: Path) -> bool:
    """Swap two files or folders of one file system atomically.

    Returns:
        Whether they were swapped. False, with both unchanged, if the system or file system cannot
        do it (ENOSYS, EINVAL, EPERM in some containers), or one of them does not exist.
    """
    function = _function()
    if function is None:
        return False
    first, second = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin":
        return bool(function(first, second, _RENAME_SWAP) == 0)
    return bool(function(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE) == 0)


@cache
def _function() -> Any:
    name = {"linux": "renameat2", "darwin": "renamex_np"}.get(sys.platform)
    if name is None:
        return None
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):  # an older C library
        return None
    text, number, flags = ctypes.c_char_p, ctypes.c_int, ctypes.c_uint
    linux = sys.platform == "linux"
    function.argtypes = [number, text, number, text, flags] if linux else [text, text, flags]
    function.restype = number
    return function
