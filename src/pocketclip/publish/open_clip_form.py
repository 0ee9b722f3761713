"""The configuration that open_clip reads beside a model's weights: `open_clip_config.json`.

open_clip builds an image tower by the name of timm's model, or a plain vision transformer by its
sizes, so only models with exactly such towers have this form.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pocketclip import zoo
from pocketclip.checkpoint.names import is_plain_clip, unsupported_reason

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
# A model of the zoo with the image tower, timm's name of it, and how open_clip pools its tokens.
_TIMM = (
    ("mobileclip2-s0", "fastvit_mci0", "avg"),
    ("mobileclip-s1", "fastvit_mci1", "avg"),
    ("mobileclip-s2", "fastvit_mci2", "avg"),
    ("mobileclip2-s3", "fastvit_mci3", "avg"),
    ("mobileclip2-s4", "fastvit_mci4", "avg"),
    ("mobileclip2-b", "vit_base_mci_224", "token"),
    ("mobileclip2-l14", "vit_large_patch14_clip_224", "token"),
)
# What decides only how such a tower begins to train, and what open_clip's form always has.
_UNSEEN = {"drop_path": 0.0, "head_bias": True, "layer_scale": 1.0}


def reason_against(config: zoo.ModelConfig, *, fused: bool) -> str | None:
    """Return why a model has no form for open_clip; None if it has one.

    Args:
        config: of the model.
        fused: whether its training branches are folded.
    """
    if fused:
        return "its training branches are folded, which open_clip cannot read"
    if config.is_captioner:
        return "it is a captioner"
    reason = unsupported_reason(config, "openclip")
    if reason is not None:
        return reason.partition(";")[0]
    if config.text.class_token:
        return "its text tower has a class token"
    if is_plain_clip(config):
        return _against_plain(config)
    found = _timm_tower(config)
    if found is None:
        return f"open_clip and timm have no image tower like that of {config.name}"
    if isinstance(config.image, zoo.ViTConfig) and config.preprocess.size != 224:
        return f"timm's {found[0]} is for images of 224 pixels, not {config.preprocess.size}"
    return None


def _against_plain(config: zoo.ModelConfig) -> str | None:
    image = config.image
    assert isinstance(image, zoo.ViTConfig)
    usual = zoo.ViTConfig(width=1, layers=1, heads=1, patch_size=1)
    same = ("class_position", "pre_norm", "eps", "pool_queries")
    if any(getattr(image, name) != getattr(usual, name) for name in same):
        return "its vision transformer differs from CLIP's"
    if image.activation != config.text.activation:
        return "its towers have different activations"
    return None


def _timm_tower(config: zoo.ModelConfig) -> tuple[str, str] | None:
    ours = dataclasses.replace(config.image, **_changeable(config.image))
    for name, timm, pool in _TIMM:
        other = zoo.entry(name).config.image
        if ours == dataclasses.replace(other, **_changeable(other)):
            return timm, pool
    return None


def _changeable(image: zoo.MCiConfig | zoo.ViTConfig) -> dict[str, Any]:
    return {name: value for name, value in _UNSEEN.items() if hasattr(image, name)}


def open_clip_config(config: zoo.ModelConfig) -> dict[str, Any]:
    """Return the content of `open_clip_config.json`.

    Args:
        config: of a model that `reason_against` says nothing against.
    """
    text, size = config.text, config.preprocess.size
    vision: dict[str, Any]
    if is_plain_clip(config):
        image = config.image
        assert isinstance(image, zoo.ViTConfig)
        vision = {
            "image_size": size,
            "layers": image.layers,
            "width": image.width,
            "head_width": image.width // image.heads,
            "patch_size": image.patch_size,
        }
    else:
        found = _timm_tower(config)
        assert found is not None
        vision = {
            "timm_model_name": found[0],
            "timm_model_pretrained": False,
            "timm_pool": found[1],
            "timm_proj": None,
            "timm_drop": 0.0,
            "timm_drop_path": 0.0,
            "image_size": size,
        }
    model: dict[str, Any] = {
        "embed_dim": config.embed_dim,
        "vision_cfg": vision,
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
            "mlp_ratio": text.mlp_ratio,
            "no_causal_mask": not text.causal,
        },
    }
    if text.activation == "quick_gelu":
        model["quick_gelu"] = True
    if not is_plain_clip(config):
        model["custom_text"] = True
    return {
        "model_cfg": model,
        "preprocess_cfg": {
            "mean": list(config.preprocess.mean),
            "std": list(config.preprocess.std),
            "interpolation": config.preprocess.interpolation,
            "resize_mode": config.preprocess.resize,
        },
    }
