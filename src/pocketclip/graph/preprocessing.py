"""The evaluation transform as ONNX nodes: resize, centre crop.

ONNX's antialiased resize has Pillow's weights, but rounds differently: single pixels differ by up
to 3 levels.

Shapes: B batch, H W height and width of a photograph, S side.
"""

from __future__ import annotations

import numpy as np

from pocketclip import zoo
from pocketclip.graph import proto
from pocketclip.graph.writer import GraphWriter


def resize_and_crop(graph: GraphWriter, photo: str, config: zoo.PreprocessConfig) -> str:
    """Add the way from uint8 (B, H, W, 3) of any size to levels 0 to 255, float32 (B, 3, S, S)."""
    side = graph.constant([config.size])
    shape = graph.node("Shape", [photo], "photo/shape")
    zero, one, three = (graph.constant([i]) for i in (0, 1, 3))
    batch = graph.node("Slice", [shape, zero, one], "photo/batch")
    if config.resize == "squash":
        target = graph.constant([config.size, config.size])
    else:
        size = graph.node("Slice", [shape, one, three], "photo/size")  # H, W
        short = graph.node("ReduceMin", [size], "photo/short", keepdims=1)
        scaled = graph.node("Mul", [size, side], "photo/scaled")
        target = graph.node("Div", [scaled, short], "photo/target")  # rounds down
    sizes = graph.node("Concat", [batch, target, three], "photo/sizes", axis=0)
    resized = graph.node(
        "Resize", [photo, "", "", sizes], "photo/resized", antialias=1,
        mode="cubic" if config.interpolation == "bicubic" else "linear", cubic_coeff_a=-0.5,
        coordinate_transformation_mode="half_pixel", exclude_outside=1,
    )  # fmt: skip
    over = graph.node("Sub", [target, side], "photo/over")
    over = graph.node("Cast", [over], "photo/over_float", to=proto.FLOAT)
    middle = graph.node("Mul", [over, graph.constant([0.5], np.float32)], "photo/middle")
    corner = graph.node("Round", [middle], "photo/corner_float")  # halves to even
    corner = graph.node("Cast", [corner], "photo/corner", to=proto.INT64)
    end = graph.node("Add", [corner, side], "photo/end")
    axes = graph.constant([1, 2])
    square = graph.node("Slice", [resized, corner, end, axes], "photo/square")
    planes = graph.node("Transpose", [square], "photo/planes", perm=[0, 3, 1, 2])
    return graph.node("Cast", [planes], "photo/levels", to=proto.FLOAT)
