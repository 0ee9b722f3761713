"""The stored frame of a bundle: pixels, and the embedding that its image tower gives for them.

A device that runs the bundle embeds them at its start. So it finds out whether its runtime computes
what ONNX Runtime does.

Shapes: S side of the tower's input, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PIXELS = "check.rgb"
"""The file with the pixels."""
_DECIMALS = 8
_UNIT = 1e-3
"""How far the embedding may be from unit length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckFrame:
    """A photograph as the image tower sees it before scaling, and its embedding."""

    pixels: str
    """The file with them: uint8 (S, S, 3), rows of red, green and blue, without a header."""
    width: int
    height: int
    embedding: tuple[float, ...]
    """D numbers, of unit length; by the tower of the same bundle in ONNX Runtime."""


def frame_entry(side: int, embedding: Any) -> dict[str, Any]:
    """Return the entry `check` of a manifest.

    Args:
        side: S.
        embedding: array (D,), of any length.
    """
    length = math.sqrt(sum(float(x) ** 2 for x in embedding))
    numbers = [round(float(x) / length, _DECIMALS) for x in embedding]
    return {"pixels": PIXELS, "width": side, "height": side, "embedding": numbers}


def read_frame(
    raw: object, side: int, embed_dim: int, files: Mapping[str, Mapping[str, Any]]
) -> CheckFrame | None:
    """Return the stored frame of a manifest; None if it has none.

    Args:
        raw: the entry `check`.
        side: S of the bundle's model.
        embed_dim: D of the bundle's model.
        files: the entry `files` of the manifest.

    Raises:
        ValueError: it is damaged.
    """
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise ValueError("check is not an object")
    if raw.get("pixels") != PIXELS or PIXELS not in files:
        raise ValueError(f"the pixels of check are not the file {PIXELS} of the bundle")
    size = raw.get("width"), raw.get("height")
    if any(type(pixels) is not int or pixels != side for pixels in size):
        raise ValueError(f"the pixels of check are not {side} x {side}")
    if files[PIXELS]["bytes"] != side * side * 3:
        raise ValueError(f"{PIXELS} does not hold {side} x {side} pixels")
    numbers = raw.get("embedding")
    if not isinstance(numbers, list) or len(numbers) != embed_dim:
        raise ValueError(f"the embedding of check is not a list of {embed_dim} numbers")
    if any(type(x) not in (int, float) or not abs(x) <= 1 for x in numbers):  # NaN fails this
        raise ValueError("the embedding of check holds something else than numbers from -1 to 1")
    if abs(math.sqrt(sum(x * x for x in numbers)) - 1) > _UNIT:
        raise ValueError("the embedding of check does not have the length 1")
    return CheckFrame(pixels=PIXELS, width=side, height=side, embedding=tuple(map(float, numbers)))
