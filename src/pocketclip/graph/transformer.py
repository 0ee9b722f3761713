"""Pre-norm transformer blocks as ONNX nodes, shared by vision transformers and text towers.

Shapes: B batch, T tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pocketclip import zoo
from pocketclip.graph import layers
from pocketclip.graph.moe import mixture
from pocketclip.graph.tower import Tower


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Transformer blocks of one kind, from input to output."""

    paths: tuple[str, ...]
    """The modules' paths."""
    heads: int
    activation: str
    eps: float = layers.LAYER_NORM_EPS
    top_k: Mapping[str, int] = field(default_factory=dict)
    """K of the blocks with a mixture of experts in place of the MLP, by their paths."""


def top_k_of(paths: Sequence[str], moe: zoo.MoEConfig | None) -> dict[str, int]:
    """Return `Blocks.top_k` of a tower."""
    return {} if moe is None else {paths[index]: moe.top_k for index in moe.blocks}


def run_blocks(tower: Tower, x: str, blocks: Blocks, mask: str | None = None) -> str:
    """Add transformer blocks over (B, T, C); `mask` as in `layers.attend`."""
    for path in blocks.paths:
        x = _attention(tower, x, path, blocks, mask)
        x = _mlp(tower, x, path, blocks)
    return x


def pooled_blocks(
    tower: Tower, x: str, blocks: Blocks, pool: Callable[[str], str], mask: str | None = None
) -> str:
    """Add transformer blocks, then `pool` from (B, T, C) to (B, 1, C).

    The last MLP runs after pooling, on the pooled state only. The result is the same.
    """
    last = blocks.paths[-1]
    x = run_blocks(tower, x, replace(blocks, paths=blocks.paths[:-1]), mask)
    return _mlp(tower, pool(_attention(tower, x, last, blocks, mask)), last, blocks)


def _attention(tower: Tower, x: str, path: str, blocks: Blocks, mask: str | None) -> str:
    norm, attention = f"{path}.norm1", f"{path}.attn"
    y = layers.layer_norm(tower.graph, x, norm, tower.affine(norm), blocks.eps)
    y = layers.self_attention(
        tower.graph, y, attention, tower.kernel(f"{attention}.qkv"),
        tower.kernel(f"{attention}.proj"), heads=blocks.heads, mask=mask, fold_scale=tower.fused,
    )  # fmt: skip
    return tower.graph.node("Add", [x, y], f"{path}/attn_sum")


def _mlp(tower: Tower, x: str, path: str, blocks: Blocks) -> str:
    norm, mlp = f"{path}.norm2", f"{path}.mlp"
    y = layers.layer_norm(tower.graph, x, norm, tower.affine(norm), blocks.eps)
    top_k = blocks.top_k.get(path)
    if top_k is None:
        y = layers.linear(tower.graph, y, f"{mlp}.fc1", tower.kernel(f"{mlp}.fc1"))
        y = layers.activation(tower.graph, y, f"{mlp}.act", blocks.activation)
        y = layers.linear(tower.graph, y, f"{mlp}.fc2", tower.kernel(f"{mlp}.fc2"))
    else:
        y = mixture(tower, y, mlp, activation=blocks.activation, top_k=top_k)
    return tower.graph.node("Add", [x, y], f"{path}/mlp_sum")
