"""Compares an export with its model, on photographs and captions.

Both get the same photographs and captions, and their unit embeddings are compared: the largest
absolute difference of a component, and the smallest cosine. An export beyond a gate (`gates.py`) is
refused, and no bundle is written.

Shapes: N photographs or captions, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import (
    BundleError,
    DriftError,
    EmbeddingError,
    ExportError,
    ImageError,
)
from pocketclip.infer.backends import has_bf16, installed, runs
from pocketclip.infer.bundle import Bundle
from pocketclip.infer.comparison import CAPTIONS, compare, judge, median_ms, own_photos
from pocketclip.infer.encoder import Encoder
from pocketclip.infer.gates import Gate, describe_gates, gate_failure, gates_of
from pocketclip.types import Embeddings

if TYPE_CHECKING:
    from pocketclip.nn.clip import CLIP

NO_BF16 = (
    "this processor has no bf16: the towers were computed in fp32 here, so bf16 itself is not "
    "verified; export on a processor that has it, or compare results there"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Photographs and captions, and their embeddings by the model in torch."""

    photos: Sequence[Any]
    captions: Sequence[str]
    image: Embeddings  # (N, D)
    text: Embeddings  # (N, D)
    logit_scale: float


def compute_reference(
    model: CLIP, photos: Sequence[Any] = (), captions: Sequence[str] = ()
) -> Reference:
    """Return the model's embeddings of the package's photographs and captions, and of more.

    Args:
        model: the model.
        photos: added to the package's own.
        captions: likewise.

    Raises:
        ExportError: a photograph cannot be read, the model gives a non-finite embedding, or it has
            no logit scale.
    """
    encoder = Encoder(model)
    photos = [*own_photos(), *photos]
    captions = [*CAPTIONS, *captions]
    encoder.tokenizer = type(encoder.tokenizer)(warn=False)  # one caption is too long on purpose
    try:
        scale = encoder.logit_scale
        image, text = encoder.encode_image(photos), encoder.encode_text(captions)
    except ImageError as error:
        raise ExportError(f"a photograph to compare with cannot be read: {error}") from error
    except EmbeddingError as error:
        raise ExportError(f"the model itself is not usable: {error}") from error
    return Reference(photos=photos, captions=captions, image=image, text=text, logit_scale=scale)


def verify(bundle: Bundle, reference: Reference) -> dict[str, Any]:
    """Run `bundle` in every installed backend; return the figures.

    The target's own backend (ONNX Runtime for `onnx`, OpenVINO for `openvino`) decides. The results
    of other backends are recorded; those that fail are not used.

    Returns:
        `backends`: per backend `image` and `text` with `max_abs_error`, `min_cosine` and `count`,
        `passed`, and `ms`, the median time of the image tower for one photograph; `not_passed`:
        the names of the backends beyond the gate; `executed` and `verified`, which are false, with
        a `reason`, where this processor has no bf16; `gate`.

    Raises:
        ExportError: the target's own backend is not installed.
        DriftError: the result of that backend is beyond the gate; the message gives the figures.
    """
    own = runs(bundle)[0]
    if not installed(own):
        raise ExportError(f"no installed backend can run the export to verify it: install {own}")
    gates = gates_of(bundle.precision, bundle.image_input)
    results: dict[str, Any] = {}
    for name in filter(installed, runs(bundle)):
        try:
            results[name] = _in_backend(bundle, name, reference, gates)
        except (BundleError, EmbeddingError) as error:
            results[name] = {"passed": False, "reason": str(error)}
    not_passed = [name for name, figures in results.items() if figures.get("passed") is False]
    if own in not_passed:
        raise DriftError(
            "the export does not reproduce the model; nothing was written: "
            f"{own}: {results[own]['reason']}"
        )
    executed = "passed" in results[own]
    return {
        "executed": executed,
        "verified": executed,
        **({} if executed else {"reason": NO_BF16}),
        "backends": results,
        "not_passed": not_passed,
        "gate": describe_gates(gates),
    }


def _in_backend(
    bundle: Bundle, name: str, reference: Reference, gates: Mapping[str, Gate]
) -> dict[str, Any]:
    """Return the figures of a backend; without `passed` where bf16 was computed in fp32."""
    encoder = Encoder(bundle, name)
    encoder.tokenizer = type(encoder.tokenizer)(warn=False)
    figures: dict[str, Any] = {
        "image": compare(encoder.encode_image(reference.photos), reference.image),
        "text": compare(encoder.encode_text(reference.captions), reference.text),
    }
    pixels = encoder.prepare(reference.photos[0])[None]
    figures["ms"] = median_ms(lambda: encoder.encode_pixels(pixels))
    passed = judge(figures, gates)
    computed_in_fp32 = bundle.precision == "bf16" and not has_bf16()
    if bundle.precision == "bf16":
        figures["computed_in"] = "fp32" if computed_in_fp32 else "bf16"
    if not passed or not computed_in_fp32:
        figures["passed"] = passed
    return figures


def compare_towers(
    runs: Mapping[str, Callable[[NDArray[Any]], Embeddings]],
    inputs: Mapping[str, NDArray[Any]],
    reference: Reference,
    gate: Gate,
) -> dict[str, Any]:
    """Run the towers of a target without a backend in `infer`, one row at a time.

    Args:
        runs: a function that runs each tower.
        inputs: rows for each tower: pixels of `reference.photos`, ids of `reference.captions`.
        reference: the model's embeddings.
        gate: how far the towers' embeddings may be from them.

    Raises:
        DriftError: they are further away.
    """
    figures: dict[str, Any] = {"executed": True, "verified": True}
    for tower, embeddings in (("image", reference.image), ("text", reference.text)):
        rows = [runs[tower](row[None]) for row in inputs[tower]]
        figures[tower] = compare(np.concatenate(rows), embeddings)
        why = gate_failure(figures[tower], gate)
        if why is not None:
            raise DriftError(
                "the export does not reproduce the model; nothing was written: "
                f"{tower} tower: {why}"
            )
    return figures
