"""Teachers of other libraries: `transformers`, and `open_clip` where it can be imported.

Shapes: B batch, T tokens, N patches, p side of a patch, S side of a square in pixels, D embedding.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pocketclip.errors import CheckpointError, ConfigError, MissingDependencyError
from pocketclip.reinforce import foreign, squares
from pocketclip.reinforce.squares import Scaling, SquareTransform

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pocketclip.reinforce.teachers import Ids, Towers


def features(output: Any) -> Tensor:
    """Return the embeddings of a feature call; newer versions return more than those."""
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
        # SigLIP was trained on padded captions, which it pools at the last place.
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
        found = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.context_length,
            return_attention_mask=True,
        )
        ids = np.array(found["input_ids"], np.int64)
        return ids, np.array(found["attention_mask"], np.int64).sum(1)

    def encode_ids(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Map ids (B, T) and their lengths (B,) to embeddings (B, D)."""
        if not self.trims:
            return features(self.model.get_text_features(input_ids=ids))
        import torch

        places = torch.arange(ids.shape[1], device=ids.device)
        mask = (places < lengths[:, None]).long()
        return features(self.model.get_text_features(input_ids=ids, attention_mask=mask))

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of `text`, uncut."""
        return len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])


def transformers_teacher(
    target: str, device: torch.device, dtype: torch.dtype, *, offline: bool
) -> tuple[Towers, SquareTransform, Scaling]:
    """Load a CLIP, SigLIP or SigLIP 2 model from a folder or the hub.

    Raises:
        CheckpointError, ConfigError, HubError, MissingDependencyError: see `load_teacher`.
    """
    foreign.need_transformers()
    folder = foreign.folder_of(target, offline=offline)
    config, class_name = foreign.config_of(folder, foreign.TEACHERS, "teacher")
    processor, where = foreign.processor_of(folder)
    transform, scaling = squares.from_processor(processor, where)
    model, tokenizer = foreign.load_weights(folder, class_name), foreign.load_tokenizer(folder)
    _check_size(model.config.vision_config, transform, where)
    space = foreign.identity(folder, "transformers", config, processor)
    return TransformersTowers(model, tokenizer, space, device, dtype), transform, scaling


def _check_size(vision: Any, transform: SquareTransform, where: str) -> None:
    size = getattr(vision, "image_size", None)  # SigLIP 2 has none: it takes many
    if isinstance(size, int) and size != transform.size:
        raise ConfigError(
            f"{where} makes squares of {transform.size} pixels, and the model takes {size}: it "
            "belongs to another model"
        )


class OpenClipTowers:
    """A model of open_clip."""

    def __init__(
        self, model: Any, tokenizer: Any, space_id: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        bias = getattr(model, "logit_bias", None)
        self.space_id = space_id
        self.logit_scale = float(model.logit_scale.exp())
        self.logit_bias = 0.0 if bias is None else float(bias)
        self.context_length = int(tokenizer.context_length)
        self.trims = False
        self.image_batch = 8 if device.type == "cpu" else 128
        self.tokenizer = tokenizer
        self.model = model.to(device, dtype)
        self.embed_dim = int(self._width(device))

    def _width(self, device: torch.device) -> int:
        import torch

        with torch.inference_mode():
            return self.model.encode_text(self.tokenizer(["a"]).to(device)).shape[-1]

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, S, S) to embeddings (B, D)."""
        return self.model.encode_image(pixels)

    def tokenize(self, texts: list[str]) -> tuple[Ids, Ids]:
        """Return ids (B, T) and their lengths (B,)."""
        ids = self.tokenizer(texts).numpy()
        return ids, np.full(len(ids), ids.shape[1])

    def encode_ids(self, ids: Tensor, lengths: Tensor) -> Tensor:  # noqa: ARG002
        """Map ids (B, T) to embeddings (B, D)."""
        return self.model.encode_text(ids)

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of `text`, uncut, with those that begin and end it."""
        inner = getattr(self.tokenizer, "tokenizer", None)  # one of transformers, wrapped
        if inner is not None:
            return len(inner(text, truncation=False, verbose=False)["input_ids"])
        return len(self.tokenizer.encode(text)) + 2


def open_clip_teacher(
    target: str, device: torch.device, dtype: torch.dtype, *, offline: bool
) -> tuple[Towers, SquareTransform, Scaling]:
    """Load `NAME/PRETRAINED` of open_clip: a tag of its list, or a file's path.

    Raises:
        CheckpointError, ConfigError, MissingDependencyError: see `load_teacher`.
    """
    try:
        import open_clip
    except Exception as error:  # torchvision's failures are of many types
        reason = " ".join(str(error).split())[:200]
        raise MissingDependencyError(
            f"open_clip: models need open_clip_torch and a torchvision that fits torch ({reason}); "
            "many of its models are also in the zoo, or load with transformers:"
        ) from error
    name, _, tag = target.partition("/")
    if target.startswith(("hf-hub:", "local-dir:")):
        name, tag = target, ""
    elif not tag:
        raise ConfigError(f"open_clip:{target} does not say which weights: open_clip:NAME/TAG")
    local = Path(tag).is_file() or target.startswith("local-dir:")
    if offline and not local:
        raise ConfigError(f"open_clip:{target} would be fetched: offline, give a file's path")
    try:
        known = None if local else open_clip.get_pretrained_cfg(name, tag)
        model = open_clip.create_model(
            name,
            pretrained=tag or None,
            require_pretrained=True,
            force_quick_gelu=bool((known or {}).get("quick_gelu")),
            weights_only=True,
        )
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # it lets any type of exception escape
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"open_clip:{target} cannot be loaded ({reason})") from error
    model = model.float().eval().requires_grad_(False)
    preprocess = dict(model.visual.preprocess_cfg)
    transform, scaling = squares.from_open_clip(preprocess, f"open_clip:{target}")
    space = foreign.space_of(["open_clip", name, preprocess, _state_digest(model)])
    return OpenClipTowers(model, tokenizer, space, device, dtype), transform, scaling


def _state_digest(model: Any) -> dict[str, str]:
    return {
        name: hashlib.sha256(value.detach().cpu().contiguous().numpy().data).hexdigest()
        for name, value in model.state_dict().items()
    }
