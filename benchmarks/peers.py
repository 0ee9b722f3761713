"""The packages that ours is compared with, where they can be imported."""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

import torch

from pocketclip import zoo

_libraries: list[Any] = []


def import_open_clip() -> Any | None:
    """Return the module open_clip, or None with the reason on standard error."""
    return _import("open_clip")


def import_timm() -> Any | None:
    """Return the module timm, or None with the reason on standard error."""
    return _import("timm")


def open_clip_name(name: str) -> str | None:
    """Return what open_clip calls our model `name`; None: it has no such model, or is not there."""
    open_clip = import_open_clip()
    if open_clip is None:
        return None
    for known in open_clip.list_models():
        if zoo.find(known) is zoo.entry(name):
            return str(known)
    return None


@functools.cache
def _import(name: str) -> Any | None:
    _complete_torchvision()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"no peer: {error}", file=sys.stderr)
        return None


def _complete_torchvision() -> None:
    """Make torchvision, which open_clip and timm import, importable beside this torch.

    Without its compiled operators, or with those of another torch, it fails as it looks for two of
    them. Only then are they declared here: a second declaration would end the process.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:  # open_clip says so itself
        return
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(schema)  # type: ignore[no-untyped-call]
        _libraries.append(library)  # the declarations last as long as this object
