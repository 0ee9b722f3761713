"""Text towers: CLIP's transformer, causal or not, MobileCLIP's MCt, and CoCa's.

Sources: CLIP (arXiv 2103.00020), section 2.4; MobileCLIP (arXiv 2311.17049), section 3.3, for
MCt, with a RepMixer block over the token axis before and after four transformer layers;
CoCa (arXiv 2205.01917), section 3.2, for the class token after the text.

Shapes: B batch, T tokens, C channels, D embedding, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pocketclip.nn.moe import MoE
from pocketclip.nn.repmixer import TokenMixerBlock
from pocketclip.nn.transformer import (
    MLP,
    Attention,
    FrozenBatchNormMixin,
    KVCache,
    TransformerBlock,
    drop_path_rates,
    run_blocks,
    run_blocks_pooled,
)
from pocketclip.tokenizer import PAD
from pocketclip.zoo import TextConfig


class ComposedEmbedding(nn.Module):
    """Token embeddings from two small tables: `remainder[i % n] + quotient[i // n]`.

    Each token has its own pair of rows (arXiv 1909.02107, section 3), so tokens never collide.
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


class TextTower(FrozenBatchNormMixin):
    """The text tower: the state at the end-of-text token, normalised and projected.

    With `config.class_token`, the state of a learned token after the last id is used instead, and
    a caption decoder reads the states of the ids.

    Args:
        config: the tower's configuration.
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
        positions = config.context_length + (1 if config.class_token else 0)
        self.position = nn.Parameter(torch.zeros(positions, width))
        self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if config.class_token else None
        count = config.layers + (2 if config.repmixer else 0)
        rates = drop_path_rates(config.drop_path, count)

        moe = config.moe

        def layer(index: int, rate: float) -> nn.Module:
            return TransformerBlock(
                width,
                config.heads,
                mlp_ratio=config.mlp_ratio,
                activation=config.activation,
                causal=config.causal,
                drop_path=rate,
                moe=moe if moe is not None and index in moe.blocks else None,
            )

        if config.repmixer:
            ends = [
                TokenMixerBlock(width, config.mlp_ratio, drop_path=r) for r in (rates[0], rates[-1])
            ]
            inner = [layer(i, r) for i, r in enumerate(rates[1:-1])]
            self.blocks = nn.ModuleList([ends[0], *inner, ends[1]])
        else:
            self.blocks = nn.ModuleList(layer(i, r) for i, r in enumerate(rates))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, embed_dim, bias=False)
        self._initialise(config)

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids (B, T), T <= context length, to embeddings (B, D), not normalised.

        A tower with a class token also takes rows of one more id, see `fit`.

        Raises:
            ValueError: T exceeds the context length.
        """
        blocks = list(self.blocks)
        if self.class_token is not None:
            ids = self.fit(ids)
            x, mask = self._with_class(ids)
            x = run_blocks_pooled(
                blocks, x, lambda y: y[:, -1], mask,
                real=_with_column(ids != PAD), recompute=self.recompute,
            )  # fmt: skip
            return self.head(self.norm(x))
        if ids.shape[1] > self.context_length:
            raise ValueError(
                f"{ids.shape[1]} tokens; this tower takes at most {self.context_length}"
            )
        x = self.embedding(ids) + self.position[: ids.shape[1]]
        # The end-of-text token has the highest id. A mask of its first occurrence exports to every
        # target; indexing with argmax does not.
        end = ids == ids.amax(-1, keepdim=True)
        passed = end.cumsum(-1)
        end = end & (passed == 1)
        weight = end.unsqueeze(-1).to(x.dtype)  # (B, T, 1)
        pooled = run_blocks_pooled(
            blocks, x, lambda y: (y * weight).sum(1),
            real=end | (passed == 0), recompute=self.recompute,
        )  # fmt: skip
        return self.head(self.norm(pooled))

    def with_tokens(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings (B, D) of ids (B, T) and their states (B, T, C), not normalised.

        For towers with a class token only.

        Args:
            ids: as `fit` returns them.
        """
        x, mask = self._with_class(ids)
        real = _with_column(ids != PAD)
        x = run_blocks(self.blocks, x, mask, real=real, recompute=self.recompute)
        return self.head(self.norm(x[:, -1])), x[:, :-1]

    def step(self, ids: Tensor, caches: Sequence[KVCache]) -> Tensor:
        """Return the states (B, 1, C) of the next ids (B,), and append them to the KV caches.

        They equal those of `with_tokens`: in a causal tower the ids of a text attend neither to
        the class token nor to padding.
        """
        x = self.embedding(ids.unsqueeze(1)) + self.position[caches[0].length]
        for block, cache in zip(self.blocks, caches, strict=True):
            assert isinstance(block, TransformerBlock)
            x = block.step(x, cache)
        return x

    def fit(self, ids: Tensor) -> Tensor:
        """Return ids (B, T) with T <= context length, cut by one id if necessary.

        The tokenizer's default length is 77, CoCa's context length 76, since the class token takes
        the last position. Rows are truncated as by the tokenizer: a full row keeps its end token.

        Raises:
            ValueError: T exceeds the context length by more than one.
        """
        length = self.context_length
        if ids.shape[1] == length + 1:
            last = torch.where(ids[:, -1] == PAD, ids[:, -2], ids[:, -1])
            ids = torch.cat([ids[:, : length - 1], last.unsqueeze(1)], dim=1)
        if ids.shape[1] > length:
            raise ValueError(f"{ids.shape[1]} tokens; this tower takes at most {length}")
        return ids

    def _with_class(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedded ids and class token (B, T + 1, C), and their attention mask.

        As in open_clip, and hence in the published weights, padding is masked one position late:
        tokens attend to the first padding position, and the class token does not attend to itself
        unless there is no padding.
        """
        assert self.class_token is not None, "this tower has no class token"
        batch, count = ids.shape
        x = torch.cat([self.embedding(ids), self.class_token.expand(batch, -1, -1)], dim=1)
        visible = torch.cat([torch.ones_like(ids[:, :1], dtype=torch.bool), ids != PAD], dim=1)
        causal = torch.ones(count + 1, count + 1, dtype=torch.bool, device=ids.device).tril()
        return x + self.position[: count + 1], visible[:, None, None, :] & causal

    def groups(self) -> list[list[nn.Module]]:
        """Return the modules from input to output, one list per block, for freezing."""
        return [[self.embedding], *([b] for b in self.blocks), [self.norm, self.head]]

    def _initialise(self, config: TextConfig) -> None:
        # As in CLIP's code: the standard deviation of residual projections falls with depth.
        width = config.width
        for module in self.embedding.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.normal_(self.position, std=0.01)
        if self.class_token is not None:
            nn.init.normal_(self.class_token, std=0.01)
        residual_std = width**-0.5 * (2 * config.layers) ** -0.5
        for block in self.blocks:
            if isinstance(block, TransformerBlock):
                initialise(block.attn, block.mlp, residual_std)
        nn.init.normal_(self.head.weight, std=width**-0.5)


def _with_column(real: Tensor) -> Tensor:
    """Return (B, T) with a column of true for the class token after the text."""
    return torch.cat([real, torch.ones_like(real[:, :1])], dim=1)


def initialise(attn: Attention, mlp: MLP | MoE, residual_std: float) -> None:
    """Initialise a text block as CLIP's code does; `residual_std` is for its two projections."""
    width = attn.proj.in_features
    nn.init.normal_(attn.qkv.weight, std=width**-0.5)
    nn.init.normal_(attn.proj.weight, std=residual_std)
    nn.init.normal_(mlp.fc1.weight, std=(2 * width) ** -0.5)
    nn.init.normal_(mlp.fc2.weight, std=residual_std)
    for linear in (attn.qkv, attn.proj, mlp.fc1, mlp.fc2):
        nn.init.zeros_(linear.bias)
