"""Code shared by the writers for phones: ExecuTorch and LiteRT, and in parts Core ML.

A `MobileFormat` says which packages a format needs and how to load a file of it safely;
`write_file` writes a converted tower and describes it for the bundle.

Shapes: N calibration rows, D embedding.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import (
    BundleError,
    ExportError,
    MissingDependencyError,
    PocketclipError,
    how_to_install,
)
from pocketclip.export.tracing import quiet
from pocketclip.graph.ports import Port, tower_facts
from pocketclip.storage.local import write_whole

if TYPE_CHECKING:
    from torch import Tensor, nn

PROBE_SECONDS = 120
Run = Callable[[NDArray[Any]], NDArray[Any]]
"""Runs a tower on one row (1, ...) and returns its embedding (1, D)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedTower:
    """A tower in the bytes of a mobile format."""

    content: bytes
    input: Port
    output: Port
    kept: Sequence[str] = ()
    """Layers that int8 left in higher precision."""
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTower:
    """A file of a mobile format in its runtime."""

    shape: tuple[int, ...]
    dtype: Any
    execute: Run
    program: Any = field(default=None)
    """An object that must stay alive while `execute` is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MobileFormat:
    """A file format for phones, and its runtime on this machine."""

    name: str
    packages: tuple[str, ...]
    """Modules that write and run it."""
    package_name: str
    extra: str
    """The extra of pocketclip that installs the package."""
    probe_code: str
    """Python that loads the file `sys.argv[1]` and executes it once, or raises."""

    def load_packages(self) -> None:
        """Import the packages that write and run this format.

        Raises:
            MissingDependencyError: one is not installed.
        """
        try:
            with quiet():
                for name in self.packages:
                    importlib.import_module(name)
        except ImportError as error:
            raise MissingDependencyError(
                f"exporting to {self.name} needs {self.package_name}: {how_to_install(self.extra)}"
            ) from error

    def open_tower(
        self, path: Path, load: Callable[[str], LoadedTower], *, trusted: bool = False
    ) -> Run:
        """Return a function that runs a tower on this machine.

        Args:
            path: the tower's file.
            load: loads it into the runtime.
            trusted: this process wrote the file or compared its hash. Any other file is first
                loaded in a separate process, because a damaged file can crash the one that loads
                it.

        Raises:
            MissingDependencyError: the runtime is not installed.
            BundleError: the file cannot be loaded; from the function, if the input does not fit.
        """
        self.load_packages()
        if not trusted:
            probe(path, self.probe_code, self.name)
        try:
            loaded = load(os.fspath(path))
        except PocketclipError:
            raise
        except Exception as error:
            raise BundleError(f"{path}: {self.name} cannot load it: {error}") from error
        return self.checked_runner(loaded, os.fspath(path))

    def checked_runner(self, loaded: LoadedTower, path: str) -> Run:
        """Return a function that runs a loaded tower and checks each input's shape."""

        def run(row: NDArray[Any]) -> NDArray[Any]:
            if tuple(row.shape) != loaded.shape:
                raise BundleError(f"{path} takes {loaded.shape}, not {tuple(row.shape)}")
            try:
                # Copied: the next run writes its result to the same memory.
                return np.array(loaded.execute(np.ascontiguousarray(row, loaded.dtype)))
            except Exception as error:
                raise ExportError(f"{path}: {self.name} cannot run it: {error}") from error

        return run


def write_file(path: Path, converted: ConvertedTower) -> dict[str, Any]:
    """Write a converted tower, whole or not at all; return its entry of the bundle."""
    with write_whole(path) as temporary:
        temporary.write_bytes(converted.content)
    return tower_facts(
        path.name, converted.input, converted.output, kept=converted.kept, notes=converted.notes
    )


def rows(arrays: Sequence[NDArray[Any]] | None, example: Tensor) -> list[NDArray[Any]]:
    """Return arrays (n, ...) as rows (1, ...) of the example's type; without any, the example."""
    if not arrays:
        arrays = [example.numpy()]
    dtype = example.numpy().dtype
    return [np.ascontiguousarray(row[None], dtype) for array in arrays for row in array]


def embeddings(tower: nn.Module, inputs: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return the embeddings (N, D) of rows by a tower in torch."""
    import torch

    with torch.inference_mode():
        return np.concatenate([tower(torch.from_numpy(row)).numpy() for row in inputs])


def probe(path: Path, code: str, runtime: str) -> None:
    """Load a file in a separate process, which a damaged file may crash.

    Args:
        path: the file; `code` finds it in `sys.argv[1]`.
        code: loads and executes it, or raises.
        runtime: its name, for messages.

    Raises:
        BundleError: the process could not load it.
    """
    if not path.is_file():
        raise BundleError(f"{path} does not exist; export the bundle again")
    with tempfile.TemporaryFile("w+") as stderr:
        try:
            process = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", code, os.fspath(path)],
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                timeout=PROBE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            reason = f"it did not finish within {PROBE_SECONDS} s"
            raise BundleError(_damaged(path, runtime, reason)) from None
        stderr.seek(0)
        lines = [line.strip() for line in stderr.read().splitlines() if line.strip()]
    if process.returncode < 0:
        raise BundleError(_damaged(path, runtime, f"it crashes (signal {-process.returncode})"))
    if process.returncode:
        raise BundleError(_damaged(path, runtime, lines[-1][:200] if lines else "no reason given"))


def _damaged(path: Path, runtime: str, reason: str) -> str:
    return f"{path}: {runtime} cannot load it: {reason}; copy the bundle again, or export it again"
