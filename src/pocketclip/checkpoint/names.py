"""Parameter names of Apple's and open_clip's files, mapped to ours and back.

Their modules have the same boundaries as ours, so a name is translated by walking down our module
tree: one small table per module class holds the third-party names of its children. Names and shapes
are those of the released files.

Third-party tensors differ from ours only by a transposition (projections stored as (in, out)) or by
dimensions of size 1. A few facts depend on the file rather than on the zoo: a bias of the image
projection, token embeddings as a plain table, MobileCLIP-B's stem, which Apple's code pads and
open_clip's does not, and the context length of a captioner; `adapt_config` and
`fit_config` read them from the file.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Set
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pocketclip import zoo
from pocketclip.errors import CheckpointError
from pocketclip.nn.build import build
from pocketclip.nn.clip import CLIP
from pocketclip.nn.decoder import CrossBlock, Decoder
from pocketclip.nn.mci import AttentionBlock, Downsample, MCi, Stage
from pocketclip.nn.reparam import ConditionalPosition, LargeKernelConv, RepConv
from pocketclip.nn.repmixer import RepMixer, RepMixerBlock, TokenMixerBlock
from pocketclip.nn.text import ComposedEmbedding, TextTower
from pocketclip.nn.transformer import TransformerBlock
from pocketclip.nn.vit import AttentionPool, ConvStem, ViT

Naming = Literal["apple", "openclip"]
# Per module class: our dotted path below it -> the third-party one. Other children keep their
# names.
Tables = dict[type[nn.Module], dict[str, str]]

_TIMM: Tables = {
    MCi: {"expand": "final_conv", "head": "head.fc"},
    Downsample: {"conv": "proj.0", "proj": "proj.1"},
    LargeKernelConv: {"large": "large_conv", "small": "small_conv"},
    RepConv: {"conv": "conv_kxk.0", "scale": "conv_scale"},
    RepMixer: {"norm": "norm.identity", "layer_scale": "layer_scale.gamma"},
    RepMixerBlock: {"mixer": "token_mixer", "layer_scale": "layer_scale.gamma"},
    AttentionBlock: {
        "attn": "token_mixer",
        "layer_scale_1": "layer_scale_1.gamma",
        "layer_scale_2": "layer_scale_2.gamma",
    },
    ConditionalPosition: {"conv": "pos_enc"},
    Stage: {"position": "pos_emb"},
    ViT: {"class_token": "cls_token", "position": "pos_embed"},
    ConvStem: {"2": "1", "4": "2.conv"},
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
    TextTower: {
        "class_token": "cls_emb",
        "embedding": "token_embedding",
        "position": "positional_embedding",
        "blocks": "transformer.resblocks",
        "norm": "ln_final",
        "head.weight": "text_projection",
    },
    ViT: {
        "class_token": "class_embedding",
        "position": "positional_embedding",
        "stem": "conv1",
        "norm_pre": "ln_pre",
        "blocks": "transformer.resblocks",
        "pool": "attn_pool",
        "norm": "ln_post",
        "head.weight": "proj",
    },
    AttentionPool: {
        "norm_q": "ln_q",
        "norm_k": "ln_k",
        "q.weight": "attn.q_proj_weight",
        "k.weight": "attn.k_proj_weight",
        "v.weight": "attn.v_proj_weight",
        "bias": "attn.in_proj_bias",
        "proj": "attn.out_proj",
    },
    Decoder: {
        "blocks": "resblocks",
        "cross": "cross_attn",
        "norm": "ln_final",
        "head.weight": "text_projection",
    },
    TransformerBlock: _OPEN_CLIP_BLOCK,
    CrossBlock: _OPEN_CLIP_BLOCK,
}
_APPLE_MIXER_BLOCK = {"mixer": "token_mixer", "mlp": "convffn"}
_APPLE: Tables = {
    MCi: {"stem": "patch_embed", "expand": "conv_exp", "head.weight": "head.proj"},
    Downsample: {"conv": "proj.0", "proj": "proj.1"},
    LargeKernelConv: {"large": "lkb_origin", "small": "small_conv"},
    RepConv: {
        "conv": "rbr_conv.0",
        "scale": "rbr_scale",
        "identity": "rbr_skip",
        "se.fc1": "se.reduce",
        "se.fc2": "se.expand",
    },
    RepMixer: {"norm": "norm.rbr_skip"},
    RepMixerBlock: _APPLE_MIXER_BLOCK,
    TokenMixerBlock: _APPLE_MIXER_BLOCK,
    AttentionBlock: {"attn": "token_mixer", "mlp": "convffn"},
    ConditionalPosition: {"conv": "pe"},
    TextTower: {
        "embedding": "embedding_layer",
        "position": "positional_embedding.pos_embed.pos_embed",
        "blocks": "transformer",
        "norm": "final_layer_norm",
        "head.weight": "projection_layer",
    },
    ViT: {
        "class_token": "cls_token",
        "position": "pos_embed.pos_embed.pos_embed",
        "stem": "patch_emb",
        "blocks": "transformer",
        "norm": "post_transformer_norm",
        "head.weight": "classifier.proj",
    },
    ConvStem: {
        "0.conv": "0.block.conv",
        "0.bn": "0.block.norm",
        "2.conv": "1.block.conv",
        "2.bn": "1.block.norm",
        "4": "2.block.conv",
    },
    TransformerBlock: {
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


def _translate(module: nn.Module, name: str, tables: Tables) -> str:
    """Return the third-party name of the entry `name` below `module`."""
    table = tables.get(type(module), {})
    parts = name.split(".")
    cut = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in table), 1)
    head, rest = ".".join(parts[:cut]), ".".join(parts[cut:])
    theirs = table.get(head, head)
    return f"{theirs}.{_translate(module.get_submodule(head), rest, tables)}" if rest else theirs


def _translate_name(model: CLIP, name: str, naming: Naming) -> str:
    tower, _, rest = name.partition(".")
    if not rest:
        return name  # logit_scale
    module = model.get_submodule(tower)
    if naming == "apple":
        tables = _APPLE
        if isinstance(model.config.image, zoo.MCiConfig):
            tables = {**_APPLE, MCi: {**_APPLE[MCi], **_apple_sequence(model.config.image)}}
        prefix = "image_encoder.model." if tower == "image" else "text_encoder."
    elif tower == "decoder":
        tables, prefix = _OPEN_CLIP, "text_decoder."
    elif is_plain_clip(model.config):
        tables, prefix = _OPEN_CLIP, "visual." if tower == "image" else _text_prefix(model.config)
    elif tower == "image":
        stem = "patch_embed." + ("backbone" if _has_conv_stem(model.config) else "proj")
        tables, prefix = {**_TIMM, ViT: {**_TIMM[ViT], "stem": stem}}, "visual.trunk."
    else:
        tables, prefix = _OPEN_CLIP, "text."
    return prefix + _translate(module, rest, tables)


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


def _check(model: CLIP, naming: Naming) -> None:
    if model.is_fused:
        raise CheckpointError(
            f"a fused model cannot be written in {naming} naming: its branches are merged; save "
            "the unfused model, or this one with naming='pocketclip'"
        )
    reason = unsupported_reason(model.config, naming)
    if reason:
        raise CheckpointError(f"{model.config.name}: {reason}")


@dataclasses.dataclass(frozen=True, slots=True)
class ThirdPartyEntry:
    """The name and shape of one of our entries in a third-party file."""

    name: str
    shape: tuple[int, ...]
    transposed: bool = False


def map_entries(model: CLIP, naming: Naming) -> dict[str, ThirdPartyEntry]:
    """Return the third-party entry of each name in the state dict of `model`.

    Raises:
        CheckpointError: the naming cannot express the model; the message says why.
    """
    _check(model, naming)
    return {
        ours: _map_entry(_translate_name(model, ours, naming), tuple(value.shape), naming)
        for ours, value in model.state_dict().items()
    }


@functools.lru_cache(maxsize=128)  # mapping every model of the zoo takes seconds
def entry_shapes(config: zoo.ModelConfig, naming: Naming) -> Mapping[str, tuple[int, ...]]:
    """Return the names and shapes of a third-party file with this configuration.

    Raises:
        CheckpointError: see `map_entries`.
    """
    entries = map_entries(build_empty(config), naming).values()
    return {entry.name: entry.shape for entry in entries}


def _map_entry(name: str, shape: tuple[int, ...], naming: Naming) -> ThirdPartyEntry:
    leaf = name.rpartition(".")[2]
    if leaf in ("proj", "text_projection", "projection_layer"):
        return ThirdPartyEntry(name, shape[::-1], transposed=True)
    if leaf == "pos_embed" and naming == "apple":
        return ThirdPartyEntry(name, (1, 1, *shape[-2:]))
    if leaf in ("class_embedding", "cls_emb"):
        return ThirdPartyEntry(name, shape[-1:])
    if leaf == "positional_embedding":
        return ThirdPartyEntry(name, shape[-2:])
    return ThirdPartyEntry(name, shape)


def to_third_party(model: CLIP, naming: Naming) -> dict[str, Tensor]:
    """Return the state dict of `model` under third-party names.

    Composed token embeddings are expanded to the plain table. If open_clip expects a bias after the
    image projection and the model has none, zeros are added.

    Raises:
        CheckpointError: the naming cannot express the model; the message says why.
    """
    _check(model, naming)
    state = {name: value.detach() for name, value in model.plain_state().items()}
    if isinstance(model.text.embedding, ComposedEmbedding):
        for part in ("remainder", "quotient"):
            del state[f"text.embedding.{part}.weight"]
        table = model.text.embedding.table(model.config.text.vocab_size)
        state["text.embedding.weight"] = table.detach()
    bias = state.get("image.head.bias")
    config = written_config(model.config, naming)
    expects_bias = config.image.head_bias
    if bias is None and expects_bias:
        state["image.head.bias"] = torch.zeros_like(state["image.head.weight"][:, 0])
    elif bias is not None and not expects_bias:
        if bias.any():
            raise CheckpointError(
                f"{model.config.name}: Apple's naming has no bias after the image projection, "
                "and this model's is not zero; use naming='openclip'"
            )
        del state["image.head.bias"]
    return {
        entry.name: (state[ours].T if entry.transposed else state[ours].reshape(entry.shape))
        .contiguous()
        .cpu()
        for ours, entry in map_entries(build_empty(config), naming).items()
    }


def written_config(config: zoo.ModelConfig, naming: Naming) -> zoo.ModelConfig:
    """Return the configuration of the model that `to_third_party` writes."""
    has_bias = naming == "openclip" and not is_plain_clip(config)
    return zoo.override(config, image={"head_bias": has_bias}, text={"embedding_buckets": None})


class _SkipInit(TorchFunctionMode):
    """Skips the initialisation of parameters.

    On the meta device it has no effect, but its first call imports torch's compiler: 1.5 s.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or (
            getattr(func, "__name__", "") in _IN_PLACE
        ):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


_IN_PLACE = frozenset({"normal_", "uniform_", "fill_", "zero_"})


def build_empty(config: zoo.ModelConfig) -> CLIP:
    """Return the model on the meta device: shapes without storage."""
    with torch.device("meta"), _SkipInit():
        return build(config)


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
    config: zoo.ModelConfig, state: Mapping[str, Any], naming: Naming
) -> zoo.ModelConfig:
    """Return `adapt_config`'s result, with a captioner's context length taken from the file."""
    config = adapt_config(config, state.keys(), naming)
    positions = state.get("text.positional_embedding")
    if not config.is_captioner or positions is None or positions.ndim != 2 or len(positions) < 4:
        return config
    return zoo.override(config, text={"context_length": len(positions) - 1})


def normalize_text_prefix(state: Mapping[str, Any], config: zoo.ModelConfig) -> dict[str, Any]:
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


def from_third_party(
    state: Mapping[str, Tensor], model: CLIP, entries: Mapping[str, ThirdPartyEntry]
) -> dict[str, Tensor]:
    """Return a third-party state dict under our names; names and shapes must fit `entries`."""
    out = {}
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    for ours, entry in entries.items():
        value = state[entry.name]
        out[ours] = value.T if entry.transposed else value.reshape(shapes[ours])
    return out
