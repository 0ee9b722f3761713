"""Backends that run the two towers: torch, ONNX Runtime and OpenVINO.

A backend maps arrays to arrays; `Encoder` adds preprocessing and the tokenizer. Each backend
imports its package when it is created.

Shapes: B batch, S side, T tokens, D embedding.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pocketclip.devices import is_installed
from pocketclip.errors import BundleError, MissingDependencyError, how_to_install, last_line
from pocketclip.infer.bundle import TOKENIZER, TOWERS, Bundle
from pocketclip.types import Embeddings

if TYPE_CHECKING:
    from pocketclip.nn.clip import CLIP

Run = Callable[[NDArray[Any]], Embeddings]


class Backend(Protocol):
    """Both towers of a model, ready to run; several threads may use it."""

    name: str

    def image(self, pixels: NDArray[Any]) -> Embeddings:
        """Return embeddings (B, D) of inputs of the image tower."""
        ...

    def text(self, ids: NDArray[np.int64]) -> Embeddings:
        """Return embeddings (B, D) of token ids (B, T)."""
        ...


def count_tokens(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the lengths (B,) of texts in tokens, with the start and end token.

    Args:
        ids: (B, T); the end token has the highest id.
    """
    return ids.argmax(1) + 1


def text_batches(
    ids: NDArray[np.int64], size: int, *, ignores_padding: bool
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield batches of texts, the shortest first: their rows, and their ids without common padding.

    A tower that ignores padding gives the same embeddings without it, and batches of short texts
    are a fraction of the work.

    Args:
        ids: (B, T), of all texts.
        size: number of texts in a batch.
        ignores_padding: whether the text tower does; else the ids keep their length.
    """
    lengths = count_tokens(ids) if ignores_padding else np.full(len(ids), ids.shape[1])
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield rows, ids[rows, : lengths[rows[-1]]]


class TorchBackend:
    """A model in torch, on the device that it is on."""

    name = "torch"

    def __init__(self, model: CLIP) -> None:
        self.model = model.eval()

    def image(self, pixels: NDArray[Any]) -> Embeddings:
        """Return embeddings (B, D) of preprocessed pixels (B, 3, S, S)."""
        import torch

        weight = self.model.logit_scale
        with torch.inference_mode():
            batch = torch.from_numpy(pixels).to(weight.device, weight.dtype)
            embeddings: Embeddings = self.model.encode_image(batch).float().cpu().numpy()
        return embeddings

    def text(self, ids: NDArray[np.int64]) -> Embeddings:
        """Return embeddings (B, D) of token ids (B, T)."""
        import torch

        with torch.inference_mode():
            batch = torch.from_numpy(ids).to(self.model.logit_scale.device)
            embeddings: Embeddings = self.model.encode_text(batch).float().cpu().numpy()
        return embeddings


class BundleBackend:
    """Both towers of a bundle, each loaded at its first use.

    Args:
        bundle: the bundle to run.
        threads: CPU threads per call.
        precision: the precision that OpenVINO computes in, `fp32` or `bf16`; None for the
            bundle's own.
        low_latency_start: start sooner and encode each text more slowly.
        memory_arena: let ONNX Runtime keep the memory of its largest call for the next ones.
    """

    name = ""

    def __init__(
        self,
        bundle: Bundle,
        threads: int,
        precision: str | None = None,
        *,
        low_latency_start: bool = False,
        memory_arena: bool = True,
    ) -> None:
        self.bundle, self.threads, self.precision = bundle, threads, precision
        self.low_latency_start, self.memory_arena = low_latency_start, memory_arena
        self._towers: dict[str, Run] = {}
        self._locks: dict[str, threading.Lock] = {tower: threading.Lock() for tower in TOWERS}

    def image(self, pixels: NDArray[Any]) -> Embeddings:
        """Return embeddings (B, D) of inputs of the bundle's image tower."""
        return self._run("image", pixels)

    def text(self, ids: NDArray[np.int64]) -> Embeddings:
        """Return embeddings (B, D) of token ids (B, T)."""
        return self._run("text", ids)

    def _run(self, tower: str, array: NDArray[Any]) -> Embeddings:
        run = self._tower(tower)
        try:
            return run(array)
        except Exception as error:  # runtimes raise exceptions of any type
            raise BundleError(
                f"{self.bundle.path(tower)}: {self.name} cannot run the {tower} tower on "
                f"{array.dtype} {array.shape}: {last_line(error)}"
            ) from error

    def load(self, tower: str) -> None:
        """Load a tower now, so that the first call need not wait.

        Raises:
            BundleError: the file was changed or cannot be loaded.
        """
        self._tower(tower)

    def _tower(self, tower: str) -> Run:
        run = self._towers.get(tower)
        if run is None:
            with self._locks[tower]:
                run = self._towers.get(tower)
                if run is None:
                    run = self._towers[tower] = self._load_checked(tower)
        return run

    def _load_checked(self, tower: str) -> Run:
        self.bundle.check(f"{tower}.")
        if tower == "text":
            self.bundle.check(TOKENIZER)
        try:
            return self._open(tower)
        except Exception as error:  # runtimes raise exceptions of any type
            raise BundleError(
                f"{self.bundle.path(tower)}: {self.name} cannot load it: {last_line(error)}"
            ) from error

    def _open(self, tower: str) -> Run:
        raise NotImplementedError


class OnnxRuntimeBackend(BundleBackend):
    """ONNX Runtime on the CPU; several threads may run a session."""

    name = "onnxruntime"

    def _open(self, tower: str) -> Run:
        repack = not (self.low_latency_start and tower == "text")
        path = os.fspath(self.bundle.path(tower))
        session = onnx_session(path, self.threads, repack=repack, arena=self.memory_arena)
        name = session.get_inputs()[0].name

        def run(array: NDArray[Any]) -> Embeddings:
            embeddings: Embeddings = session.run(None, {name: array})[0]
            return embeddings

        return run


def import_onnxruntime() -> Any:
    """Return ONNX Runtime, with its telemetry off unless `ORT_DISABLE_TELEMETRY` is set otherwise.

    From version 1.29 on, it sends events to Microsoft and stores an identifier of the
    machine, unless this variable is set before it is first imported.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def onnx_session(
    path: str | bytes, threads: int, *, repack: bool = True, arena: bool = True, options: Any = None
) -> Any:
    """Return an ONNX Runtime session on the CPU.

    Args:
        path: the file, or its contents.
        threads: CPU threads per run.
        repack: copy the weights of matrix products into a faster layout. For a text tower this pays
            off after about four texts.
        arena: keep the memory of the largest run for the next ones; without it, runs take about
            1 % longer.
        options: `onnxruntime.SessionOptions` to add these to.
    """
    onnxruntime = import_onnxruntime()
    options = options or onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = arena
    options.log_severity_level = 4  # errors are raised anyway
    if not repack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    # Spinning threads slow down everything else in the process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def plain_onnx_session(path: str, threads: int) -> Any:
    """Return an ONNX Runtime session that runs the graph node by node, as it was written.

    Args:
        path: the file; its weights are used where they are mapped into memory.
        threads: CPU threads per run.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnx_session(path, threads, repack=False, options=options)


class OpenVINOBackend(BundleBackend):
    """OpenVINO on the CPU; calls from several threads take turns."""

    name = "openvino"

    def _open(self, tower: str) -> Run:
        hint = self.precision or ("bf16" if self.bundle.precision == "bf16" else "fp32")
        return openvino_runner(self.bundle.path(tower), self.threads, hint)


def openvino_core() -> Any:
    """Return the only `openvino.Core` of the process, which is never freed.

    A core installs a signal stack in the thread that loads its plugin and removes it when freed
    (OpenVINO 2026.4). After two cores were freed in the order of their creation, the next Ctrl-C
    was a segmentation fault.
    """
    with _CORE_LOCK:  # `functools.cache` alone lets two threads create one each
        return _the_core()


@functools.cache
def _the_core() -> Any:
    return import_openvino().Core()


def import_openvino() -> Any:
    """Return OpenVINO, whose converter then reports nothing to Intel.

    Raises:
        ImportError: it is not installed.
    """
    # Without this package, which is installed beside it, OpenVINO uses a stub.
    absent = "openvino_telemetry" not in sys.modules and "openvino" not in sys.modules
    if absent:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        if absent:
            del sys.modules["openvino_telemetry"]
    return openvino


_CORE_LOCK = threading.Lock()


def has_bf16() -> bool:
    """Return whether OpenVINO computes in bf16 on this CPU."""
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def openvino_runner(model: Any, threads: int, precision: str = "fp32") -> Run:
    """Compile a model for the CPU; return a function that runs it.

    Args:
        model: the path of the model, or an `openvino.Model`.
        threads: CPU threads per call.
        precision: `fp32`, or `bf16` if the CPU supports it.
    """
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
    }
    if precision == "bf16" and not has_bf16():
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = openvino_core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    # One call at a time: each uses all threads, and concurrent calls with a dynamic batch
    # corrupted memory (OpenVINO 2026.4).
    turn = threading.Lock()

    def run(array: NDArray[Any]) -> Embeddings:
        with turn:
            output = request.infer([array], share_inputs=True, share_outputs=True)[0]
            return np.array(output, np.float32)  # copied: the request reuses its memory

    return run


BACKENDS: dict[str, type[BundleBackend]] = {
    "openvino": OpenVINOBackend,
    "onnxruntime": OnnxRuntimeBackend,
}
RUNS = {"onnx": ("onnxruntime", "openvino"), "openvino": ("openvino",)}
"""The backends for a target's bundle, the preferred one first."""
_START_ORDER = ("onnxruntime", "openvino")  # the latter starts a second later


def runs(bundle: Bundle) -> tuple[str, ...]:
    """Return the backends for `bundle`, the preferred one first; empty if only devices run it."""
    supported = RUNS.get(bundle.target, ())
    if bundle.target == "onnx" and bundle.image_input == "photo":
        # OpenVINO ignores the antialiasing of ONNX's resize: half of the pixels differ.
        return tuple(name for name in supported if name != "openvino")
    return supported


def candidates(
    bundle: Bundle, backend: str = "auto", *, low_latency_start: bool = False
) -> list[str]:
    """Return the backends that can run `bundle` here, the fastest first.

    Speed and exactness were measured when the bundle was verified; a backend that failed there is
    left out. Those that were not installed then come last. With `low_latency_start`, the one that
    starts soonest comes first.

    Raises:
        BundleError: there is none, or `backend` cannot run such a bundle.
        MissingDependencyError: the package that could is not installed.
    """
    supported = runs(bundle)
    if not supported:
        raise BundleError(
            f"{bundle.folder} is a {bundle.target} bundle, which runs on devices only; for this "
            f"machine export {' or '.join(RUNS)}: `pocketclip export MODEL --format openvino`"
        )
    if backend != "auto":
        if backend not in supported:
            raise BundleError(
                f"backend {backend!r} cannot run this {bundle.target} bundle: use "
                f"{' or '.join(supported)}"
            )
        if not is_installed(backend):
            raise missing_backend(str(bundle.folder), backend)
        return [backend]
    available = [name for name in supported if is_installed(name)]
    if not available:
        raise missing_backend(str(bundle.folder), supported[0])
    measured = bundle.verification.get("backends", {})
    passed = [name for name in available if measured.get(name, {}).get("passed", True)]
    if not passed:
        raise BundleError(
            f"{bundle.folder}: {' and '.join(available)} did not reproduce the model when the "
            "bundle was verified: install another backend, or export again"
        )
    if low_latency_start:
        return sorted(passed, key=_START_ORDER.index)
    return sorted(passed, key=lambda name: measured.get(name, {}).get("ms", float("inf")))


def select_backends(
    bundle: Bundle, backend: str, precision: str | None, *, low_latency_start: bool
) -> list[str]:
    """Return the backends that can run `bundle` here in a precision, the preferred one first.

    Args:
        bundle: the bundle to run.
        backend: `auto`, or the only backend to use.
        precision: `fp32`, `bf16`, or None for the bundle's own.
        low_latency_start: see `candidates`.

    Raises:
        BundleError: see `candidates`; or no such precision, or no backend for it.
    """
    if precision not in (None, "fp32", "bf16"):
        raise BundleError(f"precision is fp32 or bf16, not {precision!r}")
    names = candidates(bundle, backend, low_latency_start=low_latency_start)
    if precision == "bf16":
        names = [name for name in names if name == "openvino"]
        if not names:
            raise BundleError(
                f"{bundle.folder}: only OpenVINO computes in bf16, and it is not installed or "
                f"cannot run this bundle: {how_to_install('openvino')}, or leave out the "
                "precision"
            )
    return names


def missing_backend(model: str, backend: str) -> MissingDependencyError:
    """Return the error for a model whose backend is not installed."""
    how = how_to_install(backend) if backend == "openvino" else f"pip install '{backend}'"
    return MissingDependencyError(f"{model} needs {backend}: {how}")
