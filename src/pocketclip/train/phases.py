"""The phases of a training step, and their times if steps are being profiled.

    with phase("loss"):
        ...

Without a profile, `phase` does nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor

from pocketclip.checkpoint.operations import forward_operations
from pocketclip.nn.clip import CLIP

Phase = Literal["data", "copy", "forward", "loss", "backward", "optimizer"]
PHASES: tuple[Phase, ...] = ("data", "copy", "forward", "loss", "backward", "optimizer")
OTHER = "other"
timer_of_run: ContextVar[PhaseTimer | None] = ContextVar("timer_of_run", default=None)


@contextlib.contextmanager
def phase(name: Phase) -> Iterator[None]:
    """Count the time of a block as time of a phase, if steps are being profiled.

    Within another phase, its time counts as its own only. As a decorator, the block is a function.
    """
    timer = timer_of_run.get()
    if timer is None:
        yield
        return
    before = timer.current
    with torch.profiler.record_function(name):
        timer.switch(name)
        try:
            yield
        finally:
            timer.switch(before)


def count_forward(images: Tensor, ids: Tensor) -> None:
    """Count the operations of a forward pass, if steps are being profiled.

    Args:
        images: (B, 3, S, S).
        ids: token ids (texts, T).
    """
    timer = timer_of_run.get()
    if timer is not None:
        timer.count(len(images), *ids.shape)


class PhaseTimer:
    """Seconds by phase, and the operations of forward and backward passes.

    There is one current phase at each moment, so that the phases add up to the whole.
    """

    def __init__(self, device: torch.device, model: CLIP) -> None:
        self._device, self._config = device, model.config
        # The backward pass computes a product for the weights and one for the inputs.
        self._trained = {
            name: any(weight.requires_grad for weight in tower.parameters())
            for name, tower in (("image", model.image), ("text", model.text))
        }
        self._marks: list[tuple[str | None, Any]] = []
        self._passes: list[tuple[int, int, int, bool]] = []
        self.current: str | None = None

    def switch(self, name: str | None) -> None:
        """Begin a phase and end the current one; None: what follows is not counted."""
        self.current = name
        self._marks.append((name, self._mark()))

    def count(self, images: int, texts: int, tokens: int) -> None:
        """Note a forward pass; one with gradients has a backward pass."""
        self._passes.append((images, texts, tokens, torch.is_grad_enabled()))

    def operations(self) -> int:
        """Return the operations so far: of forward passes, and twice that of backward passes."""
        total = 0
        for images, texts, tokens, differentiated in self._passes:
            each = forward_operations(self._config, tokens=tokens, fused=False)
            for tower, count in (("image", images * each.image), ("text", texts * each.text)):
                total += count * (3 if differentiated and self._trained[tower] else 1)
        return total

    def seconds(self) -> dict[str, float]:
        """Return the seconds by phase so far; waits for the device."""
        if self._is_cuda():
            torch.cuda.synchronize(self._device)
        total: dict[str, float] = {}
        for (name, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            if name is not None:
                elapsed = start.elapsed_time(end) / 1000 if self._is_cuda() else end - start
                total[name] = total.get(name, 0.0) + elapsed
        return total

    def _is_cuda(self) -> bool:
        return self._device.type == "cuda"

    def _mark(self) -> Any:
        if self._is_cuda():
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
            return event
        if self._device.type != "cpu":  # its kernels run after the host has gone on
            torch.accelerator.synchronize(self._device)
        return time.perf_counter()
