"""The rows of `gpu.py` about the data: the loader alone, and training that it feeds.

Shapes: B batch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import torch

from gpu_bench import Bench, lowest_cosine
from gpu_rows_train import embeddings_of, first_batch, opened, recipe_of
from pocketclip.train.device_feed import feed
from pocketclip.train.initial_model import initial_model
from pocketclip.train.loader import normalise
from pocketclip.train.loop import train
from pocketclip.train.materialise import materialise
from pocketclip.train.recipe import Recipe
from pocketclip.train.sections import DataSection

PREPARED = 2  # batches that each worker of the loader prepares ahead


def measure_feeding(
    bench: Bench, name: str, data: Mapping[str, Any], *, batches: int, steps: int
) -> dict[str, Any]:
    """Return the samples per second of the loader to the device, and how long training waits.

    Args:
        bench: the machine.
        name: the model that is trained, reinforced.
        data: settings of the recipe's section `data`.
        batches: that the loader alone gives.
        steps: of the training.
    """
    unknown = [key for key in data if key not in DataSection.model_fields]
    if unknown:
        return {"skipped": f"recipes have no key data.{unknown[0]}"}
    settings = {f"data__{key}": value for key, value in data.items()}
    recipe = recipe_of(bench, name, "reinforced", data__workers=bench.workers, **settings)
    alone = time_loader(bench, recipe, batches)
    waiting = train_steps(bench, recipe, steps)
    return {
        "model": name,
        "batch": recipe.batch_size,
        "workers": bench.workers,
        "loader_samples_per_s": round(alone, 1),
        "loader_samples_per_s_and_core": round(alone / max(bench.workers, 1), 1),
        **waiting,
        "cosine_to_fp32": autocast_cosine(bench, name),
    }


def measure_materialised(bench: Bench, name: str, *, batches: int, steps: int) -> dict[str, Any]:
    """Return what `measure_feeding` does, of stored views that are rendered once before."""
    side = recipe_of(bench, name, "plain").model.config().image_size
    folder = str(bench.folder / f"rendered-{side}")
    views, workers = (1, 0) if bench.quick else (None, bench.workers)
    report = materialise(str(bench.shards), folder, size=side, views=views, workers=workers)
    row = measure_feeding(bench, name, {"source": folder}, batches=batches, steps=steps)
    return {**row, "psnr_mean": report.psnr_mean, "bytes_per_sample": report.bytes / report.samples}


def time_loader(bench: Bench, recipe: Recipe, count: int) -> float:
    """Return the loader's samples per second, each batch copied to the device."""
    with (
        opened(bench, recipe) as (_, loader),
        contextlib.closing(feed(loader.batches(), bench.device)) as batches,
    ):
        # What the workers have prepared meanwhile would be counted as fast.
        for _ in range(PREPARED * max(bench.workers, 1)):
            next(batches).to(bench.device)
        begun = time.perf_counter()
        for _ in range(count):
            next(batches).to(bench.device)
        if bench.on_cuda:
            torch.cuda.synchronize(bench.device)
        return count * recipe.batch_size / (time.perf_counter() - begun)


def train_steps(bench: Bench, recipe: Recipe, steps: int) -> dict[str, Any]:
    """Train, and return samples per second and the share of the time spent waiting for data.

    The first half of the steps does not count: workers start, kernels are chosen, and what workers
    prepared meanwhile is used up.
    """
    records: list[Mapping[str, Any]] = []
    half = max(steps // 2, PREPARED * bench.workers + 1)
    recipe = recipe.model_copy(update={"steps": 2 * half, "log_every": half})
    folder = bench.folder / f"feeding-{time.monotonic_ns()}"
    train(recipe, folder, device=str(bench.device), on_log=records.append)
    return {
        "steps": half,
        "training_samples_per_s": records[-1]["samples_per_second"],
        "share_of_waiting": records[-1]["data_wait"],
    }


def autocast_cosine(bench: Bench, name: str) -> float:
    """Return the lowest cosine of a batch's embeddings in `dtype` to those in float32."""
    recipe = recipe_of(bench, name, "plain")
    with opened(bench, recipe) as (_, loader):
        batch = first_batch(bench, loader)
    model = initial_model(recipe).to(bench.device).eval()
    pixels, ids = normalise(batch.images, model.config.preprocess), batch.captions[0]
    with torch.no_grad():
        expected = embeddings_of(model(pixels, ids))
        with bench.autocast():
            return lowest_cosine(embeddings_of(model(pixels, ids)), expected)
