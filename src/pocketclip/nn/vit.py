"""Vision transformer image towers: MobileCLIP-B's hybrid, CLIP's plain ones and CoCa's.

Sources: ViT (arXiv 2010.11929), section 3.1; MobileCLIP (arXiv 2311.17049), appendix, for the
convolutional stem of B (position embedding on patches only); CLIP (arXiv 2103.00020) for the
normalisation before the first block; CoCa (arXiv 2205.01917), section 3.2, for attentional pooling.

Shapes: B batch, H W height width, C channels, N patches, T tokens (N + 1), Q queries,
D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketclip.feature_maps import FeatureMap, feature_maps
from pocketclip.nn.moe import ExpertLinear
from pocketclip.nn.reparam import ConvBN
from pocketclip.nn.transformer import (
    FrozenBatchNormMixin,
    TransformerBlock,
    drop_path_rates,
    join_heads,
    run_blocks,
    run_blocks_pooled,
    split_heads,
)
from pocketclip.zoo import ViTConfig


class ConvStem(nn.Sequential):
    """Three non-overlapping convolutions (strides 4, 2, 2); BatchNorm and GELU follow two."""

    def __init__(self, width: int, padding: int) -> None:
        super().__init__(
            ConvBN(3, width // 4, 4, stride=4, padding=padding),
            nn.GELU(),
            ConvBN(width // 4, width // 4, 2, stride=2, padding=0),
            nn.GELU(),
            nn.Conv2d(width // 4, width, 2, stride=2),
        )


class AttentionPool(nn.Module):
    """Attentional pooling: learned queries attend to the tower's tokens once.

    Queries, keys and values share one bias parameter, as in the published files.
    """

    def __init__(self, queries: int, width: int, tokens_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(queries, width))
        self.norm_q = nn.LayerNorm(width)
        self.norm_k = nn.LayerNorm(tokens_width)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(tokens_width, width, bias=False)
        self.v = nn.Linear(tokens_width, width, bias=False)
        self.bias = nn.Parameter(torch.zeros(3 * width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """Map tokens (B, T, C) to (B, Q, D); `first` uses only this many of the queries."""
        x = self.norm_k(x)
        query = self.norm_q(self.query[:first]).unsqueeze(0)
        bias_q, bias_k, bias_v = self.bias.chunk(3)
        q = split_heads(self.q(query) + bias_q, self.heads).expand(x.shape[0], -1, -1, -1)
        k = split_heads(self.k(x) + bias_k, self.heads)
        v = split_heads(self.v(x) + bias_v, self.heads)
        return self.proj(join_heads(F.scaled_dot_product_attention(q, k, v)))


class ViT(FrozenBatchNormMixin):
    """The image tower: the class token's last state, normalised and projected.

    With `config.pool_queries`, the first query of an attentional pooling replaces the class token,
    and a caption decoder attends to the results of the other queries.

    Args:
        config: the tower's configuration.
        embed_dim: D, the width of the embedding.
        image_size: side length in pixels that the position embedding is for.
    """

    def __init__(self, config: ViTConfig, embed_dim: int, image_size: int) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.recompute = False
        self.stride = config.patch_size
        self.grid = image_size // config.patch_size
        self.stem: nn.Module = (
            nn.Conv2d(3, width, config.patch_size, config.patch_size, bias=False)
            if config.stem == "patch"
            else ConvStem(width, config.stem_padding)
        )
        tokens = self.grid**2 + (1 if config.class_position else 0)
        self.class_position = config.class_position
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, tokens, width))
        self.norm_pre = nn.LayerNorm(width, eps=config.eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width,
                config.heads,
                activation=config.activation,
                eps=config.eps,
                drop_path=rate,
                moe=config.moe if config.moe and i in config.moe.blocks else None,
            )
            for i, rate in enumerate(drop_path_rates(config.drop_path, config.layers))
        )
        self.pool: AttentionPool | None = None
        if config.pool_queries is not None:
            self.pool = AttentionPool(config.pool_queries, embed_dim, width, config.pool_heads)
            width = embed_dim
        self.norm = nn.LayerNorm(width, eps=config.eps)
        self.head = nn.Linear(width, embed_dim, bias=config.head_bias)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)
        self.apply(_initialise)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map preprocessed pixels (B, 3, H, W) to embeddings (B, D), not normalised.

        For a grid of patches other than the trained one, the position embedding is interpolated.

        Raises:
            ValueError: H or W is not a multiple of the patch size.
        """
        x, blocks = self.embed_patches(pixels), list(self.blocks)
        if self.pool is None:
            x = run_blocks_pooled(blocks, x, lambda y: y[:, 0], recompute=self.recompute)
        else:
            x = self.pool(run_blocks(blocks, x, recompute=self.recompute), 1).squeeze(1)
        return self.head(self.norm(x))

    def with_tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings (B, D) and the tokens for a caption decoder (B, Q - 1, D).

        Raises:
            ValueError: H or W is not a multiple of the patch size, or the tower has no attentional
                pooling.
        """
        if self.pool is None:
            raise ValueError("only a tower with pool_queries has tokens for a caption decoder")
        x = run_blocks(self.blocks, self.embed_patches(pixels), recompute=self.recompute)
        x = self.norm(self.pool(x))
        return self.head(x[:, 0]), x[:, 1:]

    def feature_maps(self, indices: Sequence[int] | None = None) -> tuple[FeatureMap, ...]:
        """Return name, channels and stride of the maps that `features` returns."""
        return feature_maps(self.config, indices)

    def features(self, pixels: Tensor, indices: Sequence[int] | None = None) -> list[Tensor]:
        """Return the patches' states after some blocks, as maps of one stride, the patch size.

        They are not normalised, and equal open_clip's and timm's `forward_intermediates`.
        Gradients flow.

        Args:
            pixels: preprocessed, (B, 3, H, W), of any size in whole patches. The position
                embedding is interpolated for it: bicubic, antialiased, as open_clip and timm do.
            indices: of the blocks, from 0; negative ones count from the end; later blocks are not
                computed. None: four at equal distances, the last one included.

        Returns:
            Maps (B, C, H / p, W / p) for the patch size p.

        Raises:
            ConfigError: there is no such block.
            ValueError: H or W is not a multiple of the patch size.
        """
        chosen = {m.index for m in self.feature_maps(indices)}
        size = pixels.shape[2] // self.stride, pixels.shape[3] // self.stride
        x, maps = self.embed_patches(pixels), []
        for index, block in enumerate(self.blocks[: max(chosen) + 1]):
            x = run_blocks([block], x, recompute=self.recompute)
            if index in chosen:
                maps.append(x[:, 1:].transpose(1, 2).reshape(len(x), -1, *size))
        return maps

    def tokens(self, pixels: Tensor) -> Tensor:
        """Return the normalised states of the patches, for a language model: (B, N, C).

        N = H / p * W / p patches, row by row. A captioner's tower gives what its decoder attends
        to, see `with_tokens`: (B, Q - 1, D). Both equal open_clip's `output_tokens`.

        Args:
            pixels: as in `features`.

        Raises:
            ValueError: H or W is not a multiple of the patch size.
        """
        if self.pool is not None:
            return self.with_tokens(pixels)[1]
        x = run_blocks(self.blocks, self.embed_patches(pixels), recompute=self.recompute)
        return self.norm(x[:, 1:])

    def embed_patches(self, pixels: Tensor) -> Tensor:
        """Return the input of the first block (B, T, C): class token and patches with positions.

        Raises:
            ValueError: H or W is not a multiple of the patch size.
        """
        if pixels.shape[2] % self.stride or pixels.shape[3] % self.stride:
            raise ValueError(
                f"image sides must be multiples of {self.stride}, not {tuple(pixels.shape[2:])}"
            )
        x = self.stem(pixels)  # (B, C, H/p, W/p)
        position = self.position_for(x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)  # (B, N, C)
        class_token = self.class_token.expand(x.shape[0], -1, -1)
        if self.class_position:
            x = torch.cat([class_token, x], dim=1) + position
        else:
            x = torch.cat([class_token, x + position], dim=1)
        return self.norm_pre(x)

    def position_for(self, height: int, width: int) -> Tensor:
        """Return the position embedding (1, T or N, C) for a grid of height x width patches."""
        if height == self.grid and width == self.grid:
            return self.position
        split = 1 if self.class_position else 0
        first, patches = self.position[:, :split], self.position[:, split:]
        patches = patches.reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        # Some CPUs have no half-precision kernel for bicubic interpolation: use float32.
        resized = F.interpolate(
            patches.float(), size=(height, width), mode="bicubic", antialias=True
        ).to(patches.dtype)
        return torch.cat([first, resized.flatten(2).transpose(1, 2)], dim=1)

    def regrid(self, image_size: int) -> None:
        """Interpolate the stored position embedding for images of another size."""
        grid = image_size // self.stride
        position = self.position_for(grid, grid).detach().clone()
        self.position, self.grid = nn.Parameter(position), grid

    def groups(self) -> list[list[nn.Module]]:
        """Return the modules from input to output, one list per block, for freezing."""
        pool = [] if self.pool is None else [self.pool]
        last = [*pool, self.norm, self.head]
        return [[self.stem, self.norm_pre], *([b] for b in self.blocks), last]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, ExpertLinear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
