"""The packages that ours is compared with, where they can be imported."""

from __future__ import annotations

import sys
from typing import Any

import torch

_libraries: list[Any] = []


def import_open_clip() -> Any | None:
    """Return the module open_clip, or None with the reason on standard error.

    The CPU build of torch has no torchvision operators. Two of them are declared here, because
    torchvision, which open_clip and timm import, looks for them when it is imported.
    """
    try:
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(schema)  # type: ignore[no-untyped-call]
        _libraries.append(library)  # the declarations last as long as this object
    except RuntimeError:
        pass  # a matching torchvision has declared them
    try:
        import open_clip
    except ImportError as error:
        print(f"no peer: {error}", file=sys.stderr)
        return None
    return open_clip
