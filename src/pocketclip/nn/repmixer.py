"""RepMixer, FastViT's convolutional token mixer, and the blocks built on it.

Sources: FastViT (arXiv 2303.14189), section 3.1, for the mixer; MobileCLIP (arXiv 2311.17049),
section 3.3, for its use over the token axis of a text tower.

Shapes: B batch, C channels, H W height width, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pocketclip.nn.reparam import (
    ConvBN,
    RepConv,
    batch_norm_affine,
    conv_from_kernel,
    identity_kernel,
)
from pocketclip.nn.transformer import DropPath


class RepMixer(nn.Module):
    """FastViT's token mixer, `x + s * (mixer(x) - norm(x))` with layer scale `s` (C, 1, 1).

    Folded, it is one depthwise convolution (arXiv 2303.14189, section 3.1).
    """

    def __init__(
        self, channels: int, size: int | tuple[int, int], *, scale: bool, layer_scale: float
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.mixer = RepConv(channels, channels, size, groups=channels, scale=scale, act=False)
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return x + self.layer_scale * (self.mixer(x) - self.norm(x))

    def fused(self) -> nn.Conv2d:
        """Return one depthwise convolution that includes the identity and the layer scale."""
        weight, bias = self.mixer.kernel()
        scale, shift = batch_norm_affine(self.norm)
        channels, size = len(scale), (weight.shape[2], weight.shape[3])
        eye = identity_kernel(channels, channels, size, weight)
        gain = self.layer_scale.double()[:, None]
        weight = eye + gain * (weight - eye * scale[:, None, None, None])
        bias = gain.flatten() * (bias - shift)
        return conv_from_kernel((weight, bias), self.mixer.conv.conv)


class ConvMLP(nn.Module):
    """A depthwise convolution with BatchNorm, then two 1x1 convolutions with GELU between."""

    def __init__(self, channels: int, hidden: int, size: int | tuple[int, int] = 7) -> None:
        super().__init__()
        self.conv = ConvBN(channels, channels, size, groups=channels)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return self.fc2(self.act(self.fc1(self.conv(x))))


class RepMixerBlock(nn.Module):
    """RepMixer over neighbouring tokens, then a convolutional MLP."""

    def __init__(
        self,
        channels: int,
        mlp_ratio: float,
        *,
        layer_scale: float,
        mixer_size: int | tuple[int, int] = 3,
        mlp_size: int | tuple[int, int] = 7,
        mixer_scale: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.mixer = RepMixer(channels, mixer_size, scale=mixer_scale, layer_scale=layer_scale)
        self.mlp = ConvMLP(channels, int(channels * mlp_ratio), mlp_size)
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        x = self.mixer(x)
        return x + self.drop_path(self.layer_scale * self.mlp(x))


class TokenMixerBlock(RepMixerBlock):
    """A RepMixer block over the token axis, with kernels of 11 tokens."""

    def __init__(self, width: int, mlp_ratio: float, *, drop_path: float = 0.0) -> None:
        super().__init__(
            width,
            mlp_ratio,
            layer_scale=0.1,
            mixer_size=(1, 11),
            mlp_size=(1, 11),
            mixer_scale=False,
            drop_path=drop_path,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return super().forward(x.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)
