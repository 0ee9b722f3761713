"""AdamW's parameter groups, the learning rate of a step, and the average of the weights.

Source: MobileCLIP (arXiv 2311.17049), appendix; CLIP (arXiv 2103.00020), section 2.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pocketclip.nn.clip import CLIP
from pocketclip.nn.lora import LowRankUpdates
from pocketclip.train.sections import OptimizerSection, ScheduleSection

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def parameter_groups(
    model: CLIP,
    weight_decay: float,
    *,
    layer_decay: float = 1.0,
    updates: LowRankUpdates | None = None,
) -> list[dict[str, Any]]:
    """Return the trainable parameters in two groups: with and without weight decay.

    Norms, biases, scales (the logit scale, layer scales) and single vectors do not decay. Factors
    of low-rank updates do: that pulls the weights towards those that training started from.

    Args:
        model: its parameters that require gradients are grouped.
        weight_decay: of the first group.
        layer_decay: below 1, there are groups of their own for each distance from the head,
            whose `lr_scale` multiplies the learning rate, see `layer_scales`.
        updates: their factors take the place of the weights that they adapt.
    """
    scales = layer_scales(model, layer_decay) if layer_decay < 1 else {}
    exempt = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, _NORMS)
        for parameter in module.parameters(recurse=False)
    }
    # SigLIP's bias joins the second one.
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = scales.get(id(parameter), 1.0)
        factors = [] if updates is None else updates.factors(name)
        if factors:
            groups.setdefault((scale, True), []).extend(factors)
            continue
        leaf = name.rsplit(".", 1)[-1]
        # A layer scale has shape (C, 1, 1): still a vector.
        vector = parameter.numel() == max(parameter.shape, default=1)
        decays = not (vector or leaf == "bias" or "scale" in leaf or id(parameter) in exempt)
        groups.setdefault((scale, decays), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0}
        | ({"lr_scale": scale} if layer_decay < 1 else {})
        for (scale, decays), parameters in groups.items()
    ]


def layer_scales(model: CLIP, decay: float) -> dict[int, float]:
    """Return the factor of the learning rate of each tower's parameters, by the parameter's id.

    It is 1 for the head, `decay` for the last block, `decay**2` for the block before it, and so on
    to the input layers: ELECTRA (arXiv 2003.10555), BEiT (arXiv 2106.08254).
    """
    scales: dict[int, float] = {}
    for tower in (model.image, model.text):
        groups = tower.groups()
        for parameter in tower.parameters():  # position and class embeddings are in no group
            scales[id(parameter)] = decay ** (len(groups) - 1)
        for distance, group in enumerate(reversed(groups)):
            for layer in group:
                scales |= {id(parameter): decay**distance for parameter in layer.parameters()}
    return scales


def make_optimizer(
    groups: list[dict[str, Any]], settings: OptimizerSection, *, fused: bool | None = None
) -> torch.optim.AdamW:
    """Return AdamW for the groups of `parameter_groups`; empty groups are left out.

    Its kernels stay the same when it loads the state of a run on another device.

    Args:
        groups: parameters on one device.
        settings: rate, betas and epsilon.
        fused: update all parameters in one kernel; None: on CUDA only, as results on the CPU
            would be others in the last bits.
    """
    groups = [group for group in groups if group["params"]]
    if fused is None:
        fused = all(one.is_cuda for group in groups for one in group["params"])
    optimizer = torch.optim.AdamW(
        groups,
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True if fused else None,
    )
    optimizer.register_load_state_dict_pre_hook(_keep_kernels)
    optimizer.register_load_state_dict_post_hook(_match_layouts)
    return optimizer


def _keep_kernels(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
    """Return `state` with the optimiser's own choice of kernels instead of the saved one.

    The saved flags also decide on which device the number of steps is.
    """
    own, saved = optimizer.param_groups, state["param_groups"]
    if len(own) != len(saved):
        return None  # torch refuses it
    groups = [
        one | {key: mine[key] for key in ("fused", "foreach", "capturable")}
        for one, mine in zip(saved, own, strict=True)
    ]
    return {**state, "param_groups": groups}


@torch.no_grad()
def _match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded moments the memory format of their parameters, which fused kernels need."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                state[key] = torch.empty_like(parameter).copy_(value)


def learning_rate(step: int, steps: int, highest: float, schedule: ScheduleSection) -> float:
    """Return the learning rate of step `step`, from 0, of `steps`.

    It rises linearly over `warmup` steps to `highest`, stays there until step `constant`, and
    falls as half a cosine to `min_lr` at `steps` (SGDR, arXiv 1608.03983, equation 5). With the
    kind `constant` it stays to the end.
    """
    if step < schedule.warmup:
        return highest * (step + 1) / schedule.warmup
    flat = max(schedule.warmup, schedule.constant)
    if schedule.kind == "constant" or step < flat:
        return highest
    lowest = schedule.min_lr
    part = 1 + math.cos(math.pi * (step - flat) / max(steps - flat, 1))
    return lowest + (highest - lowest) * 0.5 * part


class WeightAverage:
    """The exponential moving average of a model's weights and statistics.

    Args:
        model: the model whose weights are averaged from now on.
        decay: the average's decay per step. In the first steps t it is (1 + t) / (10 + t) if that
            is less, so that the initial weights are forgotten soon.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.state = {n: v.detach().clone() for n, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, *, where: Tensor | None = None) -> None:
        """Add the model's current weights to the average.

        Args:
            model: of the same structure as the first one, on its device.
            where: bool (), on the model's device: the average stays as it is if it is False, which
                is decided there. None: always add.
        """
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        # Each: tensors of the average, and of the model.
        weights: tuple[list[Tensor], list[Tensor]] = ([], [])
        counts: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, value in model.state_dict().items():
            own = self.state[name]
            new = value if where is None else torch.where(where, value, own)
            of_average, of_model = weights if value.is_floating_point() else counts
            of_average.append(own)
            of_model.append(new)
        # One kernel for many tensors; on the CPU, the same as one by one.
        if weights[0]:
            torch._foreach_lerp_(*weights, 1 - decay)
        if counts[0]:
            torch._foreach_copy_(*counts)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that `load_state_dict` takes: tensors and a number."""
        return {"steps": self.steps, "state": self.state}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue from the state of another average."""
        self.steps = int(saved["steps"])
        tensors: Mapping[str, Tensor] = saved["state"]
        for name, value in self.state.items():
            value.copy_(tensors[name])
