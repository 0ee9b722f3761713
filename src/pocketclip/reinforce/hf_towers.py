"""Teachers of `transformers`: CLIP, SigLIP and SigLIP 2.

Shapes: B batch, T tokens, N patches, p side of a patch, S side of a square in pixels, D embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pocketclip.errors import CheckpointError, ConfigError
from pocketclip.reinforce import teacher_preprocess
from pocketclip.reinforce.hf import (
    TEACHERS,
    config_of,
    folder_of,
    identity,
    load_tokenizer,
    load_weights,
    need_transformers,
    processor_of,
)
from pocketclip.reinforce.protocols import Ids, Towers
from pocketclip.reinforce.teacher_preprocess import Scaling, SquareTransform

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def features(output: Any) -> Tensor:
    """Return the embeddings of a feature call; newer versions of transformers wrap them."""
    return getattr(output, "pooler_output", output)


class TransformersTowers:
    """A CLIP, SigLIP or SigLIP 2 model of transformers."""

    def __init__(
        self, model: Any, tokenizer: Any, space_id: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        text, vision = model.config.text_config, model.config.vision_config
        clip = model.config.model_type == "clip"
        self.space_id = space_id
        self.logit_scale = float(model.logit_scale.exp())
        self.logit_bias = 0.0 if clip else float(model.logit_bias)
        self.embed_dim = int(model.config.projection_dim if clip else vision.hidden_size)
        self.context_length = int(text.max_position_embeddings)
        # SigLIP was trained on padded captions, and pools at the last position.
        self.trims = clip
        self.image_batch = 8 if device.type == "cpu" else 128
        self.patch = int(vision.patch_size) if model.config.model_type == "siglip2" else 0
        self.tokenizer = tokenizer
        self.model = model.to(device, dtype)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, S, S) to embeddings (B, D)."""
        if not self.patch:
            return features(self.model.get_image_features(pixel_values=pixels))
        import torch

        batch, _, size, _ = pixels.shape
        side = size // self.patch
        cut = pixels.reshape(batch, 3, side, self.patch, side, self.patch)
        patches = cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, side * side, -1)  # (B, N, p p 3)
        return features(
            self.model.get_image_features(
                pixel_values=patches,
                pixel_attention_mask=torch.ones(
                    patches.shape[:2], dtype=torch.int32, device=pixels.device
                ),
                spatial_shapes=torch.tensor([[side, side]] * batch, device=pixels.device),
            )
        )

    def tokenize(self, texts: list[str]) -> tuple[Ids, Ids]:
        """Return ids (B, T) and their lengths (B,)."""
        encoded = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.context_length,
            return_attention_mask=True,
        )
        ids = np.array(encoded["input_ids"], np.int64)
        vocabulary = self.model.config.text_config.vocab_size
        if ids.size and ids.max() >= vocabulary:
            raise CheckpointError(
                "the teacher's tokenizer does not belong to its model: it gives the token "
                f"{ids.max()}, but the model has {vocabulary} tokens; fetch its folder again"
            )
        return ids, np.array(encoded["attention_mask"], np.int64).sum(1)

    def encode_ids(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Map ids (B, T) and their lengths (B,) to embeddings (B, D)."""
        if not self.trims:
            return features(self.model.get_text_features(input_ids=ids))
        import torch

        positions = torch.arange(ids.shape[1], device=ids.device)
        mask = (positions < lengths[:, None]).long()
        return features(self.model.get_text_features(input_ids=ids, attention_mask=mask))

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of the whole `text`, with its start and end token."""
        return len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])


def transformers_teacher(
    target: str, device: torch.device, dtype: torch.dtype, *, offline: bool
) -> tuple[Towers, SquareTransform, Scaling]:
    """Load a CLIP, SigLIP or SigLIP 2 model from a folder or the hub.

    Raises:
        CheckpointError, ConfigError, HubError, MissingDependencyError: see `load_teacher`.
    """
    need_transformers()
    folder = folder_of(target, offline=offline)
    config, class_name = config_of(folder, TEACHERS, "teacher")
    processor, path = processor_of(folder)
    transform, scaling = teacher_preprocess.from_processor(processor, path)
    model, tokenizer = load_weights(folder, class_name), load_tokenizer(folder)
    _check_size(model.config.vision_config, transform, path)
    space = identity(folder, "transformers", config, processor)
    return TransformersTowers(model, tokenizer, space, device, dtype), transform, scaling


def _check_size(vision: Any, transform: SquareTransform, path: str) -> None:
    size = getattr(vision, "image_size", None)  # SigLIP 2 has none: it takes many sizes
    if isinstance(size, int) and size != transform.size:
        raise ConfigError(
            f"{path} makes squares of {transform.size} pixels, but the model takes {size}: it "
            "belongs to another model; fetch the folder again"
        )
