"""What the rows of `gpu.py` share: the deadline, timing, cosines, the device's rate, data.

Shapes: B batch, D embedding, T tokens.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import platform
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

import loader as loader_benchmark
from pocketclip import devices
from pocketclip.augment import Augmentation
from pocketclip.errors import first_line
from processor import describe_processor
from train_step import measure, ratio

SIDE = 8192  # of the matrices whose product measures the device's rate
SAMPLES = 512  # of the data that the benchmark makes


class OutOfTimeError(BaseException):
    """The time of a row, or of a part of it, is over.

    Not an `Exception`: the compiler's own handlers must not take it for a failure of theirs.
    """


@dataclass
class Clock:
    """The time that the rows may still take.

    Args:
        seconds: of the whole run.
        begun: `time.monotonic` when it began.
    """

    seconds: float
    begun: float

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.begun + self.seconds - time.monotonic()

    @contextlib.contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Raise `OutOfTimeError` in the block after this many seconds, at the latest at the end.

        Blocks may be nested. What runs in C is interrupted when it returns to Python.
        """
        outer, _ = signal.getitimer(signal.ITIMER_REAL)
        entered = time.monotonic()
        own = max(min(seconds, self.left, outer or seconds), 0.001)
        before = signal.signal(signal.SIGALRM, _out_of_time)
        signal.setitimer(signal.ITIMER_REAL, own)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            if outer:
                rest = outer - (time.monotonic() - entered)
                signal.setitimer(signal.ITIMER_REAL, max(rest, 0.001))


def _out_of_time(_number: int, _frame: FrameType | None) -> None:
    raise OutOfTimeError


@dataclass
class Variant:
    """One of the things that a row compares."""

    run: Callable[[], Any]
    samples: int
    """Images, texts or pairs of a call."""
    flops: float | None = None
    """Of a call; None: it is not counted."""
    cosine: float | None = None
    """The lowest cosine of an output to that of the same weights in float32."""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Bench:
    """The machine, what is asked for, and the data of all rows."""

    device: torch.device
    dtype: torch.dtype
    quick: bool
    clock: Clock
    folder: Path
    """For what the rows write; removed at the end."""
    batch: int
    """Samples of a training step."""
    workers: int
    """Processes that decode."""

    @property
    def rounds(self) -> int:
        """Times that each variant is timed."""
        return 2 if self.quick else 7

    @property
    def overrides(self) -> dict[str, Any]:
        """Fields of every model's configuration that differ: the quick run's are tiny."""
        if not self.quick:
            return {}
        return {
            "image_size": 32, "image.depths": [1, 1, 1, 1], "image.widths": [8, 16, 32, 32],
            "image.mlp_ratio": 1.0, "text.context_length": 12, "text.layers": 1,
        }  # fmt: skip

    @property
    def on_cuda(self) -> bool:
        """Whether a GPU is measured."""
        return self.device.type == "cuda"

    def layout(self, name: str) -> torch.memory_format:
        """Return the memory format of a model and its peer: convolutions want channels last.

        Not on a CPU, where oneDNN's backward pass of the peer's strided 1x1 convolutions crashes
        in it (oneDNN issue 6035; `pocketclip.nn.reparam.ConvBN` avoids it).
        """
        if not (self.on_cuda or self.quick):  # no tiny model has a peer
            return torch.contiguous_format
        convolutions = any(part in name for part in ("-s", "tiny", "mci"))
        return torch.channels_last if convolutions else torch.contiguous_format

    @functools.cached_property
    def shards(self) -> Path:
        """A folder of reinforced shards of the package's photographs."""
        path = self.folder / "shards"
        path.mkdir()
        settings = {
            "random_resized_crop": {"size": 256, "interpolation": "bicubic"},
            "rand_augment": {"p": 1.0},
        }
        samples = 32 if self.quick else SAMPLES
        loader_benchmark.make_shards(
            path, samples, Augmentation.from_config(settings), dtype="bfloat16"
        )
        return path

    @functools.cached_property
    def peak(self) -> float:
        """Operations per second of a matrix product in `dtype`, the best of some rounds."""
        side = 64 if self.quick else SIDE
        a, b = (torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2))
        times = measure({"product": lambda: a @ b}, 5, self.device, calls=10, warm_up=3)
        return 2 * side**3 / min(times["product"])

    @property
    def compile_mode(self) -> str:
        """How compiled variants are compiled."""
        if self.quick:
            return "torch.compile, backend eager: graphs, but no code"
        return "torch.compile, default mode, no autotuning"

    @contextlib.contextmanager
    def compiler(self) -> Iterator[None]:
        """Compile as `compile_mode` says; the quick run has no time for a compiler of C++."""
        if not self.quick:
            yield
            return
        torch.compile, before = functools.partial(torch.compile, backend="eager"), torch.compile
        try:
            yield
        finally:
            torch.compile = before

    @functools.cached_property
    def compiler_problem(self) -> str:
        """Why `torch.compile` cannot run here, in one line; empty if it can."""
        try:
            x = torch.ones(64, device=self.device)
            torch.compile(lambda x: (x * 2 + 1).relu())(x)
        except Exception as error:
            return first_line(error)
        finally:
            torch._dynamo.reset()
        return ""

    def autocast(self) -> torch.autocast:
        """Return the context in which training computes in `dtype`."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def build(
        self, makers: Mapping[str, Callable[[], Variant | None]], seconds: float = 0.0
    ) -> tuple[dict[str, Variant], dict[str, str]]:
        """Return the variants that could be made, run once each, and why others could not.

        Args:
            makers: what makes and runs each variant once; None: it is not to be had here.
            seconds: that one of them takes, by estimate: with less time left none is begun, as a
                compiler that is stopped halfway leaves nothing.

        Raises:
            RuntimeError: none could be made; the message says why.
        """
        made: dict[str, Variant] = {}
        left_out: dict[str, str] = {}
        for name, make in makers.items():
            if self.clock.left < seconds:
                left_out[name] = f"needs about {seconds:.0f} s, {self.clock.left:.0f} s are left"
                continue
            held, begun = self._memory(), time.perf_counter()
            try:
                # What has been made is timed in the rest.
                with self.clock.limit(max(self.clock.left - 4, 1)):
                    variant = make()
            except OutOfTimeError:
                left_out[name] = f"stopped after {time.perf_counter() - begun:.0f} s"
                continue
            except Exception as error:
                left_out[name] = first_line(error)
                continue
            if variant is None:
                left_out[name] = "not to be had here (its package or the model is missing)"
                continue
            variant.facts["made_in_s"] = round(time.perf_counter() - begun, 2)
            variant.facts["peak_memory_mb"] = self._peak_memory(variant, held)
            made[name] = variant
        if not made:
            raise RuntimeError("; ".join(f"{name}: {why}" for name, why in left_out.items()))
        return made, left_out

    def _memory(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.on_cuda else 0

    def _peak_memory(self, variant: Variant, held: int) -> float | None:
        """Return the peak of a variant's memory in MB, by a call of it.

        Args:
            variant: already made, so that its weights and the optimiser's state count.
            held: bytes that the variants before it hold.
        """
        if not self.on_cuda:
            return None  # the process's own peak says nothing about one variant
        gc.collect()
        torch.cuda.reset_peak_memory_stats(self.device)
        variant.run()
        return round((torch.cuda.max_memory_allocated(self.device) - held) / 1e6, 1)

    def time(
        self, variants: Mapping[str, Variant], *, base: str = "", calls: int = 2
    ) -> dict[str, Any]:
        """Return the figures of each variant, timed in turn, and their speed over `base`'s.

        Args:
            variants: by name.
            base: the variant that the others are compared with; no ratios without it.
            calls: back to back, in one round.
        """
        calls = 1 if self.quick else calls
        runs = {name: variant.run for name, variant in variants.items()}
        warm_up = 0 if self.quick else 3
        times = measure(runs, self.rounds, self.device, calls=calls, warm_up=warm_up)
        figures = {}
        for name, variant in variants.items():
            median = statistics.median(times[name])
            share = None
            if variant.flops is not None:
                share = round(variant.flops / median / self.peak, 4)
            figures[name] = {
                "samples_per_s": round(variant.samples / median, 1),
                "median_ms": round(1e3 * median, 4),
                "lowest_ms": round(1e3 * min(times[name]), 4),
                "highest_ms": round(1e3 * max(times[name]), 4),
                "rounds": self.rounds,
                "calls_per_round": calls,
                "share_of_peak": share,
                "cosine_to_fp32": variant.cosine,
                **variant.facts,
            }
        others = [name for name in variants if base in variants and name != base]
        speeds = {f"{name} over {base}": ratio(times, base, name) for name in others}
        return {"variants": figures, "ratios": speeds}

    def facts(self) -> dict[str, Any]:
        """Return what the figures depend on."""
        cuda = torch.cuda.get_device_properties(self.device) if self.on_cuda else None
        return {
            "device": cuda.name if cuda else "cpu",
            "processor": describe_processor(),
            "memory_gb": round(cuda.total_memory / 1e9, 1) if cuda else None,
            "cores": devices.cores(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if cuda else None,  # type: ignore[no-untyped-call]
            "dtype": str(self.dtype).removeprefix("torch."),
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
            "tf32_cudnn": torch.backends.cudnn.allow_tf32,
            "compile": self.compiler_problem or self.compile_mode,
            "peak_tflops": round(self.peak / 1e12, 4),
            "peak_is": f"measured: a product of two matrices in {self.dtype}",
        }


def lowest_cosine(actual: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> float:
    """Return the lowest cosine of the rows of pairs of tensors (B, D)."""
    lowest = 1.0
    for one, other in zip(actual, expected, strict=True):
        if one is None or other is None:
            continue
        rows = torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=-1)
        lowest = min(lowest, float(rows.min()))
    return round(lowest, 6)


@contextlib.contextmanager
def folder_of_run() -> Iterator[Path]:
    """Make a folder for what the rows write, and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="pocketclip-gpu-") as name:
        yield Path(name)
