"""What runs the two towers: torch, ONNX Runtime or OpenVINO.

A backend maps arrays to arrays and knows nothing of photographs or texts; `Encoder` stands above
it. Each imports its package only when it is made.

Shapes: B batch, S side, T tokens, D embedding.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import BundleError, MissingDependencyError, last_line
from pocketclip.infer.bundle import TOKENIZER, TOWERS, Bundle
from pocketclip.types import Embeddings

if TYPE_CHECKING:
    from pocketclip.nn.clip import CLIP

Run = Callable[[NDArray[Any]], Embeddings]


class Backend(Protocol):
    """Both towers of a model, ready to run; may be used from several threads."""

    name: str

    def image(self, pixels: NDArray[Any]) -> Embeddings:
        """Return embeddings (B, D) of what the image tower takes."""
        ...

    def text(self, ids: NDArray[np.int64]) -> Embeddings:
        """Return embeddings (B, D) of token ids (B, T)."""
        ...


class TorchBackend:
    """A model in torch, on whatever device it is."""

    name = "torch"

    def __init__(self, model: CLIP) -> None:
        self.model = model.eval()

    def image(self, pixels: NDArray[Any]) -> Embeddings:
        """Return embeddings (B, D) of preprocessed pixels (B, 3, S, S)."""
        import torch

        weight = self.model.logit_scale
        with torch.inference_mode():
            batch = torch.from_numpy(pixels).to(weight.device, weight.dtype)
            found: Embeddings = self.model.encode_image(batch).float().cpu().numpy()
        return found

    def text(self, ids: NDArray[np.int64]) -> Embeddings:
        """Return embeddings (B, D) of token ids (B, T)."""
        import torch

        with torch.inference_mode():
            batch = torch.from_numpy(ids).to(self.model.logit_scale.device)
            found: Embeddings = self.model.encode_text(batch).float().cpu().numpy()
        return found


class BundleBackend:
    """Both towers of a bundle, each loaded when it is first used.

    Args:
        bundle: what to run.
        threads: how many threads one call uses.
        precision: what OpenVINO computes in, `fp32` or `bf16`; None for the bundle's own.
        low_latency_start: start sooner and encode each text more slowly.
    """

    name = ""

    def __init__(
        self,
        bundle: Bundle,
        threads: int,
        precision: str | None = None,
        *,
        low_latency_start: bool = False,
    ) -> None:
        self.bundle, self.threads, self.precision = bundle, threads, precision
        self.low_latency_start = low_latency_start
        self._towers: dict[str, Run] = {}
        self._locks = {tower: threading.Lock() for tower in TOWERS}

    def image(self, pixels: NDArray[Any]) -> Embeddings:
        """Return embeddings (B, D) of what the bundle's image tower takes."""
        return self._run("image", pixels)

    def text(self, ids: NDArray[np.int64]) -> Embeddings:
        """Return embeddings (B, D) of token ids (B, T)."""
        return self._run("text", ids)

    def _run(self, tower: str, array: NDArray[Any]) -> Embeddings:
        run = self._tower(tower)
        try:
            return run(array)
        except Exception as error:  # as below
            raise BundleError(
                f"{self.bundle.path(tower)}: {self.name} cannot run the {tower} tower on "
                f"{array.dtype} {array.shape}: {last_line(error)}"
            ) from error

    def load(self, tower: str) -> None:
        """Load a tower now, so that the first call does not wait for it.

        Raises:
            BundleError: the file was changed or cannot be run.
        """
        self._tower(tower)

    def _tower(self, tower: str) -> Run:
        found = self._towers.get(tower)
        if found is None:
            with self._locks[tower]:
                found = self._towers.get(tower)
                if found is None:
                    found = self._towers[tower] = self._checked(tower)
        return found

    def _checked(self, tower: str) -> Run:
        self.bundle.check(f"{tower}.")
        if tower == "text":
            self.bundle.check(TOKENIZER)
        try:
            return self._open(tower)
        except Exception as error:  # whatever the runtime raises on a file that it cannot use
            raise BundleError(
                f"{self.bundle.path(tower)}: {self.name} cannot load it: {last_line(error)}"
            ) from error

    def _open(self, tower: str) -> Run:
        raise NotImplementedError


class OnnxRuntimeBackend(BundleBackend):
    """ONNX Runtime on the processor; a session may be run from several threads."""

    name = "onnxruntime"

    def _open(self, tower: str) -> Run:
        lasting = not (self.low_latency_start and tower == "text")
        path = os.fspath(self.bundle.path(tower))
        session = onnx_session(path, self.threads, repack=lasting)
        name = session.get_inputs()[0].name

        def run(array: NDArray[Any]) -> Embeddings:
            found: Embeddings = session.run(None, {name: array})[0]
            return found

        return run


def onnx_session(path: str | bytes, threads: int, *, repack: bool = True) -> Any:
    """Return an ONNX Runtime session on the processor.

    Args:
        path: the file, or what is in it.
        threads: how many threads a run uses.
        repack: copy the weights of matrix products into a faster order, which for a text tower
            takes as long as some four texts save.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # its errors are raised as well
    # Threads that wait by spinning slow down everything else that the process does.
    if not repack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class OpenVINOBackend(BundleBackend):
    """OpenVINO on the processor; calls from several threads take turns."""

    name = "openvino"

    def _open(self, tower: str) -> Run:
        hint = self.precision or ("bf16" if self.bundle.precision == "bf16" else "fp32")
        return openvino_runner(self.bundle.path(tower), self.threads, hint)


def openvino_core() -> Any:
    """Return the process's one `openvino.Core`.

    Each core gives the thread that loads its plugin a stack for signals, and takes it away when it
    goes (OpenVINO 2026.4): after two that did not go in the reverse order of their coming, the
    next Ctrl-C was a segmentation fault. This one never goes.
    """
    with _making_core:  # a cache alone lets two threads make one each
        return _the_core()


@functools.cache
def _the_core() -> Any:
    import openvino

    return openvino.Core()


_making_core = threading.Lock()


def has_bf16() -> bool:
    """Return whether OpenVINO computes in bf16 on this processor."""
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def openvino_runner(model: Any, threads: int, precision: str = "fp32") -> Run:
    """Compile a model (a path, or one in memory) for the processor; return what runs it.

    Args:
        model: the file of the model, or an `openvino.Model`.
        threads: how many threads a call uses.
        precision: `fp32` or `bf16`; the latter counts where the processor has it.
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
    # One call at a time: each uses all threads, and several at once, with a free batch, have
    # corrupted the process's memory (OpenVINO 2026.4).
    turn = threading.Lock()

    def run(array: NDArray[Any]) -> Embeddings:
        with turn:
            found = request.infer([array], share_inputs=True, share_outputs=True)[0]
            return np.array(found, np.float32)  # the request's memory is used again

    return run


BACKENDS: dict[str, type[BundleBackend]] = {
    "openvino": OpenVINOBackend,
    "onnxruntime": OnnxRuntimeBackend,
}
RUNS = {"onnx": ("onnxruntime", "openvino"), "openvino": ("openvino",)}
"""Which backends run a target's bundle, the one to prefer first."""
_BEGINS = ("onnxruntime", "openvino")  # importing and compiling take the latter a second longer
_EXTRAS = {"openvino": "pocketclip[openvino]", "onnxruntime": "onnxruntime"}


def installed(backend: str) -> bool:
    """Return whether a backend's package is installed."""
    return importlib.util.find_spec(backend) is not None


def runs(bundle: Bundle) -> tuple[str, ...]:
    """Return which backends run `bundle`, the one to prefer first; none for one for devices."""
    able = RUNS.get(bundle.target, ())
    if bundle.target == "onnx" and bundle.image_input == "photo":
        # OpenVINO leaves out the antialiasing of ONNX's resize: half of the pixels are others.
        return tuple(name for name in able if name != "openvino")
    return able


def candidates(
    bundle: Bundle, backend: str = "auto", *, low_latency_start: bool = False
) -> list[str]:
    """Return the backends that can run `bundle` here, the fastest first.

    Speed and exactness were measured when the bundle was verified; a backend that failed there is
    left out. Those that were not installed then come last. With `low_latency_start`, the
    one that starts soonest comes first.

    Raises:
        BundleError: there is none, or `backend` cannot run such a bundle.
        MissingDependencyError: the package that could is not installed.
    """
    able = runs(bundle)
    if not able:
        raise BundleError(
            f"{bundle.folder} is a {bundle.target} bundle, for devices; here bundles of "
            f"{' and '.join(RUNS)} are run: `pocketclip export MODEL --format openvino`"
        )
    if backend != "auto":
        if backend not in able:
            raise BundleError(
                f"backend {backend!r} cannot run a {bundle.target} bundle; {' or '.join(able)} can"
            )
        if not installed(backend):
            raise _missing(bundle, backend)
        return [backend]
    found = [name for name in able if installed(name)]
    if not found:
        raise _missing(bundle, able[0])
    measured = bundle.verification.get("backends", {})
    passed = [name for name in found if measured.get(name, {}).get("passed", True)]
    if not passed:
        raise BundleError(
            f"{bundle.folder}: {' and '.join(found)} did not compute what the model does when the "
            "bundle was verified; install another backend, or export again"
        )
    if low_latency_start:
        return sorted(passed, key=_BEGINS.index)
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
                "cannot run this bundle: pip install 'pocketclip[openvino]', or leave out the "
                "precision"
            )
    return names


def _missing(bundle: Bundle, backend: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"{bundle.folder} needs {backend}: pip install '{_EXTRAS[backend]}'"
    )
