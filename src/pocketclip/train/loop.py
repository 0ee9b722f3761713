"""The training loop: one for reinforced, plain and online-distilled training.

    summary = train(load_recipe("grocery-small", ["data.source=dr"]), "runs/small")

    RUN/recipe.yaml     the resolved recipe
        run.json        versions, machine, the data's index hash, one entry per start
        log.jsonl       a record every `log_every` steps
        checkpoints/    see `pocketclip.train.checkpoints`
        model/          the finished model: the average of the weights, where one is kept

A step is a pure function of (weights, seed, step, world size): random choices of the model are
seeded per step, and the batches are positions in a stream. A run that was killed and goes on ends
with the same weights as one that was not.

Source: MobileCLIP (arXiv 2311.17049), sections 4 and 5.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pocketclip import checkpoint, devices, zoo
from pocketclip._version import __version__
from pocketclip.errors import CheckpointError, ConfigError, PocketclipError, TrainingError
from pocketclip.formats.json_text import read_json
from pocketclip.nn.build import build
from pocketclip.nn.clip import CLIP
from pocketclip.storage import locks
from pocketclip.storage.local import remove_abandoned, write_whole
from pocketclip.train import checkpoints as saving
from pocketclip.train import distributed, logs
from pocketclip.train import recipe as recipes
from pocketclip.train.data import DataConfig, Loader
from pocketclip.train.distributed import World
from pocketclip.train.logs import LOG, Log, read
from pocketclip.train.optim import (
    WeightAverage,
    learning_rate,
    make_optimizer,
    parameter_groups,
)
from pocketclip.train.pacing import Clock, Window, stop_requested
from pocketclip.train.recipe import Recipe
from pocketclip.train.step import Stepper
from pocketclip.train.watchdog import Watchdog
from pocketclip.types import Encoder

OnCheckpoint = Callable[[CLIP, int], Mapping[str, float]]
"""Takes the model (the average, where one is kept) and the step; returns metrics by name, of
which `main_metric` decides which checkpoint is the best."""
OnLog = Callable[[Mapping[str, Any]], None]
RECIPE, RUN, MODEL = "recipe.yaml", "run.json", checkpoint.RUN_MODEL
# May differ between the parts of a run that is resumed: they do not decide what is learnt.
_FREE = ("about", "log_every", "tensorboard", "wandb", "checkpoint.", "evaluation", "data.workers",
         "data.cache_dir", "data.source")  # fmt: skip
# Of float16's gradients: it begins at 65,536 and is halved by each step that overflows.
_LEAST_SCALE = 2.0**-10
log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Summary:
    """How a run ended."""

    run: Path
    step: int
    steps: int
    samples: int
    seconds: float
    interrupted: bool = False
    skipped: int = 0
    """Samples that could not be used, and were replaced."""
    failed_evaluations: int = 0
    """Checkpoints of this start that could not be scored; the log says why."""
    metrics: dict[str, float] = field(default_factory=dict)
    best: tuple[int, float] | None = None
    """Step and main metric of the best checkpoint, where one was scored."""
    model: Path | None = None
    """The finished model; None where the run was interrupted."""


def train(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    resume: str = "auto",
    device: str = "auto",
    teachers: Sequence[Encoder] = (),
    on_checkpoint: OnCheckpoint | None = None,
    on_log: OnLog | None = None,
    offline: bool = False,
) -> Summary:
    """Train as `recipe` says, and leave a run folder.

    Args:
        recipe: see `pocketclip.train.recipe`.
        out: the run's folder.
        resume: `auto` goes on from the newest readable checkpoint in `out`, if there is one;
            `no` refuses a folder that holds a run; else the path of a checkpoint to go on from.
        device: `cpu`, `cuda`, or `auto`.
        teachers: the live teachers that `recipe.teachers` names, loaded
            (`pocketclip.reinforce.teachers.load_teacher`).
        on_checkpoint: scores a checkpoint once it is written, on the main process. None: scored
            as `recipe.evaluation` says, if it says so. If it raises an error, that is logged, and
            training goes on.
        on_log: called with each record of the log, on the main process.
        offline: take the weights of `model.init` from the local cache only.

    Raises:
        ConfigError: a recipe that does not fit the data, the evaluation data or the processes.
        DataError: data that cannot be read.
        TrainingError: a folder that holds another run, a loss that is no number, a full disk, or
            another process that failed.
    """
    if len(teachers) != len(recipe.teachers):
        raise ConfigError(
            f"the recipe names {len(recipe.teachers)} live teachers; {len(teachers)} were given "
            "(pocketclip.reinforce.teachers.load_teacher loads them)"
        )
    joined_before = distributed.world_size() > 1
    world = distributed.start(str(devices.resolve_device(device)) if device == "auto" else device)
    try:
        with Watchdog(world, ends=not joined_before):
            run = _Run(recipe, Path(out), world, teachers, on_checkpoint, on_log, offline)
            with run.held:
                return run.go(resume)
    finally:
        if not joined_before:
            distributed.stop()


def optimised_parts(recipe: Recipe, model: CLIP) -> tuple[torch.optim.AdamW, nn.Parameter | None]:
    """Freeze what the recipe freezes and return the optimiser, and SigLIP's bias if it has one."""
    settings = recipe.model
    for tower, last in (("image", settings.freeze_image), ("text", settings.freeze_text)):
        if last is not None:
            try:
                model.freeze(tower, train_last=last)  # type: ignore[arg-type]
            except ValueError as error:
                raise ConfigError(f"model.freeze_{tower}: {error}") from error
    if settings.freeze_batch_norm:
        model.freeze_batch_norm_statistics()
    groups = parameter_groups(model, recipe.optimizer.weight_decay)
    bias = None
    if recipe.loss.kind == "siglip":
        device = model.logit_scale.device
        bias = nn.Parameter(torch.tensor(-10.0, device=device))  # arXiv 2303.15343, section 3.2
        groups[1]["params"].append(bias)
    return make_optimizer(groups, recipe.optimizer), bias


def first_model(recipe: Recipe, *, offline: bool = False) -> CLIP:
    """Return the model that a run begins with: random weights from the seed, or `model.init`.

    With `offline`, `model.init` comes from the local cache only.

    Raises:
        CheckpointError: `model.init` does not fit the configuration.
    """
    config = recipe.model.config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        try:
            model = build(config)
        except ValueError as error:
            raise ConfigError(f"model.overrides: {error}") from error
        if recipe.loss.kind == "siglip":
            with torch.no_grad():
                model.logit_scale.fill_(math.log(10))  # arXiv 2303.15343, section 3.2
    if recipe.model.init is not None:
        loaded = checkpoint.load(recipe.model.init, offline=offline)
        if loaded.is_fused:
            raise CheckpointError(
                f"{recipe.model.init} is fused, which is for inference; give the unfused model"
            )
        try:
            model.load_state_dict(loaded.state_dict())
        except RuntimeError as error:
            first = str(error).strip().splitlines()[1].strip()
            raise CheckpointError(
                f"{recipe.model.init} ({loaded.config.name}) does not fit {config.name} as the "
                f"recipe describes it: {first}"
            ) from error
    model.set_gradient_checkpointing(recipe.gradient_checkpointing)
    return model.train()


class _Run:
    """One start of a run: builds everything, restores what was saved, steps to the end."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        world: World,
        teachers: Sequence[Encoder],
        on_checkpoint: OnCheckpoint | None,
        on_log: OnLog | None,
        offline: bool,
    ) -> None:
        self.offline = offline
        self.recipe, self.out, self.world = recipe, out, world
        self.teachers = teachers
        self.on_checkpoint, self.on_log = on_checkpoint, on_log
        self.unscored: saving.Saved | None = None
        """The checkpoint to go on from, if it was saved to be scored."""
        self.held = contextlib.ExitStack()
        """What is held until the end: the run's folder, on the main process."""
        self.step = self.skipped = self.failed_evaluations = 0
        self.last_good: Path | None = None
        share = world.size * recipe.accumulate
        if recipe.batch_size % share:
            raise ConfigError(
                f"batch_size {recipe.batch_size} does not divide by {world.size} processes x "
                f"{recipe.accumulate} micro-batches"
            )
        self.micro_batch = recipe.batch_size // share
        shared = world.size > 1 and recipe.sync_batch_norm
        if self.micro_batch == 1 and not (shared or recipe.model.freeze_batch_norm):
            config = recipe.model.config()
            if not isinstance(config.image, zoo.ViTConfig) or config.text.repmixer:
                raise ConfigError(
                    "BatchNorm has no statistics in micro-batches of 1 sample: raise batch_size, "
                    "lower accumulate, or set model.freeze_batch_norm=true"
                )
        logs.check(recipe)

    # --- setting up

    def go(self, resume: str) -> Summary:
        saved = self._found(resume)
        trainer: dict[str, Any] = {}
        if saved is None or saved.step < self.recipe.steps or not self._has_model():
            self._find_scorer()  # its data are looked for before any work
        if saved is None:
            self._warn_of_frozen()
            model = first_model(self.recipe, offline=self.offline)
        else:
            model, trainer = self._restored(saved)
        if saved is not None and self.step >= self.recipe.steps:
            return self._finished_before(saved, model, trainer)
        self.unscored = saved if trainer.get("score") else None
        self.loader = self._loader(trainer)
        with self.loader:
            self._prepare(model, trainer)
            try:
                return self._steps()
            except OSError as error:
                raise TrainingError(
                    f"{self.out}: the run cannot go on ({error}); {self._good()}; put that right "
                    "(free some space, if the disk is full) and resume"
                ) from error

    def _warn_of_frozen(self) -> None:
        settings = self.recipe.model
        frozen = [t for t in ("image", "text") if getattr(settings, f"freeze_{t}") is not None]
        if frozen and settings.init is None and self.world.is_main:
            log.warning(
                "model.freeze_%s without model.init: what is frozen keeps random weights", frozen[0]
            )

    def _find_scorer(self) -> None:
        wanted = self.recipe.evaluation
        if self.on_checkpoint is None and wanted is not None and self.world.is_main:
            from pocketclip.train.evaluation import make_scorer

            self.on_checkpoint = make_scorer(wanted)

    def _found(self, resume: str) -> saving.Saved | None:
        """Return the checkpoint to go on from; every process the same one."""
        saved = None
        problem: Exception | None = None
        if self.world.is_main:
            try:
                saved = self._find(resume)
            except (PocketclipError, OSError) as error:  # the others are waiting
                problem = error
        saved, problem = distributed.broadcast_object((saved, problem))
        if problem is not None:
            raise problem
        return saved

    def _find(self, resume: str) -> saving.Saved | None:
        began = self._claimed()
        if began:
            self._same_recipe()
        if resume not in ("auto", "no"):
            folder = Path(resume)
            saved = saving.check(folder) if folder.name.startswith("step-") else None
            saved = saved or saving.newest(folder)
            if saved is None:
                raise CheckpointError(f"{resume}: no checkpoint of a run there")
            return saved
        if not began:
            return None
        if resume == "no":
            raise TrainingError(
                f"{self.out} holds a run; go on with --resume auto, or choose another folder"
            )
        saving.remove_abandoned(self.out)
        saved = saving.newest(self.out)
        if saved is None and saving.find(self.out):
            raise TrainingError(
                f"none of the checkpoints in {self.out / saving.FOLDER} can be read; remove the "
                "folder to begin anew"
            )
        return saved

    def _claimed(self) -> bool:
        """Claim the run's folder until the end; return whether a run began there before."""
        remove_abandoned(self.out)
        out = self.out
        others = out.exists() and (
            not out.is_dir() or any(path.name != locks.LOCK for path in out.iterdir())
        )
        if others and not (out / RECIPE).is_file():
            raise TrainingError(
                f"{out} holds other files; choose an empty or new folder for the run"
            )
        self.held.enter_context(locks.claim(out, "a training"))
        return (out / RECIPE).is_file()

    def _same_recipe(self) -> None:
        old = recipes.load_recipe(self.out / RECIPE)
        changed = {
            key: values
            for key, values in recipes.differences(old, self.recipe).items()
            if not key.startswith(_FREE)
        }
        if changed:
            shown = "; ".join(f"{key} was {a}, is {b}" for key, (a, b) in changed.items())
            raise TrainingError(
                f"{self.out} holds a run of another recipe ({shown}); choose another folder"
            )

    def _restored(self, saved: saving.Saved) -> tuple[CLIP, dict[str, Any]]:
        model, trainer = saving.load(saved)
        if model.config != self.recipe.model.config():
            raise CheckpointError(f"{saved.folder} holds another model than the recipe describes")
        model.set_gradient_checkpointing(self.recipe.gradient_checkpointing)
        # Of all processes together: one carries them on.
        self.step = saved.step
        self.skipped = int(trainer["skipped"]) if self.world.is_main else 0
        self.last_good = saved.folder
        if self.world.is_main:
            log.info("going on from %s", saved.folder)
            if trainer["world_size"] != self.world.size:
                log.warning(
                    "the run had %d processes and goes on with %d: the batch stays the same, the "
                    "order of the samples in this epoch does not",
                    trainer["world_size"],
                    self.world.size,
                )
        return model.train(), trainer

    def _finished_before(
        self, saved: saving.Saved, model: CLIP, trainer: Mapping[str, Any]
    ) -> Summary:
        if self.world.is_main and not self._has_model():
            # It was killed after its last checkpoint, or goes on from a finished one elsewhere.
            if trainer["average"] is not None:
                model.load_state_dict(trainer["average"]["state"])
            if saved.folder.parent.parent == self.out:
                with Log(self.out, self.recipe, self.step) as writer:
                    self._score_late(saved, model.to(self.world.device), writer)
                self._prune()
            checkpoint.save(model, self.out / MODEL)
        distributed.barrier()
        return Summary(
            run=self.out, step=self.step, steps=self.recipe.steps,
            samples=self.step * self.recipe.batch_size, seconds=0.0, skipped=self.skipped,
            metrics=saved.metrics, best=saving.best(self.out), model=self.out / MODEL,
        )  # fmt: skip

    def _has_model(self) -> bool:
        return (self.out / MODEL / checkpoint.CONFIG).is_file()

    def _loader(self, trainer: Mapping[str, Any]) -> Loader:
        recipe = self.recipe
        loader = Loader(
            data_config(recipe),
            model=recipe.model.config(),
            batch_size=self.micro_batch,
            seed=recipe.seed,
            rank=self.world.rank,
            world_size=self.world.size,
            workers=_workers(recipe),
        )
        known = trainer.get("index_hash")
        if known is not None and known != loader.index_hash:
            loader.close()
            raise TrainingError(
                f"the data of {recipe.data.source} are no longer those of the checkpoint (their "
                "index has changed); give the same data, or begin a new run with model.init"
            )
        return loader

    def _prepare(self, model: CLIP, trainer: Mapping[str, Any]) -> None:
        recipe, world = self.recipe, self.world
        model = model.to(world.device)
        if world.size > 1 and recipe.sync_batch_norm:
            model = distributed.convert_sync_batch_norm(model)
        if recipe.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model
        self.optimizer, self.bias = optimised_parts(recipe, model)
        self.average = WeightAverage(model, recipe.ema) if recipe.ema is not None else None
        dtype = self._number_type(trainer)
        dims, scales, biases = teacher_facts(recipe, self.loader, self.teachers)
        self.stepper = Stepper(
            model, self._wrapped(model), recipe.loss,
            teacher_dims=dims, teacher_scales=scales, teacher_biases=biases,
            logit_bias=self.bias, device=world.device, dtype=dtype, gathered=world.size > 1,
            teachers=self.teachers, channels_last=recipe.channels_last, trim=not recipe.compile,
        )  # fmt: skip
        if trainer:
            self.optimizer.load_state_dict(trainer["optimizer"])
            self.stepper.scaler.load_state_dict(trainer["scaler"])
            if self.average is not None and trainer["average"] is not None:
                self.average.load_state_dict(trainer["average"])
            if self.bias is not None:
                with torch.no_grad():
                    self.bias.copy_(trainer["bias"])

    def _number_type(self, trainer: Mapping[str, Any]) -> torch.dtype:
        """Return what is computed in: as `auto` was resolved when the run began."""
        wanted, device = self.recipe.precision, self.world.device
        before = trainer.get("precision") if wanted == "auto" else None
        if before is None:
            return devices.resolve_dtype(wanted, device)
        dtype = devices.resolve_dtype(before, device)
        here = devices.resolve_dtype("auto", device)
        if here != dtype and self.world.is_main:
            log.warning(
                "the run computes in %s, as it began; `auto` would be %s on this %s, and %s may "
                "be slow here",
                before, _name(here), device.type, before,
            )  # fmt: skip
        return dtype

    def _wrapped(self, model: CLIP) -> nn.Module:
        wrapped: nn.Module = model
        if self.recipe.compile:
            wrapped = torch.compile(wrapped)  # type: ignore[assignment]
        if self.world.size > 1:
            cuda = self.world.device.type == "cuda"
            wrapped = nn.parallel.DistributedDataParallel(
                wrapped,
                device_ids=[self.world.device.index] if cuda else None,
                broadcast_buffers=not self.recipe.sync_batch_norm,
                # A captioner without a contrastive term leaves its heads without gradients.
                find_unused_parameters=self.recipe.loss.kind == "captioning",
            )
        return wrapped

    # --- stepping

    def _steps(self) -> Summary:
        recipe, main = self.recipe, self.world.is_main
        begun = time.monotonic()
        clock = Clock(recipe)
        if main:
            self._begin()
        metrics: dict[str, float] = {}
        with contextlib.ExitStack() as stack:
            writer = stack.enter_context(Log(self.out, recipe, self.step)) if main else None
            stopped = stack.enter_context(stop_requested())
            batches = self.loader.batches(self.step * recipe.accumulate)
            stack.callback(getattr(batches, "close", lambda: None))
            if self.unscored is not None and writer is not None:
                self._score_late(self.unscored, self._result(), writer)
            window = Window()
            while self.step < recipe.steps:
                self._one(batches, window)
                ends = self.step == recipe.steps
                stop, save = self._agreed(stopped.is_set(), clock.is_due(self.step) or ends)
                if self.step % recipe.log_every == 0 or ends or stop:
                    self._report(window, writer, time.monotonic() - begun)
                    window = Window()
                if save or stop:
                    metrics = self._save(writer, score=not stop or ends)
                    clock.saved()
                    window.restart()
                if stop and not ends:
                    return self._summary(begun, metrics, interrupted=True)
        if main:
            checkpoint.save(self._result(), self.out / MODEL)
        distributed.barrier()
        return self._summary(begun, metrics)

    def _one(self, batches: Iterator[Any], window: Window) -> None:
        recipe = self.recipe
        waiting = time.perf_counter()
        micro = [next(batches) for _ in range(recipe.accumulate)]
        window.waited += time.perf_counter() - waiting
        for batch in micro:
            for uid, reason in batch.skipped:
                self.skipped += 1
                log.warning("sample %s was replaced: %s", uid, reason)
        _seed(recipe.seed, self.step, self.world.rank)
        rate = learning_rate(self.step, recipe.steps, recipe.optimizer.lr, recipe.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.stepper.backward(micro)
        norm = self._update()
        window.add({name: float(term) for name, term in terms.items()}, norm, rate)
        self.step += 1
        self._check(window.latest)

    def _update(self) -> float:
        """Move the weights; return the gradient's norm before it was clipped."""
        settings, scaler = self.recipe.optimizer, self.stepper.scaler
        if self.bias is not None and self.world.size > 1 and self.bias.grad is not None:
            # It is no part of the model, so nobody else averages its gradient. Before it is
            # unscaled, so that all processes find the same overflow.
            torch.distributed.all_reduce(self.bias.grad)
            self.bias.grad /= self.world.size
        scaler.unscale_(self.optimizer)
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(weights, settings.clip_norm or math.inf)
        if scaler.is_enabled() or bool(torch.isfinite(norm)):
            scaler.step(self.optimizer)
            scaler.update()
            with torch.no_grad():
                highest = math.log(self.recipe.max_logit_scale)
                self.model.logit_scale.clamp_(0, highest)  # CLIP, section 2.5
            if self.average is not None:
                self.average.update(self.model)
        return float(norm)

    def _check(self, latest: Mapping[str, float]) -> None:
        # In float16 a gradient may overflow: the scaler leaves that step out and halves its scale.
        ignored = {"grad_norm"} if self.stepper.scaler.is_enabled() else set()
        wrong = [k for k, v in latest.items() if not math.isfinite(v) and k not in ignored]
        if wrong:
            raise TrainingError(self._diverged(f"{wrong[0]} is {latest[wrong[0]]}"))
        if ignored and self.stepper.scaler.get_scale() < _LEAST_SCALE:
            raise TrainingError(self._diverged("float16 holds no gradient any more: all overflow"))

    def _diverged(self, what: str) -> str:
        return (
            f"{what} at step {self.step}; {self._good()}. Go on from a checkpoint in another "
            "folder (--resume CHECKPOINT --out OTHER), with a lower optimizer.lr or with "
            "precision=float32"
        )

    def _good(self) -> str:
        if self.last_good is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {self.last_good}"

    def _agreed(self, stop: bool, save: bool) -> tuple[bool, bool]:
        """Return whether to stop and to save; all processes the same."""
        if self.world.size == 1:
            return stop, save
        found = distributed.average({"stop": float(stop), "save": float(save)})
        return found["stop"] > 0, found["save"] > 0

    # --- telling and keeping

    def _begin(self) -> None:
        """Write what the run is, before its first step."""
        self.out.mkdir(parents=True, exist_ok=True)
        _write(self.out / RECIPE, recipes.dump(self.recipe))
        path = self.out / RUN
        starts = []
        if path.is_file():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                starts = list(read_json(path)["starts"])
        starts.append(
            {
                "step": self.step,
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "processes": self.world.size,
                "device": self.world.device.type,
                "precision": _name(self.stepper.dtype),
                "pocketclip": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "system": platform.platform(),
            }
        )
        facts = {
            "samples": self.loader.samples,
            "index_hash": self.loader.index_hash,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "starts": starts,
        }
        _write(path, json.dumps(facts, indent=1) + "\n")

    def _report(self, window: Window, writer: Log | None, seconds: float) -> None:
        values = distributed.average(window.means())
        skipped = self._skipped_by_all()
        if writer is None:
            return
        recipe = self.recipe
        rate = window.count * recipe.batch_size / max(window.seconds, 1e-9)
        samples = self.step * recipe.batch_size
        record: dict[str, Any] = {
            "step": self.step,
            "samples": samples,
            "epoch": round(samples / max(self.loader.samples, 1), 4),
            **{name: round(value, 6) for name, value in values.items()},
            "lr": window.rate,
            "logit_scale": round(float(self.model.logit_scale.detach().exp()), 4),
            "samples_per_second": round(rate, 2),
            "data_wait": round(window.waited / max(window.seconds, 1e-9), 4),
            "skipped": skipped,
            "seconds": round(seconds, 2),
            "seconds_left": round((recipe.steps - self.step) * recipe.batch_size / rate, 1),
        }
        writer.write(record)
        if self.on_log is not None:
            self.on_log({**record, "steps": recipe.steps})

    def _save(self, writer: Log | None, *, score: bool) -> dict[str, float]:
        """Write a checkpoint and have it scored; every process waits for it."""
        metrics: dict[str, float] = {}
        problem: Exception | None = None
        skipped = self._skipped_by_all()
        if self.world.is_main:
            try:
                metrics = self._saved(writer, score, skipped)
            except (PocketclipError, OSError) as error:  # the others are waiting
                problem = error
        metrics, self.failed_evaluations, problem = distributed.broadcast_object(
            (metrics, self.failed_evaluations, problem)
        )
        if problem is not None:
            raise problem
        self.last_good = saving.place(self.out, self.step)
        return metrics

    def _saved(self, writer: Log | None, score: bool, skipped: int) -> dict[str, float]:
        metrics: dict[str, float] = {}
        self._check_weights()
        # Before it is scored: an evaluation that fails costs nothing of what was learnt.
        state = {**self._state(skipped), "score": score}
        saved = saving.save(self.out, self.step, self.model, state)
        self.last_good = saved.folder
        if self.on_checkpoint is not None and score:
            metrics = self._score(self.on_checkpoint, saved, self._result(), writer)
        self._prune()
        return metrics

    def _score(
        self, score: OnCheckpoint, saved: saving.Saved, model: CLIP, writer: Log | None
    ) -> dict[str, float]:
        """Have a checkpoint scored; note its metrics, or why there are none."""
        metrics, failure = self._scored(score, model)
        if failure is None:
            saving.annotate(saved, metrics)
        if writer is not None:
            record: dict[str, Any] = {f"eval/{k}": v for k, v in metrics.items()}
            record |= {} if failure is None else {"eval/error": failure}
            writer.write({"step": self.step, **record})
        return metrics

    def _score_late(self, saved: saving.Saved, model: CLIP, writer: Log) -> None:
        """Score a checkpoint that was saved by a process that was killed before it did."""
        told = any(
            line.get("step") == self.step and any(key.startswith("eval/") for key in line)
            for line in read(self.out / LOG)
        )
        if saved.metrics and not told:
            writer.write({"step": self.step, **{f"eval/{k}": v for k, v in saved.metrics.items()}})
        elif self.on_checkpoint is not None and not told:
            saved.metrics = self._score(self.on_checkpoint, saved, model, writer)

    def _check_weights(self) -> None:
        """Refuse to save weights that are no numbers: the last good checkpoint would be none."""
        states = [self.model.state_dict(), self.average.state if self.average is not None else {}]
        wrong = next((name for state in states if (name := _first_not_finite(state))), None)
        if wrong is not None:
            raise TrainingError(self._diverged(f"{wrong} holds values that are not finite"))

    def _scored(self, score: OnCheckpoint, model: CLIP) -> tuple[dict[str, float], str | None]:
        """Return the checkpoint's metrics, or why it cannot be scored: no reason to stop."""
        try:
            return _checked(score(model, self.step)), None
        except Exception as error:
            # Our own errors say what is wrong in a line; of others, one wants to know the place.
            ours = isinstance(error, (PocketclipError, OSError))
            reason = str(error) if ours else f"{type(error).__name__}: {error}"
            log.warning(
                "the evaluation after step %d failed, training goes on: %s", self.step, reason,
                exc_info=None if ours else error,
            )  # fmt: skip
            self.failed_evaluations += 1
            return {}, reason
        finally:
            model.train()

    def _prune(self) -> None:
        settings = self.recipe.checkpoint
        saving.prune(self.out, self.step, settings.keep_last, keep_best=settings.keep_best)

    def _skipped_by_all(self) -> int:
        mean = distributed.average({"skipped": float(self.skipped)})["skipped"]
        return round(mean * self.world.size)

    def _state(self, skipped: int) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.stepper.scaler.state_dict(),
            "precision": _name(self.stepper.dtype),
            "average": self.average.state_dict() if self.average is not None else None,
            "bias": self.bias.detach() if self.bias is not None else None,
            "skipped": skipped,
            "world_size": self.world.size,
            "index_hash": self.loader.index_hash,
        }

    def _result(self) -> CLIP:
        """Return the model to be used: a copy with the averaged weights, or the model itself."""
        if self.average is None:
            return self.model
        model = build(self.recipe.model.config()).to(self.world.device)
        model.load_state_dict(self.average.state)
        return model

    def _summary(
        self, begun: float, metrics: dict[str, float], *, interrupted: bool = False
    ) -> Summary:
        return Summary(
            run=self.out, step=self.step, steps=self.recipe.steps,
            samples=self.step * self.recipe.batch_size, seconds=time.monotonic() - begun,
            interrupted=interrupted, skipped=self._skipped_by_all(),
            failed_evaluations=self.failed_evaluations, metrics=metrics,
            best=saving.best(self.out), model=None if interrupted else self.out / MODEL,
        )  # fmt: skip


def data_config(recipe: Recipe) -> DataConfig:
    """Return what the loader wants of a recipe."""
    data = recipe.data
    if not data.source:
        raise ConfigError("no data: give data.source, a folder of reinforced shards for instance")
    fields = data.model_dump(exclude={"workers"})
    return DataConfig(**fields, embeddings=recipe.loss.weights[1] > 0)


def teacher_facts(
    recipe: Recipe, loader: Loader, teachers: Sequence[Encoder]
) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
    """Return the dimension, logit scale and bias of each teacher: the recipe's or the data's.

    Raises:
        ConfigError: neither says it.
    """
    loss = recipe.loss
    if loss.weights[1] == 0:
        return (), (), ()
    dims = loss.teacher_dims or tuple(t.embed_dim for t in teachers) or loader.teacher_dims
    if not dims:
        raise ConfigError(
            "the data do not say the teachers' dimensions; set loss.teacher_dims=[768,768] or so"
        )
    found = tuple(t.logit_scale for t in teachers) or loader.teacher_scales
    scales = loss.teacher_scales or found
    if len(scales) != len(dims) or any(scale is None for scale in scales):
        raise ConfigError(
            f"{len(dims)} teachers need as many logit scales; the recipe or the data say "
            f"{list(scales)}; set loss.teacher_scales"
        )
    if loader.width and not teachers and loader.width != sum(dims):
        raise ConfigError(
            f"the stored embeddings have {loader.width} numbers, the teachers' dimensions "
            f"{list(dims)} add up to {sum(dims)}; set loss.teacher_dims"
        )
    biases = loss.teacher_biases or tuple(getattr(t, "logit_bias", 0.0) for t in teachers)
    if loss.kind == "siglip" and len(biases) != len(dims):
        raise ConfigError(f"{len(dims)} teachers need as many biases; set loss.teacher_biases")
    return tuple(dims), tuple(float(s) for s in scales if s is not None), tuple(biases)


def _workers(recipe: Recipe) -> int:
    if recipe.data.workers is not None:
        return recipe.data.workers
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(devices.cores() // local - 1, 1)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first_not_finite(state: Mapping[str, torch.Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or an infinity."""
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return name
    return None


def _checked(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics as plain numbers.

    Raises:
        TrainingError: one is not finite.
    """
    found = {str(name): float(value) for name, value in metrics.items()}
    for name, value in found.items():
        if not math.isfinite(value):
            raise TrainingError(f"{name} is {value}")
    return found


def _seed(seed: int, step: int, rank: int) -> None:
    """Make the model's random choices a function of (seed, step, rank)."""
    digest = hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _write(path: Path, text: str) -> None:
    with write_whole(path) as temporary:
        temporary.write_text(text, "utf-8")
