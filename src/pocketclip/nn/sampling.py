"""Drawing ids from logits, so that each row's draw is its own.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def draw_uniforms(seeds: Sequence[int], count: int) -> NDArray[np.float64]:
    """Return `count` numbers in [0, 1) for each seed, (seeds, count).

    From the raw bits, whose stream numpy promises never to change.
    """
    raw = [np.random.PCG64(int(seed)).random_raw(count) for seed in seeds]
    return (np.stack(raw) >> np.uint64(11)) * 2.0**-53


def sample_ids(
    logits: Tensor, draws: Tensor, *, top_p: float = 1.0, top_k: int | None = None
) -> Tensor:
    """Return one id per row, sampled.

    Args:
        logits: (R, V); minus infinity where an id is out of the question.
        draws: (R,), float64 in [0, 1): the place in the cumulative distribution, ids in order.
        top_p: sample among the fewest ids that together have this probability (nucleus sampling,
            arXiv 1904.09751).
        top_k: instead, sample among so many of the most probable ids.
    """
    if logits.device.type == "mps":  # has no float64
        return sample_ids(logits.cpu(), draws.cpu(), top_p=top_p, top_k=top_k).to(logits.device)
    # Sums are in float64; for the weights themselves float32 is exact enough and twice as fast.
    weights = logits.float()
    weights = (weights - weights.amax(-1, keepdim=True)).exp()
    if top_k is not None:
        best = weights.topk(min(top_k, weights.shape[1]), dim=-1).values
        weights = _only(weights, best[:, -1:], best.shape[1])
    elif top_p < 1:
        # Leave out as many of the lowest as have no more than 1 - top_p together.
        rising = _sorted(weights)
        total = rising.cumsum(-1, dtype=torch.float64)
        out = torch.searchsorted(total, (1 - top_p) * total[:, -1:], right=True)
        out = out.clamp(max=weights.shape[1] - 1)
        weights = _only(weights, rising.gather(1, out), weights.shape[1] - out)
    total = weights.cumsum(-1, dtype=torch.float64)
    end = total[:, -1:]
    # Rounding must not lead past the last id that has a weight.
    target = torch.minimum(draws.unsqueeze(1) * end, end.nextafter(torch.zeros_like(end)))
    return torch.searchsorted(total, target, right=True).squeeze(1)


def _only(weights: Tensor, limit: Tensor, count: Tensor | int) -> Tensor:
    """Return the weights with all but the `count` highest set to 0, the lowest of which is `limit`.

    Among equal ones, the lowest ids stay.
    """
    kept = weights >= limit
    if (kept.sum(-1, keepdim=True) > count).any():
        above, equal = weights > limit, weights == limit
        kept = above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdim=True)))
    return weights * kept


def _sorted(weights: Tensor) -> Tensor:
    if weights.device.type != "cpu":
        return weights.sort(-1).values
    # numpy sorts plain values several times faster than torch, which sorts places along.
    return torch.from_numpy(np.sort(weights.numpy(), axis=-1))
