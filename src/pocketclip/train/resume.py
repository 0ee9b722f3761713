"""Resuming: claims a run's folder, chooses the checkpoint to resume from, and restores it.

Exact resume needs nothing else: the order of samples is a pure function of the step, see `order`,
and the model's random choices too, see `setup.seed_step`.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

from pocketclip.errors import CheckpointError, TrainingError
from pocketclip.nn.clip import CLIP
from pocketclip.storage import locks
from pocketclip.storage.local import remove_abandoned
from pocketclip.train import checkpoints, distributed
from pocketclip.train import recipe as recipes
from pocketclip.train.checkpoints import Saved
from pocketclip.train.distributed import World
from pocketclip.train.logs import Log
from pocketclip.train.recipe import Recipe
from pocketclip.train.reporting import RECIPE
from pocketclip.train.run import MODEL_DIR, Summary
from pocketclip.train.save_and_score import CheckpointScorer, OnCheckpoint, prune
from pocketclip.train.select_model import Progress, hand_over

# Fields that may change when a run is resumed: they do not affect the weights.
_FREE_FIELDS = (
    "about", "log_every", "tensorboard", "wandb", "checkpoint.", "evaluation", "data.workers",
    "data.cache_dir", "data.source",
)  # fmt: skip
# Fields whose `auto` stands for either value, in runs from before it was the default too.
_AUTOMATIC = ("channels_last",)
log = logging.getLogger(__name__)


def find_checkpoint(
    recipe: Recipe, folder: Path, resume: str, stack: contextlib.ExitStack
) -> Saved | None:
    """Claim the run's folder and return the checkpoint to resume from, the same on all processes.

    Args:
        recipe: the run's recipe.
        folder: the run's folder.
        resume: `auto`, `no` or a path, as `train` takes it.
        stack: holds the claim of the folder, on the main process.

    Raises:
        CheckpointError: there is no checkpoint at the path.
        TrainingError: the folder holds another run or other files, or none of its checkpoints
            can be read.
    """
    return distributed.on_main(lambda: _find_checkpoint(recipe, folder, resume, stack))


def _find_checkpoint(
    recipe: Recipe, folder: Path, resume: str, stack: contextlib.ExitStack
) -> Saved | None:
    holds_run = _claim_folder(folder, stack)
    if holds_run:
        _check_same_recipe(folder, recipe)
    if resume not in ("auto", "no"):
        path = Path(resume)
        saved = checkpoints.check(path) if path.name.startswith("step-") else None
        saved = saved or checkpoints.newest(path)
        if saved is None:
            raise CheckpointError(f"{resume}: no training checkpoint at this path")
        return saved
    if not holds_run:
        return None
    if resume == "no":
        raise TrainingError(
            f"{folder} holds a run; continue it with --resume auto, or choose another folder"
        )
    checkpoints.remove_abandoned(folder)
    saved = checkpoints.newest(folder)
    if saved is None and checkpoints.find(folder):
        raise TrainingError(
            f"none of the checkpoints in {folder / checkpoints.FOLDER} can be read; remove the "
            "folder to start again"
        )
    return saved


def _claim_folder(folder: Path, stack: contextlib.ExitStack) -> bool:
    """Lock the run's folder until the end; return whether it holds a run."""
    remove_abandoned(folder)
    other_files = folder.exists() and (
        not folder.is_dir() or any(path.name != locks.LOCK for path in folder.iterdir())
    )
    if other_files and not (folder / RECIPE).is_file():
        raise TrainingError(
            f"{folder} holds other files; choose an empty or new folder for the run"
        )
    stack.enter_context(locks.claim(folder, "a training"))
    return (folder / RECIPE).is_file()


def _check_same_recipe(folder: Path, recipe: Recipe) -> None:
    old = recipes.load_recipe(folder / RECIPE)
    changed = {
        key: values
        for key, values in recipes.differences(old, recipe).items()
        if not (key.startswith(_FREE_FIELDS) or (key in _AUTOMATIC and "auto" in values))
    }
    if changed:
        shown = "; ".join(f"{key} was {old}, is {new}" for key, (old, new) in changed.items())
        raise TrainingError(
            f"{folder} holds a run of another recipe ({shown}); choose another folder"
        )


def restore(saved: Saved, recipe: Recipe, world: World) -> tuple[CLIP, dict[str, Any]]:
    """Return a checkpoint's model, ready to train, and its trainer state.

    Raises:
        CheckpointError: it cannot be read, or its model is not the recipe's.
    """
    model, trainer_state = checkpoints.load(saved)
    if model.config != recipe.model.config():
        raise CheckpointError(f"the model in {saved.folder} is not the one the recipe describes")
    model.set_gradient_checkpointing(recipe.gradient_checkpointing)
    if world.is_main:
        log.info("resuming from %s", saved.folder)
        if trainer_state["world_size"] != world.size:
            log.warning(
                "the run had %d processes and resumes with %d: the batch size stays the same, but "
                "each process has its own share of an epoch, so that in the rest of this one some "
                "samples are seen twice and others not at all",
                trainer_state["world_size"],
                world.size,
            )
    return model.train(), trainer_state


def complete_finished_run(
    recipe: Recipe,
    folder: Path,
    world: World,
    saved: Saved,
    model: CLIP,
    trainer_state: dict[str, Any],
    score: OnCheckpoint | None,
    progress: Progress,
) -> Summary:
    """Return the summary of a run whose last step was done by an earlier start.

    If that start was killed before it wrote the finished model, or used another folder, or if
    `evaluation.choose` changed, the model is written now.
    """
    selection, failures = progress.selection, 0
    if not progress.complete:
        model = checkpoints.with_average(model, trainer_state).to(world.device)
        if world.is_main and checkpoints.is_of(saved, folder):
            with Log(folder, recipe, saved.step) as writer:
                scorer = CheckpointScorer(score, writer, selection)
                if progress.changed:
                    scorer.score_again(folder, saved.step, world.device)
                elif trainer_state["score"]:
                    scorer.score_late(saved, model, folder)
            failures = scorer.failures
            prune(folder, saved.step, recipe, selection)
        selection = hand_over(folder, recipe, selection, saved.step, lambda: model)
    return Summary(
        run=folder, step=saved.step, steps=recipe.steps, samples=saved.step * recipe.batch_size,
        seconds=0.0, skipped=int(trainer_state["skipped"]) if world.is_main else 0,
        failed_evaluations=failures, metrics=saved.metrics, best=selection.best,
        model=folder / MODEL_DIR,
        selection=selection if selection.scores else None,
    )  # fmt: skip
