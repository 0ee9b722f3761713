"""Which weights of a run become `model/`: what is scored before the first step, and the choice.

The scores and the rule are in `selection`; this module holds what touches weights and folders.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pocketclip import checkpoint
from pocketclip.errors import CheckpointError
from pocketclip.nn.clip import CLIP
from pocketclip.train import checkpoints, distributed, selection
from pocketclip.train.checkpoints import Saved
from pocketclip.train.recipe import Recipe
from pocketclip.train.run import MODEL_DIR, Run
from pocketclip.train.save_and_score import CheckpointScorer, prune, save_checkpoint
from pocketclip.train.selection import Selection

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run has come when it is started, the same on all processes."""

    selection: Selection
    scoring: bool
    """Whether this start scores checkpoints."""
    finished: bool
    """Whether no step is left."""
    complete: bool
    """Whether `model/` is written, too: there is nothing to do."""
    changed: bool
    """Whether the evaluation is another one than that of the earlier scores, which are dropped."""


def begin(recipe: Recipe, folder: Path, saved: Saved | None, *, caller_scores: bool) -> Progress:
    """Return how far a run has come; all processes must call it.

    Args:
        recipe: the run's recipe.
        folder: the run's folder.
        saved: the checkpoint to resume from, or None.
        caller_scores: whether the caller gave a function that scores.
    """
    return distributed.on_main(lambda: _begin(recipe, folder, saved, caller_scores))


def patience_of(recipe: Recipe) -> int | None:
    """Return the recipe's `evaluation.patience`."""
    return recipe.evaluation.patience if recipe.evaluation is not None else None


def _begin(recipe: Recipe, folder: Path, saved: Saved | None, caller_scores: bool) -> Progress:
    section = recipe.evaluation
    scoring = caller_scores or section is not None
    evaluation = None if caller_scores else selection.facts_of(section)
    found = selection.load(folder, evaluation)
    at_end = saved is not None and saved.step >= recipe.steps
    recorded = (folder / selection.FILE).is_file()
    if saved is not None and at_end and _has_model(folder) and not recorded:
        # Not scored, or finished by a version that always took the last weights: `model/` stays.
        if scoring and found is None:
            log.warning(
                "%s was finished without an evaluation, so its last weights stay; score them with "
                "`pocketclip eval`",
                folder,
            )
        found = found or Selection()
        found.choose, found.chosen = "last", saved.step
        return Progress(
            selection=found, scoring=scoring, finished=True, complete=True, changed=False
        )
    if at_end and _has_model(folder) and found is not None and found.chosen is not None:
        # Finished. Only `evaluation.choose` may still change what is handed over.
        if scoring and section is not None and found.scores and found.choose != section.choose:
            found.choose, found.chosen = section.choose, None
        done = found.chosen is not None
        if scoring and found.evaluation != evaluation:
            log.warning(
                "%s is finished: its model was chosen by another evaluation than the recipe's; "
                "remove %s to choose anew among the checkpoints that are kept",
                folder, folder / MODEL_DIR,
            )  # fmt: skip
        return Progress(
            selection=found, scoring=scoring, finished=True, complete=done, changed=False
        )
    chosen = Selection(
        choose="last" if not scoring else section.choose if section is not None else "best",
        evaluation=evaluation,
        weights="model" if recipe.ema is None else "average",
    )
    changed = found is not None and scoring and found.evaluation != evaluation
    if found is not None and saved is not None:
        if changed:
            log.warning(
                "the evaluation changed: the scores so far are dropped, and the checkpoints that "
                "are still there are scored again"
            )
        else:
            chosen.evaluation = found.evaluation
            chosen.scores = selection.earlier(found.scores, saved.step)
    early = saved is not None and scoring and chosen.out_of_patience(patience_of(recipe))
    complete = False
    if early and found is not None and found.stopped_early and found.choose == chosen.choose:
        chosen.chosen, chosen.stopped_early = found.chosen, True
        complete = found.chosen is not None and _has_model(folder)
    return Progress(
        selection=chosen, scoring=scoring, finished=at_end or early, complete=complete,
        changed=changed and saved is not None,
    )  # fmt: skip


def _has_model(folder: Path) -> bool:
    return (folder / MODEL_DIR / checkpoint.CONFIG).is_file()


def score_before_steps(
    run: Run,
    scorer: CheckpointScorer,
    saved: Saved | None,
    unscored: Saved | None,
    progress: Progress,
) -> dict[str, float]:
    """Score what this start begins with; all processes must call it. Return its metrics.

    The weights of `model.init`, or of a checkpoint in another folder, are saved as a checkpoint
    of this run, so that they can be handed over. Random first weights are not scored.

    Args:
        run: the run, before its next step.
        scorer: scores checkpoints.
        saved: the checkpoint that the run resumes from, or None.
        unscored: the same, if it was to be scored.
        progress: how far the run has come.
    """
    metrics: dict[str, float] = {}
    if saved is None:
        begins = run.recipe.model.init is not None
    else:
        begins = not checkpoints.is_of(saved, run.folder)
    if begins and progress.scoring:
        return save_checkpoint(run, scorer, score=True)
    if saved is not None and run.world.is_main and progress.changed:
        scorer.score_again(run.folder, run.step, run.world.device)
    elif unscored is not None and run.world.is_main:
        scorer.score_late(unscored, run.result(), run.folder)
        metrics = unscored.metrics
    scorer.settle()
    return metrics


def hand_over(
    folder: Path, recipe: Recipe, scores: Selection, step: int, last: Callable[[], CLIP]
) -> Selection:
    """Write `model/` of a finished run; all processes must call it.

    Args:
        folder: the run's folder.
        recipe: the run's recipe.
        scores: what was scored, and what is to be chosen.
        step: the last step.
        last: returns the last weights, averaged if an average is kept.

    Returns:
        The scores with the choice; `selection.json` holds the same.

    Raises:
        OSError: the model cannot be written.
    """

    def write() -> Selection:
        chosen, model = _chosen_model(folder, scores, step, last)
        checkpoint.save(model, folder / MODEL_DIR)
        scores.chosen, scores.stopped_early = chosen, step < recipe.steps
        if scores.scores:
            scores.write(folder)
            best = scores.best
            useless = scores.start_won or scores.equals_start
            if best is None or useless or (scores.choose == "best" and best[0] != chosen):
                log.warning("%s", scores.describe())
        if not recipe.checkpoint.keep_best:
            prune(folder, step, recipe, scores)  # the best one is no longer needed
        return scores

    return distributed.on_main(write)


def _chosen_model(
    folder: Path, scores: Selection, step: int, last: Callable[[], CLIP]
) -> tuple[int, CLIP]:
    """Return the step of the weights to hand over, and the model."""
    for score in scores.ranked() if scores.choose == "best" else ():
        if score.step == step:
            break
        try:
            saved = checkpoints.check(checkpoints.checkpoint_dir(folder, score.step))
            return score.step, checkpoints.load_scored(saved)
        except CheckpointError as error:
            log.warning("%s; the next best checkpoint is taken", error)
    return step, last()
