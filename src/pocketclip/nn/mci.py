"""MCi, MobileCLIP's convolution-attention image towers (FastViT hybrids).

Sources: MobileCLIP (arXiv 2311.17049), section 3.2; FastViT (arXiv 2303.14189), section 3;
MobileCLIP2 (arXiv 2508.20691), section 4, for the five-stage towers MCi3 and MCi4.

Shapes: B batch, C channels, H W height width, D embedding, N = H * W tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketclip.feature_maps import FeatureMap, feature_maps
from pocketclip.nn.reparam import (
    ConditionalPosition,
    LargeKernelConv,
    RepConv,
    batch_norm_affine,
)
from pocketclip.nn.repmixer import ConvMLP, RepMixerBlock
from pocketclip.nn.transformer import (
    Attention,
    DropPath,
    FrozenBatchNormMixin,
    drop_path_rates,
    run_blocks,
)
from pocketclip.zoo import MCiConfig


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        x = input.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class AttentionBlock(nn.Module):
    """Self-attention over all positions, then a convolutional MLP."""

    def __init__(
        self,
        channels: int,
        mlp_ratio: float,
        *,
        head_dim: int,
        norm: str,
        layer_scale: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        make_norm = nn.BatchNorm2d if norm == "batch" else ChannelLayerNorm
        self.norm: nn.Module = make_norm(channels)
        self.attn = Attention(channels, channels // head_dim, bias=False)
        self.mlp = ConvMLP(channels, int(channels * mlp_ratio))
        self.layer_scale_1 = nn.Parameter(torch.full((channels, 1, 1), layer_scale))
        self.layer_scale_2 = nn.Parameter(torch.full((channels, 1, 1), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        batch, channels, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, N, C)
        mixed = self.attn(tokens).transpose(1, 2).reshape(batch, channels, height, width)
        x = x + self.drop_path(self.layer_scale_1 * mixed)
        return x + self.drop_path(self.layer_scale_2 * self.mlp(x))

    def fused(self) -> AttentionBlock:
        """Return a copy with the BatchNorm before attention folded into the q, k, v projection."""
        block = copy.deepcopy(self)
        if isinstance(block.norm, nn.BatchNorm2d):
            scale, shift = batch_norm_affine(block.norm)
            old = block.attn.qkv
            weight = old.weight.double()
            folded = nn.Linear(old.in_features, old.out_features, device="meta")
            folded.weight = nn.Parameter((weight * scale).to(old.weight.dtype))
            folded.bias = nn.Parameter((weight @ shift).to(old.weight.dtype))
            block.norm, block.attn.qkv = nn.Identity(), folded
        return block


class Downsample(nn.Module):
    """Halve the resolution: a 7x7 depthwise convolution of stride 2, then a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, *, squeeze_excite: bool) -> None:
        super().__init__()
        self.conv = LargeKernelConv(
            in_channels,
            out_channels,
            7,
            small=3,
            stride=2,
            se_reduced=out_channels // 4 if squeeze_excite else None,
        )
        self.proj = RepConv(out_channels, out_channels, 1, scale=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H/2, W/2)."""
        return self.proj(self.conv(x))


class Stage(nn.Module):
    """Down-sampling, a position encoding in attention stages, and blocks."""

    def __init__(self, config: MCiConfig, index: int, rates: list[float]) -> None:
        super().__init__()
        stages = len(config.depths)
        width = config.widths[index]
        attention = index >= stages - config.attention_stages
        squeeze_excite = index >= stages - config.squeeze_excite_stages
        self.downsample: nn.Module = (
            Downsample(config.widths[index - 1], width, squeeze_excite=squeeze_excite)
            if index > 0
            else nn.Identity()
        )
        self.position: nn.Module = ConditionalPosition(width) if attention else nn.Identity()

        def block(rate: float) -> nn.Module:
            if not attention:
                return RepMixerBlock(
                    width, config.mlp_ratio, layer_scale=config.layer_scale, drop_path=rate
                )
            return AttentionBlock(
                width,
                config.mlp_ratio,
                head_dim=config.head_dim,
                norm=config.attention_norm,
                layer_scale=config.layer_scale,
                drop_path=rate,
            )

        self.blocks = nn.ModuleList(block(rate) for rate in rates)

    def forward(self, x: Tensor, *, recompute: bool = False) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        return run_blocks(self.blocks, self.position(self.downsample(x)), recompute=recompute)


class MCi(FrozenBatchNormMixin):
    """The image tower: stem of stride 4, stages, expansion to twice the width, mean, projection.

    Args:
        config: the tower's configuration.
        embed_dim: D, the width of the embedding.
    """

    def __init__(self, config: MCiConfig, embed_dim: int) -> None:
        super().__init__()
        width, last = config.widths[0], config.widths[-1]
        self.config = config
        self.recompute = False
        self.stride = 2 ** (len(config.depths) + 1)
        self.stem = nn.Sequential(
            RepConv(3, width, 3, stride=2, scale=config.stem_scale),
            RepConv(width, width, 3, stride=2, groups=width, scale=config.stem_scale),
            RepConv(width, width, 1, scale=False),
        )
        rates = drop_path_rates(config.drop_path, sum(config.depths))
        starts = [sum(config.depths[:i]) for i in range(len(config.depths))]
        self.stages = nn.ModuleList(
            Stage(config, i, rates[start : start + config.depths[i]])
            for i, start in enumerate(starts)
        )
        self.expand = RepConv(last, 2 * last, 3, groups=last, se_reduced=2 * last // 16)
        self.head = nn.Linear(2 * last, embed_dim, bias=config.head_bias)
        self.apply(_initialise)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map preprocessed pixels (B, 3, H, W) to embeddings (B, D), not normalised.

        H and W are multiples of the total stride: 32 with four stages, 64 with five.
        """
        return self.head(self._expanded(pixels).mean((2, 3)))

    def feature_maps(self, indices: Sequence[int] | None = None) -> tuple[FeatureMap, ...]:
        """Return name, channels and stride of the maps that `features` returns."""
        return feature_maps(self.config, indices)

    def features(self, pixels: Tensor, indices: Sequence[int] | None = None) -> list[Tensor]:
        """Return the output of every stage, for detection and segmentation.

        They equal the `features_only` models of timm's FastViT. Gradients flow; in training mode
        BatchNorm and stochastic depth act as in `forward`.

        Args:
            pixels: preprocessed, (B, 3, H, W), of any size. Sides that are not a multiple of the
                stride are rounded up, as convolutions with padding do.
            indices: of the stages, from 0; negative ones count from the end; later stages are not
                computed. None: all.

        Returns:
            Maps (B, C, ceil(H / s), ceil(W / s)) with the strides s = 4, 8, 16, 32, of five stages
            64 too, and the channels of the configuration's `widths`.

        Raises:
            ConfigError: there is no such stage.
        """
        chosen = {m.index for m in self.feature_maps(indices)}
        x, maps = self.stem(pixels), []
        for index, stage in enumerate(self.stages[: max(chosen) + 1]):
            x = stage(x, recompute=self.recompute)
            if index in chosen:
                maps.append(x)
        return maps

    def tokens(self, pixels: Tensor) -> Tensor:
        """Return what the embedding is the mean of, for a language model: (B, N, 2C).

        N = ceil(H / s) * ceil(W / s) positions, row by row, for the total stride s; C is the width
        of the last stage. `head(tokens.mean(1))` is the embedding.

        Args:
            pixels: as in `features`.
        """
        return self._expanded(pixels).flatten(2).transpose(1, 2)

    def _expanded(self, pixels: Tensor) -> Tensor:
        x = self.stem(pixels)
        for stage in self.stages:
            x = stage(x, recompute=self.recompute)
        return self.expand(x)

    def groups(self) -> list[list[nn.Module]]:
        """Return the modules from input to output, one list per block, for freezing."""
        out: list[list[nn.Module]] = [[self.stem]]
        for stage in self.stages:
            assert isinstance(stage, Stage)
            first, *rest = stage.blocks
            out.append([stage.downsample, stage.position, first])
            out += [[block] for block in rest]
        out.append([self.expand, self.head])
        return out


def _initialise(module: nn.Module) -> None:
    # As in FastViT's code: a truncated normal for layers without a BatchNorm right after them.
    if isinstance(module, (nn.Linear, ConvMLP)):
        layers = [module] if isinstance(module, nn.Linear) else [module.fc1, module.fc2]
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
