"""The rows of `gpu.py`, ordered by what they are worth, with what each takes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gpu_rows_data as data
import gpu_rows_infer as infer
import gpu_rows_train as training
from gpu_bench import Bench

ROOT = Path(__file__).resolve().parents[1]
MARK = "pytest.mark.cuda"
"""What tests have that need a GPU."""


@dataclass(frozen=True)
class Row:
    """One row of the benchmark."""

    name: str
    measure: Callable[[Bench], dict[str, Any]]
    seconds: float
    """That it takes on an H100 with 16 cores, by estimate."""
    may_wait: bool = False
    """A row that takes so long that all others come first if the time does not last for all."""


@dataclass(frozen=True)
class Sizes:
    """What is measured, and how much of it."""

    models: dict[str, str]
    """Name of a row -> name of a model."""
    trained: dict[str, float]
    """The models that are trained and compiled too -> seconds that compiling a training step of
    theirs takes, by estimate."""
    batches: tuple[int, ...]
    """Of inference; compiled at the first and the last."""
    loader_batches: int
    steps: int
    teacher: str
    views: int
    captioner: str
    images: int
    per_image: int
    length: int
    resumed: str


FULL = Sizes(
    models={
        "s0": "mobileclip2-s0", "b": "mobileclip-b", "s2": "mobileclip2-s2",
        "s4": "mobileclip2-s4", "l14": "vit-l14",
    },
    trained={"s0": 90.0, "b": 45.0}, batches=(1, 32, 256), loader_batches=64, steps=40,
    teacher="random:vit-l14", views=1024,
    captioner="coca-vit-l14", images=64, per_image=5, length=30,
    resumed="small",
)  # fmt: skip
QUICK = Sizes(
    models={"s0": "tiny"}, trained={"s0": 0.0}, batches=(2,), loader_batches=2, steps=2,
    teacher="random:tiny", views=2, captioner="coca-tiny", images=1, per_image=2,
    length=5, resumed="tiny",
)  # fmt: skip


def rows(bench: Bench) -> list[Row]:
    """Return all rows, the most valuable first."""
    sizes = QUICK if bench.quick else FULL
    found = [
        *training_rows(sizes),
        *feeding_rows(sizes),
        *inference_rows(sizes),
        Row("teacher", partial(infer.measure_teacher, spec=sizes.teacher, views=sizes.views), 35),
        Row(
            "captioner",
            partial(
                infer.measure_captioner, name=sizes.captioner, images=sizes.images,
                per_image=sizes.per_image, length=sizes.length,
            ),
            20,
        ),
        *checking_rows(sizes),
    ]  # fmt: skip
    # The estimates are of large models on a GPU.
    return [replace(row, seconds=0.0) for row in found] if bench.quick else found


def training_rows(sizes: Sizes) -> list[Row]:
    """Return the rows of training steps."""
    step = training.measure_step
    eager = [
        Row(f"train/{short}/eager", partial(step, name=sizes.models[short], compiled=False), 25)
        for short in sizes.trained
    ]
    compiled = [
        Row(
            f"train/{short}/compiled",
            partial(step, name=sizes.models[short], compiled=True, seconds=seconds),
            3 * seconds,
            may_wait=seconds > 60,
        )
        for short, seconds in sorted(sizes.trained.items(), key=lambda item: item[1])
    ]
    return eager + compiled


def feeding_rows(sizes: Sizes) -> list[Row]:
    """Return the rows of training that the loader feeds."""
    sized: dict[str, Any] = {
        "name": sizes.models["s0"], "batches": sizes.loader_batches, "steps": sizes.steps
    }  # fmt: skip
    ways: dict[str, dict[str, Any]] = {"exact": {}, "device": {"replay": "device"}}
    return [
        *(
            Row(f"feed/{way}", partial(data.measure_feeding, data=given, **sized), 35)
            for way, given in ways.items()
        ),
        Row("feed/materialised", partial(data.measure_materialised, **sized), 40),
    ]


def inference_rows(sizes: Sizes) -> list[Row]:
    """Return the rows of both towers, eager and then compiled."""
    models = sizes.models
    eager = partial(infer.measure_inference, batches=sizes.batches)
    ends = tuple(dict.fromkeys((sizes.batches[0], sizes.batches[-1])))
    compiled = partial(infer.measure_inference, batches=ends, compiled=True)
    return [
        *(
            Row(f"inference/{short}/eager", partial(eager, name=name), 15)
            for short, name in models.items()
        ),
        *(
            Row(
                f"inference/{short}/compiled",
                partial(compiled, name=models[short], seconds=seconds / 4),
                seconds,
                may_wait=True,
            )
            for short, seconds in sizes.trained.items()
        ),
    ]


def checking_rows(sizes: Sizes) -> list[Row]:
    """Return the rows that check instead of measuring times."""
    s0 = sizes.models["s0"]
    resumed = partial(training.compare_resumed, name=sizes.resumed, steps=max(sizes.steps // 2, 4))
    return [
        Row("synchronisations", partial(training.count_synchronisations, name=s0, steps=3), 15),
        Row("resumed", partial(resumed, deterministic=False), 25),
        Row("resumed/deterministic", partial(resumed, deterministic=True), 25),
        Row("tests", run_tests, 60),
    ]


def run_tests(bench: Bench) -> dict[str, Any]:
    """Run the tests that need a GPU, and return pytest's summary."""
    if not bench.on_cuda:
        return {"skipped": "there is no GPU"}
    if importlib.util.find_spec("pytest") is None:
        return {"skipped": "pytest is not installed"}
    marked = [
        path for path in (ROOT / "tests").rglob("test_*.py") if MARK in path.read_text("utf-8")
    ]
    if not marked:
        return {"skipped": f"no test has {MARK}"}
    # With this process's path: packages out of wheels are at its end.
    code = f"import sys; sys.path[:] = {sys.path!r}; import pytest; sys.exit(pytest.main())"
    command = [
        sys.executable, "-c", code, "-q", "-o", "addopts=", "--noconftest",
        "-p", "no:cacheprovider", "-m", "cuda", *map(str, marked),
    ]  # fmt: skip
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=max(bench.clock.left, 1),
        check=False,
    )
    lines = (ended.stdout + ended.stderr).strip().splitlines()
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {
        "files": [path.name for path in marked],
        "exit_code": ended.returncode,
        "summary": lines[-1] if lines else "",
        "failures": failures[:10],
    }
