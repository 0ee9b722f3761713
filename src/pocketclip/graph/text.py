"""Text towers as ONNX graphs: CLIP's transformer, causal or not, MCt, and CoCa's.

The module of `pocketclip.nn.text` names the sources.

Shapes: B batch, T tokens, C channels, D embedding, V vocabulary.
"""

from __future__ import annotations

import numpy as np

from pocketclip import zoo
from pocketclip.graph import convolution, layers, proto
from pocketclip.graph.fuse import Doubles
from pocketclip.graph.tower import Tower
from pocketclip.graph.transformer import Blocks, pooled_blocks, run_blocks, top_k_of
from pocketclip.tokenizer import PAD


def text_tower(tower: Tower, ids: str, config: zoo.TextConfig) -> str:
    """Add the text tower of a model; return its embeddings (B, D), not normalised.

    Args:
        tower: the graph and the weights.
        ids: the input, int64 (B, T).
        config: of the tower.
    """
    graph, width = tower.graph, config.width
    x = _embedding(tower, ids, config)
    first = 1 if config.repmixer else 0
    paths = tuple(f"text.blocks.{first + i}" for i in range(config.layers))
    blocks = Blocks(
        paths=paths,
        heads=config.heads,
        activation=config.activation,
        top_k=top_k_of(paths, config.moe),
    )
    if config.class_token:
        x, mask = _with_class(tower, x, ids, config)
        last = graph.constant([-1])

        def last_token(y: str) -> str:
            return graph.node("Gather", [y, last], "text/pooled", axis=1)

        return _head(tower, pooled_blocks(tower, x, blocks, last_token, mask), width)
    position, causal = _positions(tower, ids, config)
    x = graph.node("Add", [x, position], "text/with_position")
    weight = _first_maximum(tower, ids)  # (B, 1, T)

    def end_token(y: str) -> str:
        return graph.node("MatMul", [weight, y], "text/pooled")

    if config.repmixer:
        x = _token_mixer(tower, x, "text.blocks.0")
        x = run_blocks(tower, x, blocks, causal)
        x = end_token(_token_mixer(tower, x, f"text.blocks.{config.layers + 1}"))
    else:
        x = pooled_blocks(tower, x, blocks, end_token, causal)
    return _head(tower, x, width)


def _head(tower: Tower, x: str, width: int) -> str:
    graph = tower.graph
    x = graph.node("Reshape", [x, graph.constant([0, width])], "text/state")
    x = layers.layer_norm(graph, x, "text.norm", tower.affine("text.norm"))
    return layers.linear(graph, x, "text.head", tower.kernel("text.head"))


def _embedding(tower: Tower, ids: str, config: zoo.TextConfig) -> str:
    """Add the token embeddings (B, T, C), from one table or from two (`ComposedEmbedding`)."""
    graph, path = tower.graph, "text.embedding"
    if config.embedding_buckets is None:
        return graph.gather(path, tower.weights[f"{path}.weight"], ids)
    buckets = graph.constant(config.embedding_buckets)
    parts = {
        "remainder": graph.node("Mod", [ids, buckets], f"{path}/low"),
        "quotient": graph.node("Div", [ids, buckets], f"{path}/high"),
    }
    rows = [
        graph.gather(f"{path}.{part}", tower.weights[f"{path}.{part}.weight"], which)
        for part, which in parts.items()
    ]
    return graph.node("Add", rows, f"{path}/sum")


def _positions(tower: Tower, ids: str, config: zoo.TextConfig) -> tuple[str, str | None]:
    """Return the position embedding (T, C) and the causal mask (T, T) or None.

    Both are cut to the number of tokens, where any number is allowed.
    """
    graph, length = tower.graph, config.context_length
    position = graph.weight("text.position", tower.weights["text.position"][:length])
    mask = None
    if config.causal:
        mask = graph.weight("text.causal_mask", _causal_mask(length), finite=False)
    if not config.ignores_padding:
        return position, mask
    zero, axis0 = graph.constant([0]), graph.constant([0])
    count = graph.node("Shape", [ids], "text/count", start=1, end=2)
    position = graph.node("Slice", [position, zero, count, axis0], "text/positions")
    assert mask is not None  # a tower that ignores padding is causal
    zeros = graph.constant([0, 0])
    counts = graph.node("Concat", [count, count], "text/counts", axis=0)
    mask = graph.node("Slice", [mask, zeros, counts, graph.constant([0, 1])], "text/mask")
    return position, mask


def _causal_mask(length: int) -> Doubles:
    return np.triu(np.full((length, length), -np.inf), 1)


def _first_maximum(tower: Tower, ids: str) -> str:
    """Add weights (B, 1, T): 1 at the end-of-text token, which is the first highest id, else 0."""
    graph = tower.graph
    highest = graph.node("ReduceMax", [ids, graph.constant([-1])], "text/highest", keepdims=1)
    ends = graph.node("Equal", [ids, highest], "text/ends")
    whole = graph.node("Cast", [ends], "text/ends_whole", to=proto.INT64)
    counted = graph.node("CumSum", [whole, graph.constant(-1)], "text/counted")
    first = graph.node("Equal", [counted, graph.constant(1)], "text/first")
    end = graph.node("And", [ends, first], "text/end")
    weight = graph.node("Cast", [end], "text/end_weight", to=proto.FLOAT)
    return graph.node("Unsqueeze", [weight, graph.constant([1])], "text/pooling")


def _with_class(tower: Tower, x: str, ids: str, config: zoo.TextConfig) -> tuple[str, str]:
    """Add CoCa's class token after the text; return (B, T + 1, C) and the mask of attention.

    As in open_clip, and hence in the published weights, padding is masked one position late: tokens
    attend to the first padding position, and the class token does not attend to itself unless
    there is no padding.
    """
    graph, length, width = tower.graph, config.context_length, config.width
    shape = graph.node("Shape", [ids], "text/batch", start=0, end=1)
    shape = graph.node("Concat", [shape, graph.constant([1, width])], "text/class_shape", axis=0)
    token = graph.weight("text.class_token", tower.array("text.class_token").reshape(1, 1, width))
    rows = graph.node("Expand", [token, shape], "text/class_rows")
    x = graph.node("Concat", [x, rows], "text/with_class", axis=1)
    position = graph.weight("text.position", tower.weights["text.position"][: length + 1])
    x = graph.node("Add", [x, position], "text/with_position")
    is_pad = graph.node("Equal", [ids, graph.constant(PAD)], "text/is_pad")
    # Minus infinity at padding, one position late: nothing masks the first position.
    floats = graph.node(
        "Where",
        [is_pad, graph.constant(-np.inf, np.float32), graph.constant(0.0, np.float32)],
        "text/pad_mask",
    )
    pads = graph.constant([0, 1, 0, 0])
    late = graph.node("Pad", [floats, pads], "text/late_mask", mode="constant")
    late = graph.node("Unsqueeze", [late, graph.constant([1, 2])], "text/key_mask")
    causal = graph.weight("text.causal_mask", _causal_mask(length + 1), finite=False)
    return x, graph.node("Add", [late, causal], "text/mask")


def _token_mixer(tower: Tower, x: str, path: str) -> str:
    """Add a RepMixer block over the token axis of (B, T, C) (MobileCLIP, section 3.3)."""
    graph = tower.graph
    x = graph.node("Transpose", [x], f"{path}/channels_first", perm=[0, 2, 1])
    x = graph.node("Unsqueeze", [x, graph.constant([2])], f"{path}/plane")
    x = convolution.mixer_block(tower, x, path)
    x = graph.node("Squeeze", [x, graph.constant([2])], f"{path}/line")
    return graph.node("Transpose", [x], f"{path}/tokens", perm=[0, 2, 1])
