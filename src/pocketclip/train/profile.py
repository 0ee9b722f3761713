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

import json
import logging
import platform
from collections.abc import Callable
from contextvars import Token
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import torch

from pocketclip.devices import peak_operations
from pocketclip.errors import ConfigError
from pocketclip.storage.local import write_whole
from pocketclip.train.phases import OTHER, PHASES, PhaseTimer, timer_of_run
from pocketclip.train.run import Run, dtype_name

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
        self._timer: PhaseTimer | None = None
        self._token: Token[PhaseTimer | None] | None = None
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
            self._timer = PhaseTimer(self._run.world.device, self._run.model)
            self._token = timer_of_run.set(self._timer)
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
            timer_of_run.reset(self._token)
            self._token = None

    def _result(self) -> Profile:
        run, timer = self._run, self._timer
        assert timer is not None
        assert self._steps is not None
        device, dtype = run.world.device, dtype_name(run.stepper.dtype)
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
