"""What fine-tuning stores of the training images, and the train recipe."""

from __future__ import annotations

from typing import Any

from pocketclip.errors import count_of
from pocketclip.finetune import presets
from pocketclip.finetune.finetune_run import DATA, SHARDS, FinetuneRun
from pocketclip.finetune.start import overrides_of
from pocketclip.finetune.tables import TRAIN, VALIDATION, generic_columns
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.reinforce.recipe import load_recipe as load_reinforcement
from pocketclip.train.recipe import Recipe, load_recipe
from pocketclip.train.recipe_settings import parse_settings


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
    first = ("caption",) if run.own.kind != "none" else ()
    shards = open_pairs(
        str(run.out / DATA / TRAIN),
        PairOptions(image_column="image", caption_columns=(*first, *generic_columns())),
    )
    summary = run.reinforce_shards(shards, recipe, SHARDS)
    samples = sum(report.samples for report in summary.reports)
    bad = sum(report.bad for report in summary.reports)
    if bad:
        run.result["warnings"].append(
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
    learns_texts = run.own.kind != "none"
    fields = {
        "model.name": run.start.config.name,
        "model.overrides": overrides_of(run.start.config),
        "model.init": run.settings["model"],
        "data.source": str(run.out / SHARDS),
        "data.captions": "both" if distils else "truth",
        "data.workers": run.workers,
        "loss.weights": [1.0 if learns_texts else 0.0, 1.0 if distils else 0.0],
        "loss.contrastive_captions": "truth" if learns_texts else "all",
        "loss.distill_captions": "all" if run.teachers or not distils else "synthetic",
        "seed": options.seed,
        "evaluation.data": str(run.out / DATA / VALIDATION),
        "evaluation.patience": presets.PATIENCE,
        **presets.recipe_fields(options.preset, samples, options.steps),
        **parse_settings(options.settings),
    }
    return load_recipe({"model": {"name": run.start.config.name}}, fields)
