"""Text towers: CLIP's transformer, with or without the causal mask, and MobileCLIP's MCt.

Sources: CLIP (arXiv 2103.00020), section 2.4; MobileCLIP (arXiv 2311.17049), section 3.3, for
MCt, which puts a RepMixer block over the token axis before and after four transformer layers.

Shapes: B batch, T tokens, C channels, D embedding, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pocketclip.nn.mci import RepMixerBlock
from pocketclip.nn.transformer import HoldsStatistics, TransformerBlock, drop_path_rates, run_pooled
from pocketclip.zoo import TextConfig


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


class ComposedEmbedding(nn.Module):
    """Token embeddings from two small tables: `remainder[i % n] + quotient[i // n]`.

    Every token has a pair of rows of its own (arXiv 1909.02107, section 3), so none collide.
    """

    def __init__(self, vocabulary: int, buckets: int, width: int) -> None:
        super().__init__()
        self.buckets = buckets
        self.remainder = nn.Embedding(buckets, width)
        self.quotient = nn.Embedding(-(-vocabulary // buckets), width)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) to (B, T, C)."""
        high = torch.div(ids, self.buckets, rounding_mode="floor")
        return self.remainder(ids % self.buckets) + self.quotient(high)

    def table(self, vocabulary: int) -> Tensor:
        """Return the equivalent plain table (V, C)."""
        return self.forward(torch.arange(vocabulary, device=self.remainder.weight.device))


class TextTower(HoldsStatistics):
    """The text tower; the state at the end-of-text token, normalised and projected.

    Args:
        config: the zoo's description.
        embed_dim: D, the width of the embedding.
    """

    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__()
        width = config.width
        self.recompute = False
        self.context_length = config.context_length
        self.embedding: nn.Module = (
            nn.Embedding(config.vocab_size, width)
            if config.embedding_buckets is None
            else ComposedEmbedding(config.vocab_size, config.embedding_buckets, width)
        )
        self.position = nn.Parameter(torch.zeros(config.context_length, width))
        count = config.layers + (2 if config.repmixer else 0)
        rates = drop_path_rates(config.drop_path, count)

        def layer(rate: float) -> nn.Module:
            return TransformerBlock(
                width,
                config.heads,
                mlp_ratio=config.mlp_ratio,
                activation=config.activation,
                causal=config.causal,
                drop_path=rate,
            )

        if config.repmixer:
            ends = [
                TokenMixerBlock(width, config.mlp_ratio, drop_path=r) for r in (rates[0], rates[-1])
            ]
            self.blocks = nn.ModuleList([ends[0], *(layer(r) for r in rates[1:-1]), ends[1]])
        else:
            self.blocks = nn.ModuleList(layer(r) for r in rates)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, embed_dim, bias=False)
        self._initialise(config)

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids (B, T), T <= context length, to embeddings (B, D), not normalised.

        Raises:
            ValueError: T is more than the context length.
        """
        if ids.shape[1] > self.context_length:
            raise ValueError(f"{ids.shape[1]} tokens; this tower takes {self.context_length}")
        x = self.embedding(ids) + self.position[: ids.shape[1]]
        # The end-of-text token has the highest id. A mask of its first occurrence, unlike
        # indexing with argmax, exports to every target.
        end = ids == ids.amax(-1, keepdim=True)
        end = end & (end.cumsum(-1) == 1)
        weight = end.unsqueeze(-1).to(x.dtype)  # (B, T, 1)
        pooled = run_pooled(
            list(self.blocks), x, lambda y: (y * weight).sum(1), recompute=self.recompute
        )
        return self.head(self.norm(pooled))

    def groups(self) -> list[list[nn.Module]]:
        """Return the modules from input to output, one list per block, for freezing."""
        return [[self.embedding], *([b] for b in self.blocks), [self.norm, self.head]]

    def _initialise(self, config: TextConfig) -> None:
        # CLIP, section 2.4 and its code: residual projections shrink with depth.
        width = config.width
        for module in self.embedding.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.normal_(self.position, std=0.01)
        residual_std = width**-0.5 * (2 * config.layers) ** -0.5
        for block in self.blocks:
            if isinstance(block, TransformerBlock):
                nn.init.normal_(block.attn.qkv.weight, std=width**-0.5)
                nn.init.normal_(block.attn.proj.weight, std=residual_std)
                nn.init.normal_(block.mlp.fc1.weight, std=(2 * width) ** -0.5)
                nn.init.normal_(block.mlp.fc2.weight, std=residual_std)
                for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                    nn.init.zeros_(linear.bias)
        nn.init.normal_(self.head.weight, std=width**-0.5)
