"""The modules and parameters of a model, from its configuration alone and without torch.

    shapes(zoo.entry("mobileclip2-s0").config)["image.head.weight"]  # (512, 1024)

`describe` returns a light tree with the names, kinds and shapes of the modules in
`pocketclip.nn.build.build(config)`, and `shapes` the names and shapes of its state dict, in order;
with `fused`, those of the model that `pocketclip.nn.reparam.fuse` returns. A test compares both
with torch's for every model of the zoo.

Shapes are those of torch: linear weights (outputs, inputs), convolutions (outputs, inputs per
group, height, width).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pocketclip import zoo

Shape = tuple[int, ...]
Size = tuple[int, int]  # of a kernel: height, width


@dataclass(frozen=True, slots=True)
class Part:
    """One module of a model."""

    kind: str
    """The name of its class in `pocketclip.nn` or `torch.nn`."""
    entries: Mapping[str, Shape] = field(default_factory=dict)
    """The shapes of its own parameters and buffers."""
    children: Mapping[str, Part] = field(default_factory=dict)
    """Its modules, except those without parameters (activations, dropped branches)."""

    def find(self, path: str) -> Part:
        """Return the module at a dotted path below this one.

        Raises:
            KeyError: there is none.
        """
        part = self
        for name in path.split("."):
            part = part.children[name]
        return part

    def walk(self, prefix: str = "") -> Iterator[tuple[str, Shape]]:
        """Yield the names and shapes of all entries in the order of a state dict."""
        for name, shape in self.entries.items():
            yield prefix + name, shape
        for name, child in self.children.items():
            yield from child.walk(f"{prefix}{name}.")


def describe(config: zoo.ModelConfig, *, fused: bool = False) -> Part:
    """Return the modules of a model with this configuration.

    Args:
        config: the configuration.
        fused: of the model after `pocketclip.nn.reparam.fuse`.
    """
    image = config.image
    children = {
        "image": _mci(image, config.embed_dim)
        if isinstance(image, zoo.MCiConfig)
        else _vit(image, config.embed_dim, config.image_size),
        "text": _text(config.text, config.embed_dim),
    }
    if config.decoder is not None:
        children["decoder"] = _decoder(config.decoder, config.text)
    model = Part("CLIP" if config.decoder is None else "CoCa", {"logit_scale": ()}, children)
    return _folded(model) if fused else model


def shapes(config: zoo.ModelConfig, *, fused: bool = False) -> Mapping[str, Shape]:
    """Return the names and shapes of the entries of a model's state dict, in its order.

    The arguments are those of `describe`.
    """
    return dict(describe(config, fused=fused).walk())


def _linear(inputs: int, outputs: int, *, bias: bool = True) -> Part:
    return Part("Linear", {"weight": (outputs, inputs)} | ({"bias": (outputs,)} if bias else {}))


def _conv(inputs: int, outputs: int, size: Size, *, groups: int = 1, bias: bool = True) -> Part:
    weight = (outputs, inputs // groups, *size)
    return Part("Conv2d", {"weight": weight} | ({"bias": (outputs,)} if bias else {}))


def _batch_norm(channels: int) -> Part:
    names = ("weight", "bias", "running_mean", "running_var")
    return Part("BatchNorm2d", dict.fromkeys(names, (channels,)) | {"num_batches_tracked": ()})


def _layer_norm(width: int, kind: str = "LayerNorm") -> Part:
    return Part(kind, {"weight": (width,), "bias": (width,)})


def _embedding(rows: int, width: int) -> Part:
    return Part("Embedding", {"weight": (rows, width)})


def _blocks(parts: Sequence[Part]) -> Part:
    return Part("ModuleList", {}, {str(i): part for i, part in enumerate(parts)})


def _conv_bn(inputs: int, outputs: int, size: Size, *, groups: int = 1) -> Part:
    conv = _conv(inputs, outputs, size, groups=groups, bias=False)
    return Part("ConvBN", {}, {"conv": conv, "bn": _batch_norm(outputs)})


def _squeeze_excite(channels: int, reduced: int | None) -> dict[str, Part]:
    if not reduced:
        return {}
    fc1, fc2 = _conv(channels, reduced, (1, 1)), _conv(reduced, channels, (1, 1))
    return {"se": Part("SqueezeExcite", {}, {"fc1": fc1, "fc2": fc2})}


def _rep_conv(
    inputs: int,
    outputs: int,
    size: Size,
    *,
    stride: int = 1,
    groups: int = 1,
    scale: bool = True,
    reduced: int | None = None,
) -> Part:
    children = {"conv": _conv_bn(inputs, outputs, size, groups=groups)}
    if scale:
        children["scale"] = _conv_bn(inputs, outputs, (1, 1), groups=groups)
    if stride == 1 and inputs == outputs:
        children["identity"] = _batch_norm(outputs)
    return Part("RepConv", {}, children | _squeeze_excite(outputs, reduced))


def _downsample(inputs: int, outputs: int, *, squeeze_excite: bool) -> Part:
    branches = {
        "large": _conv_bn(inputs, outputs, (7, 7), groups=inputs),
        "small": _conv_bn(inputs, outputs, (3, 3), groups=inputs),
    }
    branches |= _squeeze_excite(outputs, outputs // 4 if squeeze_excite else None)
    proj = _rep_conv(outputs, outputs, (1, 1), scale=False)
    return Part("Downsample", {}, {"conv": Part("LargeKernelConv", {}, branches), "proj": proj})


def _conv_mlp(channels: int, hidden: int, size: Size) -> Part:
    return Part("ConvMLP", {}, {
        "conv": _conv_bn(channels, channels, size, groups=channels),
        "fc1": _conv(channels, hidden, (1, 1)),
        "fc2": _conv(hidden, channels, (1, 1)),
    })  # fmt: skip


def _mixer_block(
    kind: str, channels: int, mlp_ratio: float, mixer_size: Size, mlp_size: Size, *, scale: bool
) -> Part:
    conv = _rep_conv(channels, channels, mixer_size, groups=channels, scale=scale)
    layer_scale = {"layer_scale": (channels, 1, 1)}
    mixer = Part("RepMixer", layer_scale, {"norm": _batch_norm(channels), "mixer": conv})
    mlp = _conv_mlp(channels, int(channels * mlp_ratio), mlp_size)
    return Part(kind, layer_scale, {"mixer": mixer, "mlp": mlp})


def _attention(width: int, *, bias: bool = True, kind: str = "Attention") -> Part:
    children = {"qkv": _linear(width, 3 * width, bias=bias), "proj": _linear(width, width)}
    return Part(kind, {}, children)


def _attention_block(config: zoo.MCiConfig, channels: int) -> Part:
    batch = config.attention_norm == "batch"
    scale = (channels, 1, 1)
    return Part("AttentionBlock", {"layer_scale_1": scale, "layer_scale_2": scale}, {
        "norm": _batch_norm(channels) if batch else _layer_norm(channels, "ChannelLayerNorm"),
        "attn": _attention(channels, bias=False),
        "mlp": _conv_mlp(channels, int(channels * config.mlp_ratio), (7, 7)),
    })  # fmt: skip


def _mlp(width: int, mlp_ratio: float) -> Part:
    hidden = int(width * mlp_ratio)
    return Part("MLP", {}, {"fc1": _linear(width, hidden), "fc2": _linear(hidden, width)})


def _expert_linear(experts: int, inputs: int, outputs: int) -> Part:
    return Part("ExpertLinear", {"weight": (experts, outputs, inputs), "bias": (experts, outputs)})


def _moe(width: int, mlp_ratio: float, experts: int) -> Part:
    hidden = int(width * mlp_ratio)
    return Part("MoE", {}, {
        "router": _linear(width, experts, bias=False),
        "fc1": _expert_linear(experts, width, hidden),
        "fc2": _expert_linear(experts, hidden, width),
    })  # fmt: skip


def _transformer_blocks(
    layers: int, width: int, mlp_ratio: float = 4.0, moe: zoo.MoEConfig | None = None
) -> list[Part]:
    dense = Part("TransformerBlock", {}, {
        "norm1": _layer_norm(width),
        "attn": _attention(width),
        "norm2": _layer_norm(width),
        "mlp": _mlp(width, mlp_ratio),
    })  # fmt: skip
    blocks = [dense] * layers
    if moe is not None:
        sparse = {**dense.children, "mlp": _moe(width, mlp_ratio, moe.experts)}
        for index in moe.blocks:
            blocks[index] = replace(dense, children=sparse)
    return blocks


def _mci(config: zoo.MCiConfig, embed_dim: int) -> Part:
    width, last = config.widths[0], config.widths[-1]
    scale = config.stem_scale
    stem = [
        _rep_conv(3, width, (3, 3), stride=2, scale=scale),
        _rep_conv(width, width, (3, 3), stride=2, groups=width, scale=scale),
        _rep_conv(width, width, (1, 1), scale=False),
    ]
    return Part("MCi", {}, {
        "stem": replace(_blocks(stem), kind="Sequential"),
        "stages": _blocks([_stage(config, index) for index in range(len(config.depths))]),
        "expand": _rep_conv(last, 2 * last, (3, 3), groups=last, reduced=2 * last // 16),
        "head": _linear(2 * last, embed_dim, bias=config.head_bias),
    })  # fmt: skip


def _stage(config: zoo.MCiConfig, index: int) -> Part:
    stages, width = len(config.depths), config.widths[index]
    squeeze_excite = index >= stages - config.squeeze_excite_stages
    children = {}
    if index > 0:
        before = config.widths[index - 1]
        children["downsample"] = _downsample(before, width, squeeze_excite=squeeze_excite)
    if index >= stages - config.attention_stages:
        conv = _conv(width, width, (7, 7), groups=width)
        children["position"] = Part("ConditionalPosition", {}, {"conv": conv})
        block = _attention_block(config, width)
    else:
        block = _mixer_block("RepMixerBlock", width, config.mlp_ratio, (3, 3), (7, 7), scale=True)
    return Part("Stage", {}, children | {"blocks": _blocks([block] * config.depths[index])})


def _vit(config: zoo.ViTConfig, embed_dim: int, image_size: int) -> Part:
    width, patch = config.width, (config.patch_size, config.patch_size)
    tokens = (image_size // config.patch_size) ** 2 + (1 if config.class_position else 0)
    children = {
        "stem": _conv(3, width, patch, bias=False)
        if config.stem == "patch"
        else Part("ConvStem", {}, {
            "0": _conv_bn(3, width // 4, (4, 4)),
            "2": _conv_bn(width // 4, width // 4, (2, 2)),
            "4": _conv(width // 4, width, (2, 2)),
        })
    }  # fmt: skip
    if config.pre_norm:
        children["norm_pre"] = _layer_norm(width)
    children["blocks"] = _blocks(_transformer_blocks(config.layers, width, moe=config.moe))
    entries = {"class_token": (1, 1, width), "position": (1, tokens, width)}
    if config.pool_queries is not None:
        children["pool"] = _attention_pool(config.pool_queries, embed_dim, width)
        width = embed_dim
    children["norm"] = _layer_norm(width)
    children["head"] = _linear(width, embed_dim, bias=config.head_bias)
    return Part("ViT", entries, children)


def _attention_pool(queries: int, width: int, tokens_width: int) -> Part:
    return Part("AttentionPool", {"query": (queries, width), "bias": (3 * width,)}, {
        "norm_q": _layer_norm(width),
        "norm_k": _layer_norm(tokens_width),
        "q": _linear(width, width, bias=False),
        "k": _linear(tokens_width, width, bias=False),
        "v": _linear(tokens_width, width, bias=False),
        "proj": _linear(width, width),
    })  # fmt: skip


def _text(config: zoo.TextConfig, embed_dim: int) -> Part:
    width, vocabulary, buckets = config.width, config.vocab_size, config.embedding_buckets
    entries: dict[str, Shape] = {
        "position": (config.context_length + (1 if config.class_token else 0), width)
    }
    if config.class_token:
        entries["class_token"] = (1, 1, width)
    blocks = _transformer_blocks(config.layers, width, config.mlp_ratio, config.moe)
    if config.repmixer:
        size = (1, 11)
        ends = _mixer_block("TokenMixerBlock", width, config.mlp_ratio, size, size, scale=False)
        blocks = [ends, *blocks, ends]
    return Part("TextTower", entries, {
        "embedding": _embedding(vocabulary, width)
        if buckets is None
        else Part("ComposedEmbedding", {}, {
            "remainder": _embedding(buckets, width),
            "quotient": _embedding(-(-vocabulary // buckets), width),
        }),
        "blocks": _blocks(blocks),
        "norm": _layer_norm(width),
        "head": _linear(width, embed_dim, bias=False),
    })  # fmt: skip


def _decoder(config: zoo.DecoderConfig, text: zoo.TextConfig) -> Part:
    width = text.width
    cross = Part("CrossBlock", {}, {
        "norm1": _layer_norm(width),
        "norm_kv": _layer_norm(width),
        "attn": _attention(width, kind="CrossAttention"),
        "norm2": _layer_norm(width),
        "mlp": _mlp(width, config.mlp_ratio),
    })  # fmt: skip
    return Part("Decoder", {}, {
        "blocks": _blocks(_transformer_blocks(config.layers, width, config.mlp_ratio)),
        "cross": _blocks([cross] * config.layers),
        "norm": _layer_norm(width),
        "head": _linear(width, text.vocab_size, bias=False),
    })  # fmt: skip


def _folded(part: Part) -> Part:
    """Return a module after re-parameterisation; see the methods `fused` in `pocketclip.nn`."""
    children = dict(part.children)
    if part.kind == "ConvBN":
        return _with_bias(children["conv"])
    if part.kind == "ConditionalPosition":
        return children["conv"]  # the identity is part of the kernel
    if part.kind == "RepMixer":
        return _with_bias(part.find("mixer.conv.conv"))
    if part.kind in ("RepConv", "LargeKernelConv"):
        main = "conv" if part.kind == "RepConv" else "large"
        kept = {"conv": _with_bias(part.find(f"{main}.conv"))}
        return Part("Epilogue", {}, kept | {n: p for n, p in children.items() if n == "se"})
    if part.kind == "AttentionBlock" and children["norm"].kind == "BatchNorm2d":
        del children["norm"]
        attn = children["attn"].children
        children["attn"] = replace(
            children["attn"], children={"qkv": _with_bias(attn["qkv"]), "proj": attn["proj"]}
        )
    return replace(part, children={name: _folded(child) for name, child in children.items()})


def _with_bias(part: Part) -> Part:
    weight = part.entries["weight"]
    return replace(part, entries={"weight": weight, "bias": weight[:1]})
