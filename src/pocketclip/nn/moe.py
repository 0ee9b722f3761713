"""Sparse mixtures of experts in place of a transformer block's MLP.

    layer = MoE(width=768, hidden=3072, act=nn.GELU(), experts=8, top_k=2)
    layer(tokens)                       # each token through two of eight MLPs

A router, one linear layer in float32, gives each token a probability for every expert. The best K
experts process the token, and the result is the mean of theirs, weighted by these probabilities,
which are divided by their sum. In evaluation that is all, so that a token's result depends on this
token only. In training an expert has room for a limited number of tokens; a token that finds none
passes by on the residual branch alone.

Sources: Shazeer et al. (arXiv 1701.06538), section 2, for gates; GShard (arXiv 2006.16668),
section 2.2, for capacity and the order in which it is given away; sparse upcycling (arXiv
2212.05055), appendix B, for weights that sum to one. CLIP-UP (arXiv 2502.00965) states no such
settings that we could read, so the defaults here are ours.

Shapes: N tokens, C channels, H hidden channels, E experts, K experts per token.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEFAULT_CAPACITY = 2.0
ROUTER_STD = 0.02


class ExpertLinear(nn.Module):
    """E linear layers of equal size, their weights stacked in one parameter.

    An expert without tokens thus has a gradient of zero, not none, which distributed training
    relies on.
    """

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(experts, outputs))
        bound = 1 / math.sqrt(inputs)  # as `nn.Linear` draws its weights
        nn.init.uniform_(self.weight, -bound, bound)

    def extra_repr(self) -> str:
        """Return the shape, for `print(model)`."""
        experts, outputs, inputs = self.weight.shape
        return f"experts={experts}, in_features={inputs}, out_features={outputs}"


class RoutingSums(NamedTuple):
    """What a training step's losses and log need of one layer: sums over its tokens.

    Padding does not count. Sums of several batches or processes add up. Gradients flow to the
    router through `probability`, `z` and `entropy`.
    """

    chosen: Tensor
    """How often each expert was chosen, (E,): the sum is K times the tokens."""
    kept: Tensor
    """How many of these choices found room, (E,)."""
    probability: Tensor
    """The router's probabilities, (E,)."""
    z: Tensor
    """The squared logarithm of the sum of the exponentiated logits, ()."""
    entropy: Tensor
    """The entropy of each token's probabilities, in nats, ()."""
    tokens: Tensor
    """The number of tokens, ()."""


class MoE(nn.Module):
    """A mixture of E experts, each an MLP of two linear layers.

    Attributes:
        capacity_factor: in training, an expert has room for this many times the tokens that it
            would get if all experts were chosen equally often, rounded up; None: for all
            (dropless). First choices go before second ones, earlier tokens before later ones;
            padding takes no room.
        noise: in training, the standard deviation of normal noise added to the router's logits,
            which changes the choice and the weights (LIMoE, arXiv 2206.02770, uses 1/E). Neither
            applies while the router is frozen: a frozen tower gives what it gives in evaluation.
        sums: of the last forward pass in training; the training step takes them.

    Args:
        width: C.
        hidden: H, of each expert.
        act: the activation between the two layers.
        experts: E.
        top_k: K, at most E.
    """

    def __init__(
        self, width: int, hidden: int, act: nn.Module, *, experts: int, top_k: int
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= experts:
            raise ValueError(f"top_k must be 1 to {experts}, the number of experts, not {top_k}")
        self.experts, self.top_k = experts, top_k
        self.capacity_factor: float | None = DEFAULT_CAPACITY
        self.noise = 0.0
        self.sums: RoutingSums | None = None
        self.records = True
        self.router = nn.Linear(width, experts, bias=False)
        self.fc1 = ExpertLinear(experts, width, hidden)
        self.act = act
        self.fc2 = ExpertLinear(experts, hidden, width)
        nn.init.normal_(self.router.weight, std=ROUTER_STD)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy, without `sums`: a step's graph cannot be copied."""
        return {**self.__dict__, "sums": None}

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Map tokens (..., C) to the same shape.

        Args:
            x: the tokens.
            real: boolean (...), false at padding, which is computed like any token, but neither
                counts in `sums` nor takes room. None: there is no padding. Used in training only.
        """
        tokens = x.reshape(-1, x.shape[-1])
        logits = self.router_logits(tokens)
        noisy = logits
        if self.training and self.noise and self.router.weight.requires_grad:
            noisy = logits + self.noise * torch.randn_like(logits)
        gates, chosen = route(noisy, self.top_k)  # (N, K)
        if not self.training:
            if _is_exporting():
                return self._mix_all(tokens, gates, chosen).view_as(x)
            return self._mix_chosen(tokens, gates, chosen).view_as(x)
        counts = None if real is None else real.reshape(-1)
        kept = self._kept(chosen, counts)
        sums = _sum_up(logits, chosen, kept, counts)
        if self.records:
            self.sums = sums
        return self._mix_chosen(tokens, gates, chosen, kept).view_as(x)

    def router_logits(self, tokens: Tensor) -> Tensor:
        """Return the router's logits (N, E), in float32 at least, also under autocast."""
        with torch.autocast(tokens.device.type, enabled=False):
            dtype = torch.promote_types(tokens.dtype, torch.float32)
            return F.linear(tokens.to(dtype), self.router.weight.to(dtype))

    def _kept(self, chosen: Tensor, real: Tensor | None) -> Tensor | None:
        """Return which choices (N, K) find room, or None if all do."""
        if self.capacity_factor is None or not self.router.weight.requires_grad:
            return None
        queue = chosen if real is None else torch.where(real[:, None], chosen, self.experts)
        tokens = torch.tensor(len(chosen)) if real is None else real.sum()
        limit = (self.capacity_factor * self.top_k * tokens / self.experts).ceil()
        # Column by column: all first choices are placed before any second one.
        places = _places(queue.T.reshape(-1), self.experts + 1).view_as(queue.T).T
        fits = places < limit
        return fits if real is None else fits | ~real[:, None]

    # The compiler would make one graph for each number of tokens per expert.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _mix_chosen(
        self, tokens: Tensor, gates: Tensor, chosen: Tensor, kept: Tensor | None = None
    ) -> Tensor:
        """Return the weighted sum of the chosen experts' results, computing only these."""
        count, width = tokens.shape
        grouped = self._can_group(tokens)
        if kept is not None and grouped:
            # A choice without room is computed too: how many there are is known on the device only.
            gates = gates * kept
        elif kept is not None:
            chosen = torch.where(kept, chosen, self.experts)  # sorted behind the others
        # K lists of tokens, one per choice, sorted by expert: (K N,).
        expert, order = chosen.T.reshape(-1).sort(stable=True)
        run = self._run_grouped if grouped else self._run_loop
        out = run(tokens, order % count, expert)
        out = out * gates.T.reshape(-1)[order[: len(out)]].to(out.dtype)[:, None]
        out = F.pad(out, (0, 0, 0, len(order) - len(out)))
        # Back in order of the tokens. A sum of K rows is the same for any batch, and on any
        # device, which adding in place would not be.
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return out[back].view(self.top_k, count, width).sum(0)

    def _run_loop(self, tokens: Tensor, rows: Tensor, expert: Tensor) -> Tensor:
        """Return the experts' results of tokens, one expert after the other.

        Args:
            tokens: (N, C).
            rows: which tokens, sorted by their expert, (R,).
            expert: the expert of each of them, (R,); E for none.

        Returns:
            The results without those of expert E, (at most R, C).
        """
        numbers = _members(expert, self.experts).sum(0).tolist()
        layers = zip(
            torch.split(tokens[rows[: sum(numbers)]], numbers),
            self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias,
            strict=True,
        )  # fmt: skip
        # Experts without tokens too: their gradients are to be zeros.
        return torch.cat(
            [F.linear(self.act(F.linear(x, w1, b1)), w2, b2) for x, w1, b1, w2, b2 in layers]
        )

    def _run_grouped(self, tokens: Tensor, rows: Tensor, expert: Tensor) -> Tensor:
        """Return the same, all experts in one grouped product per layer.

        The numbers of tokens per expert stay on the device, so that the host need not wait for
        them. Each row has an expert: what the product returns for others is undefined.
        """
        dtype = _compute_dtype(tokens)
        member = _members(expert, self.experts)
        ends = member.sum(0).cumsum(0).to(torch.int32)
        # As a product, since a sum of many rows in half precision, which is the gradient of
        # gathered biases, would lose digits.
        member = member.to(dtype)
        x = tokens[rows].to(dtype)
        with torch.autocast(tokens.device.type, enabled=False):  # it knows no grouped product
            x = _grouped_mm()(x, self.fc1.weight.to(dtype).mT, offs=ends)
            x = self.act(torch.addmm(x, member, self.fc1.bias.to(dtype)))
            x = _grouped_mm()(x, self.fc2.weight.to(dtype).mT, offs=ends)
            return torch.addmm(x, member, self.fc2.bias.to(dtype))

    def _can_group(self, tokens: Tensor) -> bool:
        """Return whether the grouped product runs on these tokens, and is faster than the loop.

        That is so in bfloat16 on NVIDIA GPUs from Hopper on (compute capability 9). Elsewhere, and
        in other types, torch (2.9 and later) runs a loop of its own behind the same function, and
        before 2.9 it raises. Rows of tokens and weights must begin at multiples of 16 bytes.
        """
        if not tokens.is_cuda or torch.version.hip or _compute_dtype(tokens) != torch.bfloat16:
            return False
        major, _ = torch.cuda.get_device_capability(tokens.device)
        newer = hasattr(F, "grouped_mm")  # torch 2.10
        if not (major >= 9 if newer else major == 9 and hasattr(torch, "_grouped_mm")):
            return False
        sizes = self.fc1.weight.shape[1:]  # H, C
        starts = [layer.weight.data_ptr() for layer in (self.fc1, self.fc2)]
        return all(size % 8 == 0 for size in sizes) and all(start % 16 == 0 for start in starts)

    def _mix_all(self, tokens: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
        """Return the same, computing every expert for every token.

        For exporters: they would record the example's numbers of tokens per expert.
        """
        layers = zip(self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, strict=True)
        return weighted_sum(
            (F.linear(self.act(F.linear(tokens, w1, b1)), w2, b2) for w1, b1, w2, b2 in layers),
            gates,
            chosen,
        )


def route(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Return the weights of the best experts, which sum to one, and their numbers.

    Args:
        logits: of the router, (..., E).
        top_k: K; both results are (..., K).
    """
    gates, chosen = logits.softmax(-1).topk(top_k)
    return gates / gates.sum(-1, keepdim=True), chosen


def weighted_sum(results: Iterable[Tensor], gates: Tensor, chosen: Tensor) -> Tensor:
    """Return the sum of every expert's results (..., C), each weighted by its gate or by zero.

    Args:
        results: one tensor per expert, in their order.
        gates: (..., K).
        chosen: the experts that the gates are of, (..., K).
    """
    total: Tensor | None = None
    for expert, result in enumerate(results):
        weight = (gates * (chosen == expert)).sum(-1, keepdim=True).to(result.dtype)
        total = weight * result if total is None else total + weight * result
    assert total is not None
    return total


def moe_layers(module: nn.Module) -> dict[str, MoE]:
    """Return the mixtures of experts of a model or a tower, by their path."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, MoE)}


@contextlib.contextmanager
def keep_routing_sums(module: nn.Module) -> Iterator[None]:
    """Within this context, forward passes leave `MoE.sums` as they are."""
    layers = list(moe_layers(module).values())
    for layer in layers:
        layer.records = False
    try:
        yield
    finally:
        for layer in layers:
            layer.records = True


def _members(values: Tensor, groups: int) -> Tensor:
    """Return which group each of R values is: (R, groups), boolean.

    Its sums are the counts. `bincount` would make the host wait for a GPU.
    """
    return values[:, None] == torch.arange(groups, device=values.device)


def _places(queue: Tensor, groups: int) -> Tensor:
    """Return each entry's place, from 0, among the entries of `queue` with the same value."""
    order = queue.argsort(stable=True)
    counts = _members(queue, groups).sum(0)
    first = (counts.cumsum(0) - counts)[queue[order]]
    places = torch.empty_like(queue)
    places[order] = torch.arange(len(queue), device=queue.device) - first
    return places


def _sum_up(
    logits: Tensor, chosen: Tensor, kept: Tensor | None, real: Tensor | None
) -> RoutingSums:
    """Return the sums of a layer over the tokens that are not padding."""
    experts = logits.shape[1]
    counts = logits.new_ones(len(logits)) if real is None else real.to(logits.dtype)  # (N,)
    every = counts[:, None].expand_as(chosen)
    found = every if kept is None else every * kept

    def per_expert(weights: Tensor) -> Tensor:
        total = logits.new_zeros(experts)
        return total.index_add(0, chosen.reshape(-1), weights.reshape(-1))

    logarithms = logits.log_softmax(-1)
    probabilities = logarithms.exp()
    entropy = -(probabilities * logarithms).sum(-1)
    return RoutingSums(
        chosen=per_expert(every),
        kept=per_expert(found),
        probability=counts @ probabilities,
        z=counts @ logits.logsumexp(-1).square(),
        entropy=counts @ entropy,
        tokens=counts.sum(),
    )


def _compute_dtype(tokens: Tensor) -> torch.dtype:
    """Return the type in which linear layers compute, that of autocast where it is on."""
    device = tokens.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tokens.dtype


def _grouped_mm() -> Callable[..., Tensor]:
    """Return torch's product of groups of rows with a matrix each, from 2.10 on a public one."""
    function: Callable[..., Tensor] | None = getattr(F, "grouped_mm", None)
    return function or torch._grouped_mm


def _is_exporting() -> bool:
    # torch 2.6 does not tell exporting from compiling.
    exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    tracing = torch._C._get_tracing_state() is not None  # of torch.jit and of older exporters
    return bool(exporting() or tracing)
