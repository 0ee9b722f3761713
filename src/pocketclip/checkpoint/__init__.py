"""Checkpoints: loaded from any MODEL argument, and saved.

    from pocketclip import checkpoint

    model = checkpoint.load("mobileclip2-s0")
    checkpoint.save(model, "runs/mine")

| module | holds |
|---|---|
| `folder` | `load` and `save`, which are importable from here too; our own format |
| `resolve` | the meaning of a MODEL argument, from its spelling and file names |
| `hub` | fetching weight files from the Hugging Face hub |
| `hub_files` | the hub's file choice: which file of a repository holds the weights |
| `hub_cache` | weight files in the hub's local cache |
| `hub_client` | settings and errors of `huggingface_hub` |
| `names` | Apple's and open_clip's parameter names, both ways |
| `safe_load` | third-party weight files, read without running code |

`resolve` and the `hub` modules need no torch, so this module imports the others at first use.
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
