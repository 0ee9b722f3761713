"""Low-rank updates of frozen weights (LoRA, arXiv 2106.09685, section 4.1).

    updates = LowRankUpdates(model, rank=8, alpha=16, towers=("image", "text"), seed=0)
    loss.backward()
    updates.take_gradients()  # of the factors, from those of the weights
    optimizer.step()          # moves the factors
    updates.merge()           # weight = base + alpha / rank * B A

The model holds merged weights at all times: it is an ordinary model, under its usual names, which
can be scored, averaged, fused and saved as it is. The frozen base weights and the factors stand
beside it. The gradient of a merged weight gives those of its factors by the chain rule, so that
gradient checkpointing, compiled and distributed models need nothing of their own. Beside plain
LoRA this costs the memory of one more gradient and copy of the weights, which is little here.

Adapted are all linear layers and all 1x1 convolutions over all channels, which are linear layers at
each position, from a tower's first block to its head: attention projections, MLPs, down-sampling,
squeeze-and-excitation, and the final projection. Everything else of the tower is frozen, with its
BatchNorm statistics: embeddings, the stem, depthwise convolutions (a few numbers per channel),
norms and biases.

Shapes: O output and I input channels, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pocketclip.errors import CheckpointError
from pocketclip.nn.clip import CLIP
from pocketclip.nn.moe import moe_layers
from pocketclip.zoo.sparse import TowerName


class _Update:
    """The update of one weight: its base, and the factors B (O, r) and A (r, I)."""

    def __init__(self, weight: nn.Parameter, rank: int, generator: torch.Generator) -> None:
        self.weight = weight
        self.base = weight.detach().clone()
        out, into = weight.shape[0], weight[0].numel()
        rank = min(rank, out, into)  # a higher rank could express nothing more
        bound = 1 / math.sqrt(into)  # as `nn.Linear` draws its weights
        drawn = torch.rand(rank, into, generator=generator) * 2 - 1
        device = weight.device
        self.a = nn.Parameter((drawn * bound).to(device, weight.dtype))
        self.b = nn.Parameter(torch.zeros(out, rank, device=device, dtype=weight.dtype))


class LowRankUpdates:
    """Low-rank updates of a model's towers, which are frozen otherwise.

    The model is unchanged at first, as all B are zero. A rank above a layer's number of channels
    counts as that number.

    Args:
        model: unfused, on its device; its merged weights take gradients from now on, and must not
            be changed by others.
        rank: r, 1 or more.
        alpha: the updates are multiplied by `alpha / rank`; above 0.
        towers: the towers to adapt; others are left as they are.
        seed: the factors A are drawn from it.

    Raises:
        ValueError: a bad rank, alpha or tower, a fused model, or one with mixtures of experts.
    """

    def __init__(
        self, model: CLIP, *, rank: int, alpha: float, towers: Sequence[TowerName], seed: int
    ) -> None:
        if rank < 1 or not alpha > 0:
            raise ValueError(f"rank must be 1 or more and alpha above 0, not {rank} and {alpha}")
        if not towers or len(set(towers)) != len(towers):
            raise ValueError(f"towers must name image, text or both once, not {list(towers)}")
        if model.is_fused:
            raise ValueError("a fused model cannot be trained; adapt the unfused one")
        if moe_layers(model):
            raise ValueError("low-rank updates do not adapt mixtures of experts")
        self.scale = alpha / rank
        generator = torch.Generator().manual_seed(seed)
        self._updates: dict[str, _Update] = {}
        for tower in towers:
            model.freeze(tower)
            for name in _adaptable(model, tower):
                weight = model.get_parameter(name)
                weight.requires_grad_(True)
                self._updates[name] = _Update(weight, rank, generator)

    def factors(self, name: str) -> list[nn.Parameter]:
        """Return the factors A (r, I) and B (O, r) of a weight; empty if it is not adapted."""
        update = self._updates.get(name)
        return [] if update is None else [update.a, update.b]

    def names(self) -> Iterator[str]:
        """Yield the names of the adapted weights."""
        yield from self._updates

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Set the factors' gradients from those of the merged weights, which are cleared."""
        for update in self._updates.values():
            gradient = update.weight.grad
            if gradient is None:
                update.a.grad = update.b.grad = None
                continue
            rows = gradient.flatten(1) * self.scale  # (O, I)
            update.a.grad = update.b.T @ rows
            update.b.grad = rows @ update.a.T
            update.weight.grad = None

    @torch.no_grad()
    def merge(self) -> None:
        """Set the model's weights to `base + alpha / rank * B A`."""
        for update in self._updates.values():
            change = (update.b @ update.a) * self.scale
            update.weight.copy_(update.base + change.view_as(update.base))

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the base weights and factors by the adapted weight's name."""
        return {
            name: {"base": u.base, "a": u.a.detach(), "b": u.b.detach()}
            for name, u in self._updates.items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Continue from the state of others; the model's weights are those merged from it.

        Raises:
            CheckpointError: it is the state of other layers or another rank.
        """
        if state.keys() != self._updates.keys():
            raise CheckpointError("the low-rank updates are those of other layers")
        for name, update in self._updates.items():
            for key, tensor in (("base", update.base), ("a", update.a), ("b", update.b)):
                if state[name][key].shape != tensor.shape:
                    raise CheckpointError(
                        f"the low-rank update of {name} has another rank or shape"
                    )
                tensor.copy_(state[name][key])
        self.merge()


def _adaptable(model: CLIP, tower: TowerName) -> list[str]:
    """Return the names of the weights to adapt: all blocks and the head, not the input layers."""
    module = model.image if tower == "image" else model.text
    inner = {id(m) for group in module.groups()[1:] for layer in group for m in layer.modules()}
    return [
        f"{tower}.{name}.weight"
        for name, layer in module.named_modules()
        if id(layer) in inner and _is_linear(layer)
    ]


def _is_linear(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.groups == 1
    return isinstance(layer, nn.Linear)
