"""What fine-tuning stores of the training images, and the train recipe."""

from __future__ import annotations

import csv
import itertools
from typing import Any

import numpy as np

from pocketclip.errors import count_of
from pocketclip.finetune import presets
from pocketclip.finetune.finetune_run import DATA, SHARDS, FinetuneRun
from pocketclip.finetune.start import overrides_of
from pocketclip.finetune.tables import TRAIN, VALIDATION, generic_columns
from pocketclip.nn.clip import CLIP
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.reinforce.recipe import load_recipe as load_reinforcement
from pocketclip.shards import read
from pocketclip.train.recipe import Recipe, load_recipe
from pocketclip.train.recipe_settings import parse_settings

_MOST = 512
"""Training images that BatchNorm statistics are estimated on."""


def reinforce(run: FinetuneRun) -> dict[str, Any]:
    """Store augmented views of the training images with the embeddings to distil.

    Raises:
        DataError: no training image can be read.
        PocketclipError: as `pocketclip.reinforce.job.run`.
    """
    options = run.options
    recipe = load_reinforcement(
        None,
        teachers=run.teachers or [run.settings["model"]],
        augmentations=options.views,
        seed=options.seed,
        image_augmentation=presets.image_augmentation(run.start.config.image_size),
        batch_size=16,
        offline=run.offline,
    )
    # Without texts of their own, images are learnt from generic captions alone.
    generic = generic_columns() if run.may_distil else ()
    first = ("caption",) if run.own.kind != "none" else ()
    shards = open_pairs(
        str(run.out / DATA / TRAIN),
        PairOptions(image_column="image", caption_columns=(*first, *generic)),
    )
    summary = run.reinforce_shards(shards, recipe, SHARDS)
    samples = sum(report.samples for report in summary.reports)
    bad = sum(report.bad for report in summary.reports)
    if bad:
        run.warn(
            f"{count_of(bad, 'training image')} could not be read; the .bad.jsonl files in "
            f"{run.out / SHARDS} say why"
        )
    size = sum(report.stats["bytes"] for report in summary.reports)
    return {"samples": samples, "left_out": bad, "bytes": size}


def train_recipe(run: FinetuneRun, samples: int) -> Recipe:
    """Return the train recipe for a number of training samples.

    Raises:
        ConfigError: `settings` has an unknown field or a bad value.
    """
    options = run.options
    # A better teacher knows the user's texts too; the start would hold back what they teach.
    distils = run.distils_start or bool(run.teachers)
    stored = run.result.get("stored", {})  # of shards, once they are split
    synthetic = stored.get("synthetic", True)
    if run.own.is_shards:
        distils = stored.get("embeddings", True)
    learns_texts = run.own.kind != "none" or bool(options.captioner)
    generic_only = run.distils_start and not run.own.is_shards
    fields = {
        "model.name": run.start.config.name,
        "model.overrides": overrides_of(run.start.config),
        "model.init": run.settings["model"],
        "data.source": str(run.out / SHARDS),
        "data.captions": "both" if distils and synthetic else "truth",
        "data.workers": run.workers,
        "loss.weights": [1.0 if learns_texts else 0.0, 1.0 if distils else 0.0],
        "loss.contrastive_captions": "truth" if learns_texts else "all",
        "loss.distill_captions": "synthetic" if generic_only else "all",
        "seed": options.seed,
        "evaluation.data": str(run.out / DATA / VALIDATION),
        "evaluation.patience": presets.PATIENCE,
        **_within_towers(presets.recipe_fields(options.preset, samples, options.steps), run.start),
        **parse_settings(options.settings),
    }
    return load_recipe({"model": {"name": run.start.config.name}}, fields)


def _within_towers(fields: dict[str, Any], model: CLIP) -> dict[str, Any]:
    """Return a preset's fields with no more blocks to train than the model's towers have."""
    for tower, module in (("image", model.image), ("text", model.text)):
        blocks = fields.get(f"model.freeze_{tower}")
        if isinstance(blocks, int):
            fields[f"model.freeze_{tower}"] = min(blocks, len(module.groups()) - 2)
    return fields


def training_images(run: FinetuneRun) -> tuple[list[bytes | str], list[str]]:
    """Return up to 512 training images, evenly spread, and their captions."""
    if run.own.is_shards:
        samples = itertools.islice(read(str(run.out / SHARDS)), _MOST)
        some = [(s.image, s.captions["text"][0]) for s in samples if s.image is not None]
        return [image for image, _ in some], [text for _, text in some]
    with (run.out / DATA / TRAIN).open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MOST)).astype(int))
    captions = [rows[i]["caption"] for i in chosen if rows[i]["caption"]]
    return [rows[i]["image"] for i in chosen], captions
