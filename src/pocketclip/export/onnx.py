"""A tower to ONNX, for ONNX Runtime and other readers of ONNX.

    write(graph_towers(model), Path("image.onnx"), kind="image", precision="fp32")

The graph is built from the weights, without torch: see `pocketclip.graph`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pocketclip.export.towers import GraphTowers
from pocketclip.graph.build import write_tower
from pocketclip.graph.ports import Kind

PRECISIONS = ("fp32", "fp16", "int8")
SUFFIX = ".onnx"


def write(towers: GraphTowers, path: Path, *, kind: Kind, precision: str) -> dict[str, Any]:
    """Write one tower in fp32 or fp16; int8 is made from fp32, see `quantize_onnx`.

    Args:
        towers: the pair that the tower belongs to.
        path: the file to write; the weights go to a file beside it.
        kind: which tower.
        precision: `fp32`, or `fp16` for weights in half the space, computed in float32.

    Returns:
        The bundle's entry of the tower.

    Raises:
        ExportError: a weight is not finite, or too large for float16.
    """
    return write_tower(
        towers.weights,
        towers.config,
        kind,
        path,
        precision="fp16" if precision == "fp16" else "fp32",
        pixels=towers.pixels,
        normalize=towers.normalized,
        stored=towers.stored if kind == "image" else None,
    )
