"""When a run saves and when it stops: a clock, and the signals."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from pocketclip.train import distributed
from pocketclip.train.sections import CheckpointSection

log = logging.getLogger(__name__)


class CheckpointClock:
    """Says when a checkpoint is due: every `every_steps` steps and every `every_minutes`."""

    def __init__(self, settings: CheckpointSection) -> None:
        self._settings = settings
        self.restart()

    def restart(self) -> None:
        """Count the minutes from now, as a checkpoint was written."""
        self._began = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Return whether to write a checkpoint after `step` steps."""
        every, minutes = self._settings.every_steps, self._settings.every_minutes
        if every is not None and step % every == 0:
            return True
        return minutes is not None and time.monotonic() - self._began >= 60 * minutes


def agree(stop: bool, save: bool) -> tuple[bool, bool]:
    """Return whether any process wants to stop, and any wants to save: the same on all."""
    stop, save = distributed.any_rank([stop, save])
    return stop, save


@contextlib.contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C or SIGTERM sets; a second one interrupts at once.

    Python handles signals only in the main thread; in other threads the event is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if event.is_set():
            raise KeyboardInterrupt
        event.set()
        log.warning("stopping after this step, with a checkpoint; press again to stop at once")

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
