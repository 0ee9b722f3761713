"""Checkpoints: loaded from any MODEL argument, and saved.

    from pocketclip import checkpoint

    model = checkpoint.load("mobileclip2-s0")
    checkpoint.save(model, "runs/mine")

Without torch, `read_stored` gives the weights as arrays:

    stored = checkpoint.read_stored(resolve_model("mobileclip2-s0"))
    stored.weights["image.head.weight"].shape  # (512, 1024)

| module | holds |
|---|---|
| `folder` | `load` and `save`, which are importable from here too; our own format |
| `stored` | `read_stored`: any weights as arrays under our names |
| `parameters` | the names and shapes of a model's parameters, from its configuration |
| `resolve` | the meaning of a MODEL argument, from its spelling and file names |
| `hub` | fetching weight files from the Hugging Face hub |
| `hub_files` | the hub's file choice: which file of a repository holds the weights |
| `hub_cache` | weight files in the hub's local cache |
| `hub_client` | settings and errors of `huggingface_hub` |
| `names` | Apple's and open_clip's parameter names, both ways |
| `weight_license` | the licence of weights on disk |
| `safe_load` | third-party weight files, read without running code |

Only `folder` needs torch. This module imports the others at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocketclip.checkpoint.folder import (
        RUN_MODEL,
        load,
        own_files,
        save,
        write_files,
    )
    from pocketclip.checkpoint.stored import (
        CONFIG,
        VERSION,
        WEIGHTS,
        StoredModel,
        read_stored,
    )

__all__ = [
    "CONFIG",
    "RUN_MODEL",
    "VERSION",
    "WEIGHTS",
    "StoredModel",
    "load",
    "own_files",
    "read_stored",
    "save",
    "write_files",
]

_STORED = {"CONFIG", "VERSION", "WEIGHTS", "StoredModel", "read_stored"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "stored" if name in _STORED else "folder"
    return getattr(importlib.import_module(f"pocketclip.checkpoint.{home}"), name)
