"""The caption decoder: causal blocks over a text's states that also attend to the image.

Source: CoCa (arXiv 2205.01917), section 3.2, in open_clip's form (`MultimodalTransformer`): one
cross-attention block follows each causal block.

Shapes: B images, n texts per image, T text tokens, S image tokens, C channels (width), h heads,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketclip.nn.text import initialise
from pocketclip.nn.transformer import (
    MLP,
    Attention,
    KVCache,
    TransformerBlock,
    checkpoint_block,
    join_heads,
    split_heads,
)
from pocketclip.zoo import DecoderConfig

KeysValues = tuple[Tensor, Tensor]  # (B, h, S, C/h) each


class CrossAttention(Attention):
    """Multi-head attention from text tokens to image tokens."""

    def keys_values(self, image_tokens: Tensor) -> KeysValues:
        """Return keys and values (B, h, S, C/h) of image tokens (B, S, C)."""
        width = image_tokens.shape[-1]
        both = F.linear(image_tokens, self.qkv.weight[width:], self.qkv.bias[width:])
        keys, values = both.chunk(2, dim=-1)
        return split_heads(keys, self.heads), split_heads(values, self.heads)

    def cross_attend(self, x: Tensor, image_kv: KeysValues) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        width = x.shape[-1]
        q = split_heads(F.linear(x, self.qkv.weight[:width], self.qkv.bias[:width]), self.heads)
        return self.proj(join_heads(F.scaled_dot_product_attention(q, *image_kv)))


class CrossBlock(nn.Module):
    """`x + attention(norm(x), norm(image))`, then `x + mlp(norm(x))`."""

    def __init__(self, width: int, config: DecoderConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm_kv = nn.LayerNorm(width)
        self.attn = CrossAttention(width, config.heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, int(width * config.mlp_ratio), config.activation)

    def forward(self, x: Tensor, image_tokens: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C), attending to image tokens (B, S, C)."""
        return self.cross_attend(x, self.keys_values(image_tokens))

    def keys_values(self, image_tokens: Tensor) -> KeysValues:
        """Return the keys and values of image tokens (B, S, C) for `cross_attend`."""
        return self.attn.keys_values(self.norm_kv(image_tokens))

    def cross_attend(self, x: Tensor, image_kv: KeysValues) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        x = x + self.attn.cross_attend(self.norm1(x), image_kv)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """Causal blocks over the text's states, each followed by a cross-attention block.

    Args:
        config: the zoo's description.
        width: C, of text and image tokens.
        vocab_size: V.
    """

    def __init__(self, config: DecoderConfig, width: int, vocab_size: int) -> None:
        super().__init__()
        self.recompute = False
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width,
                config.heads,
                mlp_ratio=config.mlp_ratio,
                activation=config.activation,
                causal=True,
            )
            for _ in range(config.layers)
        )
        self.cross = nn.ModuleList(CrossBlock(width, config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        residual_std = width**-0.5 * (4 * config.layers) ** -0.5
        for block, cross in self._layers():
            initialise(block.attn, block.mlp, residual_std)
            initialise(cross.attn, cross.mlp, residual_std)
        nn.init.normal_(self.head.weight, std=width**-0.5)

    def forward(self, x: Tensor, image_tokens: Tensor) -> Tensor:
        """Map a text's states (B, T, C) and image tokens (B, S, C) to logits (B, T, V)."""
        for block, cross in self._layers():
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint_block(cross, checkpoint_block(block, x), image_tokens)
            else:
                x = cross(block(x), image_tokens)
        return self.head(self.norm(x))

    def keys_values(self, image_tokens: Tensor) -> list[KeysValues]:
        """Return each layer's keys and values of image tokens (B, S, C) for `step`."""
        return [cross.keys_values(image_tokens) for _, cross in self._layers()]

    def step(self, x: Tensor, caches: Sequence[KVCache], image_kv: Sequence[KeysValues]) -> Tensor:
        """Map the next states of several texts per image to logits.

        Args:
            x: (B n, 1, C), n texts per image; texts of one image are adjacent.
            caches: per layer, the KV cache of the text so far; the new state is appended.
            image_kv: per layer, the result of `keys_values` for the B images.

        Returns:
            (B n, V).
        """
        rows, _, width = x.shape
        images = image_kv[0][0].shape[0]
        for (block, cross), cache, keys_values in zip(
            self._layers(), caches, image_kv, strict=True
        ):
            x = block.step(x, cache)
            # The n texts of an image share its keys and values, which are not repeated.
            x = cross.cross_attend(x.reshape(images, -1, width), keys_values).reshape(
                rows, 1, width
            )
        return self.head(self.norm(x.squeeze(1)))

    def _layers(self) -> list[tuple[TransformerBlock, CrossBlock]]:
        return list(zip(self.blocks, self.cross, strict=True))  # type: ignore[arg-type]
