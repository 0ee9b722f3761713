"""The layers that the towers are made of, as ONNX nodes.

Each function adds nodes to a `GraphWriter` and returns the name of the result. A node that holds
weights is called like the module of the torch model, such as `image.blocks.3.mlp.fc1`.

Shapes: B batch, C channels, H W height width, T tokens, h heads, O output channels.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from pocketclip.graph.fuse import Doubles, Kernel
from pocketclip.graph.writer import GraphWriter

LAYER_NORM_EPS = 1e-5


def conv(
    graph: GraphWriter,
    x: str,
    path: str,
    kernel: Kernel,
    *,
    stride: int = 1,
    groups: int = 1,
    padding: int | None = None,
) -> str:
    """Add a convolution of (B, C, H, W); `padding` keeps the size by default.

    A bias of zeros is left out, here and in `linear`.
    """
    weight, bias = kernel
    height, width = weight.shape[2:]
    pads = [height // 2, width // 2] if padding is None else [padding, padding]
    inputs = [x, graph.weight(f"{path}.weight", weight)]
    if bias.any():
        inputs.append(graph.weight(f"{path}.bias", bias))
    return graph.node(
        "Conv",
        inputs,
        path,
        kernel_shape=[height, width],
        strides=[stride, stride],
        pads=[*pads, *pads],
        group=groups,
    )


def linear(graph: GraphWriter, x: str, path: str, kernel: Kernel) -> str:
    """Add a linear layer over the last axis of `x`."""
    weight, bias = kernel
    x = graph.node("MatMul", [x, graph.weight(f"{path}.weight", weight.T)], path)
    if not bias.any():
        return x
    return graph.node("Add", [x, graph.weight(f"{path}.bias", bias)], f"{path}/bias")


def layer_norm(
    graph: GraphWriter,
    x: str,
    path: str,
    affine: tuple[Doubles, Doubles],
    eps: float = LAYER_NORM_EPS,
) -> str:
    """Add a LayerNorm over the last axis."""
    weight, bias = affine
    inputs = [x, graph.weight(f"{path}.weight", weight), graph.weight(f"{path}.bias", bias)]
    return graph.node("LayerNormalization", inputs, path, axis=-1, epsilon=eps)


def activation(graph: GraphWriter, x: str, path: str, kind: str) -> str:
    """Add a GELU or QuickGELU (`x * sigmoid(1.702 x)`)."""
    if kind == "quick_gelu":
        gate = graph.constant(1.702, np.float32)
        scaled = graph.node("Mul", [x, gate], f"{path}/scaled")
        gate = graph.node("Sigmoid", [scaled], f"{path}/gate")
        return graph.node("Mul", [x, gate], path)
    # The order of these products matters: ONNX Runtime recognises only this one everywhere.
    scaled = graph.node("Div", [x, graph.constant(math.sqrt(2.0), np.float32)], f"{path}/scaled")
    error = graph.node("Erf", [scaled], f"{path}/erf")
    gate = graph.node("Add", [error, graph.constant(1.0, np.float32)], f"{path}/gate")
    half = graph.node("Mul", [x, graph.constant(0.5, np.float32)], f"{path}/half")
    return graph.node("Mul", [half, gate], path)


def squeeze_excite(graph: GraphWriter, x: str, path: str, fc1: Kernel, fc2: Kernel) -> str:
    """Add channel gates from the image's mean (arXiv 1709.01507)."""
    gate = graph.node("GlobalAveragePool", [x], f"{path}/mean")
    gate = graph.node("Relu", [conv(graph, gate, f"{path}.fc1", fc1)], f"{path}/relu")
    gate = graph.node("Sigmoid", [conv(graph, gate, f"{path}.fc2", fc2)], f"{path}/gate")
    return graph.node("Mul", [x, gate], path)


def split_heads(
    graph: GraphWriter, x: str, path: str, *, heads: int, width: int, order: list[int]
) -> str:
    """Add the change from (B, T, C) to (B, T, h, C/h), these dimensions in another order."""
    shape = graph.constant([0, 0, heads, width // heads])
    x = graph.node("Reshape", [x, shape], f"{path}_heads")
    return graph.node("Transpose", [x], path, perm=order)


def attend(
    graph: GraphWriter, q: str, k: str, v: str, path: str, *, heads: int, width: int,
    mask: str | None = None,
) -> str:  # fmt: skip
    """Add softmax(q k + mask) v for q, k, v (B, T, C), whose q is scaled already.

    Args:
        graph: the graph.
        q: queries.
        k: keys.
        v: values.
        path: of the attention.
        heads: h.
        width: C.
        mask: float32, broadcast to (B, h, T, T); 0 where a row's token attends to a column's,
            else minus infinity.

    Returns:
        (B, T, C).
    """
    split = functools.partial(split_heads, graph, heads=heads, width=width)
    q = split(q, f"{path}/q", order=[0, 2, 1, 3])
    k = split(k, f"{path}/k", order=[0, 2, 3, 1])
    v = split(v, f"{path}/v", order=[0, 2, 1, 3])
    scores = graph.node("MatMul", [q, k], f"{path}/scores")
    if mask is not None:
        scores = graph.node("Add", [scores, mask], f"{path}/masked")
    probabilities = graph.node("Softmax", [scores], f"{path}/softmax", axis=-1)
    out = graph.node("MatMul", [probabilities, v], f"{path}/mixed")
    out = graph.node("Transpose", [out], f"{path}/tokens", perm=[0, 2, 1, 3])
    return graph.node("Reshape", [out, graph.constant([0, 0, width])], f"{path}/joined")


def split_qkv(
    graph: GraphWriter, x: str, path: str, qkv: Kernel, *, heads: int, fold_scale: bool
) -> list[str]:
    """Add queries, scaled, keys and values (B, T, C) of tokens (B, T, C).

    Args:
        graph: the graph.
        x: the tokens.
        path: of the attention.
        qkv: weight (3C, C) and bias (3C,) of the projection.
        heads: h.
        fold_scale: put the scale of the queries into `qkv`.
    """
    weight, bias = qkv
    width = weight.shape[1]
    scale = (width // heads) ** -0.5
    if fold_scale:
        gain = np.where(np.arange(3 * width) < width, scale, 1.0)
        weight, bias = weight * gain[:, None], bias * gain
    x = linear(graph, x, f"{path}.qkv", (weight, bias))
    names = [f"{path}/{part}" for part in ("queries", "keys", "values")]
    q, k, v = graph.nodes("Split", [x], names, axis=-1, num_outputs=3)
    if not fold_scale:
        q = graph.node("Mul", [q, graph.constant(scale, np.float32)], f"{path}/scaled")
    return [q, k, v]


def self_attention(
    graph: GraphWriter, x: str, path: str, qkv: Kernel, proj: Kernel, *, heads: int,
    fold_scale: bool, mask: str | None = None,
) -> str:  # fmt: skip
    """Add multi-head self-attention over (B, T, C); see `split_qkv` and `attend`."""
    width = qkv[0].shape[1]
    q, k, v = split_qkv(graph, x, path, qkv, heads=heads, fold_scale=fold_scale)
    out = attend(graph, q, k, v, path, heads=heads, width=width, mask=mask)
    return linear(graph, out, f"{path}.proj", proj)


def unit_length(graph: GraphWriter, x: str, path: str) -> str:
    """Add the scaling of (B, D) to unit length, as `torch.nn.functional.normalize` does."""
    axes = graph.constant([-1])
    length = graph.node("ReduceL2", [x, axes], f"{path}/length", keepdims=1)
    floor = graph.constant(1e-12, np.float32)
    return graph.node("Div", [x, graph.node("Max", [length, floor], f"{path}/floor")], path)
