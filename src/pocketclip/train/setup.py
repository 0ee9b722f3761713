"""What a run is built from: checked settings, the optimiser, the data loader.

updates = freeze_parts(recipe, model)
optimizer, logit_bias = build_optimizer(recipe, model, updates)
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pocketclip import devices, zoo
from pocketclip.errors import (
    ConfigError,
    TrainingError,
)
from pocketclip.nn.clip import CLIP
from pocketclip.nn.lora import LowRankUpdates
from pocketclip.train.distributed import World
from pocketclip.train.loader import DataConfig, Loader
from pocketclip.train.optim import WeightAverage, make_optimizer, parameter_groups
from pocketclip.train.recipe import Recipe
from pocketclip.train.routing import Routing
from pocketclip.train.run import Run, dtype_name
from pocketclip.train.step import Stepper
from pocketclip.train.sync_batch_norm import convert_sync_batch_norm
from pocketclip.train.teacher_settings import teacher_settings
from pocketclip.types import Encoder

log = logging.getLogger(__name__)


def build_run(
    recipe: Recipe,
    folder: Path,
    world: World,
    *,
    model: CLIP,
    loader: Loader,
    teachers: Sequence[Encoder],
    step: int,
    trainer_state: Mapping[str, Any],
) -> Run:
    """Return a run that is ready for its next step.

    Args:
        recipe: what to train.
        folder: the run's folder.
        world: this process among those that train together.
        model: from `initial_model`, or from a checkpoint.
        loader: the data.
        teachers: live teachers.
        step: optimiser steps done.
        trainer_state: of the checkpoint to resume from; empty for a new run.

    Raises:
        ConfigError: settings that do not fit the data or the model.
    """
    model = model.to(world.device)
    if world.size > 1 and recipe.sync_batch_norm:
        model = convert_sync_batch_norm(model, world.device.type)
    channels_last = uses_channels_last(recipe, world.device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    updates = freeze_parts(recipe, model)
    optimizer, logit_bias = build_optimizer(recipe, model, updates)
    average = WeightAverage(model, recipe.ema) if recipe.ema is not None else None
    dtype = resolve_precision(recipe, world, trainer_state.get("precision"))
    dims, scales, biases = teacher_settings(recipe, loader, teachers, quiet=not world.is_main)
    gathered = world.size > 1
    routing = Routing(model, recipe.moe, gathered=gathered) if recipe.moe is not None else None
    stepper = Stepper(
        model, wrap_model(recipe, world, model), recipe.loss,
        teacher_dims=dims, teacher_scales=scales, teacher_biases=biases,
        logit_bias=logit_bias, routing=routing, device=world.device, dtype=dtype,
        gathered=gathered, teachers=teachers, channels_last=channels_last,
        text_multiple=8 if recipe.compile or world.device.type != "cpu" else 1,
    )  # fmt: skip
    run = Run(
        recipe=recipe, folder=folder, world=world, loader=loader, model=model, stepper=stepper,
        optimizer=optimizer, logit_bias=logit_bias, updates=updates, average=average, step=step,
    )  # fmt: skip
    if trainer_state:
        run.load_trainer_state(trainer_state)
        # A checkpoint counts the replaced samples of all processes: one of them carries that on.
        run.skipped = int(trainer_state["skipped"]) if world.is_main else 0
        # Earlier releases counted none.
        run.too_small = int(trainer_state.get("too_small", 0)) if world.is_main else 0
    return run


def check_batch_size(recipe: Recipe, world: World) -> int:
    """Return the micro-batch size of one process.

    Raises:
        ConfigError: the batch does not divide, or BatchNorm would have no statistics.
    """
    parts = world.size * recipe.accumulate
    if recipe.batch_size % parts:
        raise ConfigError(
            f"batch_size {recipe.batch_size} does not divide by {world.size} processes x "
            f"{recipe.accumulate} micro-batches"
        )
    micro_batch = recipe.batch_size // parts
    shares_statistics = world.size > 1 and recipe.sync_batch_norm
    if micro_batch == 1 and not (shares_statistics or recipe.model.freeze_batch_norm):
        config = recipe.model.config()
        if not isinstance(config.image, zoo.ViTConfig) or config.text.repmixer:
            raise ConfigError(
                "BatchNorm has no statistics in micro-batches of 1 sample: raise batch_size, "
                "lower accumulate, or set model.freeze_batch_norm=true"
            )
    return micro_batch


def freeze_parts(recipe: Recipe, model: CLIP) -> LowRankUpdates | None:
    """Freeze what the recipe freezes, and return the low-rank updates if it asks for them.

    Raises:
        ConfigError: more blocks to train than the tower has.
    """
    settings, lora = recipe.model, recipe.model.lora
    for tower, last in (("image", settings.freeze_image), ("text", settings.freeze_text)):
        if lora is not None and last is None:
            model.freeze(tower)  # type: ignore[arg-type]
        if last is not None:
            try:
                model.freeze(tower, train_last=last)  # type: ignore[arg-type]
            except ValueError as error:
                raise ConfigError(f"model.freeze_{tower}: {error}") from error
    if settings.freeze_batch_norm:
        model.freeze_batch_norm_statistics()
    if lora is None:
        return None
    return LowRankUpdates(
        model, rank=lora.rank, alpha=lora.alpha, towers=lora.towers, seed=recipe.seed
    )


def build_optimizer(
    recipe: Recipe, model: CLIP, updates: LowRankUpdates | None = None
) -> tuple[torch.optim.AdamW, nn.Parameter | None]:
    """Return the optimiser of what is not frozen, and SigLIP's bias for that loss."""
    settings = recipe.optimizer
    groups = parameter_groups(
        model, settings.weight_decay, layer_decay=settings.layer_decay, updates=updates
    )
    logit_bias = None
    if recipe.loss.kind == "siglip":
        device = model.logit_scale.device
        logit_bias = nn.Parameter(torch.tensor(-10.0, device=device))  # 2303.15343, section 3.2
        groups[1]["params"].append(logit_bias)
    return make_optimizer(groups, recipe.optimizer), logit_bias


def wrap_model(recipe: Recipe, world: World, model: CLIP) -> nn.Module:
    """Return the model as it is called: compiled, distributed, or unchanged."""
    wrapped: nn.Module = model
    if world.size > 1:
        on_cuda = world.device.type == "cuda"
        # A captioner without a contrastive term leaves its heads without gradients.
        unused = recipe.loss.kind == "captioning"
        wrapped = nn.parallel.DistributedDataParallel(
            wrapped,
            device_ids=[world.device.index] if on_cuda else None,
            broadcast_buffers=not recipe.sync_batch_norm,
            find_unused_parameters=unused,
            # With `no_sync` gradients would be wrong (PyTorch issue 187732), and the compiler
            # splits its graphs for buckets that are not static (issue 109261).
            static_graph=not (unused or recipe.compile or recipe.accumulate > 1),
        )
    if recipe.compile:
        # Outermost: the compiler then splits its graphs where the buckets of gradients end, so
        # that these are exchanged during the backward pass.
        wrapped = torch.compile(wrapped)  # type: ignore[assignment]
    return wrapped


def resolve_precision(recipe: Recipe, world: World, saved: str | None) -> torch.dtype:
    """Return the dtype to compute in; `auto` stays what it was when the run began.

    Args:
        recipe: its `precision`.
        world: for the device.
        saved: the dtype's name in the checkpoint to resume from.
    """
    device = world.device
    if recipe.precision != "auto" or saved is None:
        return devices.resolve_dtype(recipe.precision, device)
    dtype = devices.resolve_dtype(saved, device)
    here = devices.resolve_dtype("auto", device)
    if here != dtype and world.is_main:
        log.warning(
            "the run continues in %s, as it began; `auto` would choose %s on this %s, and %s may "
            "be slow here",
            saved, dtype_name(here), device.type, saved,
        )  # fmt: skip
    return dtype


def uses_channels_last(recipe: Recipe, device: torch.device) -> bool:
    """Return whether images and convolutions use the channels-last memory format.

    Args:
        recipe: its `channels_last`; `auto` is what is usually faster.
        device: where the model is trained.
    """
    if recipe.channels_last != "auto":
        return recipe.channels_last
    convolutional = isinstance(recipe.model.config().image, zoo.MCiConfig)
    return device.type == "cuda" and convolutional


def data_config(recipe: Recipe) -> DataConfig:
    """Return the loader's configuration.

    Raises:
        ConfigError: the recipe names no data.
    """
    data = recipe.data
    if not data.source:
        raise ConfigError(
            "no training data: set data.source (--data), to a folder of reinforced shards for "
            "instance"
        )
    fields = data.model_dump(exclude={"workers", "fast"})
    return DataConfig(
        **fields,
        embeddings=recipe.loss.weights[1] > 0,
        distill_captions=recipe.loss.distill_captions,
    )


def open_loader(
    recipe: Recipe, world: World, micro_batch: int, saved_index_hash: str | None
) -> Loader:
    """Return the loader of this process.

    Args:
        recipe: its data and seed.
        world: which part of the data is this process's.
        micro_batch: samples per batch.
        saved_index_hash: of the data in the checkpoint to resume from; None for a new run.

    Raises:
        ConfigError: settings that do not fit the data.
        DataError: data that cannot be used.
        TrainingError: the data changed since the checkpoint.
    """
    loader = Loader(
        data_config(recipe),
        model=recipe.model.config(),
        batch_size=micro_batch,
        seed=recipe.seed,
        rank=world.rank,
        world_size=world.size,
        workers=_worker_count(recipe),
        pin_memory=world.device.type == "cuda",
    )
    if saved_index_hash is not None and saved_index_hash != loader.index_hash:
        loader.close()
        raise TrainingError(
            f"{recipe.data.source} changed since the checkpoint was written (the hash of its index "
            "differs); restore the data, or start a new run with model.init"
        )
    try:
        _check_random_captions(recipe, world, loader)
    except ConfigError:
        loader.close()
        raise
    return loader


def _check_random_captions(recipe: Recipe, world: World, loader: Loader) -> None:
    """Refuse, or warn of, a batch that takes its random captions from its own images.

    The distillation loss does not depend on the order of a batch's texts, so captions that are
    exchanged within the batch train the same model as the images' own. The other sample is half a
    window away.
    """
    if recipe.data.captions != "random" or recipe.loss.weights[1] == 0:
        return
    # The loss is that of the whole batch, also with accumulation and several processes.
    share, most = recipe.batch_size // world.size, loader.window // 2
    if share <= most:
        return
    what = (
        f"data.captions=random: a batch of {recipe.batch_size:,} samples takes captions from its "
        f"own images, and the distillation loss does not depend on their order; set batch_size to "
        f"{most * world.size:,} or less, or give more data"
    )
    if recipe.loss.weights[0] == 0:
        raise ConfigError(what)
    if world.is_main:
        log.warning("%s", what)


def _worker_count(recipe: Recipe) -> int:
    if recipe.data.workers is not None:
        return recipe.data.workers
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(devices.cores() // processes - 1, 1)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make the model's random choices (drop path) a function of seed, step and rank."""
    digest = hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
