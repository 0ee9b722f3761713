"""The presets: how much of the model is trained, and with which settings.

| preset | trains |
|---|---|
| `head` | the two final projections |
| `last-n` | the last two blocks of the image tower, the last of the text tower, and what follows |
| `lora` | small added layers, merged when the model is saved (arXiv 2106.09685) |
| `full` | everything, early layers slower (layer-wise decay), averaged (EMA) |

A preset is a mapping of fields of the train recipe; `--set` changes each of them.
"""

from __future__ import annotations

import math
from typing import Any

from pocketclip.train.recipe import batch_size_for

PRESETS: dict[str, dict[str, Any]] = {
    "head": {
        "model.freeze_image": "head",
        "model.freeze_text": "head",
        "model.freeze_batch_norm": True,
        "optimizer.lr": 3e-3,
    },
    "last-n": {
        "model.freeze_image": 2,
        "model.freeze_text": 1,
        "model.freeze_batch_norm": True,
        "optimizer.lr": 1e-3,
    },
    "lora": {
        "model.lora": {"rank": 8, "alpha": 16},
        "optimizer.lr": 3e-3,
    },
    "full": {
        "model.freeze_batch_norm": True,
        "optimizer.lr": 1e-3,
        "optimizer.layer_decay": 0.8,
        "ema": 0.95,
    },
}
DEFAULT_PRESET = "full"
EPOCHS = 60
"""Times that training sees each image, if neither bound below applies."""
MIN_STEPS, MAX_STEPS = 60, 3000
SCORED = 10
"""Checkpoints that are scored on the validation images in a whole run."""
PATIENCE = 3
"""Scored checkpoints in a row without a better one, after which training ends."""
LARGEST_BATCH = 64
VIEWS = 10
"""Augmented views of each image."""
CROPS: dict[str, Any] = {"scale": [0.5, 1.0], "interpolation": "bicubic"}
COMMON: dict[str, Any] = {
    "optimizer.weight_decay": 0.05,
    "optimizer.beta2": 0.98,
    "loss.same_text": "positive",
    "precision": "auto",
    "checkpoint.every_minutes": None,
    "checkpoint.keep_last": 1,
}
"""What all presets share."""


def image_augmentation(size: int) -> dict[str, Any]:
    """Return the augmentation of the views, at the start model's image size in pixels."""
    return {
        "random_resized_crop": {"size": size, **CROPS},
        "random_horizontal_flip": {"p": 0.5},
    }


def batch_size(samples: int) -> int:
    """Return a power of 2 up to `LARGEST_BATCH`, so that an epoch has at least four batches.

    From 16 on only, see `batch_size_for`. A set of fewer than 16 samples is one batch.
    """
    return max(2, min(batch_size_for(samples, LARGEST_BATCH), samples))


def steps_for(samples: int, size: int) -> int:
    """Return the number of steps for a number of training samples and a batch size."""
    return min(max(MIN_STEPS, math.ceil(EPOCHS * samples / size)), MAX_STEPS)


def recipe_fields(preset: str, samples: int, steps: int | None) -> dict[str, Any]:
    """Return the fields of the train recipe that a preset and the number of samples decide."""
    size = batch_size(samples)
    steps = steps or steps_for(samples, size)
    every = max(1, steps // SCORED)
    return {
        **COMMON,
        **PRESETS[preset],
        "batch_size": size,
        "steps": steps,
        "schedule.warmup": steps // 10,
        "checkpoint.every_steps": every,
        "log_every": max(1, every // 2),
    }
