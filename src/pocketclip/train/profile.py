"""Where the time of a training step goes: seconds by phase, a trace, and operations per second.

    with StepProfiler(run, steps=10, on_profile=show) as profiler:
        while ...:
            profiler.begin()
            ...  # a step, with `phase` around its parts
            profiler.end()

    RUN/profile/profile.json    the means over the steps
                trace.json      the two steps after them, for chrome://tracing or ui.perfetto.dev

The steps that are timed are not traced, as tracing slows them down. On CUDA, the times are those
between events on the computing stream: a wait for data counts only where the GPU has nothing to
do. On other devices they are the host's.
"""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar, Token
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pocketclip.checkpoint.operations import forward_operations
from pocketclip.devices import peak_operations
from pocketclip.errors import ConfigError
from pocketclip.storage.local import write_whole

if TYPE_CHECKING:
    from pocketclip.nn.clip import CLIP
    from pocketclip.train.run import Run

Phase = Literal["data", "copy", "forward", "loss", "backward", "optimizer"]
PHASES: tuple[Phase, ...] = ("data", "copy", "forward", "loss", "backward", "optimizer")
OTHER = "other"
WARM_UP = 3
"""Steps before: they compile, choose kernels and allocate memory."""
TRACED = 2
"""Steps after, which are traced."""
FOLDER = "profile"
"""The folder of the profile's files, within the run's."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The means of some steps of one process."""

    first_step: int
    """The number of the first of the steps, from 1."""
    steps: int
    samples: int
    """Samples of a step and process."""
    device: str
    dtype: str
    milliseconds: dict[str, float]
    """Of a step, by phase, `other` included."""
    operations: float | None
    """Floating-point operations of a step and process; None for captioners."""
    peak: float | None
    """Operations per second of the device in this dtype; None: not known."""

    @property
    def total(self) -> float:
        """Milliseconds of a step."""
        return sum(self.milliseconds.values())

    @property
    def operations_per_second(self) -> float | None:
        """Operations per second; None if they are not counted."""
        return None if self.operations is None else 1000 * self.operations / self.total

    @property
    def share_of_peak(self) -> float | None:
        """Operations per second as a fraction of the device's peak; None if one is not known."""
        achieved = self.operations_per_second
        return None if achieved is None or self.peak is None else achieved / self.peak

    def as_json(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return asdict(self) | {
            "milliseconds_per_step": self.total,
            "samples_per_second": 1000 * self.samples / self.total,
            "operations_per_second": self.operations_per_second,
            "share_of_peak": self.share_of_peak,
        }


OnProfile = Callable[[Profile], None]
"""Called with the profile once it is complete, on the main process."""
_timer: ContextVar[_PhaseTimer | None] = ContextVar("_timer", default=None)


@contextlib.contextmanager
def phase(name: Phase) -> Iterator[None]:
    """Count the time of a block as time of a phase, if steps are being profiled.

    Within another phase, its time counts as its own only. As a decorator, the block is a function.
    """
    timer = _timer.get()
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
    timer = _timer.get()
    if timer is not None:
        timer.count(len(images), *ids.shape)


def check_profile(steps: int | None, left: int) -> None:
    """Check that a run can be profiled.

    Args:
        steps: number of steps to profile; None: it is not profiled.
        left: steps that the run has left.

    Raises:
        ConfigError: `steps` is not above 0, or the run has too few left.
    """
    if steps is None:
        return
    if steps < 1:
        raise ConfigError(f"the number of steps to profile must be 1 or more, not {steps}")
    needed = WARM_UP + steps + TRACED
    if needed > left:
        raise ConfigError(
            f"profiling {steps} steps takes {needed} ({WARM_UP} before them to warm up, {TRACED} "
            f"after them to trace), and the run has {left} left; profile fewer, or train longer "
            "(--set steps=N) in another folder"
        )


class StepProfiler:
    """Times and traces some steps of a run; a context manager around all of them.

    Only the main process is profiled. Nothing is written unless all steps are done.

    Args:
        run: its model, device and folder.
        steps: number of steps to time; None: `begin` and `end` do nothing.
        on_profile: called with the result.
    """

    def __init__(self, run: Run, steps: int | None, on_profile: OnProfile | None) -> None:
        self._run, self._on_profile = run, on_profile
        self._steps = steps if run.world.is_main else None
        self._done = 0
        self._profile: Profile | None = None
        self._timer: _PhaseTimer | None = None
        self._token: Token[_PhaseTimer | None] | None = None
        self._tracer: torch.profiler.profile | None = None

    def __enter__(self) -> StepProfiler:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        unfinished = self._steps is not None
        self._stop()
        if self._tracer is not None:
            self._tracer.stop()
        if unfinished and error is None:
            log.warning("the run ended before the steps to profile were done: there is no profile")

    def begin(self) -> None:
        """Begin a step."""
        if self._steps is None:
            return
        if self._done == WARM_UP:
            self._timer = _PhaseTimer(self._run.world.device, self._run.model)
            self._token = _timer.set(self._timer)
        if self._done == WARM_UP + self._steps:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            if self._run.world.device.type == "cuda":
                kinds.append(torch.profiler.ProfilerActivity.CUDA)
            self._tracer = torch.profiler.profile(activities=kinds)
            self._tracer.start()
        if self._timer is not None:
            self._timer.switch(OTHER)

    def end(self) -> None:
        """End a step."""
        if self._steps is None:
            return
        self._done += 1
        if self._timer is not None:
            self._timer.switch(None)
        if self._done == WARM_UP + self._steps:
            self._profile = self._result()
        if self._done == WARM_UP + self._steps + TRACED:
            self._stop()
            self._write()

    def _stop(self) -> None:
        self._steps = self._timer = None
        if self._token is not None:
            _timer.reset(self._token)
            self._token = None

    def _result(self) -> Profile:
        run, timer = self._run, self._timer
        assert timer is not None
        assert self._steps is not None
        device, dtype = run.world.device, str(run.stepper.dtype).removeprefix("torch.")
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        seconds = timer.seconds()
        return Profile(
            first_step=run.step - self._steps + 1,
            steps=self._steps,
            samples=run.recipe.batch_size // run.world.size,
            device=f"{name} ({platform.machine()})" if device.type == "cpu" else name,
            dtype=dtype,
            milliseconds={
                key: 1000 * seconds.get(key, 0.0) / self._steps for key in (*PHASES, OTHER)
            },
            operations=None if run.model.config.is_captioner else timer.operations() / self._steps,
            peak=peak_operations(name, dtype),
        )

    def _write(self) -> None:
        assert self._tracer is not None
        assert self._profile is not None
        tracer, self._tracer = self._tracer, None
        tracer.stop()
        folder = self._run.folder / FOLDER
        folder.mkdir(exist_ok=True)
        with write_whole(folder / "trace.json") as path:
            tracer.export_chrome_trace(str(path))
        with write_whole(folder / "profile.json") as path:
            path.write_text(json.dumps(self._profile.as_json(), indent=1) + "\n", "utf-8")
        log.info("profiled %d steps, see %s", self._profile.steps, folder)
        if self._on_profile is not None:
            self._on_profile(self._profile)


class _PhaseTimer:
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
