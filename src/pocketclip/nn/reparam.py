"""Structural re-parameterisation: several branches in training, one convolution at inference.

Sources: MobileOne (arXiv 2206.04040), section 3; FastViT (arXiv 2303.14189), section 3;
RepLKNet (arXiv 2203.06717), section 3.1.

Shapes: B batch, C input channels, O output channels, H W height width, kh kw kernel size.

A foldable module has a method `fused()` that returns a new, equivalent module for evaluation and
leaves the original unchanged; `fuse` applies it throughout a copy of a model. Kernels are merged in
float64, so that folding costs one rounding at most. RepMixer, which is built from these branches,
is in `pocketclip.nn.repmixer`.
"""

from __future__ import annotations

import copy
from typing import Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kernel = tuple[Tensor, Tensor]  # float64 weight (O, C/groups, kh, kw) and bias (O,)
ModuleT = TypeVar("ModuleT", bound=nn.Module)


@runtime_checkable
class Foldable(Protocol):
    """A module with an equivalent single-branch form for evaluation."""

    def fused(self) -> nn.Module:
        """Return the equivalent module; `self` is unchanged."""
        ...


@runtime_checkable
class Fusable(Protocol):
    """A model that records facts about itself on its fused copy."""

    def mark_fused(self, fused: nn.Module) -> None:
        """Mark `fused` as the fused copy of `self`."""
        ...


def fuse(model: ModuleT) -> ModuleT:
    """Return a copy of `model` in evaluation mode with every foldable branch folded.

    The running statistics of BatchNorm are folded into the convolutions and linear layers around
    it (FastViT, section 3.1). The argument keeps its branches and stays trainable. Layer scales
    outside the RepMixer are kept: `pocketclip.nn.cpu_optimize.fold_layer_scales` folds those.

    Args:
        model: any module; one without foldable branches is only copied.
    """
    with torch.no_grad():
        folded = _fold(copy.deepcopy(model))
    if isinstance(model, Fusable):
        model.mark_fused(folded)
    return folded.eval()  # type: ignore[return-value]


def _fold(module: nn.Module) -> nn.Module:
    # Parents first: a block reads the branches of its children before they are folded.
    if isinstance(module, Foldable):
        module = module.fused()
    for name, child in module.named_children():
        setattr(module, name, _fold(child))
    return module


def batch_norm_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the float64 scale (C,) and shift (C,) that `norm` applies in evaluation mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def identity_kernel(channels: int, groups: int, size: tuple[int, int], like: Tensor) -> Tensor:
    """Return the kernel (C, C/groups, kh, kw) in float64 of a convolution that copies its input."""
    per_group = channels // groups
    rows = torch.eye(per_group, dtype=torch.float64, device=like.device).repeat(groups, 1)
    return _pad_kernel(rows[:, :, None, None], size)


def _pad_kernel(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Zero-pad an odd kernel to a larger odd one with the same centre."""
    pad_h, pad_w = (size[0] - weight.shape[2]) // 2, (size[1] - weight.shape[3]) // 2
    return F.pad(weight, (pad_w, pad_w, pad_h, pad_h))


def conv_from_kernel(kernel: Kernel, like: nn.Conv2d) -> nn.Conv2d:
    """Return a convolution with bias, of `like`'s geometry and dtype, that applies `kernel`."""
    weight, bias = kernel
    conv = nn.Conv2d(
        like.in_channels,
        like.out_channels,
        (weight.shape[2], weight.shape[3]),
        stride=like.stride,  # type: ignore[arg-type]
        padding=like.padding,  # type: ignore[arg-type]
        groups=like.groups,
        device="meta",
    )
    dtype = like.weight.dtype
    conv.weight = nn.Parameter(weight.to(dtype))
    conv.bias = nn.Parameter(bias.to(dtype))
    return conv


class ConvBN(nn.Module):
    """A convolution without bias, then BatchNorm."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int | tuple[int, int],
        *,
        stride: int = 1,
        groups: int = 1,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        height, width = (size, size) if isinstance(size, int) else size
        pad = (height // 2, width // 2) if padding is None else (padding, padding)
        self.conv = nn.Conv2d(
            in_channels, out_channels, (height, width), stride, pad, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)
        # On CPUs, oneDNN writes past its workspace in the backward pass of a strided 1x1
        # convolution with few channels in channels-last memory (oneDNN issue 6035): wrong
        # gradients, or a crash. Subsampling the input first is equivalent.
        self.subsample = stride if (height, width, groups) == (1, 1, 1) and in_channels < 16 else 1

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, O, H', W')."""
        if self.subsample > 1:
            step = self.subsample
            return self.bn(F.conv2d(x[:, :, ::step, ::step], self.conv.weight))
        return self.bn(self.conv(x))

    def kernel(self) -> Kernel:
        """Return the kernel that convolution and BatchNorm apply in evaluation mode."""
        scale, shift = batch_norm_affine(self.bn)
        return self.conv.weight.double() * scale[:, None, None, None], shift

    def fused(self) -> nn.Conv2d:
        """Return one convolution with bias."""
        return conv_from_kernel(self.kernel(), self.conv)


class SqueezeExcite(nn.Module):
    """Channel gates from the image's mean (arXiv 1709.01507), as 1x1 convolutions."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, reduced, 1)
        self.fc2 = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        gate = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class _Epilogue(nn.Module):
    """A folded convolution with optional squeeze-and-excitation and activation."""

    def __init__(self, conv: nn.Module, se: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.se = se
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.se(self.conv(x)))


class RepConv(nn.Module):
    """MobileOne's block: a k x k branch, a 1x1 scale branch and an identity branch, summed.

    The identity branch (a BatchNorm) exists if stride is 1 and the number of channels stays the
    same (arXiv 2206.04040, figure 3).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int | tuple[int, int],
        *,
        stride: int = 1,
        groups: int = 1,
        scale: bool = True,
        se_reduced: int | None = None,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = ConvBN(in_channels, out_channels, size, stride=stride, groups=groups)
        self.scale = (
            ConvBN(in_channels, out_channels, 1, stride=stride, groups=groups) if scale else None
        )
        has_identity = stride == 1 and in_channels == out_channels
        self.identity = nn.BatchNorm2d(out_channels) if has_identity else None
        self.se = SqueezeExcite(out_channels, se_reduced) if se_reduced else nn.Identity()
        self.act = nn.GELU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, O, H/stride, W/stride)."""
        out = self.conv(x)
        if self.scale is not None:
            out = out + self.scale(x)
        if self.identity is not None:
            out = out + self.identity(x)
        return self.act(self.se(out))

    def kernel(self) -> Kernel:
        """Return the kernel of the summed branches."""
        weight, bias = self.conv.kernel()
        size = (weight.shape[2], weight.shape[3])
        if self.scale is not None:
            scale_weight, scale_bias = self.scale.kernel()
            weight, bias = weight + _pad_kernel(scale_weight, size), bias + scale_bias
        if self.identity is not None:
            scale, shift = batch_norm_affine(self.identity)
            eye = identity_kernel(len(scale), self.conv.conv.groups, size, weight)
            weight, bias = weight + eye * scale[:, None, None, None], bias + shift
        return weight, bias

    def fused(self) -> nn.Module:
        """Return one convolution with its squeeze-and-excitation and activation."""
        return _Epilogue(conv_from_kernel(self.kernel(), self.conv.conv), self.se, self.act)


class LargeKernelConv(nn.Module):
    """A large depthwise kernel, with a parallel small one in training, then GELU.

    RepLKNet (arXiv 2203.06717), section 3.1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        small: int,
        stride: int,
        se_reduced: int | None,
    ) -> None:
        super().__init__()
        self.large = ConvBN(in_channels, out_channels, size, stride=stride, groups=in_channels)
        self.small = ConvBN(in_channels, out_channels, small, stride=stride, groups=in_channels)
        self.se = SqueezeExcite(out_channels, se_reduced) if se_reduced else nn.Identity()
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, O, H/stride, W/stride)."""
        return self.act(self.se(self.large(x) + self.small(x)))

    def fused(self) -> nn.Module:
        """Return one convolution with its squeeze-and-excitation and activation."""
        weight, bias = self.large.kernel()
        small_weight, small_bias = self.small.kernel()
        weight = weight + _pad_kernel(small_weight, (weight.shape[2], weight.shape[3]))
        conv = conv_from_kernel((weight, bias + small_bias), self.large.conv)
        return _Epilogue(conv, self.se, self.act)


class ConditionalPosition(nn.Module):
    """Conditional position encoding `x + depthwise(x)` (arXiv 2102.10882)."""

    def __init__(self, channels: int, size: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return x + self.conv(x)

    def fused(self) -> nn.Conv2d:
        """Return one depthwise convolution with the identity in its kernel."""
        weight, bias = self.conv.weight.double(), self.conv.bias
        assert bias is not None
        channels, size = weight.shape[0], (weight.shape[2], weight.shape[3])
        eye = identity_kernel(channels, channels, size, weight)
        return conv_from_kernel((weight + eye, bias.double()), self.conv)
