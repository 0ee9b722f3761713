"""Teachers that are models of the zoo.

Shapes: B batch, T tokens, S side of a square in pixels, D embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pocketclip import zoo
from pocketclip.checkpoint.resolve import ModelSource
from pocketclip.reinforce.protocols import Ids
from pocketclip.reinforce.teacher_preprocess import Scaling, SquareTransform
from pocketclip.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class ZooTowers:
    """A model of the zoo, re-parameterised."""

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype) -> None:
        from pocketclip.nn import reparam

        config = model.config
        self.space_id: str = model.space_id  # of the weights as loaded, in float32
        self.logit_scale = float(model.logit_scale.detach().exp())
        self.logit_bias = 0.0
        self.embed_dim: int = config.embed_dim
        self.context_length: int = config.text.context_length
        self.trims = config.text.ignores_padding
        model = model if getattr(model, "is_fused", False) else reparam.fuse(model)
        self.model = model.eval().requires_grad_(False).to(device, dtype)
        # On a CPU, small batches win: activations stay in the cache.
        small = 4 if isinstance(config.image, zoo.MCiConfig) else 8  # at 256 pixels
        small *= max(1, (256 // config.preprocess.size) ** 2)
        self.image_batch = small if device.type == "cpu" else 128
        self.tokenizer = Tokenizer(warn=False)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, S, S) to embeddings (B, D)."""
        return self.model.encode_image(pixels)

    def tokenize(self, texts: list[str]) -> tuple[Ids, Ids]:
        """Return ids (B, T) and their lengths (B,)."""
        ids = self.tokenizer(texts, self.context_length)
        return ids, (ids == self.tokenizer.end_id).argmax(1) + 1

    def encode_ids(self, ids: Tensor, lengths: Tensor) -> Tensor:  # noqa: ARG002
        """Map ids (B, T) to embeddings (B, D)."""
        return self.model.encode_text(ids)

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of the whole `text`, with its start and end token."""
        return len(self.tokenizer.encode(text)) + 2


def load_model(source: ModelSource, *, offline: bool) -> Any:
    """Return a model of the zoo, in float32 and evaluation mode."""
    from pocketclip import checkpoint

    return checkpoint.load(source, offline=offline)


def geometry(model: Any) -> tuple[SquareTransform, Scaling]:
    """Return the evaluation transform of a zoo model."""
    config = model.config.preprocess
    return SquareTransform.of(config), Scaling(mean=config.mean, std=config.std)
