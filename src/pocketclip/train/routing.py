"""The losses of a sparse model's routers, and what the log says about its experts.

    routing = Routing(model, MoESection(), gathered=False)
    model(pixels, ids)                      # leaves the sums of each mixture of experts
    terms = routing.terms(routing.take())   # of the whole batch
    routing.record()                        # for the log, since the last record

Everything is computed from sums over tokens, which add up over micro-batches and processes: the
losses are those of the joined batch, however it was divided. Without room for all (see
`MoE.capacity_factor`) the division still decides which tokens pass a mixture by.

Sources: Switch Transformer (arXiv 2101.03961), section 2.2, for the load-balance loss; ST-MoE
(arXiv 2202.08906), equation 5, for the z-loss; LIMoE (arXiv 2206.02770), section 2.2, for the
entropies.

Shapes: E experts, K experts per token.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor

from pocketclip.nn.clip import CLIP
from pocketclip.nn.moe import MoE, RoutingSums, moe_layers
from pocketclip.train import distributed
from pocketclip.train.sections import MoESection

LOW_SHARE, LOW_STEPS = 0.01, 500
"""An expert with less than this share of the tokens in this many steps in a row is warned of."""
# LIMoE's thresholds for 32 experts, as parts of the highest entropy. That they hold for another
# number of experts is our assumption.
_GLOBAL_ENTROPY = {"image": math.log(20) / math.log(32), "text": math.log(9) / math.log(32)}
log = logging.getLogger(__name__)


class Routing:
    """The losses and the statistics of a model's mixtures of experts.

    Args:
        model: sparse. Its mixtures take the settings.
        settings: the recipe's.
        gathered: take the tokens of all processes; all must call the same methods.
    """

    def __init__(self, model: CLIP, settings: MoESection, *, gathered: bool) -> None:
        self.settings, self.gathered = settings, gathered
        self.layers = moe_layers(model)
        for layer in self.layers.values():
            layer.capacity_factor, layer.noise = settings.capacity_factor, settings.noise
        self._total: Tensor | None = None  # of the steps since the last record
        # Per expert: steps in a row with a low share, now and at most since the last record.
        self._low: dict[str, tuple[Tensor, Tensor]] = {}
        self._warned: set[tuple[str, int]] = set()

    def take(self) -> Tensor:
        """Return the sums of the last forward pass in training, one after the other, and drop them.

        The mixtures would keep its activations in memory.
        """
        flat = []
        for name, layer in self.layers.items():
            if layer.sums is None:
                raise RuntimeError(f"{name} was not called in training mode")
            flat += [value.reshape(-1) for value in layer.sums]
            layer.sums = None
        return torch.cat(flat)

    def terms(self, own: Tensor) -> dict[str, Tensor]:
        """Return the terms of a step's loss by name, weights included, and count the step.

        Args:
            own: what `take` returned, or its sum over the step's micro-batches.
        """
        total = distributed.gather_rows(own[None]).sum(0) if self.gathered else own
        sums = self._by_layer(total)
        with torch.no_grad():
            self._count(total, sums)
        terms: dict[str, Tensor] = {}
        for tower in ("image", "text"):
            losses = [
                _losses(sums[name], layer, self._threshold(tower, layer.experts))
                for name, layer in self.layers.items()
                if name.startswith(f"{tower}.") and layer.router.weight.requires_grad
            ]
            for kind, weight in self._weights().items():
                if losses and weight:
                    mean = torch.stack([one[kind] for one in losses]).mean()
                    terms[f"{tower}_{kind}_loss"] = weight * mean
        return terms

    def record(self) -> dict[str, dict[str, Any]]:
        """Return what the log says of each mixture since the last call, and begin anew.

        The values are those of all processes together: `shares`, each expert's part of all
        choices, which add up to 1; `dropped`, the part of the choices that found no room;
        `entropy`, the mean of the router's, in nats; `dead`, the number of experts that no token
        chose. The main process warns, once for each, of experts with a low share in many steps;
        the count begins with this object.
        """
        total, self._total = self._total, None
        if total is None or (self.gathered and not distributed.is_main()):
            return {}
        self._warn()
        record = {}
        for name, sums in self._by_layer(total.cpu()).items():
            choices = sums.chosen.sum()
            record[name] = {
                "shares": [round(share, 4) for share in (sums.chosen / choices).tolist()],
                "dropped": round(1 - float(sums.kept.sum() / choices), 4),
                "entropy": round(float(sums.entropy / sums.tokens), 4),
                "dead": int((sums.chosen == 0).sum()),
            }
        return record

    def _by_layer(self, flat: Tensor) -> dict[str, RoutingSums]:
        """Return sums, one after the other as `take` returns them, by the name of their mixture."""
        counts = [layer.experts for layer in self.layers.values()]
        vectors = torch.split(flat, [3 * experts + 3 for experts in counts])
        return {
            name: RoutingSums(*vector[: 3 * experts].chunk(3), *vector[3 * experts :].unbind())
            for name, vector, experts in zip(self.layers, vectors, counts, strict=True)
        }

    def _weights(self) -> dict[str, float]:
        settings = self.settings
        return {
            "balance": settings.balance_weight,
            "z": settings.z_weight,
            "local_entropy": settings.local_entropy_weight,
            "global_entropy": settings.global_entropy_weight,
        }

    def _threshold(self, tower: str, experts: int) -> float:
        """Return the entropy, in nats, below which the global entropy loss begins."""
        settings = self.settings
        own = settings.global_entropy_image if tower == "image" else settings.global_entropy_text
        return own if own is not None else _GLOBAL_ENTROPY[tower] * math.log(experts)

    def _count(self, total: Tensor, sums: dict[str, RoutingSums]) -> None:
        self._total = total.clone() if self._total is None else self._total + total
        for name, layer in self.layers.items():
            chosen = sums[name].chosen
            # With many experts, an equal share would be low.
            low = chosen < min(LOW_SHARE, 0.5 / layer.experts) * chosen.sum()
            now, most = self._low.get(name, (torch.zeros_like(chosen),) * 2)
            now = (now + 1) * low
            self._low[name] = now, torch.maximum(now, most)

    def _warn(self) -> None:
        for name, (now, most) in self._low.items():
            self._low[name] = now, now
            if not self.layers[name].router.weight.requires_grad:
                continue
            for expert in (most >= LOW_STEPS).nonzero().flatten().tolist():
                if (name, expert) in self._warned:
                    continue
                self._warned.add((name, expert))
                log.warning(
                    "%s: expert %d got under %g %% of the tokens in %d steps in a row; a higher "
                    "moe.balance_weight spreads them, a lower optimizer.lr keeps them spread",
                    name, expert, 100 * min(LOW_SHARE, 0.5 / self.layers[name].experts), LOW_STEPS,
                )  # fmt: skip


def _losses(sums: RoutingSums, layer: MoE, threshold: float) -> dict[str, Tensor]:
    """Return the losses of one mixture by kind."""
    used = sums.chosen / (layer.top_k * sums.tokens)  # a constant
    probability = sums.probability / sums.tokens
    entropy = torch.special.entr(probability.clamp_min(1e-30)).sum()
    return {
        "balance": layer.experts * (used * probability).sum(),
        "z": sums.z / sums.tokens,
        "local_entropy": sums.entropy / sums.tokens,
        "global_entropy": (threshold - entropy).clamp_min(0),
    }
