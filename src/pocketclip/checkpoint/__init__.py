"""Checkpoints: loaded from wherever a MODEL argument points to, and saved.

    from pocketclip import checkpoint

    model = checkpoint.load("mobileclip2-s0")
    checkpoint.save(model, "runs/mine")

| module | holds |
|---|---|
| `folder` | our own format, and `load` and `save`; they are here too |
| `resolve` | what a MODEL argument means, decided by spelling and file names |
| `hub` | weight files from the Hugging Face hub |
| `names` | Apple's and open_clip's parameter names, both ways |
| `safe_load` | foreign weight files, read without running code |

`resolve` and `hub` need no torch, so this module imports the others when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocketclip.checkpoint.folder import (
        CONFIG,
        RUN_MODEL,
        VERSION,
        WEIGHTS,
        load,
        own_files,
        save,
        write_files,
    )

__all__ = [
    "CONFIG",
    "RUN_MODEL",
    "VERSION",
    "WEIGHTS",
    "load",
    "own_files",
    "save",
    "write_files",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("pocketclip.checkpoint.folder"), name)
