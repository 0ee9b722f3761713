"""The gates: how close an export must come to its model, in fp32, fp16, bf16, int8 and pal6.

Every export is compared with its model on photographs and captions (`verify.py`). An export beyond
a gate is refused, and no bundle is written. The int8 gate is `GATES["int8"]`; the thresholds below
it decide which layers int8 leaves in higher precision (`sensitivity.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pocketclip.infer.bundle import TOWERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """How far the embeddings of an export may be from the model's."""

    cosine: float
    """The smallest cosine of an embedding to the model's."""
    error: float | None = None
    """The largest absolute difference of a component of unit embeddings; None for no limit."""


GATES = {
    "fp32": Gate(cosine=0.99999, error=1e-4),
    "fp16": Gate(cosine=0.9995),
    "bf16": Gate(cosine=0.9995),
    "int8": Gate(cosine=0.99),
    "pal6": Gate(cosine=0.99),
}
"""The gate of both towers, by precision."""
# A resize in a graph rounds differently from Pillow: single pixels differ by up to 3 levels.
RESIZE_IN_GRAPH_GATE = Gate(cosine=0.9995)
"""The gate of an image tower whose graph resizes the photograph."""
MAX_POINTS_LOST = 0.5
"""The largest loss of top-1 accuracy, in percentage points, where labelled photographs are
given."""

INT8_SEARCH_THRESHOLDS = (0.995, 0.997, 0.9985, 0.9995)
"""Thresholds that `job.export` tries in turn until the gate holds."""
INT8_SEARCH_THRESHOLD = INT8_SEARCH_THRESHOLDS[0]
"""The smallest cosine that int8 must reach on its calibration rows, by default.

Higher than the gate, because photographs outside the calibration set do worse: a trained model with
0.990 on the calibration rows had 0.984 on 2,485 other photographs and lost 0.6 points of accuracy;
with 0.995 it lost 0.1.
"""
INT8_SEARCH_THRESHOLD_MOBILE = 0.993
"""The default for ExecuTorch, LiteRT and Core ML."""


def gates_of(precision: str, image_input: str) -> dict[str, Gate]:
    """Return the gate of each tower, as it is applied to a bundle and stored in it.

    Args:
        precision: a key of `GATES`.
        image_input: of the bundle; `photo` if the graph resizes.
    """
    gates: dict[str, Gate] = dict.fromkeys(TOWERS, GATES[precision])
    if image_input == "photo" and gates["image"].cosine > RESIZE_IN_GRAPH_GATE.cosine:
        gates["image"] = RESIZE_IN_GRAPH_GATE
    return gates


def describe_gates(gates: Mapping[str, Gate]) -> dict[str, Any]:
    """Return gates as a bundle stores them.

    The limits at the top are the looser ones of the two towers; then come each tower's own.
    """
    errors = [gate.error for gate in gates.values()]
    return {
        "min_cosine": min(gate.cosine for gate in gates.values()),
        "max_abs_error": None if None in errors else max(errors),  # type: ignore[type-var]
        **{
            tower: {"min_cosine": gate.cosine, "max_abs_error": gate.error}
            for tower, gate in gates.items()
        },
    }


def gate_failure(figures: Mapping[str, Any], gate: Gate) -> str | None:
    """Return which figure is beyond `gate`, as a sentence, or None if all are within it."""
    # Written so that NaN fails.
    if not figures["min_cosine"] >= gate.cosine:
        return f"the smallest cosine is {figures['min_cosine']:.6f}; the gate is {gate.cosine}"
    if gate.error is not None and not figures["max_abs_error"] <= gate.error:
        return f"the largest error is {figures['max_abs_error']:.2e}; the gate is {gate.error}"
    return None
