"""Lets work end between two of its steps when it is interrupted, rather than within one."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

PATIENCE = 5.0
"""Seconds: most people press Ctrl-C twice."""
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class HeldInterrupts:
    """Notes Ctrl-C and the like; the block looks at `pending` between its steps.

    One that comes `PATIENCE` seconds after the first takes effect at once, in case a step never
    ends. In other threads than the main one, which signals do not reach, and for signals without a
    handler in Python, nothing changes.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._before: dict[int, Any] = {}

    @property
    def pending(self) -> bool:
        """Whether the block has been asked to end."""
        return self._first is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._first is None:
            self._first = time.monotonic()
        elif time.monotonic() > self._first + PATIENCE:
            self._before[number](number, frame)

    def __enter__(self) -> HeldInterrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)):
                handler = signal.getsignal(number)
                if callable(handler):
                    self._before[number] = handler
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
