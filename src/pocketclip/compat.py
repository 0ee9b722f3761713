"""The calls of the MobileCLIP and open_clip READMEs, unchanged.

For new code, `pocketclip.load` and `pocketclip.checkpoint.load` are the better interface.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pocketclip import checkpoint, zoo
from pocketclip.checkpoint.resolve import published_model
from pocketclip.embedding_space import embedding_fields
from pocketclip.errors import PocketclipError, UnknownModelError
from pocketclip.nn.build import build, create_model
from pocketclip.nn.clip import CLIP
from pocketclip.nn.reparam import fuse
from pocketclip.nn.vit import ViT
from pocketclip.preprocess import Preprocess
from pocketclip.tokenizer import Tokenizer

# open_clip's tags of published weights, and the zoo names that they apply to.
_TAGS = {"datacompdr": "mobileclip-", "datacompdr_lt": "mobileclip-b-lt", "dfndr2b": "mobileclip2-"}

# open_clip's names of options, and our configuration fields.
_OPTIONS = {
    "image_mean": "preprocess.mean",
    "image_std": "preprocess.std",
    "image_interpolation": "preprocess.interpolation",
    "image_resize_mode": "preprocess.resize",
    "force_image_size": "preprocess.size",
}


class TensorPreprocess:
    """The evaluation transform as in these READMEs: from an image to a tensor (3, S, S)."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def __call__(self, image: Any) -> Tensor:
        """Return preprocessed pixels, float32 (3, S, S)."""
        return torch.from_numpy(self.preprocess(image))


class TensorTokenizer:
    """The tokenizer as in these READMEs: from texts to a tensor of ids (B, 77)."""

    def __init__(self, context_length: int) -> None:
        self.tokenizer = Tokenizer()
        self.context_length = context_length

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Return token ids, int64 (B, context_length)."""
        return torch.from_numpy(self.tokenizer(texts, context_length or self.context_length))


def create_model_and_transforms(
    model_name: str,
    pretrained: str | os.PathLike[str] | None = None,
    reparameterize: bool | None = None,
    device: str | torch.device = "cpu",
    **overrides: Any,
) -> tuple[CLIP, TensorPreprocess, TensorPreprocess]:
    """Return a model and its transforms for training and evaluation.

    Both are the evaluation transform, since augmentation is part of train recipes.

    Args:
        model_name: a zoo name in any spelling.
        pretrained: a MODEL argument (see `pocketclip.checkpoint.resolve`) such as a weight file,
            checkpoint folder or hub id; one of open_clip's tags (`datacompdr`, `datacompdr_lt`,
            `dfndr2b`) for the published weights; None for random weights.
        reparameterize: fuse for inference. By default pretrained weights are fused, as in Apple's
            function, and random ones are not, since they are for training.
        device: the device to move the model to.
        **overrides: fields of the configuration; `image_mean`, `image_std`,
            `image_interpolation`, `image_resize_mode` and `force_image_size` as in open_clip.

    Returns:
        The model, in evaluation mode if it has pretrained weights, and the transform twice. A model
        that was fused here refuses `train()`.

    Raises:
        PocketclipError: an unknown name or tag, or weights that do not fit.
    """
    for theirs, ours in _OPTIONS.items():
        value = overrides.pop(theirs, None)
        if value is not None:
            overrides[ours] = value
    name = zoo.resolve(model_name)
    if pretrained is None or pretrained == "":
        model = create_model(name, **overrides)
        reparameterize = bool(reparameterize)
    else:
        model = _reconfigured(_load(name, pretrained), overrides)
    if reparameterize is not False and not model.is_fused:
        model = fuse(model)
        model.untrainable = (
            "this model was fused for inference when it was loaded: pass reparameterize=False to "
            "create_model_and_transforms for a model to train"
        )
    transform = TensorPreprocess(Preprocess(model.config.preprocess))
    return model.to(device), transform, transform


def _published_name(name: str, pretrained: str | os.PathLike[str]) -> str | None:
    """Return the zoo name of the weights that an open_clip tag means; None without such a tag.

    Raises:
        PocketclipError: the model has no published weights of that tag.
    """
    tag = str(pretrained).lower()
    prefix = _TAGS.get(tag)
    if prefix is None or isinstance(pretrained, os.PathLike) or os.path.lexists(pretrained):
        return None
    if tag == "datacompdr_lt" and name in ("mobileclip-b", "mobileclip-b-lt"):
        return "mobileclip-b-lt"
    if not name.startswith(prefix):
        raise PocketclipError(f"{name} has no published weights called {pretrained!r}")
    return name


def _load(name: str, pretrained: str | os.PathLike[str]) -> CLIP:
    published = _published_name(name, pretrained)
    if published is not None:
        return checkpoint.load(published_model(published))
    try:
        return checkpoint.load(pretrained, name)
    except UnknownModelError as error:
        raise UnknownModelError(
            f"no weights are called {os.fspath(pretrained)!r}: give a file, a folder, a hub id or "
            f"one of the tags {', '.join(_TAGS)}"
        ) from error


def _reconfigured(model: CLIP, overrides: dict[str, Any]) -> CLIP:
    """Return `model` with other preprocessing or training options and the same weights."""
    if not overrides:
        return model
    old, config = model.config, zoo.override(model.config, **overrides)
    if embedding_fields(config) != embedding_fields(old):
        model.space_identity = None  # other preprocessing gives another embedding space
    if isinstance(model.image, ViT) and config.image_size != old.image_size:
        model.image.regrid(config.image_size)
    if (config.image, config.text, config.decoder, config.embed_dim) != (
        old.image, old.text, old.decoder, old.embed_dim,
    ):  # fmt: skip
        model = _rebuilt(model, config, overrides)
    model.config = config
    model.set_gradient_checkpointing(config.gradient_checkpointing)
    return model


def _rebuilt(model: CLIP, config: zoo.ModelConfig, overrides: dict[str, Any]) -> CLIP:
    """Return the model of `config` with the weights of `model`."""
    rebuilt = build(config).eval()
    if model.is_fused:
        rebuilt = fuse(rebuilt)
    try:
        rebuilt.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise PocketclipError(f"{model.config.name}: the weights do not fit {overrides}") from error
    rebuilt.space_identity, rebuilt.license = model.space_identity, model.license
    return rebuilt


def get_tokenizer(model_name: str) -> TensorTokenizer:
    """Return the tokenizer of a model; it returns torch tensors.

    Raises:
        UnknownModelError: the name is not in the zoo.
    """
    return TensorTokenizer(zoo.entry(model_name).config.text.context_length)


def reparameterize_model(model: nn.Module) -> nn.Module:
    """Return a fused copy of `model`; the same as `pocketclip.nn.reparam.fuse`."""
    return fuse(model)
