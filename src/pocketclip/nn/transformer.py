"""Pre-norm transformer blocks, shared by the vision transformers, the text towers and MCi.

Sources: "Attention is all you need" (arXiv 1706.03762); pre-norm residual blocks as in ViT
(arXiv 2010.11929), section 3.1.

Shapes: B batch, T tokens, C channels (width), h heads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pocketclip.nn.moe import MoE, keep_routing_sums
from pocketclip.zoo import MoEConfig

if TYPE_CHECKING:
    from typing_extensions import Self


class FrozenBatchNormMixin(nn.Module):
    """A module that keeps BatchNorm layers with frozen statistics in evaluation mode."""

    def train(self, mode: bool = True) -> Self:
        """Set training mode; BatchNorm layers marked `statistics_frozen` stay in evaluation."""
        super().train(mode)
        for module in self.modules():
            if getattr(module, "statistics_frozen", False):
                module.eval()
        return self


class QuickGELU(nn.Module):
    """`x * sigmoid(1.702 x)`, the activation of OpenAI's and DFN's CLIP models."""

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape to the same shape."""
        return x * (1.702 * x).sigmoid()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drops a residual branch per row of the batch."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop_path must be in [0, 1), not {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, ...) to the same shape; rows that are not dropped are divided by 1 - rate."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * (mask / keep)

    def extra_repr(self) -> str:
        """Return the rate, for `print(model)`."""
        return f"{self.rate:.3f}"


def drop_path_rates(highest: float, blocks: int) -> list[float]:
    """Return one rate per block, rising linearly from 0 to `highest`."""
    return [highest * i / max(1, blocks - 1) for i in range(blocks)]


class KVCache:
    """The keys and values (B, h, T, C/h) of one causal layer for the tokens so far."""

    def __init__(self) -> None:
        self.length = 0  # T
        self._buffers: tuple[Tensor, Tensor] | None = None

    def add(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append the next token's (B, h, 1, C/h); return all so far, (B, h, T, C/h) each."""
        at, self.length = self.length, self.length + 1
        if self._buffers is None or self._buffers[0].shape[2] == at:
            # Doubling the capacity amortises the copies.
            old, self._buffers = self._buffers, (self._grow(keys, at), self._grow(values, at))
            if old is not None:
                for buffer, tensor in zip(self._buffers, old, strict=True):
                    buffer[:, :, :at] = tensor
        for buffer, tensor in zip(self._buffers, (keys, values), strict=True):
            buffer[:, :, at : at + 1] = tensor
        return self._buffers[0][:, :, : at + 1], self._buffers[1][:, :, : at + 1]

    def select(self, rows: Tensor) -> None:
        """Keep the given rows of the batch, in that order; rows may be repeated."""
        if self._buffers is not None:
            # Spare capacity included: otherwise the next token would copy everything again.
            keys, values = (buffer.index_select(0, rows) for buffer in self._buffers)
            self._buffers = keys, values

    @staticmethod
    def _grow(like: Tensor, at: int) -> Tensor:
        batch, heads, _, width = like.shape
        return like.new_empty((batch, heads, max(16, 2 * at), width))


class Attention(nn.Module):
    """Multi-head self-attention with explicit four-dimensional q, k, v, as exporters need it."""

    def __init__(self, width: int, heads: int, *, bias: bool = True, causal: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C).

        Args:
            x: the tokens.
            mask: boolean (B, 1, T, T), true where a row's token attends to a column's; replaces
                the causal mask.
        """
        q, k, v = (split_heads(chunk, self.heads) for chunk in self.qkv(x).chunk(3, dim=-1))
        causal = self.causal and mask is None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.proj(join_heads(out))

    def step(self, x: Tensor, cache: KVCache) -> Tensor:
        """Map the next token (B, 1, C) to (B, 1, C), attending to itself and the cached tokens."""
        q, k, v = (split_heads(chunk, self.heads) for chunk in self.qkv(x).chunk(3, dim=-1))
        return self.proj(join_heads(F.scaled_dot_product_attention(q, *cache.add(k, v))))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Return (B, T, C) as (B, h, T, C/h)."""
    batch, tokens, width = x.shape
    return x.reshape(batch, tokens, heads, width // heads).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """Return (B, h, T, C/h) as (B, T, C)."""
    batch, heads, tokens, width = x.shape
    return x.transpose(1, 2).reshape(batch, tokens, heads * width)


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = ACTIVATIONS[activation]()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return self.fc2(self.act(self.fc1(x)))


class TransformerBlock(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`; with `moe`, the MLP is a mixture."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        activation: str = "gelu",
        causal: bool = False,
        eps: float = 1e-5,
        drop_path: float = 0.0,
        moe: MoEConfig | None = None,
    ) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, causal=causal)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp: MLP | MoE = (
            MLP(width, hidden, activation)
            if moe is None
            else MoE(width, hidden, ACTIVATIONS[activation](), experts=moe.experts, top_k=moe.top_k)
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, mask: Tensor | None = None, real: Tensor | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C); for `mask` see `Attention`, for `real` (B, T) see `MoE`."""
        return self.mlp_residual(self.attn_residual(x, mask), real)

    def attn_residual(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return `x + attention(norm(x))`, (B, T, C)."""
        return x + self.drop_path(self.attn(self.norm1(x), mask))

    def step(self, x: Tensor, cache: KVCache) -> Tensor:
        """Map the next token (B, 1, C) to (B, 1, C); evaluation mode only."""
        return self.mlp_residual(x + self.attn.step(self.norm1(x), cache))

    def mlp_residual(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Return `x + mlp(norm(x))`, (B, T, C); each token is independent of the others.

        That does not hold for the training of a mixture of experts with limited capacity.
        """
        y = self.norm2(x)
        return x + self.drop_path(self.mlp(y, real) if isinstance(self.mlp, MoE) else self.mlp(y))


def run_blocks(
    blocks: Iterable[nn.Module],
    x: Tensor,
    mask: Tensor | None = None,
    *,
    real: Tensor | None = None,
    recompute: bool,
) -> Tensor:
    """Apply `blocks` in turn; `recompute` stores only their inputs for the backward pass."""
    for block in blocks:
        extra = (mask, real) if isinstance(block, TransformerBlock) else ()
        if recompute and torch.is_grad_enabled():
            x = checkpoint_block(block, x, *extra)
        else:
            x = block(x, *extra)
    return x


def run_blocks_pooled(
    blocks: Sequence[nn.Module],
    x: Tensor,
    pool: Callable[[Tensor], Tensor],
    mask: Tensor | None = None,
    *,
    real: Tensor | None = None,
    recompute: bool,
) -> Tensor:
    """Apply `blocks`, then `pool` from (B, T, C) to (B, C).

    The last MLP runs after pooling, on the pooled state only. The result is the same, with 5 %
    fewer operations in a tower of twelve layers. If it is a mixture of experts, its router sees
    the pooled states only, in training too: no other state of the last block has any effect.
    """
    last = blocks[-1]
    if not isinstance(last, TransformerBlock):
        return pool(run_blocks(blocks, x, mask, real=real, recompute=recompute))
    x = run_blocks(blocks[:-1], x, mask, real=real, recompute=recompute)
    x = last.attn_residual(x, mask)
    return last.mlp_residual(pool(x).unsqueeze(1)).squeeze(1)


def checkpoint_block(block: nn.Module, *inputs: Tensor | None) -> Tensor:
    """Return `block(*inputs)`, storing only the inputs for the backward pass."""

    def contexts() -> tuple[Any, Any]:
        return contextlib.nullcontext(), _second_pass(block)

    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


@contextlib.contextmanager
def _second_pass(block: nn.Module) -> Iterator[None]:
    with preserve_batch_norm_statistics(block), keep_routing_sums(block):
        yield


@contextlib.contextmanager
def preserve_batch_norm_statistics(block: nn.Module) -> Iterator[None]:
    """Within this context, forward passes do not update running statistics of BatchNorm."""
    # The recomputation sees the same batch again, and BatchNorm must not count it twice.
    # Without running statistics it would save fewer tensors than the first pass, which torch
    # refuses; so they are updated with weight zero.
    saved = []
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.num_batches_tracked is not None:
            saved.append((norm, norm.momentum, norm.num_batches_tracked))
            norm.momentum, norm.num_batches_tracked = 0.0, norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, momentum, count in saved:
            norm.momentum, norm.num_batches_tracked = momentum, count
