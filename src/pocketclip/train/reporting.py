"""What a run reports: `run.json` when it starts, a record of the log every `log_every` steps."""

from __future__ import annotations

import contextlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from pocketclip._version import __version__
from pocketclip.formats.json_text import read_json
from pocketclip.storage.local import write_whole
from pocketclip.train import distributed
from pocketclip.train import recipe as recipes
from pocketclip.train.logs import Log
from pocketclip.train.run import Run, dtype_name

RECIPE, RUN = "recipe.yaml", "run.json"
OnLog = Callable[[Mapping[str, Any]], None]
"""Called with each record of the log and the run's `steps`, on the main process."""


class Window:
    """The steps since the last record of the log."""

    def __init__(self) -> None:
        self.count = 0
        self.data_seconds = self.learning_rate = 0.0
        self.began = self.ended = time.perf_counter()

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time of the block as time spent waiting for data."""
        began = time.perf_counter()
        yield
        self.data_seconds += time.perf_counter() - began

    def add(self, learning_rate: float) -> None:
        """Add a step, of this learning rate; a GPU may still be busy with it."""
        self.count += 1
        self.learning_rate = learning_rate

    def end(self) -> None:
        """Note that the steps so far are done."""
        self.ended = time.perf_counter()

    def leave_out_pause(self) -> None:
        """Leave out the time since the last `end`, which went into a checkpoint."""
        now = time.perf_counter()
        self.began += now - self.ended
        self.ended = now

    @property
    def seconds(self) -> float:
        """The duration of the steps, data loading included."""
        return self.ended - self.began


def write_run_files(run: Run) -> None:
    """Write `recipe.yaml`, and add this start to `run.json`, before the first step."""
    run.folder.mkdir(parents=True, exist_ok=True)
    _write(run.folder / RECIPE, recipes.dump(run.recipe))
    path = run.folder / RUN
    starts = []
    if path.is_file():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            starts = list(read_json(path)["starts"])
    starts.append(
        {
            "step": run.step,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "processes": run.world.size,
            "device": run.world.device.type,
            "precision": dtype_name(run.stepper.dtype),
            "pocketclip": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": platform.platform(),
        }
    )
    facts = {
        "samples": run.loader.samples,
        "index_hash": run.loader.index_hash,
        "teachers": [*run.loader.teacher_names, *run.recipe.teachers],
        "captioners": list(run.loader.captioner_names),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "starts": starts,
    }
    _write(path, json.dumps(facts, indent=1) + "\n")


def report(
    run: Run,
    window: Window,
    means: Mapping[str, float],
    log: Log | None,
    on_log: OnLog | None,
    began: float,
) -> None:
    """Write a record of the steps in `window`, and begin new means; all processes must call it.

    Args:
        run: the run after its last step.
        window: the steps since the last record.
        means: of this process, from `Run.check_steps`.
        log: None on all processes but the main one.
        on_log: called with the record and `steps`.
        began: when this start began, by `time.monotonic`.
    """
    seconds = time.monotonic() - began
    run.values.restart()
    means = distributed.average(dict(means))
    skipped, too_small = run.replaced_by_all()
    routing = run.stepper.routing
    experts = routing.record() if routing is not None else {}
    if log is None:
        return
    recipe = run.recipe
    rate = window.count * recipe.batch_size / max(window.seconds, 1e-9)
    samples = run.step * recipe.batch_size
    record: dict[str, Any] = {
        "step": run.step,
        "samples": samples,
        "epoch": round(samples / max(run.loader.samples, 1), 4),
        **{name: round(value, 6) for name, value in means.items()},
        "lr": window.learning_rate,
        "logit_scale": round(float(run.model.logit_scale.detach().exp()), 4),
        "samples_per_second": round(rate, 2),
        "data_wait": round(window.data_seconds / max(window.seconds, 1e-9), 4),
        "skipped": skipped,
        **({"too_small": too_small} if recipe.data.min_image_side else {}),
        **({"experts": experts} if experts else {}),
        "seconds": round(seconds, 2),
        "seconds_left": round((recipe.steps - run.step) * recipe.batch_size / rate, 1),
    }
    log.write(record)
    if on_log is not None:
        on_log({**record, "steps": recipe.steps})


def _write(path: Path, text: str) -> None:
    with write_whole(path) as temporary:
        temporary.write_text(text, "utf-8")
