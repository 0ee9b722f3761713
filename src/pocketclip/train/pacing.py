"""When a run reports, saves and stops: means since the last record, a clock, the signals."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from types import FrameType

from pocketclip.train.recipe import Recipe

log = logging.getLogger(__name__)


class Window:
    """What happened since the last record of the log."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}
        self.latest: dict[str, float] = {}
        self.count = 0
        self.waited = self.rate = 0.0
        self.begun = self.counted = time.perf_counter()

    def add(self, terms: Mapping[str, float], norm: float, rate: float) -> None:
        """Take in a step: the terms of its loss, its gradient's norm and its learning rate."""
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
        """How long the steps took."""
        return self.counted - self.begun

    def means(self) -> dict[str, float]:
        """Return the mean of each figure over the steps."""
        # Every name on every rank, also where one rank has none that is a number.
        return {
            name: sum(found) / len(found) if (found := self.sums.get(name)) else 0.0
            for name in self.latest
        }


class Clock:
    """Says when a checkpoint is due."""

    def __init__(self, recipe: Recipe) -> None:
        self.settings = recipe.checkpoint
        self.saved()

    def saved(self) -> None:
        """Begin to count anew."""
        self.time = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint is to be written after so many steps."""
        every, minutes = self.settings.every_steps, self.settings.every_minutes
        if every is not None and step % every == 0:
            return True
        return minutes is not None and time.monotonic() - self.time >= 60 * minutes


@contextlib.contextmanager
def stop_requested() -> Iterator[threading.Event]:
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
