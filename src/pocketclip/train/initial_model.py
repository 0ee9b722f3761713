"""The model that a new run starts with: random weights, or those of `model.init`.

    model = initial_model(recipe)

A dense `model.init` of a sparse model is made sparse (`pocketclip.nn.upcycle`).
"""

from __future__ import annotations

import logging
import math

import torch

from pocketclip import checkpoint, zoo
from pocketclip.embedding_space import embedding_fields
from pocketclip.errors import CheckpointError, ConfigError, UnknownModelError, count_of
from pocketclip.nn.build import build
from pocketclip.nn.clip import CLIP
from pocketclip.nn.upcycle import copy_dense_weights
from pocketclip.train import distributed
from pocketclip.train.recipe import Recipe

log = logging.getLogger(__name__)


def initial_model(recipe: Recipe, *, offline: bool = False) -> CLIP:
    """Return the model that a new run starts with: `model.init`'s weights, or random ones.

    A dense `model.init` of a sparse model is made sparse (`pocketclip.nn.upcycle`).

    Args:
        recipe: random weights are drawn from its seed.
        offline: take `model.init` from the local cache only.

    Raises:
        ConfigError: overrides that do not make a model.
        CheckpointError: `model.init` does not fit the configuration.
    """
    config = recipe.model.config()
    start = _load_start(recipe.model.init, offline=offline) if recipe.model.init else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        try:
            model = build(config)
        except ValueError as error:
            raise ConfigError(f"model.overrides: {error}") from error
        if recipe.loss.kind == "siglip":
            with torch.no_grad():
                model.logit_scale.fill_(math.log(10))  # arXiv 2303.15343, section 3.2
    if start is not None:
        _copy_weights(model, start, recipe)
        _warn_of_differences(recipe, start.config)
    model.set_gradient_checkpointing(recipe.gradient_checkpointing)
    return model.train()


def _load_start(init: str, *, offline: bool) -> CLIP:
    try:
        start = checkpoint.load(init, offline=offline)
    except (CheckpointError, UnknownModelError) as error:
        raise type(error)(
            f"model.init, which the run starts from: {error}; --set model.init=MODEL gives another"
        ) from error
    if start.is_fused:
        raise CheckpointError(
            f"{init} is a fused model, which is for inference only; give the unfused one"
        )
    return start


def _copy_weights(model: CLIP, loaded: CLIP, recipe: Recipe) -> None:
    init = recipe.model.init
    if zoo.is_sparse(model.config) and not zoo.is_sparse(loaded.config):
        _copy_dense_weights(model, loaded, recipe)
        return
    own, given = model.state_dict(), loaded.state_dict()
    differing = [
        name for name in dict.fromkeys([*own, *given])
        if name not in own or name not in given or own[name].shape != given[name].shape
    ]  # fmt: skip
    if differing:
        more = ", ..." if len(differing) > 3 else ""
        raise CheckpointError(
            f"{init} ({loaded.config.name}) does not fit {model.config.name} as the recipe "
            f"describes it: {count_of(len(differing), 'entry', 'entries')} of the two differ "
            f"({', '.join(differing[:3])}{more}); set model.name and model.overrides to the "
            f"start's{_mixtures(loaded)}, or another model.init"
        )
    model.load_state_dict(given)
    model.license = loaded.license


def _warn_of_differences(recipe: Recipe, start: zoo.ModelConfig) -> None:
    """Warn if the start computes something else with weights of the same shapes."""
    own = recipe.model.config()
    if zoo.is_sparse(own) and not zoo.is_sparse(start):
        own = zoo.dense_config(own)
    changed = list(zoo.changed_fields(embedding_fields(start), embedding_fields(own)))
    if changed and distributed.is_main():
        log.warning(
            "model.init %s was made with %s, unlike this recipe's model: its weights are used, and "
            "the recipe's settings; set model.name and model.overrides if that is not meant",
            recipe.model.init, ", ".join(f"{name}={value}" for name, value in changed),
        )  # fmt: skip


def _mixtures(loaded: CLIP) -> str:
    """Return the overrides that describe a start's mixtures of experts, for an error."""
    overrides = [
        f"model.overrides.{tower}.moe={{blocks: {list(moe.blocks)}, experts: {moe.experts}, "
        f"top_k: {moe.top_k}}}"
        for tower, moe in zoo.mixtures(loaded.config).items()
        if moe is not None
    ]
    return f" (it is sparse: {', '.join(overrides)})" if overrides else ""


def _copy_dense_weights(model: CLIP, dense: CLIP, recipe: Recipe) -> None:
    try:
        copy_dense_weights(model, dense)
    except ConfigError as error:
        raise CheckpointError(
            f"model.init: {error}; set model.name and model.overrides, except for moe, to those "
            f"of {recipe.model.init}, or another model.init"
        ) from error
    if distributed.is_main():
        log.info(
            "model.init %s is dense: every expert begins as a copy of its MLP, and the routers "
            "are drawn from seed %d", recipe.model.init, recipe.seed,
        )  # fmt: skip


def warn_of_single_experts(recipe: Recipe) -> None:
    """Warn if a token's only expert has the weight 1, whatever the router says."""
    towers = zoo.mixtures(recipe.model.config())
    if any(moe is not None and moe.top_k == 1 < moe.experts for moe in towers.values()):
        log.warning(
            "with one expert per token its weight is always 1: the task does not train the "
            "routers, only their own losses do; set top_k to 2 or more"
        )


def warn_of_random_frozen_weights(recipe: Recipe) -> None:
    """Warn if a new run freezes weights that are random."""
    settings = recipe.model
    if settings.lora is not None and settings.init is None:
        log.warning("model.lora is set without model.init: the frozen weights stay random")
        return
    for tower in ("image", "text"):
        if getattr(settings, f"freeze_{tower}") is not None and settings.init is None:
            log.warning(
                "model.freeze_%s is set without model.init: the frozen weights stay random", tower
            )
            return
