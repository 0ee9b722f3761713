"""What fits into a number of minutes, by a rate that is measured on this machine.

    rate = measure_rate(recipe, seconds=4)      # samples per second, of training as it will run
    steps_within(300, rate, recipe.batch_size)  # optimiser steps

Measured numbers differ from one call to the next, so whatever is decided by them is recorded, and
a resumed quickstart reads it: see `Decisions`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pocketclip import devices
from pocketclip.errors import ConfigError
from pocketclip.formats.json_text import read_json
from pocketclip.storage.local import write_whole
from pocketclip.storage.temporary import TemporaryFolder
from pocketclip.train.loop import train
from pocketclip.train.recipe import Recipe, load_recipe

LEAST_MINUTES, MOST_MINUTES = 0.2, 600.0
PLAN = "plan.json"
_LEAST_STEPS = 12
_WARM_UP_STEPS = 10_000


def check_minutes(minutes: float) -> None:
    """Refuse a time budget out of range.

    Raises:
        ConfigError: it is.
    """
    if not LEAST_MINUTES <= minutes <= MOST_MINUTES:
        raise ConfigError(
            f"--minutes is {minutes:g}; it must be from {LEAST_MINUTES:g} to {MOST_MINUTES:g}"
        )


class Decisions:
    """What was decided by measured numbers, in `plan.json`.

    Args:
        folder: the quickstart's; decisions of an earlier call are read.

    Raises:
        ConfigError: the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / PLAN
        self.values: dict[str, Any] = {}
        if self._path.is_file():
            try:
                self.values = dict(read_json(self._path))
            except (ValueError, TypeError) as error:
                raise ConfigError(f"{self._path} is damaged; choose another --out") from error

    def __call__(self, name: str, decide: Callable[[], Any]) -> Any:
        """Return the recorded decision, or make it now and record it: a value of JSON types."""
        if name not in self.values:
            self.values[name] = decide()
            with write_whole(self._path) as temporary:
                temporary.write_text(json.dumps(self.values, indent=1) + "\n", "utf-8")
        return self.values[name]


class Clock:
    """The time left of a budget in seconds, less what the end needs."""

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes
        self._began = time.monotonic()

    def left(self) -> float:
        """Return the seconds left; never below a twentieth of the budget."""
        reserve = 2 + 0.04 * self.seconds  # the last evaluation and the report
        gone = time.monotonic() - self._began
        return max(self.seconds - reserve - gone, self.seconds / 20)


def steps_within(seconds: float, rate: float, batch_size: int, *, scored: int = 0) -> int:
    """Return the number of steps that fit into a time.

    Args:
        seconds: the time.
        rate: samples per second.
        batch_size: samples per step.
        scored: images that all evaluations of checkpoints together encode. Encoding takes a third
            of the time of training, and as much again for decoding.
    """
    return max(_LEAST_STEPS, int((seconds * rate - 0.5 * scored) / batch_size))


class _EnoughError(Exception):
    """Ends a measurement."""


def measure_rate(recipe: Recipe, seconds: float) -> float:
    """Return the samples per second of a training: its data, its loader, this machine's cores.

    Args:
        recipe: what will be trained; nothing of it is kept.
        seconds: how long to measure, from the end of the first step.

    Raises:
        PocketclipError: as `pocketclip.train.loop.train`.
    """
    times: list[float] = []

    def on_log(_record: Mapping[str, Any]) -> None:
        times.append(time.monotonic())
        if len(times) >= 3 and times[-1] - times[0] >= seconds:
            raise _EnoughError

    trial = load_recipe(
        recipe.model_dump(mode="json"),
        {
            "steps": _WARM_UP_STEPS, "log_every": 1, "tensorboard": False, "evaluation": None,
            "checkpoint.every_steps": None, "checkpoint.every_minutes": None,
        },
    )  # fmt: skip
    folder = TemporaryFolder.scratch("rate")
    try:
        train(trial, folder.path / "run", on_log=on_log)
    except _EnoughError:
        pass
    finally:
        folder.remove()
    return (len(times) - 1) * recipe.batch_size / (times[-1] - times[0])


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute with this number of threads in the block: results depend on it."""
    torch = devices.need_torch()
    before = torch.get_num_threads()
    devices.set_threads(count)
    try:
        yield
    finally:
        devices.set_threads(before)
