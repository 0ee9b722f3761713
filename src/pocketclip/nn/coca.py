"""The captioner: two towers that embed into one space, and a caption decoder.

Source: CoCa (arXiv 2205.01917), section 3.2, in open_clip's form, which MobileCLIP2 (arXiv
2508.20691) uses for its captioners: the text tower reads the caption without the image, and the
decoder continues from its states and attends to the tokens of the image tower's attentional
pooling.

Shapes: B batch, H W height width, T text tokens, S image tokens, D embedding (equal to the width),
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from pocketclip.nn.clip import CLIP, Array
from pocketclip.nn.decoder import Decoder
from pocketclip.nn.generate import generate
from pocketclip.nn.text import TextTower
from pocketclip.nn.vit import ViT
from pocketclip.zoo import ModelConfig

if TYPE_CHECKING:
    from pocketclip.caption_settings import Method


class Output(NamedTuple):
    """The outputs of a captioner; those of an absent input are None."""

    image: Tensor | None
    """Unit embeddings (B, D)."""
    text: Tensor | None
    """Unit embeddings (B, D)."""
    logit_scale: Tensor
    """The multiplier of their similarity, a scalar."""
    logits: Tensor | None
    """(B, T, V); position i predicts id i + 1 from the image and the ids up to i."""


class CoCa(CLIP):
    """A `CLIP` that also writes captions.

    Attributes:
        decoder: maps the states of a text and the tokens of an image to logits of the next ids.
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
        """Return unit embeddings of the inputs and, with both inputs, the decoder's logits.

        Args:
            pixels: (B, 3, H, W), or None to skip the image tower.
            ids: (B, T), T <= context length, or None to skip the text tower. Rows of the
                tokenizer's 77 ids are cut to 76 (`TextTower.fit`), and so are the logits.
        """
        image = text = image_tokens = states = logits = None
        if pixels is not None:
            image, image_tokens = self.image.with_tokens(self.as_tensor(pixels))
            image = F.normalize(image, dim=-1)
        if ids is not None:
            text, states = self.text.with_tokens(self.text.fit(self.as_tensor(ids)))
            text = F.normalize(text, dim=-1)
        if image_tokens is not None and states is not None:
            logits = self.decoder(states, image_tokens)
        return Output(image, text, self.logit_scale.exp(), logits)

    def image_tokens(self, pixels: Tensor | Array) -> Tensor:
        """Return the tokens (B, S, D) of pixels (B, 3, H, W) that the decoder attends to."""
        return self.image.with_tokens(self.as_tensor(pixels))[1]

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
        """Generate captions; see `pocketclip.nn.generate.generate`."""
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
        if "decoder" in self._modules:  # absent while the base class is initialised
            self.decoder.recompute = on
