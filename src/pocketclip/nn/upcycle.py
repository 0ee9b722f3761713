"""A dense model made sparse: sparse upcycling, as CLIP-UP does with CLIP.

    sparse = upcycle(checkpoint.load("runs/dense"), experts=8, top_k=2, layers="every-2")

Every expert begins as a copy of the dense MLP that it replaces, and the router is new. As the
weights of a token's experts sum to one, the sparse model at first gives the dense model's
embeddings, whatever the router chooses. The experts grow apart in training, since each sees other
tokens.

Sources: CLIP-UP (arXiv 2502.00965), abstract; sparse upcycling (arXiv 2212.05055), section 3 and
appendix B.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import random

from pocketclip import zoo
from pocketclip.errors import CheckpointError, ConfigError
from pocketclip.nn.build import build
from pocketclip.nn.clip import CLIP
from pocketclip.nn.moe import ExpertLinear
from pocketclip.zoo.sparse import TowerName


def upcycle(
    model: CLIP,
    *,
    experts: int = 8,
    top_k: int = 2,
    layers: str | Sequence[int] = "every-2",
    towers: Sequence[TowerName] = ("image", "text"),
    noise: float = 0.0,
    seed: int = 0,
) -> CLIP:
    """Return a sparse model that computes the same as a dense one, in evaluation mode.

    Args:
        model: dense and unfused; unchanged.
        experts: see `pocketclip.zoo.sparse_config`, as for `top_k`, `layers` and `towers`.
        top_k: number of experts that process a token.
        layers: which blocks become mixtures.
        towers: in which towers.
        noise: add normal noise to the experts' weights, with this many times the standard
            deviation of the dense weight. Above 0 the sparse model no longer computes the same.
        seed: the routers and the noise are drawn from it.

    Raises:
        CheckpointError: the model is fused.
        ConfigError: it is sparse already, or the settings do not fit it; see `sparse_config`.
    """
    config = zoo.sparse_config(
        model.config, experts=experts, top_k=top_k, layers=layers, towers=towers
    )
    check_draws(noise, seed)
    with random.fork_rng(devices=[]):
        random.manual_seed(seed)
        sparse = build(config).to(model.logit_scale.device, model.logit_scale.dtype)
        copy_dense_weights(sparse, model)
        if noise:
            _add_noise(sparse, noise)
    return sparse.eval()


def check_draws(noise: float, seed: int) -> None:
    """Check what `upcycle` draws with.

    Raises:
        ConfigError: the noise is negative or not finite, or the seed is not one of torch's.
    """
    if not 0 <= noise < float("inf"):
        raise ConfigError(f"noise must be 0 or more, and finite, not {noise}")
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed must be between 0 and 2^64 - 1, not {seed}")


@torch.no_grad()
def copy_dense_weights(sparse: CLIP, dense: CLIP) -> None:
    """Copy a dense model's weights into a sparse one, its MLPs into every expert.

    The routers stay as they are.

    Raises:
        CheckpointError: the dense model is fused.
        ConfigError: other weights than those of the mixtures differ in name or shape.
    """
    if dense.is_fused:
        raise CheckpointError(
            "a fused model is for inference only; give the unfused one, which can be trained"
        )
    state, given = sparse.state_dict(), dense.state_dict()
    unknown = [name for name in given if name not in state]
    missing = [name for name in state if name not in given and not name.endswith("router.weight")]
    expected = {name: state[name].shape for name in given if name in state}
    experts = {
        f"{path}.{leaf}"
        for path, layer in sparse.named_modules()
        if isinstance(layer, ExpertLinear)
        for leaf in ("weight", "bias")
    }
    expected |= {name: state[name].shape[1:] for name in experts}
    wrong = [n for n, shape in expected.items() if n in given and given[n].shape != shape]
    if unknown or missing or wrong:
        name = [*unknown, *missing, *wrong][0]
        raise ConfigError(
            f"{dense.config.name} and the sparse model differ in more than their mixtures of "
            f"experts: {name} does not fit"
        )
    for name, value in given.items():
        state[name].copy_(value)  # broadcast over the experts
    sparse.license = dense.license


@torch.no_grad()
def _add_noise(sparse: CLIP, noise: float) -> None:
    for layer in sparse.modules():
        if isinstance(layer, ExpertLinear):
            std = layer.weight[0].std()
            layer.weight.add_(noise * std * torch.randn_like(layer.weight))
