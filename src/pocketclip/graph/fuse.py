"""Structural re-parameterisation in numpy: the kernel of several branches, in float64.

Sources: MobileOne (arXiv 2206.04040), section 3; FastViT (arXiv 2303.14189), section 3;
RepLKNet (arXiv 2203.06717), section 3.1. `pocketclip.nn.reparam` does the same with torch.

Every function takes the weights of a model under our names and the path of a module. It also takes
weights that are fused already, and then returns the kernel that they hold.

Shapes: C input channels, O output channels, kh kw kernel size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.types import Arrays, LazyArrays

Doubles = NDArray[np.float64]
Kernel = tuple[Doubles, Doubles]
"""Weight and bias (O,). Weights are (O, C/groups, kh, kw), those of a linear layer (O, C)."""

BATCH_NORM_EPS = 1e-5


def doubles(weights: Arrays, name: str) -> Doubles:
    """Return an entry in float64."""
    return np.asarray(weights[name], np.float64)


def batch_norm_affine(weights: Arrays, path: str) -> tuple[Doubles, Doubles]:
    """Return the scale (C,) and shift (C,) of a BatchNorm in evaluation mode."""
    variance = doubles(weights, f"{path}.running_var")
    scale = doubles(weights, f"{path}.weight") / np.sqrt(variance + BATCH_NORM_EPS)
    shift = doubles(weights, f"{path}.bias") - doubles(weights, f"{path}.running_mean") * scale
    return scale, shift


def plain_kernel(weights: Arrays, path: str) -> Kernel:
    """Return the kernel of a convolution or linear layer, with a bias of zeros if it has none."""
    weight = doubles(weights, f"{path}.weight")
    name = f"{path}.bias"
    return weight, doubles(weights, name) if name in weights else np.zeros(len(weight))


def conv_bn_kernel(weights: Arrays, path: str) -> Kernel:
    """Return the kernel of a convolution and its BatchNorm (`ConvBN`)."""
    if f"{path}.conv.weight" not in weights:
        return plain_kernel(weights, path)
    scale, shift = batch_norm_affine(weights, f"{path}.bn")
    return doubles(weights, f"{path}.conv.weight") * scale[:, None, None, None], shift


def rep_conv_kernel(weights: Arrays, path: str, groups: int) -> Kernel:
    """Return the kernel of MobileOne's summed branches (`RepConv`)."""
    if f"{path}.conv.weight" in weights:
        return plain_kernel(weights, f"{path}.conv")
    weight, bias = conv_bn_kernel(weights, f"{path}.conv")
    size = weight.shape[2:]
    if f"{path}.scale.conv.weight" in weights:
        scale_weight, scale_bias = conv_bn_kernel(weights, f"{path}.scale")
        weight, bias = weight + pad_kernel(scale_weight, size), bias + scale_bias
    if f"{path}.identity.weight" in weights:
        scale, shift = batch_norm_affine(weights, f"{path}.identity")
        eye = identity_kernel(len(scale), groups, size)
        weight, bias = weight + eye * scale[:, None, None, None], bias + shift
    return weight, bias


def large_kernel(weights: Arrays, path: str) -> Kernel:
    """Return the kernel of a large and a small depthwise convolution (`LargeKernelConv`)."""
    if f"{path}.conv.weight" in weights:
        return plain_kernel(weights, f"{path}.conv")
    weight, bias = conv_bn_kernel(weights, f"{path}.large")
    small_weight, small_bias = conv_bn_kernel(weights, f"{path}.small")
    return weight + pad_kernel(small_weight, weight.shape[2:]), bias + small_bias


def rep_mixer_kernel(weights: Arrays, path: str) -> Kernel:
    """Return the depthwise kernel of `x + s * (mixer(x) - norm(x))` (`RepMixer`)."""
    if f"{path}.weight" in weights:
        return plain_kernel(weights, path)
    gain = doubles(weights, f"{path}.layer_scale").reshape(-1)
    weight, bias = rep_conv_kernel(weights, f"{path}.mixer", len(gain))
    scale, shift = batch_norm_affine(weights, f"{path}.norm")
    eye = identity_kernel(len(gain), len(gain), weight.shape[2:])
    mixed = weight - eye * scale[:, None, None, None]
    return eye + gain[:, None, None, None] * mixed, gain * (bias - shift)


def position_kernel(weights: Arrays, path: str) -> Kernel:
    """Return the depthwise kernel of `x + depthwise(x)` (`ConditionalPosition`)."""
    if f"{path}.weight" in weights:
        return plain_kernel(weights, path)
    weight, bias = plain_kernel(weights, f"{path}.conv")
    return weight + identity_kernel(len(weight), len(weight), weight.shape[2:]), bias


def qkv_kernel(weights: Arrays, attention: str, norm: str) -> Kernel:
    """Return the q, k, v projection (3C, C), its BatchNorm folded in, and its bias (3C,)."""
    weight, bias = plain_kernel(weights, f"{attention}.qkv")
    if f"{norm}.running_var" not in weights:
        return weight, bias
    scale, shift = batch_norm_affine(weights, norm)
    return weight * scale, bias + weight @ shift


def scaled_rows(kernel: Kernel, gain: Doubles) -> Kernel:
    """Return a kernel whose output channels are multiplied by `gain` (O,)."""
    weight, bias = kernel
    return weight * gain.reshape(-1, *[1] * (weight.ndim - 1)), bias * gain.reshape(-1)


def identity_kernel(channels: int, groups: int, size: tuple[int, ...]) -> Doubles:
    """Return the kernel (C, C/groups, kh, kw) of a convolution that copies its input."""
    rows = np.tile(np.eye(channels // groups), (groups, 1))
    return pad_kernel(rows[:, :, None, None], size)


def pad_kernel(weight: Doubles, size: tuple[int, ...]) -> Doubles:
    """Zero-pad an odd kernel to a larger odd one with the same centre."""
    rows, columns = (size[0] - weight.shape[2]) // 2, (size[1] - weight.shape[3]) // 2
    return np.pad(weight, ((0, 0), (0, 0), (rows, rows), (columns, columns)))


def scale_colours(weights: Arrays, gain: Doubles) -> Arrays:
    """Return weights whose first convolution, the one of three colours, also multiplies by a gain.

    Args:
        weights: of a model.
        gain: one factor per colour, (3, 1, 1).
    """

    def reader(name: str) -> Callable[[], NDArray[Any]]:
        def read() -> NDArray[Any]:
            array = weights[name]
            is_first = name.startswith(("image.stem.weight", "image.stem.0."))
            return array * gain if is_first and array.ndim == 4 else array

        return read

    return LazyArrays({name: reader(name) for name in weights})
