"""The captioner: two towers that embed into one space, and a decoder that describes the image.

Source: CoCa (arXiv 2205.01917), in the form that open_clip trains and MobileCLIP2's captioners
have: the text tower reads the caption without looking at the image, and the decoder goes on from
its states and looks at what the image tower's attentional pooling gives.

Shapes: B batch, H W height width, T tokens, S tokens of the image, C channels, h heads,
D embedding (equal to C), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketclip.nn.clip import CLIP, Array
from pocketclip.nn.text import TextTower, initialise
from pocketclip.nn.transformer import (
    MLP,
    Attention,
    Past,
    TransformerBlock,
    checkpointed,
    join_heads,
    split_heads,
)
from pocketclip.nn.vit import ViT
from pocketclip.zoo import DecoderConfig, ModelConfig

if TYPE_CHECKING:
    from pocketclip.caption_settings import Method

KeysValues = tuple[Tensor, Tensor]  # (B, h, S, C/h) each


class Output(NamedTuple):
    """What a captioner computes; an absent input leaves its parts None."""

    image: Tensor | None
    """Unit embeddings (B, D)."""
    text: Tensor | None
    """Unit embeddings (B, D)."""
    logit_scale: Tensor
    """The multiplier of their similarity, a scalar."""
    logits: Tensor | None
    """(B, T, V); place i is about the id at place i + 1, given the image and the ids up to i."""


class CrossAttention(Attention):
    """Multi-head attention of a text's tokens to an image's."""

    def keys_values(self, image_tokens: Tensor) -> KeysValues:
        """Return keys and values (B, h, S, C/h) of image tokens (B, S, C)."""
        width = image_tokens.shape[-1]
        both = F.linear(image_tokens, self.qkv.weight[width:], self.qkv.bias[width:])
        keys, values = both.chunk(2, dim=-1)
        return split_heads(keys, self.heads), split_heads(values, self.heads)

    def look(self, x: Tensor, seen: KeysValues) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        width = x.shape[-1]
        q = split_heads(F.linear(x, self.qkv.weight[:width], self.qkv.bias[:width]), self.heads)
        return self.proj(join_heads(F.scaled_dot_product_attention(q, *seen)))


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
        """Map (B, T, C) to (B, T, C), looking at image tokens (B, S, C)."""
        return self.look(x, self.keys_values(image_tokens))

    def keys_values(self, image_tokens: Tensor) -> KeysValues:
        """Return what `look` needs of image tokens (B, S, C)."""
        return self.attn.keys_values(self.norm_kv(image_tokens))

    def look(self, x: Tensor, seen: KeysValues) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        x = x + self.attn.look(self.norm1(x), seen)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """Causal blocks over the text's states, each followed by one that looks at the image.

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
                x = checkpointed(cross, checkpointed(block, x), image_tokens)
            else:
                x = cross(block(x), image_tokens)
        return self.head(self.norm(x))

    def keys_values(self, image_tokens: Tensor) -> list[KeysValues]:
        """Return, per layer, what `step` needs of image tokens (B, S, C)."""
        return [cross.keys_values(image_tokens) for _, cross in self._layers()]

    def step(self, x: Tensor, pasts: Sequence[Past], seen: Sequence[KeysValues]) -> Tensor:
        """Map the next states of several texts per image to logits.

        Args:
            x: (B n, 1, C), n texts per image, those of an image beside each other.
            pasts: per layer, what came before.
            seen: per layer, what `keys_values` returned for the B images.

        Returns:
            (B n, V).
        """
        rows, _, width = x.shape
        images = seen[0][0].shape[0]
        for (block, cross), past, keys_values in zip(self._layers(), pasts, seen, strict=True):
            x = block.step(x, past)
            # The texts of an image look at it side by side: nothing of it is repeated.
            x = cross.look(x.reshape(images, -1, width), keys_values).reshape(rows, 1, width)
        return self.head(self.norm(x.squeeze(1)))

    def _layers(self) -> list[tuple[TransformerBlock, CrossBlock]]:
        return list(zip(self.blocks, self.cross, strict=True))  # type: ignore[arg-type]


class CoCa(CLIP):
    """A `CLIP` that also writes captions.

    Attributes:
        decoder: from the states of a text and the tokens of an image to the next ids.
    """

    image: ViT
    text: TextTower

    def __init__(self, config: ModelConfig) -> None:
        assert config.decoder is not None
        super().__init__(config)
        text = config.text
        self.decoder = Decoder(config.decoder, text.width, text.vocab_size)
        self.decoder.recompute = config.gradient_checkpointing

    def forward(  # type: ignore[override]
        self, pixels: Tensor | None = None, ids: Tensor | None = None
    ) -> Output:
        """Return unit embeddings of what is given and, where both are, the decoder's logits.

        Args:
            pixels: (B, 3, H, W), or None to leave the image tower out.
            ids: (B, T), T <= context length, or None to leave the text tower out. Rows of the
                tokenizer's 77 ids are cut to 76 (`TextTower.fit`), and the logits are for those.
        """
        image = text = image_tokens = states = logits = None
        if pixels is not None:
            image, image_tokens = self.image.with_tokens(self._tensor(pixels))
            image = F.normalize(image, dim=-1)
        if ids is not None:
            text, states = self.text.with_tokens(self.text.fit(self._tensor(ids)))
            text = F.normalize(text, dim=-1)
        if image_tokens is not None and states is not None:
            logits = self.decoder(states, image_tokens)
        return Output(image, text, self.logit_scale.exp(), logits)

    def image_tokens(self, pixels: Tensor | Array) -> Tensor:
        """Return what the decoder sees of pixels (B, 3, H, W): tokens (B, S, D)."""
        return self.image.with_tokens(self._tensor(pixels))[1]

    def generate(
        self,
        pixels: Tensor | Array | None = None,
        *,
        image_tokens: Tensor | None = None,
        method: Method = "nucleus",
        captions_per_image: int = 1,
        seeds: Sequence[int] | None = None,
        **settings: Any,
    ) -> list[list[int]]:
        """Write captions; see `pocketclip.nn.generate.generate`."""
        from pocketclip.nn.generate import generate

        return generate(
            self,
            pixels,
            image_tokens=image_tokens,
            method=method,
            captions_per_image=captions_per_image,
            seeds=seeds,
            **settings,
        )

    def set_gradient_checkpointing(self, on: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        super().set_gradient_checkpointing(on)
        if "decoder" in self._modules:  # not yet, when the base class is initialised
            self.decoder.recompute = on
