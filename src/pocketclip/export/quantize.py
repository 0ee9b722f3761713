"""int8 for any runtime: choose the layers that stay in higher precision.

    choice = choose_layers(layers, build, inputs, reference, keep=(), min_cosine=0.995)
    choice.kept, choice.facts()["min_cosine"]  # (["image.stem.0.conv"], 0.9961)

`quantize_onnx` and `quantize_openvino` write int8 towers for ONNX Runtime and OpenVINO from a tower
in fp32. The writers for phones call `choose_layers` themselves. `gates.py` has the thresholds;
`sensitivity.py` searches for the layers.

Shapes: N rows to compare, D embedding.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import ExportError
from pocketclip.export.sensitivity import Build, Run, SearchResult, search
from pocketclip.types import Embeddings

MAX_COMPARED = 64
"""How many calibration batches are compared with the fp32 tower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerChoice:
    """Which layers int8 leaves in higher precision, and what that costs and gives."""

    layers: Sequence[str]
    kept: list[str]
    """In the order of the model."""
    result: SearchResult
    compared: int
    """How many batches were compared."""

    def facts(self) -> dict[str, Any]:
        """Return the choice as a bundle stores it."""
        return {
            "kept": self.kept,
            "quantised": len(self.layers) - len(self.kept),
            "min_cosine": self.result.after.min_cosine,
            "min_cosine_before": self.result.before.min_cosine,
            "tried": self.result.tried,
        }

    def notes(self) -> list[str]:
        """Return the choice as sentences for a bundle's notes."""
        after, before = self.result.after.min_cosine, self.result.before.min_cosine
        notes = [f"smallest cosine on {self.compared} calibration rows: {after:.6f}"]
        if self.result.kept:
            notes.append(f"without the kept layers: {before:.6f}")
        return notes


def choose_layers(
    layers: Sequence[str],
    build: Build,
    inputs: Sequence[NDArray[Any]],
    reference: Embeddings,
    *,
    keep: Collection[str],
    min_cosine: float,
) -> LayerChoice:
    """Return which layers int8 leaves in higher precision so that it stays near the reference.

    Args:
        layers: all layers that can be quantised, in the order of the model; the routers of
            mixtures of experts are kept in any case.
        build: builds the model with the named layers in higher precision; returns its forward
            function.
        inputs: batches for the forward function, N rows together.
        reference: the embeddings (N, D) of the model that is quantised.
        keep: layers that stay in higher precision in any case.
        min_cosine: the smallest cosine of an embedding to the reference.

    Raises:
        ExportError: `keep` names an unknown layer, or the model is not near enough even with every
            layer in higher precision.
    """
    always_kept = frozenset(keep)
    unknown = always_kept - set(layers)
    if unknown:
        raise ExportError(
            f"there is no layer {min(unknown)!r} to keep; the layers are {', '.join(layers)}"
        )
    # A rounded logit can change which experts compute a token, and routers are small.
    always_kept |= {name for name in layers if name.removesuffix(".weight").endswith(".router")}
    result = search(
        [name for name in layers if name not in always_kept],
        lambda kept: build(always_kept | kept),
        inputs,
        reference,
        min_cosine,
    )
    kept = [name for name in layers if name in always_kept or name in result.kept]
    return LayerChoice(layers=layers, kept=kept, result=result, compared=len(inputs))


def batches_to_compare(
    reference: Run, calibration: Sequence[NDArray[Any]]
) -> tuple[list[NDArray[Any]], Embeddings]:
    """Return at most `MAX_COMPARED` of the batches, and their embeddings by the fp32 tower."""
    inputs = list(calibration)
    if len(inputs) > MAX_COMPARED:
        inputs = [inputs[i * len(inputs) // MAX_COMPARED] for i in range(MAX_COMPARED)]
    return inputs, np.concatenate([reference(batch) for batch in inputs])


def check_arguments(source: Path, target: Path, calibration: Sequence[NDArray[Any]]) -> None:
    """Refuse to quantise without calibration batches, or a file onto itself.

    Raises:
        ExportError: one of the two.
    """
    if not calibration:
        raise ExportError("int8 needs inputs to calibrate with; give some photographs")
    if source.resolve() == target.resolve():
        raise ExportError(f"{target} is also the input; write to another file")
