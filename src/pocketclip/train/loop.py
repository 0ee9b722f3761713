"""The training loop: one for reinforced, plain and online-distilled training.

    summary = train(load_recipe("grocery-small", ["data.source=dr"]), "runs/small")

    RUN/recipe.yaml     the resolved recipe
        run.json        versions, machine, the hash of the data's index, one entry per start
        log.jsonl       a record every `log_every` steps
        checkpoints/    see `pocketclip.train.checkpoints`
        model/          the finished model: the best of what was scored, else the last weights;
                        the average of the weights, if one is kept
        selection.json  what was scored, and which of it `model/` is

A step is a pure function of (weights, seed, step, world size): the model's random choices are
seeded per step, and batches are positions in a stream. A run that was killed and resumed ends
with the same weights as one that was not.

Source: MobileCLIP (arXiv 2311.17049), sections 4 and 5.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pocketclip.errors import ConfigError
from pocketclip.train import distributed, logs
from pocketclip.train.checkpoints import Saved
from pocketclip.train.deterministic import deterministic_algorithms
from pocketclip.train.device_feed import feed
from pocketclip.train.initial_model import (
    initial_model,
    warn_of_random_frozen_weights,
    warn_of_single_experts,
)
from pocketclip.train.loader import Batch
from pocketclip.train.optim import learning_rate
from pocketclip.train.pacing import CheckpointClock, agree, stop_requested
from pocketclip.train.phases import phase
from pocketclip.train.profile import OnProfile, StepProfiler, check_profile
from pocketclip.train.recipe import Recipe
from pocketclip.train.reporting import OnLog, Window, report, write_run_files
from pocketclip.train.resume import complete_finished_run, find_checkpoint, restore
from pocketclip.train.run import Run, Summary
from pocketclip.train.save_and_score import CheckpointScorer, OnCheckpoint, save_checkpoint
from pocketclip.train.select_model import (
    Progress,
    begin,
    hand_over,
    patience_of,
    score_before_steps,
)
from pocketclip.train.setup import (
    build_run,
    check_batch_size,
    open_loader,
    seed_step,
)
from pocketclip.train.watchdog import joined
from pocketclip.types import Encoder

__all__ = ["OnCheckpoint", "OnLog", "Summary", "train"]
log = logging.getLogger(__name__)


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
    profile: int | None = None,
    on_profile: OnProfile | None = None,
) -> Summary:
    """Train as `recipe` says, and leave a run folder.

    Args:
        recipe: see `pocketclip.train.recipe`.
        out: the run's folder.
        resume: `auto` resumes from the newest readable checkpoint in `out`, if there is one;
            `no` refuses a folder that holds a run; anything else is the path of a checkpoint, or
            of a run, to resume from.
        device: `cpu`, `cuda`, or `auto`.
        teachers: the live teachers that `recipe.teachers` names, loaded
            (`pocketclip.reinforce.teachers.load_teacher`).
        on_checkpoint: scores each checkpoint after it is written, on the main process, and before
            the first step the weights of `model.init`. None: scored as `recipe.evaluation` says,
            if it is set; otherwise only its `choose` and `patience` are used. An error that it
            raises is logged, and training continues.
        on_log: called with each record of the log, on the main process.
        offline: take the weights of `model.init` from the local cache only.
        profile: number of steps to profile, see `pocketclip.train.profile`; the run goes on
            afterwards. None: none.
        on_profile: called with the profile, on the main process.

    Raises:
        ConfigError: the recipe does not fit the data, the evaluation data or the processes, or
            too few steps are left to profile.
        DataError: the data cannot be read.
        TrainingError: the folder holds another run, the loss is not finite, the disk is full, or
            another process failed.
    """
    if len(teachers) != len(recipe.teachers):
        raise ConfigError(
            f"the recipe names {len(recipe.teachers)} live teachers; {len(teachers)} were given "
            "(load them with pocketclip.reinforce.teachers.load_teacher)"
        )
    folder = Path(out)
    with (
        deterministic_algorithms(recipe.deterministic, device),
        joined(device) as world,
        contextlib.ExitStack() as stack,
    ):
        micro_batch = check_batch_size(recipe, world)
        logs.check_trackers(recipe)

        # Where the run starts: from a checkpoint, or from the first weights.
        saved = find_checkpoint(recipe, folder, resume, stack)
        check_profile(profile, recipe.steps - (saved.step if saved is not None else 0))
        progress = begin(recipe, folder, saved, caller_scores=on_checkpoint is not None)
        if on_checkpoint is None and world.is_main and not progress.complete:
            on_checkpoint = _scorer(recipe)  # before any work: its data may be missing
        trainer_state: dict[str, Any] = {}
        if saved is None:
            model = initial_model(recipe, offline=offline)
            if world.is_main:
                warn_of_random_frozen_weights(recipe)
                warn_of_single_experts(recipe)
        else:
            model, trainer_state = restore(saved, recipe, world)
            if progress.finished:
                return complete_finished_run(
                    recipe, folder, world, saved, model, trainer_state, on_checkpoint, progress
                )

        # The data, and everything that steps.
        loader = open_loader(recipe, world, micro_batch, trainer_state.get("index_hash"))
        stack.enter_context(loader)
        run = build_run(
            recipe, folder, world, model=model, loader=loader, teachers=teachers,
            step=saved.step if saved is not None else 0, trainer_state=trainer_state,
        )  # fmt: skip
        run.last_good = saved.folder if saved is not None else None
        with run.disk_errors_explained():
            unscored = saved if trainer_state.get("score") else None
            profiler = StepProfiler(run, profile, on_profile)
            return _run_steps(run, saved, unscored, progress, on_checkpoint, on_log, profiler)


def _run_steps(
    run: Run,
    saved: Saved | None,
    unscored: Saved | None,
    progress: Progress,
    on_checkpoint: OnCheckpoint | None,
    on_log: OnLog | None,
    profiler: StepProfiler,
) -> Summary:
    """Train from `run.step` to the end, or until the process is asked to stop."""
    recipe, world = run.recipe, run.world
    began = time.monotonic()
    clock = CheckpointClock(recipe.checkpoint)
    selection = progress.selection
    selection.chosen, selection.stopped_early = None, False
    if world.is_main:
        write_run_files(run)
    metrics: dict[str, float] = {}
    stop = False
    with (
        _open_log(run) as writer,
        stop_requested() as stop_event,
        contextlib.closing(
            feed(run.loader.batches(run.step * recipe.accumulate), world.device)
        ) as batches,
        profiler,
    ):
        scorer = CheckpointScorer(on_checkpoint, writer, selection, patience_of(recipe))
        metrics = score_before_steps(run, scorer, saved, unscored, progress)
        clock.restart()
        window = Window()
        while run.step < recipe.steps and not (stop or scorer.out_of_patience):
            # One step: data, gradients, weights.
            profiler.begin()
            with window.waiting_for_data(), phase("data"):
                micro_batches = _next_batches(run, batches)
            seed_step(recipe.seed, run.step, world.rank)
            rate = learning_rate(run.step, recipe.steps, recipe.optimizer.lr, recipe.schedule)
            for group in run.optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)
            run.optimizer.zero_grad(set_to_none=True)
            run.update_weights(run.stepper.backward(micro_batches))
            window.add(rate)
            run.step += 1

            # What follows it, the same on all processes: a record, a checkpoint, the end.
            last = run.step == recipe.steps
            stop, due = agree(stop_event.is_set(), clock.is_due(run.step) or last)
            reported = run.step % recipe.log_every == 0 or last or stop
            if reported or due:
                means = run.check_steps()  # waits for the device
                window.end()
            if reported:
                report(run, window, means, writer, on_log, began)
                window = Window()
            profiler.end()
            if due or stop:
                metrics = save_checkpoint(run, scorer, score=due, later=stop and not last)
                clock.restart()
                window.leave_out_pause()
        if window.count:  # the run ended by its patience, between two records
            report(run, window, run.check_steps(), writer, on_log, began)

    finished = run.step == recipe.steps or scorer.out_of_patience
    if finished:
        selection = hand_over(run.folder, recipe, selection, run.step, run.result)
    return run.summary(
        seconds=time.monotonic() - began,
        metrics=metrics,
        failed_evaluations=scorer.failures,
        interrupted=not finished,
        selection=distributed.on_main(lambda: selection),
    )


def _next_batches(run: Run, batches: Iterator[Batch]) -> list[Batch]:
    """Return the micro-batches of a step; samples that were replaced are counted and named."""
    micro_batches = [next(batches) for _ in range(run.recipe.accumulate)]
    for batch in micro_batches:
        for uid, reason in batch.skipped:
            run.skipped += 1
            log.warning("sample %s was replaced: %s", uid, reason)
        if batch.too_small and not run.too_small:
            log.info(
                "images below data.min_image_side=%d are left out; log.jsonl counts them as "
                "too_small", run.recipe.data.min_image_side,
            )  # fmt: skip
        run.too_small += batch.too_small
    return micro_batches


def _open_log(run: Run) -> contextlib.AbstractContextManager[logs.Log | None]:
    if run.world.is_main:
        return logs.Log(run.folder, run.recipe, run.step)
    return contextlib.nullcontext()


def _scorer(recipe: Recipe) -> OnCheckpoint | None:
    if recipe.evaluation is None:
        return None
    from pocketclip.train.evaluation import make_scorer

    return make_scorer(recipe.evaluation)
