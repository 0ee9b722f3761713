"""The training loop: one for reinforced, plain and online-distilled training.

    summary = train(load_recipe("grocery-small", ["data.source=dr"]), "runs/small")

    RUN/recipe.yaml     the resolved recipe
        run.json        versions, machine, the data's index hash, one entry per start
        log.jsonl       a record every `log_every` steps
        checkpoints/    see `pocketclip.train.saving`
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
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from pocketclip import __version__, checkpoint, devices, locks
from pocketclip.errors import CheckpointError, ConfigError, PocketclipError, TrainingError
from pocketclip.files import remove_abandoned, write_whole
from pocketclip.nn.clip import CLIP, build
from pocketclip.train import distributed, saving
from pocketclip.train import recipe as recipes
from pocketclip.train.data import DataConfig, Loader
from pocketclip.train.distributed import World
from pocketclip.train.logs import Log
from pocketclip.train.optim import (
    WeightAverage,
    learning_rate,
    make_optimizer,
    parameter_groups,
)
from pocketclip.train.recipe import Recipe
from pocketclip.train.step import Stepper
from pocketclip.types import Encoder

OnCheckpoint = Callable[[CLIP, int], Mapping[str, float]]
"""Takes the model (the average, where one is kept) and the step; returns metrics by name, of
which `main_metric` decides which checkpoint is the best."""
OnLog = Callable[[Mapping[str, Any]], None]
RECIPE, RUN, MODEL = "recipe.yaml", "run.json", checkpoint.RUN_MODEL
# May differ between the parts of a run that is resumed: they do not decide what is learnt.
_FREE = ("about", "log_every", "tensorboard", "wandb", "checkpoint.", "evaluation", "data.workers",
         "data.cache_dir", "data.source")  # fmt: skip
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
) -> Summary:
    """Train as `recipe` says, and leave a run folder.

    Args:
        recipe: see `pocketclip.train.recipe`.
        out: the run's folder.
        resume: `auto` goes on from the newest readable checkpoint in `out`, if there is one;
            `no` refuses a folder that holds a run; else the path of a checkpoint to go on from.
        device: `cpu`, `cuda`, or `auto`.
        teachers: the live teachers that `recipe.teachers` names, loaded.
        on_checkpoint: called where a checkpoint is written, on the main process.
        on_log: called with each record of the log, on the main process.

    Raises:
        ConfigError: a recipe that does not fit the data or the processes.
        DataError: data that cannot be read.
        TrainingError: a folder that holds another run, a loss that is no number, a full disk.
    """
    if len(teachers) != len(recipe.teachers):
        raise ConfigError(
            f"the recipe names {len(recipe.teachers)} live teachers; {len(teachers)} were given"
        )
    joined_before = distributed.world_size() > 1
    world = distributed.start(str(devices.place(device)) if device == "auto" else device)
    try:
        run = _Run(recipe, Path(out), world, teachers, on_checkpoint, on_log)
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


def first_model(recipe: Recipe) -> CLIP:
    """Return the model that a run begins with: random weights from the seed, or `model.init`.

    Raises:
        CheckpointError: `model.init` does not fit the configuration.
    """
    config = recipe.model.config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = build(config)
        if recipe.loss.kind == "siglip":
            with torch.no_grad():
                model.logit_scale.fill_(math.log(10))  # arXiv 2303.15343, section 3.2
    if recipe.model.init is not None:
        loaded = checkpoint.load(recipe.model.init, None)
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
    ) -> None:
        self.recipe, self.out, self.world = recipe, out, world
        self.teachers = teachers
        self.on_checkpoint, self.on_log = on_checkpoint, on_log
        self.held = contextlib.ExitStack()
        """What is held until the end: the run's folder, on the main process."""
        self.step = self.skipped = 0
        self.last_good: Path | None = None
        share = world.size * recipe.accumulate
        if recipe.batch_size % share:
            raise ConfigError(
                f"batch_size {recipe.batch_size} does not divide by {world.size} processes x "
                f"{recipe.accumulate} micro-batches"
            )
        self.micro_batch = recipe.batch_size // share

    # --- setting up

    def go(self, resume: str) -> Summary:
        saved = self._found(resume)
        trainer: dict[str, Any] = {}
        if saved is None:
            model = first_model(self.recipe)
        else:
            model, trainer = self._restored(saved)
        if saved is not None and self.step >= self.recipe.steps:
            return self._finished_before(saved, model, trainer)
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
        if self.world.is_main and not (self.out / MODEL / checkpoint.CONFIG).is_file():
            # It was killed after its last checkpoint, or goes on from a finished one elsewhere.
            if trainer["average"] is not None:
                model.load_state_dict(trainer["average"]["state"])
            checkpoint.save(model, self.out / MODEL)
        if self.world.is_main and saved.folder.parent.parent == self.out:
            self._prune()  # the process was killed before it did
        distributed.barrier()
        return Summary(
            run=self.out, step=self.step, steps=self.recipe.steps,
            samples=self.step * self.recipe.batch_size, seconds=0.0, skipped=self.skipped,
            metrics=saved.metrics, best=saving.best(self.out), model=self.out / MODEL,
        )  # fmt: skip

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
        dtype = devices.number_type(recipe.precision, world.device)
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
        clock = _Clock(recipe)
        if main:
            self._begin()
        metrics: dict[str, float] = {}
        with contextlib.ExitStack() as stack:
            writer = stack.enter_context(Log(self.out, recipe, self.step)) if main else None
            stopped = stack.enter_context(_signals())
            batches = self.loader.batches(self.step * recipe.accumulate)
            stack.callback(getattr(batches, "close", lambda: None))
            window = _Window()
            while self.step < recipe.steps:
                self._one(batches, window)
                ends = self.step == recipe.steps
                stop, save = self._agreed(stopped.is_set(), clock.is_due(self.step) or ends)
                if self.step % recipe.log_every == 0 or ends or stop:
                    self._report(window, writer, time.monotonic() - begun)
                    window = _Window()
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

    def _one(self, batches: Iterator[Any], window: _Window) -> None:
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
        if not wrong:
            return
        raise TrainingError(
            f"{wrong[0]} is {latest[wrong[0]]} at step {self.step}; {self._good()}. Go on from a "
            "checkpoint in another folder (--resume CHECKPOINT --out OTHER), with a lower "
            "optimizer.lr or with precision=float32"
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
                starts = list(json.loads(path.read_text("utf-8"))["starts"])
        starts.append(
            {
                "step": self.step,
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "processes": self.world.size,
                "device": self.world.device.type,
                "precision": str(self.stepper.dtype).removeprefix("torch."),
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

    def _report(self, window: _Window, writer: Log | None, seconds: float) -> None:
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
        metrics, problem = distributed.broadcast_object((metrics, problem))
        if problem is not None:
            raise problem
        return metrics

    def _saved(self, writer: Log | None, score: bool, skipped: int) -> dict[str, float]:
        metrics: dict[str, float] = {}
        # Before it is scored: an evaluation that fails costs nothing of what was learnt.
        saved = saving.save(self.out, self.step, self.model, self._state(skipped))
        self.last_good = saved.folder
        if self.on_checkpoint is not None and score:
            metrics = dict(self.on_checkpoint(self._result(), self.step))
            self.model.train()
            saving.annotate(saved, metrics)
            if writer is not None:
                writer.write({"step": self.step, **{f"eval/{k}": v for k, v in metrics.items()}})
        self._prune()
        return metrics

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
            interrupted=interrupted, skipped=self._skipped_by_all(), metrics=metrics,
            best=saving.best(self.out), model=None if interrupted else self.out / MODEL,
        )  # fmt: skip


class _Window:
    """What happened since the last record of the log."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}
        self.latest: dict[str, float] = {}
        self.count = 0
        self.waited = self.rate = 0.0
        self.begun = self.counted = time.perf_counter()

    def add(self, terms: Mapping[str, float], norm: float, rate: float) -> None:
        self.latest = {"loss": sum(terms.values()), **terms, "grad_norm": norm}
        for name, value in self.latest.items():
            if math.isfinite(value):  # in float16 a gradient may overflow, and is left out
                self.sums.setdefault(name, []).append(value)
        self.count += 1
        self.rate = rate
        self.counted = time.perf_counter()

    def restart(self) -> None:
        """Leave the time since the last step out: it went into a checkpoint."""
        self.begun += time.perf_counter() - self.counted

    @property
    def seconds(self) -> float:
        return self.counted - self.begun

    def means(self) -> dict[str, float]:
        # Every name on every rank, also where one rank has none that is a number.
        return {
            name: sum(found) / len(found) if (found := self.sums.get(name)) else 0.0
            for name in self.latest
        }


class _Clock:
    """Says when a checkpoint is due."""

    def __init__(self, recipe: Recipe) -> None:
        self.settings = recipe.checkpoint
        self.saved()

    def saved(self) -> None:
        self.time = time.monotonic()

    def is_due(self, step: int) -> bool:
        every, minutes = self.settings.every_steps, self.settings.every_minutes
        if every is not None and step % every == 0:
            return True
        return minutes is not None and time.monotonic() - self.time >= 60 * minutes


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
    biases = loss.teacher_biases or tuple(getattr(t, "logit_bias", 0.0) for t in teachers)
    if loss.kind == "siglip" and len(biases) != len(dims):
        raise ConfigError(f"{len(dims)} teachers need as many biases; set loss.teacher_biases")
    return tuple(dims), tuple(float(s) for s in scales if s is not None), tuple(biases)


def _workers(recipe: Recipe) -> int:
    if recipe.data.workers is not None:
        return recipe.data.workers
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(devices.cores() // local - 1, 1)


def _seed(seed: int, step: int, rank: int) -> None:
    """Make the model's random choices a function of (seed, step, rank)."""
    digest = hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _write(path: Path, text: str) -> None:
    with write_whole(path) as temporary:
        temporary.write_text(text, "utf-8")


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C (or SIGTERM) sets; the second one ends at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()
        log.warning("stopping after this step, with a checkpoint; once more to stop at once")

    old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
