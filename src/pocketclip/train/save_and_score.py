"""Checkpoints during a run: saved by all processes together, scored, old ones removed.

The files are those of `checkpoints`; any function can score a model, see `OnCheckpoint`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pocketclip.errors import PocketclipError, TrainingError
from pocketclip.nn.clip import CLIP
from pocketclip.train import checkpoints, distributed
from pocketclip.train.checkpoints import Saved
from pocketclip.train.logs import LOG, Log, read
from pocketclip.train.recipe import Recipe
from pocketclip.train.run import Run

OnCheckpoint = Callable[[CLIP, int], Mapping[str, float]]
"""Takes the model (the average, if one is kept) and the step; returns metrics by name, of which
`main_metric` decides which checkpoint is the best."""
log = logging.getLogger(__name__)


class CheckpointScorer:
    """Scores checkpoints and notes the metrics, in the checkpoint and in the log.

    Args:
        score: None: nothing is scored.
        writer: the run's log; None on all processes but the main one.
    """

    def __init__(self, score: OnCheckpoint | None, writer: Log | None) -> None:
        self.function, self._writer = score, writer
        self.failures = 0
        """Checkpoints that could not be scored, the same number on all processes after a save."""

    def score(self, saved: Saved, model: CLIP) -> dict[str, float]:
        """Score a checkpoint; note its metrics, or why there are none, and return them.

        A failed evaluation does not stop training.

        Raises:
            OSError: the metrics cannot be written.
        """
        metrics: dict[str, float] = {}
        record: dict[str, Any] = {"step": saved.step}
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
            record["eval/error"] = reason
        else:
            checkpoints.record_metrics(saved, metrics)
        finally:
            model.train()
        self._write(record | {f"eval/{name}": value for name, value in metrics.items()})
        return metrics

    def score_late(self, saved: Saved, model: CLIP, run: Path) -> None:
        """Score a checkpoint whose process was killed between saving and scoring it.

        Args:
            saved: the checkpoint; its `metrics` are set.
            model: the model to score.
            run: the run's folder, whose log says whether it was scored.
        """
        logged = any(
            line.get("step") == saved.step and any(key.startswith("eval/") for key in line)
            for line in read(run / LOG)
        )
        if logged:
            return
        if saved.metrics:
            self._write({"step": saved.step, **{f"eval/{k}": v for k, v in saved.metrics.items()}})
        elif self.function is not None:
            saved.metrics = self.score(saved, model)

    def _write(self, record: dict[str, Any]) -> None:
        if self._writer is not None:
            self._writer.write(record)


def save_checkpoint(run: Run, scorer: CheckpointScorer, *, score: bool) -> dict[str, float]:
    """Save a checkpoint, score it and remove old ones; all processes must call it, and wait.

    Returns:
        The metrics; empty if it was not scored.

    Raises:
        TrainingError: the weights are not finite, or cannot be written.
        OSError: a metric cannot be written.
    """
    skipped = run.skipped_by_all()

    def save() -> tuple[dict[str, float], int]:
        run.check_weights()
        # Saved before it is scored: an evaluation that fails loses no training.
        state = run.trainer_state(skipped=skipped, score=score)
        saved = checkpoints.save(run.folder, run.step, run.model, state)
        run.last_good = saved.folder
        metrics: dict[str, float] = {}
        if score and scorer.function is not None:
            metrics = scorer.score(saved, run.result())
        prune(run.folder, run.step, run.recipe)
        return metrics, scorer.failures

    metrics, scorer.failures = distributed.on_main(save)
    run.last_good = checkpoints.checkpoint_dir(run.folder, run.step)
    return metrics


def prune(folder: Path, step: int, recipe: Recipe) -> None:
    """Remove the checkpoints that the recipe does not keep."""
    settings = recipe.checkpoint
    checkpoints.prune(folder, step, settings.keep_last, keep_best=settings.keep_best)


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
