"""Sampling of ids from logits; each row uses its own random number.

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

    They are made from raw bits, since numpy guarantees that stream never to change.
    """
    raw = [np.random.PCG64(int(seed)).random_raw(count) for seed in seeds]
    return (np.stack(raw) >> np.uint64(11)) * 2.0**-53


def sample_ids(
    logits: Tensor, draws: Tensor, *, top_p: float = 1.0, top_k: int | None = None
) -> Tensor:
    """Return one sampled id per row, (R,).

    Args:
        logits: (R, V); minus infinity excludes an id.
        draws: (R,), float64 in [0, 1): the position in the cumulative distribution over the ids.
        top_p: sample from the smallest set of ids with at least this total probability (nucleus
            sampling, arXiv 1904.09751, section 3.1).
        top_k: sample from this many of the most probable ids instead.
    """
    if logits.device.type == "mps":  # has no float64
        return sample_ids(logits.cpu(), draws.cpu(), top_p=top_p, top_k=top_k).to(logits.device)
    # Sums need float64; for the weights float32 is accurate enough and twice as fast.
    weights = logits.float()
    weights = (weights - weights.amax(-1, keepdim=True)).exp()
    if top_k is not None:
        best = weights.topk(min(top_k, weights.shape[1]), dim=-1).values
        weights = _keep_highest(weights, best[:, -1:], best.shape[1])
    elif top_p < 1:
        # Drop the largest number of lowest weights whose sum is at most 1 - top_p.
        rising = _sort(weights)
        total = rising.cumsum(-1, dtype=torch.float64)
        out = torch.searchsorted(total, (1 - top_p) * total[:, -1:], right=True)
        out = out.clamp(max=weights.shape[1] - 1)
        weights = _keep_highest(weights, rising.gather(1, out), weights.shape[1] - out)
    total = weights.cumsum(-1, dtype=torch.float64)
    end = total[:, -1:]
    # Rounding must not select an id beyond the last one with a weight.
    target = torch.minimum(draws.unsqueeze(1) * end, end.nextafter(torch.zeros_like(end)))
    return torch.searchsorted(total, target, right=True).squeeze(1)


def _keep_highest(weights: Tensor, limit: Tensor, count: Tensor | int) -> Tensor:
    """Return the weights with all but the `count` highest set to 0.

    `limit` is the lowest weight to keep. Of equal weights, those of the lowest ids are kept.
    """
    mask = weights >= limit
    if (mask.sum(-1, keepdim=True) > count).any():
        above, equal = weights > limit, weights == limit
        mask = above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdim=True)))
    return weights * mask


def _sort(weights: Tensor) -> Tensor:
    if weights.device.type != "cpu":
        return weights.sort(-1).values
    # numpy sorts values several times faster than torch, which also returns indices.
    return torch.from_numpy(np.sort(weights.numpy(), axis=-1))
