"""Parameter names of Apple's and open_clip's files, mapped to ours and back, without torch.

Their modules have the same boundaries as ours, so a name is translated by walking down the modules
that `pocketclip.checkpoint.parameters` describes: one small table per kind of module holds the
third-party names of its children. Names and shapes are those of the released files.

Third-party arrays differ from ours only by a transposition (projections stored as (in, out)) or by
dimensions of size 1. A few facts depend on the file rather than on the zoo: a bias of the image
projection, token embeddings as a plain table, MobileCLIP-B's stem, which Apple's code pads and
open_clip's does not, and the context length of a captioner; `adapt_config` and
`fit_config` read them from the file.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Set
from typing import Any, Literal, Protocol, TypeVar

from numpy.typing import NDArray

from pocketclip import zoo
from pocketclip.checkpoint.parameters import Part, Shape, describe
from pocketclip.errors import CheckpointError

Naming = Literal["apple", "openclip"]
# Per kind of module: our dotted path below it -> the third-party one. Other children keep their
# names.
Tables = dict[str, dict[str, str]]
_T = TypeVar("_T")


class Shaped(Protocol):
    """Anything with a shape."""

    @property
    def shape(self) -> Shape:
        """The lengths of its dimensions."""
        ...


_TIMM: Tables = {
    "MCi": {"expand": "final_conv", "head": "head.fc"},
    "Downsample": {"conv": "proj.0", "proj": "proj.1"},
    "LargeKernelConv": {"large": "large_conv", "small": "small_conv"},
    "RepConv": {"conv": "conv_kxk.0", "scale": "conv_scale"},
    "RepMixer": {"norm": "norm.identity", "layer_scale": "layer_scale.gamma"},
    "RepMixerBlock": {"mixer": "token_mixer", "layer_scale": "layer_scale.gamma"},
    "AttentionBlock": {
        "attn": "token_mixer",
        "layer_scale_1": "layer_scale_1.gamma",
        "layer_scale_2": "layer_scale_2.gamma",
    },
    "ConditionalPosition": {"conv": "pos_enc"},
    "Stage": {"position": "pos_emb"},
    "ViT": {"class_token": "cls_token", "position": "pos_embed"},
    "ConvStem": {"2": "1", "4": "2.conv"},
}
_OPEN_CLIP_BLOCK = {
    "norm1": "ln_1",
    "norm_kv": "ln_1_kv",
    "attn.qkv.weight": "attn.in_proj_weight",
    "attn.qkv.bias": "attn.in_proj_bias",
    "attn.proj": "attn.out_proj",
    "norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_OPEN_CLIP: Tables = {
    "TextTower": {
        "class_token": "cls_emb",
        "embedding": "token_embedding",
        "position": "positional_embedding",
        "blocks": "transformer.resblocks",
        "norm": "ln_final",
        "head.weight": "text_projection",
    },
    "ViT": {
        "class_token": "class_embedding",
        "position": "positional_embedding",
        "stem": "conv1",
        "norm_pre": "ln_pre",
        "blocks": "transformer.resblocks",
        "pool": "attn_pool",
        "norm": "ln_post",
        "head.weight": "proj",
    },
    "AttentionPool": {
        "norm_q": "ln_q",
        "norm_k": "ln_k",
        "q.weight": "attn.q_proj_weight",
        "k.weight": "attn.k_proj_weight",
        "v.weight": "attn.v_proj_weight",
        "bias": "attn.in_proj_bias",
        "proj": "attn.out_proj",
    },
    "Decoder": {
        "blocks": "resblocks",
        "cross": "cross_attn",
        "norm": "ln_final",
        "head.weight": "text_projection",
    },
    "TransformerBlock": _OPEN_CLIP_BLOCK,
    "CrossBlock": _OPEN_CLIP_BLOCK,
}
_APPLE_MIXER_BLOCK = {"mixer": "token_mixer", "mlp": "convffn"}
_APPLE: Tables = {
    "MCi": {"stem": "patch_embed", "expand": "conv_exp", "head.weight": "head.proj"},
    "Downsample": {"conv": "proj.0", "proj": "proj.1"},
    "LargeKernelConv": {"large": "lkb_origin", "small": "small_conv"},
    "RepConv": {
        "conv": "rbr_conv.0",
        "scale": "rbr_scale",
        "identity": "rbr_skip",
        "se.fc1": "se.reduce",
        "se.fc2": "se.expand",
    },
    "RepMixer": {"norm": "norm.rbr_skip"},
    "RepMixerBlock": _APPLE_MIXER_BLOCK,
    "TokenMixerBlock": _APPLE_MIXER_BLOCK,
    "AttentionBlock": {"attn": "token_mixer", "mlp": "convffn"},
    "ConditionalPosition": {"conv": "pe"},
    "TextTower": {
        "embedding": "embedding_layer",
        "position": "positional_embedding.pos_embed.pos_embed",
        "blocks": "transformer",
        "norm": "final_layer_norm",
        "head.weight": "projection_layer",
    },
    "ViT": {
        "class_token": "cls_token",
        "position": "pos_embed.pos_embed.pos_embed",
        "stem": "patch_emb",
        "blocks": "transformer",
        "norm": "post_transformer_norm",
        "head.weight": "classifier.proj",
    },
    "ConvStem": {
        "0.conv": "0.block.conv",
        "0.bn": "0.block.norm",
        "2.conv": "1.block.conv",
        "2.bn": "1.block.norm",
        "4": "2.block.conv",
    },
    "TransformerBlock": {
        "norm1": "pre_norm_mha.0",
        "attn.qkv": "pre_norm_mha.1.qkv_proj",
        "attn.proj": "pre_norm_mha.1.out_proj",
        "norm2": "pre_norm_ffn.0",
        "mlp.fc1": "pre_norm_ffn.1",
        "mlp.fc2": "pre_norm_ffn.4",
    },
}

# Buffers of open_clip's older files.
_NO_WEIGHTS = {
    "attn_mask", "text_decoder.attn_mask", "input_resolution", "context_length", "vocab_size"
}  # fmt: skip
# MobileCLIP-B's stem in Apple's and in open_clip's code.
CONV_STEM: dict[Naming, dict[str, Any]] = {
    "apple": {"stem_padding": 1, "eps": 1e-5},
    "openclip": {"stem_padding": 0, "eps": 1e-6},
}


def _apple_sequence(config: zoo.MCiConfig) -> dict[str, str]:
    """Return Apple's single numbering of down-samplings, position encodings and stages."""
    table, number = {}, 0
    for index in range(len(config.depths)):
        parts = ["downsample"] if index > 0 else []
        if index >= len(config.depths) - config.attention_stages:
            parts.append("position")
        for part in [*parts, "blocks"]:
            table[f"stages.{index}.{part}"] = f"network.{number}"
            number += 1
    return table


def _translate(part: Part, name: str, tables: Tables) -> str:
    """Return the third-party name of the entry `name` below `part`."""
    table = tables.get(part.kind, {})
    words = name.split(".")
    cut = next((n for n in range(len(words), 0, -1) if ".".join(words[:n]) in table), 1)
    head, rest = ".".join(words[:cut]), ".".join(words[cut:])
    theirs = table.get(head, head)
    return f"{theirs}.{_translate(part.find(head), rest, tables)}" if rest else theirs


def _translate_name(config: zoo.ModelConfig, model: Part, name: str, naming: Naming) -> str:
    tower, _, rest = name.partition(".")
    if not rest:
        return name  # logit_scale
    if naming == "apple":
        tables = _APPLE
        if isinstance(config.image, zoo.MCiConfig):
            tables = {**_APPLE, "MCi": {**_APPLE["MCi"], **_apple_sequence(config.image)}}
        prefix = "image_encoder.model." if tower == "image" else "text_encoder."
    elif tower == "decoder":
        tables, prefix = _OPEN_CLIP, "text_decoder."
    elif is_plain_clip(config):
        tables, prefix = _OPEN_CLIP, "visual." if tower == "image" else _text_prefix(config)
    elif tower == "image":
        stem = "patch_embed." + ("backbone" if _has_conv_stem(config) else "proj")
        tables, prefix = {**_TIMM, "ViT": {**_TIMM["ViT"], "stem": stem}}, "visual.trunk."
    else:
        tables, prefix = _OPEN_CLIP, "text."
    return prefix + _translate(model.find(tower), rest, tables)


def is_plain_clip(config: zoo.ModelConfig) -> bool:
    """Return whether open_clip builds this image tower itself rather than through timm."""
    return (
        isinstance(config.image, zoo.ViTConfig)
        and config.image.stem == "patch"
        and not config.image.head_bias
    )


def _text_prefix(config: zoo.ModelConfig) -> str:
    """Return open_clip's prefix of the text tower's names."""
    return "" if is_plain_clip(config) and not config.is_captioner else "text."


def _has_conv_stem(config: zoo.ModelConfig) -> bool:
    return isinstance(config.image, zoo.ViTConfig) and config.image.stem == "conv"


def unsupported_reason(config: zoo.ModelConfig, naming: Naming) -> str | None:
    """Return why `naming` cannot express such a model, or None if it can."""
    if zoo.is_sparse(config):
        return "neither open_clip nor Apple's code has mixtures of experts; use naming='pocketclip'"
    if naming == "openclip":
        if config.text.repmixer:
            return "open_clip has no MCt text tower (RepMixer blocks); use naming='apple'"
        return None
    image = config.image
    if isinstance(image, zoo.ViTConfig):
        if image.stem != "conv":
            return "Apple's naming has no plain vision transformer; use naming='openclip'"
        if image.stem_padding != CONV_STEM["apple"]["stem_padding"]:
            return "Apple's code pads the stem, this model does not; use naming='openclip'"
    elif image.attention_norm == "layer" or not image.stem_scale:
        return "Apple's naming has no five-stage MCi towers; use naming='openclip'"
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class ThirdPartyEntry:
    """The name and shape of one of our entries in a third-party file."""

    name: str
    shape: Shape
    own_shape: Shape
    transposed: bool = False

    def to_own(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a view of the file's array with our shape."""
        return array.T if self.transposed else array.reshape(self.own_shape)


def map_entries(config: zoo.ModelConfig, naming: Naming) -> dict[str, ThirdPartyEntry]:
    """Return the third-party entry of each entry of an unfused model, by our names.

    Raises:
        CheckpointError: the naming cannot express the model; the message says why.
    """
    reason = unsupported_reason(config, naming)
    if reason:
        raise CheckpointError(f"{config.name}: {reason}")
    model = describe(config)
    return {
        ours: _map_entry(_translate_name(config, model, ours, naming), shape, naming)
        for ours, shape in model.walk()
    }


@functools.lru_cache(maxsize=128)  # compared with a file for every model of the zoo
def entry_shapes(config: zoo.ModelConfig, naming: Naming) -> Mapping[str, Shape]:
    """Return the names and shapes of a third-party file with this configuration.

    Raises:
        CheckpointError: see `map_entries`.
    """
    return {entry.name: entry.shape for entry in map_entries(config, naming).values()}


def _map_entry(name: str, shape: Shape, naming: Naming) -> ThirdPartyEntry:
    leaf = name.rpartition(".")[2]
    if leaf in ("proj", "text_projection", "projection_layer"):
        return ThirdPartyEntry(name, shape[::-1], shape, transposed=True)
    if leaf == "pos_embed" and naming == "apple":
        return ThirdPartyEntry(name, (1, 1, *shape[-2:]), shape)
    if leaf in ("class_embedding", "cls_emb"):
        return ThirdPartyEntry(name, shape[-1:], shape)
    if leaf == "positional_embedding":
        return ThirdPartyEntry(name, shape[-2:], shape)
    return ThirdPartyEntry(name, shape, shape)


def written_config(config: zoo.ModelConfig, naming: Naming) -> zoo.ModelConfig:
    """Return the configuration that a model has after it is written in this naming."""
    has_bias = naming == "openclip" and not is_plain_clip(config)
    return zoo.override(config, image={"head_bias": has_bias}, text={"embedding_buckets": None})


def detect_naming(names: Iterable[str]) -> Naming | Literal["pocketclip"] | None:
    """Return the convention that a file's entry names follow, or None."""
    tops = {name.partition(".")[0] for name in names}
    if "image_encoder" in tops:
        return "apple"
    if "visual" in tops:
        return "openclip"
    return "pocketclip" if {"image", "text"} <= tops else None


def adapt_config(config: zoo.ModelConfig, names: Set[str], naming: Naming) -> zoo.ModelConfig:
    """Return `config` with the facts that a file with these names determines, see above."""
    if isinstance(config.image, zoo.ViTConfig) and config.image.stem == "patch":
        # The bias determines which code builds such a tower, and hence all of its names.
        return zoo.override(config, text={"embedding_buckets": None})
    has_bias = not names.isdisjoint(("visual.trunk.head.fc.bias", "visual.trunk.head.bias"))
    image: dict[str, Any] = {"head_bias": has_bias}
    if _has_conv_stem(config):
        image |= CONV_STEM[naming]
    return zoo.override(config, image=image, text={"embedding_buckets": None})


def fit_config(
    config: zoo.ModelConfig, state: Mapping[str, Shaped], naming: Naming
) -> zoo.ModelConfig:
    """Return `adapt_config`'s result, with a captioner's context length taken from the file."""
    config = adapt_config(config, state.keys(), naming)
    positions = state.get("text.positional_embedding")
    if not config.is_captioner or positions is None or len(positions.shape) != 2:
        return config
    if positions.shape[0] < 4:
        return config
    return zoo.override(config, text={"context_length": positions.shape[0] - 1})


def normalize_text_prefix(state: Mapping[str, _T], config: zoo.ModelConfig) -> dict[str, _T]:
    """Return an open_clip state dict with the text tower's prefix of this configuration.

    open_clip writes the text tower of the same model with or without the prefix `text.`, depending
    on the class it was built as. Buffers without weights are dropped.
    """
    top = ("transformer.", "token_embedding.", "ln_final.", "positional_embedding")
    out = {}
    for name, value in state.items():
        bare = name.removeprefix("text.")
        if bare in _NO_WEIGHTS:
            continue
        is_text = name.startswith("text.") or bare.startswith((*top, "text_projection"))
        out[_text_prefix(config) + bare if is_text else name] = value
    return out
