"""The state of a run while it trains, and how it ends.

`setup.build_run` builds a `Run`, `loop.train` steps it, `save_and_score` saves it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pocketclip import checkpoint
from pocketclip.errors import CheckpointError, DivergedError, TrainingError, first_line
from pocketclip.nn.build import build
from pocketclip.nn.clip import CLIP
from pocketclip.nn.lora import LowRankUpdates
from pocketclip.train import distributed
from pocketclip.train.distributed import World
from pocketclip.train.loader import Loader
from pocketclip.train.optim import WeightAverage
from pocketclip.train.phases import phase
from pocketclip.train.recipe import Recipe
from pocketclip.train.selection import Selection
from pocketclip.train.step import Stepper
from pocketclip.train.step_values import StepValues

MODEL_DIR = checkpoint.RUN_MODEL
"""The folder of the finished model, within the run's."""
MIN_LOSS_SCALE = 2.0**-10
"""Of float16 training: the scale begins at 65,536, and each step that overflows halves it."""


@dataclass(slots=True, kw_only=True)
class Summary:
    """How a run ended."""

    run: Path
    """The run's folder."""
    step: int
    """Optimiser steps done, earlier starts included."""
    steps: int
    """Optimiser steps that the recipe asks for."""
    samples: int
    """Training samples seen, earlier starts included."""
    seconds: float
    """Seconds of this start."""
    interrupted: bool = False
    skipped: int = 0
    """Samples that could not be used and were replaced by others."""
    too_small: int = 0
    """Samples that others replaced because of `data.min_image_side`."""
    failed_evaluations: int = 0
    """Checkpoints of this start that could not be scored; the log says why."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last checkpoint's metrics by name."""
    best: tuple[int, float] | None = None
    """Step and main metric of the best weights; None if nothing was scored."""
    model: Path | None = None
    """The folder of the finished model; None if the run was interrupted."""
    selection: Selection | None = None
    """All scores, and which of the weights `model` holds; None if nothing was scored."""

    @property
    def stopped_early(self) -> bool:
        """Whether the run ended before its last step, by `evaluation.patience`."""
        return self.selection is not None and self.selection.stopped_early

    @property
    def is_rising(self) -> bool:
        """Whether the score still rose at the end of a finished run, see `curve.still_rising`."""
        return self.model is not None and self.selection is not None and self.selection.is_rising()


@dataclass(slots=True, kw_only=True)
class Run:
    """One start of a run: model, data, optimiser, and how far it has come."""

    recipe: Recipe
    folder: Path
    world: World
    loader: Loader
    model: CLIP
    stepper: Stepper
    optimizer: torch.optim.Optimizer
    logit_bias: nn.Parameter | None
    """SigLIP's, which is not part of the model."""
    average: WeightAverage | None
    updates: LowRankUpdates | None = None
    """The low-rank updates that train in place of the model's weights."""
    step: int = 0
    """Optimiser steps done."""
    skipped: int = 0
    """Samples replaced; on the main process it includes earlier starts."""
    too_small: int = 0
    """Samples replaced because of their size; as `skipped`."""
    last_good: Path | None = None
    """The newest checkpoint."""
    values: StepValues = field(init=False)
    """Of the steps since the last record."""

    def __post_init__(self) -> None:
        overflows = self.stepper.scaler.is_enabled()
        self.values = StepValues(self.world.device, overflows=overflows)

    @phase("optimizer")
    def update_weights(self, terms: Mapping[str, Tensor]) -> None:
        """Clip the gradient, step the optimiser and the average.

        They stay as they are from the first step on whose loss or gradient is not finite. That is
        decided on the device, and the host does not wait; `check_steps` raises.

        Args:
            terms: of the step's loss.
        """
        settings, scaler = self.recipe.optimizer, self.stepper.scaler
        bias = self.logit_bias
        if bias is not None and self.world.size > 1 and bias.grad is not None:
            # DistributedDataParallel averages the model's gradients only. Before unscaling, so
            # that all processes see the same overflow.
            torch.distributed.all_reduce(bias.grad)
            bias.grad /= self.world.size
        if self.updates is not None:
            self.updates.take_gradients()
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        if scaler.is_enabled():
            # The scaler skips steps with a NaN: from a loss that is not finite on, all.
            gradient = next(p.grad for p in weights if p.grad is not None)
            finite = torch.stack([term.isfinite().all() for term in terms.values()]).all()
            gradient.masked_fill_(self.values.diverged | ~finite, math.nan)
        scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(weights, settings.clip_norm or math.inf)
        diverged = self.values.add(terms, norm, self.step + 1)
        # Without a scaler, only fused kernels leave a step out on the device's word. The others run
        # where the device is the CPU.
        fused = bool(self.optimizer.param_groups[0].get("fused"))
        knows = not (fused or scaler.is_enabled())
        if knows and bool(diverged):
            return
        if fused and not scaler.is_enabled():
            # Weights, moments and the number of steps stay where it is 1.
            self.optimizer.found_inf = diverged.float()  # type: ignore[attr-defined]
        scaler.step(self.optimizer)
        scaler.update()
        if self.updates is not None:
            self.updates.merge()
        with torch.no_grad():
            highest = math.log(self.recipe.max_logit_scale)
            self.model.logit_scale.clamp_(0, highest)  # CLIP, section 2.5
        if self.average is not None:
            self.average.update(self.model, where=None if knows else ~diverged)

    def check_steps(self) -> dict[str, float]:
        """Wait for the device, and return the means of the values since the last record.

        Raises:
            DivergedError: a loss or gradient was not finite since the last call; the message names
                the step and the last good checkpoint.
        """
        means, wrong = self.values.read()
        if wrong is not None:
            raise DivergedError(self._diverged(f"{wrong.name} is {wrong.value}", wrong.step))
        # In float16 a gradient may overflow: the scaler skips that step and halves its scale.
        scaler = self.stepper.scaler
        if scaler.is_enabled() and scaler.get_scale() < MIN_LOSS_SCALE:
            raise DivergedError(self._diverged("every float16 gradient overflows", self.step))
        return means

    def check_weights(self) -> None:
        """Refuse to save non-finite weights: the newest checkpoint would be useless.

        Raises:
            DivergedError: a tensor of the model or of the average holds NaN or an infinity.
        """
        average = self.average.state if self.average is not None else {}
        for state in (self.model.state_dict(), average):
            for name, value in state.items():
                if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                    problem = f"{name} holds non-finite values"
                    raise DivergedError(self._diverged(problem, self.step))

    def _diverged(self, problem: str, step: int) -> str:
        return (
            f"{problem} at step {step}; {self._last_good()}. Resume from a checkpoint into "
            "another folder (--resume CHECKPOINT --out OTHER), with a lower optimizer.lr or with "
            "precision=float32"
        )

    def _last_good(self) -> str:
        if self.last_good is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {self.last_good}"

    @contextlib.contextmanager
    def disk_errors_explained(self) -> Iterator[None]:
        """Turn an OSError of the block into a TrainingError that says how to go on."""
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"{self.folder}: the run cannot continue ({error}); {self._last_good()}; fix the "
                "cause (if the disk is full, free some space) and resume"
            ) from error

    def result(self) -> CLIP:
        """Return the model to use: a copy with the averaged weights, or the model itself."""
        if self.average is None:
            return self.model
        model = build(self.recipe.model.config()).to(self.world.device)
        model.load_state_dict(self.average.state)
        model.license = self.model.license
        return model

    def replaced_by_all(self) -> tuple[int, int]:
        """Return `skipped` and `too_small` of all processes together."""
        own = {"skipped": float(self.skipped), "too_small": float(self.too_small)}
        means = distributed.average(own)
        return round(means["skipped"] * self.world.size), round(
            means["too_small"] * self.world.size
        )

    def summary(
        self,
        *,
        seconds: float,
        metrics: dict[str, float],
        failed_evaluations: int,
        interrupted: bool,
        selection: Selection,
    ) -> Summary:
        """Return how this start ended; all processes must call it."""
        skipped, too_small = self.replaced_by_all()
        return Summary(
            run=self.folder,
            step=self.step,
            steps=self.recipe.steps,
            samples=self.step * self.recipe.batch_size,
            seconds=seconds,
            interrupted=interrupted,
            skipped=skipped,
            too_small=too_small,
            failed_evaluations=failed_evaluations,
            metrics=metrics,
            best=selection.best,
            model=None if interrupted else self.folder / MODEL_DIR,
            selection=selection if selection.scores else None,
        )

    def trainer_state(self, *, skipped: int, too_small: int = 0, score: bool) -> dict[str, Any]:
        """Return the content of `trainer.pt`: everything besides the model that resuming needs.

        Args:
            skipped: replaced samples of all processes.
            too_small: those replaced because of their size.
            score: whether the checkpoint is to be scored: the next start does so if this one is
                killed before.
        """
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.stepper.scaler.state_dict(),
            "precision": dtype_name(self.stepper.dtype),
            "average": self.average.state_dict() if self.average is not None else None,
            "updates": self.updates.state_dict() if self.updates is not None else None,
            "bias": self.logit_bias.detach() if self.logit_bias is not None else None,
            "skipped": skipped,
            "too_small": too_small,
            "world_size": self.world.size,
            "index_hash": self.loader.index_hash,
            "score": score,
        }

    def load_trainer_state(self, state: Mapping[str, Any]) -> None:
        """Continue from the `trainer_state` of a checkpoint.

        Raises:
            CheckpointError: other parameters were trained.
        """
        updates = state.get("updates")  # earlier releases had none
        try:
            if (updates is None) != (self.updates is None):
                raise ValueError("only one of the two has low-rank updates")
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise CheckpointError(
                "the checkpoint's run trained other parameters than this recipe does "
                f"({first_line(error)}); give its model as model.init instead"
            ) from error
        if self.updates is not None and updates is not None:
            self.updates.load_state_dict(updates)
        self.stepper.scaler.load_state_dict(state["scaler"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        if self.logit_bias is not None:
            with torch.no_grad():
                self.logit_bias.copy_(state["bias"])


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name without `torch.`, as recipes and `run.json` have it."""
    return str(dtype).removeprefix("torch.")
