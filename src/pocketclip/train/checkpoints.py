"""The checkpoint files of a run: written whole, verified by hash, listed and removed.

RUN/checkpoints/step-00001000/
config.json         the model, as in every checkpoint of ours
model.safetensors
LICENCE.txt         of the weights that the run began with, if it is known
trainer.pt          optimiser, average, counts: tensors and plain values only
checkpoint.json     step, metrics, and the hashes of the other files
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pocketclip import checkpoint, license
from pocketclip.checkpoint.folder import write_files
from pocketclip.errors import DISK_FULL, CheckpointError, TrainingError
from pocketclip.formats.json_text import read_json
from pocketclip.nn.clip import CLIP
from pocketclip.storage import local as files
from pocketclip.storage.local import digest_file, write_whole, write_whole_folder

FOLDER = "checkpoints"
_TRAINER = "trainer.pt"
_SEAL = "checkpoint.json"
log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Saved:
    """A complete checkpoint."""

    folder: Path
    step: int
    metrics: dict[str, float] = field(default_factory=dict)


def checkpoint_dir(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` steps."""
    return run / FOLDER / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """Return the step of a checkpoint's folder, by its name."""
    return int(folder.name.removeprefix("step-"))


def is_of(saved: Saved, run: Path) -> bool:
    """Return whether a checkpoint stands in this run's folder."""
    return saved.folder.resolve().parent.parent == run.resolve()


def save(run: Path, step: int, model: CLIP, trainer: Mapping[str, Any]) -> Saved:
    """Write a checkpoint whole or not at all; other checkpoints stay as they are.

    Args:
        run: the run's folder.
        step: number of steps done.
        model: the model as it trains, not the average.
        trainer: everything else that resuming needs, see `Run.trainer_state`.

    Raises:
        TrainingError: the disk is full or cannot be written to; the message names the last good
            checkpoint.
    """
    target = checkpoint_dir(run, step)
    try:
        with write_whole_folder(target, own_files) as folder:
            write_files(model, folder)
            torch.save(dict(trainer), folder / _TRAINER)
            hashes = {f.name: digest_file(f) for f in sorted(folder.iterdir())}
            (folder / _SEAL).write_text(_seal(step, hashes, {}), "utf-8")
    except (OSError, RuntimeError) as error:
        if "DataLoader worker" in str(error):  # torch raises it in any code that runs at the time
            raise
        # torch reports a failed write as a RuntimeError, safetensors with its own class.
        raise TrainingError(_not_written(run, target, error)) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "safetensors":
            raise
        raise TrainingError(_not_written(run, target, error)) from error
    return Saved(folder=target, step=step)


def own_files(folder: Path) -> set[str]:
    """Return the names of a checkpoint's files, which another checkpoint may replace."""
    del folder
    return {checkpoint.CONFIG, checkpoint.WEIGHTS, _TRAINER, _SEAL, license.FILE}


def record_metrics(saved: Saved, metrics: Mapping[str, float]) -> None:
    """Write a checkpoint's metrics into it.

    Raises:
        OSError: they cannot be written; the checkpoint is unchanged.
    """
    hashes = read_json(saved.folder / _SEAL)["sha256"]
    with write_whole(saved.folder / _SEAL) as temporary:
        temporary.write_text(_seal(saved.step, hashes, metrics), "utf-8")


def _seal(step: int, hashes: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    facts = {"step": step, "metrics": dict(metrics), "sha256": dict(hashes)}
    return json.dumps(facts, indent=1) + "\n"


def _not_written(run: Path, target: Path, error: Exception) -> str:
    full = getattr(error, "errno", None) in DISK_FULL
    full = full or "No space left" in str(error)
    last = newest(run)
    good = f"the last good one is {last.folder}" if last else "there is no earlier one"
    reason = "the disk is full" if full else " ".join(str(error).split())
    return (
        f"{target}: the checkpoint could not be written ({reason}); {good}; free some space "
        "and resume"
    )


def find(run: Path) -> list[Path]:
    """Return the folders of a run's checkpoints, newest first, complete or not."""
    folders = sorted((run / FOLDER).glob("step-*"), reverse=True)
    return [f for f in folders if any((f / name).exists() for name in own_files(f))]


def check(folder: Path) -> Saved:
    """Verify the hash of every file in a checkpoint's folder, and return the checkpoint.

    Raises:
        CheckpointError: a file is missing, truncated or changed.
    """
    try:
        seal = read_json(folder / _SEAL)
        hashes, step = dict(seal["sha256"]), int(seal["step"])
        metrics = {str(k): float(v) for k, v in seal["metrics"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / _SEAL} is missing or damaged") from error
    for name, expected in hashes.items():
        file = folder / Path(name).name
        if not file.is_file() or digest_file(file) != expected:
            raise CheckpointError(f"{file} is missing, truncated or changed")
    if not {_TRAINER, checkpoint.CONFIG, checkpoint.WEIGHTS} <= hashes.keys():
        raise CheckpointError(f"{folder} is not a checkpoint of a run")
    return Saved(folder=folder, step=step, metrics=metrics)


def remove_abandoned(run: Path) -> None:
    """Remove half-written files of killed processes from a run."""
    files.remove_abandoned(run)
    files.remove_abandoned(run / FOLDER)
    for folder in (run / FOLDER).glob("step-*"):
        files.remove_abandoned(folder)
        with contextlib.suppress(OSError):  # removes only empty ones, which a killed `prune` left
            folder.rmdir()


def newest(run: Path) -> Saved | None:
    """Return a run's newest intact checkpoint; None if there is none. Damaged ones are logged."""
    for folder in find(run):
        try:
            return check(folder)
        except CheckpointError as error:
            log.warning("%s; trying an older checkpoint", error)
    return None


def load(saved: Saved) -> tuple[CLIP, dict[str, Any]]:
    """Return a checkpoint's model and its trainer state.

    Raises:
        CheckpointError: it cannot be read.
    """
    model = checkpoint.load(saved.folder)
    try:
        trainer = torch.load(saved.folder / _TRAINER, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler may raise anything on a forged file
        raise CheckpointError(f"{saved.folder / _TRAINER} cannot be read: {error}") from error
    if not isinstance(trainer, dict):
        raise CheckpointError(f"{saved.folder / _TRAINER} does not hold a trainer state")
    return model, trainer


def load_scored(saved: Saved) -> CLIP:
    """Return a checkpoint's model as it was scored: with the averaged weights, if there are any.

    Raises:
        CheckpointError: it cannot be read.
    """
    model, trainer = load(saved)
    return with_average(model, trainer)


def with_average(model: CLIP, trainer: Mapping[str, Any]) -> CLIP:
    """Return a checkpoint's model with the averaged weights of its trainer state, if any."""
    if trainer["average"] is not None:
        model.load_state_dict(trainer["average"]["state"])
    return model


def prune(run: Path, step: int, keep_last: int, *, keep: int | None = None) -> None:
    """Remove all checkpoints but the last `keep_last` and the one of the step `keep`.

    Checkpoints after `step`, which was just saved, are damaged or were not resumed from.
    """
    folders = find(run)
    later = [folder for folder in folders if folder > checkpoint_dir(run, step)]
    for folder in later:
        _discard(folder)
    kept = checkpoint_dir(run, keep) if keep is not None else None
    for folder in folders[len(later) + keep_last :]:
        if folder != kept:
            _discard(folder)


def _discard(folder: Path) -> None:
    """Remove a checkpoint's files, and its folder unless it holds other files."""
    # `checkpoint.json` first: it makes the others count.
    for name in sorted(own_files(folder), key=lambda name: (name != _SEAL, name)):
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    files.remove_abandoned(folder)
    with contextlib.suppress(OSError):
        folder.rmdir()
