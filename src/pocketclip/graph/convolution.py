"""Convolutions with their branches as ONNX nodes: MobileOne's block, RepMixer, and their parts.

The modules of `pocketclip.nn.reparam` and `pocketclip.nn.repmixer` name the sources. Each function
adds one convolution where `Tower.fused` is set or the weights are fused already, and otherwise the
branches and BatchNorms that it is made of.

Shapes: B batch, C channels, H W height width, O output channels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pocketclip.graph import fuse, layers
from pocketclip.graph.fuse import Kernel
from pocketclip.graph.tower import Tower


def batch_norm(tower: Tower, x: str, path: str) -> str:
    """Add a BatchNorm in evaluation mode."""
    names = ("weight", "bias", "running_mean", "running_var")
    inputs = [tower.graph.weight(f"{path}.{n}", tower.array(f"{path}.{n}")) for n in names]
    return tower.graph.node("BatchNormalization", [x, *inputs], path, epsilon=fuse.BATCH_NORM_EPS)


def conv_bn(
    tower: Tower, x: str, path: str, *, stride: int = 1, groups: int = 1, padding: int | None = None
) -> str:
    """Add a convolution and its BatchNorm (`ConvBN`)."""
    if tower.fused or not tower.has(f"{path}.conv.weight"):
        kernel = fuse.conv_bn_kernel(tower.weights, path)
        return layers.conv(
            tower.graph, x, path, kernel, stride=stride, groups=groups, padding=padding
        )
    x = layers.conv(
        tower.graph, x, f"{path}.conv", tower.kernel(f"{path}.conv"), stride=stride,
        groups=groups, padding=padding,
    )  # fmt: skip
    return batch_norm(tower, x, f"{path}.bn")


def rep_conv(
    tower: Tower, x: str, path: str, *, stride: int = 1, groups: int = 1, act: bool = True,
    kernel: Kernel | None = None,
) -> str:  # fmt: skip
    """Add MobileOne's block (`RepConv`): branches, squeeze-and-excitation, GELU.

    Args:
        tower: the graph and the weights.
        x: the input.
        path: of the block.
        stride: of its convolutions.
        groups: of its convolutions.
        act: whether a GELU follows.
        kernel: a changed fused kernel, in place of the branches.
    """
    if kernel is None and (tower.fused or tower.has(f"{path}.conv.weight")):
        kernel = fuse.rep_conv_kernel(tower.weights, path, groups)
    if kernel is not None:
        x = layers.conv(tower.graph, x, f"{path}.conv", kernel, stride=stride, groups=groups)
    else:
        out = conv_bn(tower, x, f"{path}.conv", stride=stride, groups=groups)
        if tower.has(f"{path}.scale.conv.weight"):
            scale = conv_bn(tower, x, f"{path}.scale", stride=stride, groups=groups)
            out = tower.graph.node("Add", [out, scale], f"{path}/scale_sum")
        if tower.has(f"{path}.identity.weight"):
            identity = batch_norm(tower, x, f"{path}.identity")
            out = tower.graph.node("Add", [out, identity], f"{path}/identity_sum")
        x = out
    return epilogue(tower, x, path, act=act)


def epilogue(
    tower: Tower, x: str, path: str, *, act: bool = True, order: NDArray[np.int64] | None = None
) -> str:
    """Add the squeeze-and-excitation of a block, if it has one, and its GELU.

    Args:
        tower: the graph and the weights.
        x: the input.
        path: of the block.
        act: whether a GELU follows.
        order: the channels of `x` are those of the block in this order.
    """
    if tower.has(f"{path}.se.fc1.weight"):
        fc1 = tower.kernel(f"{path}.se.fc1")
        fc2 = tower.kernel(f"{path}.se.fc2")
        if order is not None:
            fc1, fc2 = (fc1[0][:, order], fc1[1]), (fc2[0][order], fc2[1][order])
        x = layers.squeeze_excite(tower.graph, x, f"{path}.se", fc1, fc2)
    return layers.activation(tower.graph, x, f"{path}.act", "gelu") if act else x


def depthwise(
    tower: Tower, x: str, path: str, kernel: Kernel, inputs: int, *, stride: int = 1
) -> tuple[str, NDArray[np.int64] | None]:
    """Add a depthwise convolution, with one or several outputs per channel.

    Runtimes have fast kernels only for one output per channel, so several become as many
    convolutions: first the first outputs of all channels, then the second ones, and so on.

    Args:
        tower: the graph and the weights.
        x: the input.
        path: of the convolution.
        kernel: its weight (O, 1, kh, kw) and bias (O,).
        inputs: C.
        stride: of the convolution.

    Returns:
        The result, and for each of its channels the index that it has in `kernel`; None if the
        channels are in the order of `kernel`.
    """
    weight, bias = kernel
    times = len(weight) // inputs
    if times == 1:
        return layers.conv(tower.graph, x, path, kernel, stride=stride, groups=inputs), None
    parts = [
        layers.conv(
            tower.graph, x, f"{path}.{i}", (weight[i::times], bias[i::times]), stride=stride,
            groups=inputs,
        )
        for i in range(times)
    ]  # fmt: skip
    order = np.arange(len(weight)).reshape(-1, times).T.flatten()
    return tower.graph.node("Concat", parts, path, axis=1), order


# --- RepMixer (FastViT, section 3.1)


def mixer_block(tower: Tower, x: str, path: str) -> str:
    """Add a RepMixer block (`RepMixerBlock`) over (B, C, H, W)."""
    return residual_mlp(tower, rep_mixer(tower, x, f"{path}.mixer"), path, "layer_scale")


def rep_mixer(tower: Tower, x: str, path: str) -> str:
    """Add `x + s * (mixer(x) - norm(x))` (`RepMixer`), one convolution when fused."""
    if tower.fused or tower.has(f"{path}.weight"):
        kernel = fuse.rep_mixer_kernel(tower.weights, path)
        return layers.conv(tower.graph, x, path, kernel, groups=len(kernel[0]))
    channels = len(tower.weights[f"{path}.layer_scale"])
    mixed = rep_conv(tower, x, f"{path}.mixer", groups=channels, act=False)
    normed = batch_norm(tower, x, f"{path}.norm")
    change = tower.graph.node("Sub", [mixed, normed], f"{path}/difference")
    return _scaled_sum(tower, x, change, path, f"{path}.layer_scale")


def residual_mlp(tower: Tower, x: str, path: str, scale: str) -> str:
    """Add `x + s * mlp(x)` with the convolutional MLP (`ConvMLP`) of a block.

    Args:
        tower: the graph and the weights.
        x: the input.
        path: of the block.
        scale: the name of its layer scale `s`.
    """
    mlp = f"{path}.mlp"
    fc1, fc2 = tower.kernel(f"{mlp}.fc1"), tower.kernel(f"{mlp}.fc2")
    if tower.fused:
        fc2 = fuse.scaled_rows(fc2, tower.array(f"{path}.{scale}"))
    out = conv_bn(tower, x, f"{mlp}.conv", groups=len(fc2[0]))
    out = layers.conv(tower.graph, out, f"{mlp}.fc1", fc1)
    out = layers.activation(tower.graph, out, f"{mlp}.act", "gelu")
    out = layers.conv(tower.graph, out, f"{mlp}.fc2", fc2)
    if tower.fused:
        return tower.graph.node("Add", [x, out], f"{path}/mlp_sum")
    return _scaled_sum(tower, x, out, f"{path}/mlp", f"{path}.{scale}")


def _scaled_sum(tower: Tower, x: str, change: str, path: str, scale: str) -> str:
    gain = tower.graph.weight(scale, tower.array(scale))
    change = tower.graph.node("Mul", [change, gain], f"{path}/scaled")
    return tower.graph.node("Add", [x, change], f"{path}/sum")
