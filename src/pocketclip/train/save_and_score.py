"""Checkpoints during a run: saved by all processes together, scored, old ones removed.

The files are those of `checkpoints`; any function can score a model, see `OnCheckpoint`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from pocketclip.errors import CheckpointError, PocketclipError, TrainingError
from pocketclip.nn.clip import CLIP
from pocketclip.train import checkpoints, distributed
from pocketclip.train.checkpoints import Saved
from pocketclip.train.logs import LOG, Log, read
from pocketclip.train.recipe import Recipe
from pocketclip.train.run import Run
from pocketclip.train.selection import Score, Selection

OnCheckpoint = Callable[[CLIP, int], Mapping[str, float]]
"""Takes the model (the average, if one is kept) and the step; returns metrics by name, of which
`main_metric` decides which checkpoint is the best."""
log = logging.getLogger(__name__)


class CheckpointScorer:
    """Scores checkpoints and notes the metrics: in the checkpoint, in the selection, in the log.

    Args:
        score: None: nothing is scored.
        writer: the run's log; None on all processes but the main one.
        selection: the scores of the run so far; kept up to date on the main process.
        patience: the recipe's `evaluation.patience`.
    """

    def __init__(
        self,
        score: OnCheckpoint | None,
        writer: Log | None,
        selection: Selection,
        patience: int | None = None,
    ) -> None:
        self.function, self._writer, self.selection = score, writer, selection
        self._patience = patience
        self.failures = 0
        """Checkpoints that could not be scored, the same number on all processes after a save."""
        self.out_of_patience = False
        """Whether the run is to end now, the same on all processes after a save."""

    def score(self, saved: Saved, model: CLIP) -> dict[str, float]:
        """Score a checkpoint; note its metrics, or why there are none, and return them.

        A failed evaluation does not stop training.

        Raises:
            OSError: the metrics cannot be written.
        """
        metrics: dict[str, float] = {}
        reason: str | None = None
        assert self.function is not None
        try:
            metrics = _finite(self.function(model, saved.step))
        except Exception as error:
            # Our own errors say in one line what is wrong; others need their traceback.
            ours = isinstance(error, (PocketclipError, OSError))
            reason = str(error) if ours else f"{type(error).__name__}: {error}"
            log.warning(
                "the evaluation after step %d failed; training continues: %s", saved.step, reason,
                exc_info=None if ours else error,
            )  # fmt: skip
            self.failures += 1
        else:
            checkpoints.record_metrics(saved, metrics)
        finally:
            model.train()
        self._note(saved, metrics, reason)
        self._log(saved.step, metrics, reason)
        return metrics

    def score_late(self, saved: Saved, model: CLIP, run: Path) -> None:
        """Score a checkpoint whose process was killed between saving and scoring it.

        Args:
            saved: the checkpoint; its `metrics` are set.
            model: the model to score.
            run: the run's folder, whose log says whether it was scored.
        """
        noted = self.selection.of(saved.step)
        logged = any(
            line.get("step") == saved.step and any(key.startswith("eval/") for key in line)
            for line in read(run / LOG)
        )
        reason = noted.error if noted is not None else None
        if not (noted or logged or saved.metrics):
            if self.function is not None:
                saved.metrics = self.score(saved, model)
            return
        # Scored, but killed before it was noted everywhere.
        if noted is None:
            self._note(saved, saved.metrics, reason)
        if not logged:
            self._log(saved.step, saved.metrics, reason)

    def score_again(self, run: Path, step: int, device: torch.device) -> None:
        """Score the checkpoints of a run up to `step` that are there, as the evaluation changed."""
        for folder in reversed(checkpoints.find(run)):
            try:
                saved = checkpoints.check(folder)
                model, state = checkpoints.load(saved)
            except CheckpointError as error:
                log.warning("%s; it is not scored", error)
                continue
            if saved.step <= step and state["score"]:
                self.score(saved, checkpoints.with_average(model, state).to(device))

    def settle(self) -> None:
        """Tell all processes how the main one's scoring went; all must call it."""

        def outcome() -> tuple[int, bool]:
            return self.failures, self.selection.out_of_patience(self._patience)

        self.failures, self.out_of_patience = distributed.on_main(outcome)

    def _note(self, saved: Saved, metrics: Mapping[str, float], reason: str | None) -> None:
        self.selection.add(
            Score(step=saved.step, main_metric=metrics.get("main_metric"), error=reason)
        )
        self.selection.write(saved.folder.parent.parent)

    def _log(self, step: int, metrics: Mapping[str, float], reason: str | None) -> None:
        record: dict[str, Any] = {"step": step}
        if reason is not None:
            record["eval/error"] = reason
        if self._writer is not None:
            self._writer.write(record | {f"eval/{name}": v for name, v in metrics.items()})


def save_checkpoint(
    run: Run, scorer: CheckpointScorer, *, score: bool, later: bool = False
) -> dict[str, float]:
    """Save a checkpoint, score it and remove old ones; all processes must call it, and wait.

    Args:
        run: the run after a step.
        scorer: scores the checkpoint.
        score: whether it is to be scored.
        later: leave that to the next start, as this one was asked to stop.

    Returns:
        The metrics; empty if it was not scored.

    Raises:
        TrainingError: the weights are not finite, or cannot be written.
        OSError: a metric cannot be written.
    """
    skipped, too_small = run.replaced_by_all()

    def save() -> dict[str, float]:
        run.check_weights()
        # Saved before it is scored: an evaluation that fails loses no training.
        state = run.trainer_state(skipped=skipped, too_small=too_small, score=score)
        saved = checkpoints.save(run.folder, run.step, run.model, state)
        run.last_good = saved.folder
        metrics: dict[str, float] = {}
        if score and not later and scorer.function is not None:
            metrics = scorer.score(saved, run.result())
        prune(run.folder, run.step, run.recipe, scorer.selection)
        return metrics

    metrics = distributed.on_main(save)
    scorer.settle()
    run.last_good = checkpoints.checkpoint_dir(run.folder, run.step)
    return metrics


def prune(folder: Path, step: int, recipe: Recipe, selection: Selection) -> None:
    """Remove the checkpoints that the recipe does not keep.

    The best one is also kept without `checkpoint.keep_best` while `model/` may be made from it.
    """
    settings = recipe.checkpoint
    keep = None
    if settings.keep_best or (selection.choose == "best" and selection.chosen is None):
        folders = (checkpoints.checkpoint_dir(folder, score.step) for score in selection.ranked())
        best = next((path for path in folders if path.is_dir()), None)
        keep = checkpoints.step_of(best) if best is not None else None
    checkpoints.prune(folder, step, settings.keep_last, keep=keep)


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics as plain numbers.

    Raises:
        TrainingError: one is not finite.
    """
    values = {str(name): float(value) for name, value in metrics.items()}
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(f"{name} is {value}")
    return values
