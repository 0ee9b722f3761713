"""Image towers as ONNX graphs: MCi, and vision transformers.

The modules of `pocketclip.nn.mci` and `pocketclip.nn.vit` name the sources.

Shapes: B batch, C channels, H W height width, N = H * W tokens, T tokens, D embedding.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pocketclip import zoo
from pocketclip.graph import convolution, fuse, layers
from pocketclip.graph.fuse import Kernel
from pocketclip.graph.tower import Tower
from pocketclip.graph.transformer import Blocks, pooled_blocks, run_blocks, top_k_of


def image_tower(tower: Tower, pixels: str, config: zoo.ModelConfig, *, levels: bool) -> str:
    """Add the image tower of a model; return its embeddings (B, D), not normalised.

    Args:
        tower: the graph and the weights.
        pixels: the input (B, 3, S, S).
        config: of the model.
        levels: the input is levels 0 to 255; otherwise it is preprocessed.
    """
    if levels:
        tower, pixels = _scale_levels(tower, pixels, config.preprocess)
    if isinstance(config.image, zoo.MCiConfig):
        return _mci(tower, pixels, config.image, config.image_size)
    return _vit(tower, pixels, config, config.image)


def _scale_levels(tower: Tower, x: str, config: zoo.PreprocessConfig) -> tuple[Tower, str]:
    """Add the scaling of levels; when fused, its factor goes into the first convolution.

    The shift stays, because the zeros that a convolution pads with are those of the normalised
    image.
    """
    graph = tower.graph
    shift = 255 * np.reshape(config.mean, (3, 1, 1))
    gain = np.reshape(1 / (255 * np.asarray(config.std)), (3, 1, 1))
    if shift.any():
        x = graph.node("Sub", [x, graph.weight("image.shift", shift)], "image/shifted")
    if tower.fused:
        return replace(tower, weights=fuse.scale_colours(tower.weights, gain)), x
    return tower, graph.node("Mul", [x, graph.weight("image.gain", gain)], "image/scaled")


# --- MCi (MobileCLIP, section 3.2; MobileCLIP2, section 4)


def _mci(tower: Tower, x: str, config: zoo.MCiConfig, side: int) -> str:
    *_, x = mci_maps(tower, x, config, side)
    return _expand(tower, x, config.widths[-1])


def mci_maps(tower: Tower, x: str, config: zoo.MCiConfig, side: int | None = None) -> Iterator[str]:
    """Add stem and stages, and yield the map of each stage.

    Args:
        tower: the graph and the weights.
        x: the input (B, 3, H, W).
        config: of the tower.
        side: H and W; None for a graph that takes any size.
    """
    width = config.widths[0]
    x = convolution.rep_conv(tower, x, "image.stem.0", stride=2)
    x = convolution.rep_conv(tower, x, "image.stem.1", stride=2, groups=width)
    x = convolution.rep_conv(tower, x, "image.stem.2")
    for index, depth in enumerate(config.depths):
        path, channels = f"image.stages.{index}", config.widths[index]
        if index > 0:
            x = _downsample(tower, x, f"{path}.downsample", config.widths[index - 1])
        side_here = None if side is None else _side(side, index + 2)
        is_attention = index >= len(config.depths) - config.attention_stages
        if is_attention:
            x = _position(tower, x, f"{path}.position", channels)
        for block in range(depth):
            name = f"{path}.blocks.{block}"
            if is_attention:
                x = _attention_block(tower, x, name, config, channels, side_here)
            else:
                x = convolution.mixer_block(tower, x, name)
        yield x


def _side(side: int, halvings: int) -> int:
    for _ in range(halvings):
        side = -(-side // 2)  # convolutions of stride 2 with padding round up
    return side


def _downsample(tower: Tower, x: str, path: str, inputs: int) -> str:
    """Add a 7x7 depthwise convolution of stride 2 and a 1x1 convolution (`Downsample`)."""
    large = f"{path}.conv"
    order = proj = None
    if tower.fused or tower.has(f"{large}.conv.weight"):
        kernel = fuse.large_kernel(tower.weights, large)
        x, order = convolution.depthwise(tower, x, f"{large}.conv", kernel, inputs, stride=2)
    else:
        branches = [
            convolution.conv_bn(tower, x, f"{large}.{size}", stride=2, groups=inputs)
            for size in ("large", "small")
        ]
        x = tower.graph.node("Add", branches, f"{large}/sum")
    x = convolution.epilogue(tower, x, large, order=order)
    if order is not None:
        weight, bias = fuse.rep_conv_kernel(tower.weights, f"{path}.proj", 1)
        proj = weight[:, order], bias
    return convolution.rep_conv(tower, x, f"{path}.proj", kernel=proj)


def _position(tower: Tower, x: str, path: str, channels: int) -> str:
    """Add the conditional position encoding `x + depthwise(x)`, one convolution when fused."""
    if tower.fused or tower.has(f"{path}.weight"):
        kernel = fuse.position_kernel(tower.weights, path)
        return layers.conv(tower.graph, x, path, kernel, groups=channels)
    kernel = tower.kernel(f"{path}.conv")
    out = layers.conv(tower.graph, x, f"{path}.conv", kernel, groups=channels)
    return tower.graph.node("Add", [x, out], f"{path}/sum")


def _attention_block(
    tower: Tower, x: str, path: str, config: zoo.MCiConfig, channels: int, side: int | None
) -> str:
    """Add attention over all positions and a convolutional MLP (`AttentionBlock`)."""
    graph, attention = tower.graph, f"{path}.attn"
    q, k, v = _heads(tower, x, path, config, channels, side)
    scores = graph.node("MatMul", [q, k], f"{attention}/scores")
    probabilities = graph.node("Softmax", [scores], f"{attention}/softmax", axis=-1)
    columns = graph.node("Transpose", [probabilities], f"{attention}/columns", perm=[0, 1, 3, 2])
    mixed = graph.node("MatMul", [v, columns], f"{attention}/mixed")  # (B, h, C/h, N)
    planes = (
        graph.node("Shape", [x], f"{path}/shape")
        if side is None
        else graph.constant([0, channels, side, side])
    )
    mixed = graph.node("Reshape", [mixed, planes], f"{attention}/planes")
    gain = tower.array(f"{path}.layer_scale_1")
    weight, bias = tower.kernel(f"{attention}.proj")
    if tower.fused:
        weight, bias = fuse.scaled_rows((weight, bias), gain)
    mixed = layers.conv(graph, mixed, f"{attention}.proj", (weight[:, :, None, None], bias))
    if not tower.fused:
        scale = graph.weight(f"{path}.layer_scale_1", gain)
        mixed = graph.node("Mul", [mixed, scale], f"{path}/scaled")
    x = graph.node("Add", [x, mixed], f"{path}/attn_sum")
    return convolution.residual_mlp(tower, x, path, "layer_scale_2")


def _heads(
    tower: Tower, x: str, path: str, config: zoo.MCiConfig, channels: int, side: int | None
) -> tuple[str, str, str]:
    """Add the norm before attention, q (B, h, N, C/h), k (B, h, C/h, N) and v (B, h, C/h, N)."""
    norm, attention, heads = f"{path}.norm", f"{path}.attn", channels // config.head_dim
    if config.attention_norm == "layer":
        tokens = _tokens(tower, x, path, channels)
        tokens = layers.layer_norm(tower.graph, tokens, norm, tower.affine(norm))
        return _token_heads(tower, tokens, attention, tower.kernel(f"{attention}.qkv"), heads)
    if tower.fused or not tower.has(f"{norm}.running_var"):
        qkv = fuse.qkv_kernel(tower.weights, attention, norm)
        return _channel_heads(tower, x, attention, qkv, heads, -1 if side is None else side**2)
    tokens = _tokens(tower, convolution.batch_norm(tower, x, norm), path, channels)
    return _token_heads(tower, tokens, attention, tower.kernel(f"{attention}.qkv"), heads)


def _channel_heads(
    tower: Tower, x: str, path: str, qkv: Kernel, heads: int, positions: int
) -> tuple[str, str, str]:
    """Add q, k and v of a map (B, C, H, W), see `_heads`; -1 `positions` for any number.

    No data moves: runtimes read a transposed factor of a product in place.
    """
    graph, width = tower.graph, qkv[0].shape[1]
    shape = graph.constant([0, heads, width // heads, positions])
    parts = []
    for i, letter in enumerate("qkv"):
        rows = slice(i * width, (i + 1) * width)
        scale = (width // heads) ** -0.5 if letter == "q" else 1.0
        kernel = qkv[0][rows, :, None, None] * scale, qkv[1][rows] * scale
        part = layers.conv(graph, x, f"{path}.{letter}", kernel)
        parts.append(graph.node("Reshape", [part, shape], f"{path}/{letter}_heads"))
    q = graph.node("Transpose", [parts[0]], f"{path}/q", perm=[0, 1, 3, 2])
    return q, parts[1], parts[2]


def _token_heads(tower: Tower, x: str, path: str, qkv: Kernel, heads: int) -> tuple[str, str, str]:
    """Add q, k and v of tokens (B, N, C), see `_heads`."""
    graph = tower.graph
    q, k, v = layers.split_qkv(graph, x, path, qkv, heads=heads, fold_scale=tower.fused)
    split = functools.partial(layers.split_heads, graph, heads=heads, width=qkv[0].shape[1])
    return (
        split(q, f"{path}/q", order=[0, 2, 1, 3]),
        split(k, f"{path}/k", order=[0, 2, 3, 1]),
        split(v, f"{path}/v", order=[0, 2, 3, 1]),
    )


def _tokens(tower: Tower, x: str, path: str, channels: int) -> str:
    """Add the change from (B, C, H, W) to (B, N, C)."""
    shape = tower.graph.constant([0, channels, -1])
    x = tower.graph.node("Reshape", [x, shape], f"{path}/flat")
    return tower.graph.node("Transpose", [x], f"{path}/tokens", perm=[0, 2, 1])


def _expand(tower: Tower, x: str, width: int) -> str:
    """Add the expansion to twice the width, the mean over positions and the projection."""
    graph, path, order = tower.graph, "image.expand", None
    if tower.fused or tower.has(f"{path}.conv.weight"):
        kernel = fuse.rep_conv_kernel(tower.weights, path, width)
        x, order = convolution.depthwise(tower, x, f"{path}.conv", kernel, width)
        x = convolution.epilogue(tower, x, path, order=order)
    else:
        x = convolution.rep_conv(tower, x, path, groups=width)
    x = graph.node("GlobalAveragePool", [x], "image/mean")
    x = graph.node("Flatten", [x], "image/flat", axis=1)
    weight, bias = tower.kernel("image.head")
    if order is not None:
        weight = weight[:, order]
    return layers.linear(graph, x, "image.head", (weight, bias))


# --- vision transformers (ViT, section 3.1; CoCa, section 3.2)


def _vit(tower: Tower, x: str, config: zoo.ModelConfig, image: zoo.ViTConfig) -> str:
    graph, width = tower.graph, image.width
    x, blocks = vit_states(tower, vit_stem(tower, x, image), image), vit_blocks(image)
    if image.pool_queries is None:
        first = graph.constant([0])
        x = pooled_blocks(
            tower, x, blocks, lambda y: graph.node("Gather", [y, first], "image/pooled", axis=1)
        )
    else:
        x = attention_pool(tower, run_blocks(tower, x, blocks), config.embed_dim, image.pool_heads)
        width = config.embed_dim
    x = graph.node("Reshape", [x, graph.constant([0, width])], "image/state")
    x = layers.layer_norm(graph, x, "image.norm", tower.affine("image.norm"), image.eps)
    return layers.linear(graph, x, "image.head", tower.kernel("image.head"))


def vit_blocks(image: zoo.ViTConfig) -> Blocks:
    """Return the blocks of a vision transformer."""
    paths = tuple(f"image.blocks.{i}" for i in range(image.layers))
    return Blocks(
        paths=paths,
        heads=image.heads,
        activation=image.activation,
        eps=image.eps,
        top_k=top_k_of(paths, image.moe),
    )


def vit_states(tower: Tower, x: str, image: zoo.ViTConfig, shape: str | None = None) -> str:
    """Add the input (B, N + 1, C) of the first block: class token and patches with positions.

    Args:
        tower: the graph and the weights.
        x: what the stem returns, (B, C, H, W) in patches.
        image: configuration of the tower.
        shape: the shape of `x`, for a graph that takes any size: it interpolates the position
            embedding. None: the size of the position embedding.
    """
    graph, width = tower.graph, image.width
    x = graph.node("Reshape", [x, graph.constant([0, width, -1])], "image/patches")
    x = graph.node("Transpose", [x], "image/tokens", perm=[0, 2, 1])  # (B, N, C)
    position = tower.array("image.position")
    token = tower.array("image.class_token").reshape(1, 1, width)
    if image.class_position:
        token, position = token + position[:, :1], position[:, 1:]
    positions = (
        graph.weight("image.position", position)
        if shape is None
        else _positions(tower, position, shape)
    )
    x = graph.node("Add", [x, positions], "image/with_position")
    x = graph.node("Concat", [_per_row(tower, x, token), x], "image/with_class", axis=1)
    if image.pre_norm:
        x = layers.layer_norm(graph, x, "image.norm_pre", tower.affine("image.norm_pre"), image.eps)
    return x


def _positions(tower: Tower, position: fuse.Doubles, shape: str) -> str:
    """Add the position embedding (1, N, C), interpolated as `ViT.position_for` does.

    Args:
        tower: the graph and the weights.
        position: of the patches, (1, g * g, C).
        shape: of the map (B, C, H, W) that it is added to.
    """
    graph, width = tower.graph, position.shape[2]
    grid = round(position.shape[1] ** 0.5)
    planes = position.reshape(1, grid, grid, width).transpose(0, 3, 1, 2)
    ends = [graph.constant([i]) for i in (2, 4)]
    size = graph.node("Slice", [shape, *ends], "image/grid")  # H, W
    sizes = graph.node("Concat", [graph.constant([1, width]), size], "image/sizes", axis=0)
    x = graph.node(
        "Resize", [graph.weight("image.position", planes), "", "", sizes], "image/resized",
        antialias=1, mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1,
        coordinate_transformation_mode="half_pixel",
    )  # fmt: skip
    flat = graph.constant([0, width, -1])
    x = graph.node("Reshape", [x, flat], "image/flat_positions")
    return graph.node("Transpose", [x], "image/positions", perm=[0, 2, 1])


def _per_row(tower: Tower, x: str, token: fuse.Doubles) -> str:
    """Add a learned token (1, 1, C) repeated for every row of `x` (B, T, C)."""
    graph = tower.graph
    shape = graph.node("Shape", [x], "image/batch", start=0, end=1)
    ones = graph.constant([1, 1])
    shape = graph.node("Concat", [shape, ones], "image/batch_shape", axis=0)
    return graph.node(
        "Expand", [graph.weight("image.class_token", token), shape], "image/class_rows"
    )


def vit_stem(tower: Tower, x: str, image: zoo.ViTConfig) -> str:
    """Add the way from the image to its patches (B, C, H, W)."""
    graph, size = tower.graph, image.patch_size
    if image.stem == "patch":
        return layers.conv(
            graph, x, "image.stem", tower.kernel("image.stem"), stride=size, padding=0
        )
    x = convolution.conv_bn(tower, x, "image.stem.0", stride=4, padding=image.stem_padding)
    x = layers.activation(graph, x, "image.stem.1", "gelu")
    x = convolution.conv_bn(tower, x, "image.stem.2", stride=2, padding=0)
    x = layers.activation(graph, x, "image.stem.3", "gelu")
    return layers.conv(graph, x, "image.stem.4", tower.kernel("image.stem.4"), stride=2, padding=0)


def attention_pool(tower: Tower, x: str, width: int, heads: int, queries: slice = slice(1)) -> str:
    """Add CoCa's attentional pooling of tokens; return (B, Q, D).

    Args:
        tower: the graph and the weights.
        x: the tokens.
        width: D.
        heads: of its attention.
        queries: which queries to pool by; by default the first, which gives the embedding.
    """
    graph, path = tower.graph, "image.pool"
    x = layers.layer_norm(graph, x, f"{path}.norm_k", tower.affine(f"{path}.norm_k"))
    query = tower.array(f"{path}.query")[queries]
    weight, bias = tower.affine(f"{path}.norm_q")
    deviation = np.sqrt(query.var(-1, keepdims=True) + layers.LAYER_NORM_EPS)
    query = (query - query.mean(-1, keepdims=True)) / deviation * weight + bias
    biases = np.split(tower.array(f"{path}.bias"), 3)
    # The query is the same for every image: it is computed here, scale included.
    query = (query @ tower.array(f"{path}.q.weight").T + biases[0]) * (width // heads) ** -0.5
    q = graph.weight(f"{path}.queries", query[None])  # (1, Q, D)
    k = layers.linear(graph, x, f"{path}.k", (tower.array(f"{path}.k.weight"), biases[1]))
    v = layers.linear(graph, x, f"{path}.v", (tower.array(f"{path}.v.weight"), biases[2]))
    mixed = layers.attend(graph, q, k, v, path, heads=heads, width=width)
    return layers.linear(graph, mixed, f"{path}.proj", tower.kernel(f"{path}.proj"))
