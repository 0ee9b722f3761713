"""What a conversion or an export is compared on, how far embeddings are apart, and who judges.

Shapes: N photographs or captions, D embedding.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pocketclip import devices
from pocketclip.devices import is_installed
from pocketclip.embeddings import row_lengths
from pocketclip.errors import BundleError, DriftError, EmbeddingError, ExportError
from pocketclip.infer.backends import OnnxRuntimeBackend, runs
from pocketclip.infer.bundle import TOWERS, Bundle
from pocketclip.infer.check_frame import PIXELS, frame_entry
from pocketclip.infer.gates import Gate, describe_gates, gate_failure, gates_of
from pocketclip.preprocess import Preprocess
from pocketclip.progress import ProgressReporter
from pocketclip.types import Embeddings

_Result = TypeVar("_Result")
CAPTIONS = (
    "a photo of a cat",
    "an astronaut in an orange suit, smiling in front of a flag and a model of the shuttle",
    "a cup of espresso on a wooden table",
    "a rocket on the launch pad at dusk",
    "dog",
    "",
    "a photo of many dresses, 50% off!!! only today (size M/L) - free shipping & returns",
    "zwei Äpfel und eine Birne auf dem Küchentisch",
    "a close-up of ripe bananas on a supermarket shelf, price tag below, seen from above",
    "日本の桜と富士山 🌸",
    "1 2 3 4 5 6 7 8 9 10 11 12",
    "two people ride their bicycles along a canal in the rain, one of them holds an umbrella "
    "over both, while a long boat with geraniums on its roof passes below the bridge and the "
    "houses on the other side have their lights on, for it is late in the afternoon of a day in "
    "november, and behind the last of them one sees the tower of a church with a clock",
)


def own_photos() -> list[bytes]:
    """Return the photographs that come with the package."""
    folder = resources.files("pocketclip") / "data" / "check"
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".jpg"))
    return [(folder / name).read_bytes() for name in names]


def store_check_frame(bundle: Bundle) -> dict[str, Any]:
    """Write the pixels of the stored frame of an ONNX bundle, and return its entry `check`.

    They are of a photograph of the package, after the evaluation transform and before scaling. The
    embedding is by the bundle's own image tower in ONNX Runtime.

    Args:
        bundle: with both towers; its manifest is not written yet.

    Raises:
        BundleError: ONNX Runtime cannot run it.
        ExportError: the embedding is not usable.
    """
    preprocess = Preprocess(bundle.config.preprocess)
    frame = preprocess.to_uint8(own_photos()[0])
    (bundle.folder / PIXELS).write_bytes(frame.tobytes())
    rows = frame[None] if bundle.image_input == "photo" else preprocess(frame)[None]
    embedding = OnnxRuntimeBackend(bundle, devices.cores()).image(rows)[0]
    if not np.isfinite(embedding).all() or not embedding.any():
        raise ExportError("the image tower gives no usable embedding for the stored frame")
    return frame_entry(len(frame), embedding)


def compare(actual: Embeddings, expected: Embeddings) -> dict[str, Any]:
    """Return how far embeddings (N, D) are from the expected ones, both scaled to unit length."""
    if actual.shape != expected.shape:
        raise ExportError(f"it returns embeddings {actual.shape}, not {expected.shape}")
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # a gate refuses NaN
        a, b = (x / row_lengths(x) for x in _doubles(actual, expected))
    return {
        "count": len(expected),
        "max_abs_error": float(np.abs(a - b).max()),
        "min_cosine": float((a * b).sum(-1).min()),
    }


def _doubles(*arrays: NDArray[Any]) -> list[NDArray[np.float64]]:
    return [np.asarray(array, np.float64) for array in arrays]


def judge(figures: dict[str, Any], gates: Mapping[str, Gate]) -> bool:
    """Return whether a backend's figures are within the gates; if not, add the `reason`.

    Args:
        figures: the results of `compare`, by tower; JSON has no NaN, which becomes None.
        gates: the gate of each tower.
    """
    failed = [f"{t} tower: {why}" for t in TOWERS if (why := gate_failure(figures[t], gates[t]))]
    if failed:
        figures["reason"] = "; ".join(failed)
        for tower in TOWERS:
            figures[tower] = {k: v if np.isfinite(v) else None for k, v in figures[tower].items()}
    return not failed


def judge_backends(
    bundle: Bundle, measure: Callable[[str], dict[str, Any]], refusal: str
) -> dict[str, Any]:
    """Measure a bundle in every installed backend that runs it; return the figures.

    The target's own backend (ONNX Runtime for `onnx`, OpenVINO for `openvino`) decides. The results
    of other backends are recorded; those that fail are not used.

    Args:
        bundle: the bundle.
        measure: returns, by the name of a backend, the results of `compare` for both towers, and
            more. `computed_in` is `fp32` where that says nothing about the bundle's precision: such
            figures can fail, but not pass.
        refusal: the beginning of the error's message.

    Returns:
        `executed` and `verified`, which are false where the figures cannot pass; `backends`, with
        `passed` and, where it is false, the `reason`; `not_passed`, the names of the backends
        beyond a gate; and `gate`.

    Raises:
        ExportError: the target's own backend is not installed.
        DriftError: the result of that backend is beyond the gate; the message gives the figures.
    """
    own = runs(bundle)[0]
    if not is_installed(own):
        raise ExportError(f"no installed backend can run the export to verify it: install {own}")
    gates = gates_of(bundle.precision, bundle.image_input)
    results: dict[str, dict[str, Any]] = {}
    for name in filter(is_installed, runs(bundle)):
        try:
            figures = measure(name)
            passed = judge(figures, gates)
            if not passed or figures.get("computed_in") != "fp32":
                figures["passed"] = passed
        except (BundleError, EmbeddingError) as error:
            figures = {"passed": False, "reason": str(error)}
        results[name] = figures
    not_passed = [name for name, figures in results.items() if figures.get("passed") is False]
    if own in not_passed:
        raise DriftError(f"{refusal}: {own}: {results[own]['reason']}")
    executed = "passed" in results[own]
    return {
        "executed": executed,
        "verified": executed,
        "backends": results,
        "not_passed": not_passed,
        "gate": describe_gates(gates),
    }


def until_verified(
    attempts: Sequence[Callable[[], _Result]], reporter: ProgressReporter
) -> _Result:
    """Return the result of the first attempt that is within the gates.

    Args:
        attempts: each writes and compares both towers, with more layers in higher precision than
            the one before.
        reporter: receives a stage between two of them.

    Raises:
        DriftError: the last attempt is beyond a gate too.
    """
    *earlier, last = attempts
    for attempt in earlier:
        try:
            return attempt()
        except DriftError:
            reporter.stage("beyond a gate; keeping more layers in higher precision")
    return last()


def median_ms(call: Callable[[], object], times: int = 5) -> float:
    """Return the median time of a call in milliseconds."""
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return round(1e3 * statistics.median(seconds), 3)
