"""Proof that an export computes what the model computes, on photographs and captions.

Both sides get the same photographs and captions, and their unit embeddings are compared: the
largest absolute difference of a component, and the smallest cosine. Beyond a gate there is no
bundle.

Shapes: N photographs or captions, D embedding.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
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
from pocketclip.infer.bundle import TOWERS, Bundle
from pocketclip.infer.encoder import Encoder
from pocketclip.types import Embeddings

if TYPE_CHECKING:
    from pocketclip.nn.clip import CLIP

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """How far an export may be from the model."""

    cosine: float
    """The smallest cosine of an embedding to the model's."""
    error: float | None = None
    """The largest absolute difference of a component of unit embeddings; None: any."""


GATES = {
    "fp32": Gate(cosine=0.99999, error=1e-4),
    "fp16": Gate(cosine=0.9995),
    "bf16": Gate(cosine=0.9995),
    "int8": Gate(cosine=0.99),
    "pal6": Gate(cosine=0.99),
}
# A resize in a graph rounds in other places than Pillow: single pixels differ by up to 3 levels.
PREPROCESSED_IN_GRAPH = Gate(cosine=0.9995)
NO_BF16 = (
    "this processor has no bf16: the towers were computed in fp32 here, so that bf16 itself is not "
    "verified; export on a processor that has it, or compare results there"
)
MAX_POINTS_LOST = 0.5
"""Of top-1, in percent, where labelled photographs are given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Photographs and captions, and what the model in torch says of them."""

    photos: Sequence[Any]
    captions: Sequence[str]
    image: Embeddings  # (N, D)
    text: Embeddings  # (N, D)
    logit_scale: float


def own_photos() -> list[bytes]:
    """Return the photographs that come with the package."""
    folder = resources.files("pocketclip") / "data" / "check"
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".jpg"))
    return [(folder / name).read_bytes() for name in names]


def reference(model: CLIP, photos: Sequence[Any] = (), captions: Sequence[str] = ()) -> Reference:
    """Return what `model` says of the package's photographs and captions, and of those given.

    Raises:
        ExportError: a photograph cannot be read, or the model gives no finite number for one, or
            has no logit scale.
    """
    encoder = Encoder(model)
    photos = [*own_photos(), *photos]
    captions = [*CAPTIONS, *captions]
    encoder.tokenizer = type(encoder.tokenizer)(warn=False)  # one of ours is meant to be cut
    try:
        scale = encoder.logit_scale
        image, text = encoder.encode_image(photos), encoder.encode_text(captions)
    except ImageError as error:
        raise ExportError(f"a photograph to compare with cannot be read: {error}") from error
    except EmbeddingError as error:
        raise ExportError(f"the model itself is not usable: {error}") from error
    return Reference(photos=photos, captions=captions, image=image, text=text, logit_scale=scale)


def compare(found: Embeddings, wanted: Embeddings) -> dict[str, Any]:
    """Return how far embeddings (N, D) are from those wanted; scaled to unit length first."""
    if found.shape != wanted.shape:
        raise ExportError(f"it returns embeddings {found.shape}, not {wanted.shape}")
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # a gate refuses NaN
        a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in _doubles(found, wanted))
    return {
        "count": len(wanted),
        "max_abs_error": float(np.abs(a - b).max()),
        "min_cosine": float((a * b).sum(-1).min()),
    }


def _doubles(*arrays: NDArray[Any]) -> list[NDArray[np.float64]]:
    return [np.asarray(array, np.float64) for array in arrays]


def gates_of(precision: str, image_input: str) -> dict[str, Gate]:
    """Return the gate of each tower, by which a bundle is judged and which is written into it."""
    gates = dict.fromkeys(TOWERS, GATES[precision])
    if image_input == "photo" and gates["image"].cosine > PREPROCESSED_IN_GRAPH.cosine:
        gates["image"] = PREPROCESSED_IN_GRAPH
    return gates


def described(gates: Mapping[str, Gate]) -> dict[str, Any]:
    """Return gates as a bundle holds them: what both towers had to reach, and each of them."""
    errors = [gate.error for gate in gates.values()]
    return {
        "min_cosine": min(gate.cosine for gate in gates.values()),
        "max_abs_error": None if None in errors else max(errors),  # type: ignore[type-var]
        **{
            tower: {"min_cosine": gate.cosine, "max_abs_error": gate.error}
            for tower, gate in gates.items()
        },
    }


def failure(figures: Mapping[str, Any], gate: Gate) -> str | None:
    """Return what of `figures` is beyond `gate`, in words, or None."""
    # Written so that NaN fails.
    if not figures["min_cosine"] >= gate.cosine:
        return f"the smallest cosine is {figures['min_cosine']:.6f}, and {gate.cosine} is wanted"
    if gate.error is not None and not figures["max_abs_error"] <= gate.error:
        return f"the largest error is {figures['max_abs_error']:.2e}, and {gate.error} is allowed"
    return None


def verify(bundle: Bundle, wanted: Reference) -> dict[str, Any]:
    """Run `bundle` in every backend that is installed; return the figures.

    Its own backend (ONNX Runtime for `onnx`, OpenVINO for `openvino`) decides. Others are
    recorded, and not used where they fail.

    Returns:
        `backends`: per backend `image` and `text` with `max_abs_error`, `min_cosine` and `count`,
        `passed`, and `ms`, the median time of one photograph through the image tower;
        `not_passed`: the names of the backends beyond the gate; `executed` and `verified`, which
        are false, with a `reason`, where bf16 could not be computed here; `gate`.

    Raises:
        ExportError: its own backend is not installed.
        DriftError: its own backend does not compute what the model does; the message says how far
            off it is.
    """
    own = runs(bundle)[0]
    if not installed(own):
        raise ExportError(f"nothing here can run the export to verify it: install {own}")
    gates = gates_of(bundle.precision, bundle.image_input)
    found: dict[str, Any] = {}
    for name in filter(installed, runs(bundle)):
        try:
            found[name] = _in_backend(bundle, name, wanted, gates)
        except (BundleError, EmbeddingError) as error:
            found[name] = {"passed": False, "reason": str(error)}
    not_passed = [name for name, figures in found.items() if figures.get("passed") is False]
    if own in not_passed:
        raise DriftError(
            "the export computes something else, so nothing was written: "
            f"{own}: {found[own]['reason']}"
        )
    tried = "passed" in found[own]
    return {
        "executed": tried,
        "verified": tried,
        **({} if tried else {"reason": NO_BF16}),
        "backends": found,
        "not_passed": not_passed,
        "gate": described(gates),
    }


def _in_backend(
    bundle: Bundle, name: str, wanted: Reference, gates: Mapping[str, Gate]
) -> dict[str, Any]:
    """Return the figures of a backend; without `passed` where bf16 was computed in fp32."""
    encoder = Encoder(bundle, name)
    encoder.tokenizer = type(encoder.tokenizer)(warn=False)
    figures: dict[str, Any] = {
        "image": compare(encoder.encode_image(wanted.photos), wanted.image),
        "text": compare(encoder.encode_text(wanted.captions), wanted.text),
    }
    failed = [f"{t} tower: {why}" for t in TOWERS if (why := failure(figures[t], gates[t]))]
    figures["ms"] = round(1e3 * _seconds(encoder, wanted.photos[0]), 3)
    other = bundle.precision == "bf16" and not has_bf16()
    if bundle.precision == "bf16":
        figures["computed_in"] = "fp32" if other else "bf16"
    if failed or not other:
        figures["passed"] = not failed
    if failed:
        figures["reason"] = "; ".join(failed)
        for tower in TOWERS:  # JSON has no NaN
            figures[tower] = {k: v if np.isfinite(v) else None for k, v in figures[tower].items()}
    return figures


def _seconds(encoder: Encoder, photo: Any) -> float:
    pixels = encoder.prepare(photo)[None]
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        encoder.encode_pixels(pixels)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def compare_towers(
    runs: Mapping[str, Callable[[NDArray[Any]], Embeddings]],
    inputs: Mapping[str, NDArray[Any]],
    wanted: Reference,
    gate: Gate,
) -> dict[str, Any]:
    """Run the towers of a target that has no backend of ours, one row at a time.

    Args:
        runs: per tower, what runs it.
        inputs: per tower, rows for it: pixels of `wanted.photos`, ids of `wanted.captions`.
        wanted: what they should give.
        gate: how far they may be off.

    Raises:
        ExportError: they are further off.
    """
    figures: dict[str, Any] = {"executed": True, "verified": True}
    for tower, embeddings in (("image", wanted.image), ("text", wanted.text)):
        rows = [runs[tower](row[None]) for row in inputs[tower]]
        figures[tower] = compare(np.concatenate(rows), embeddings)
        why = failure(figures[tower], gate)
        if why is not None:
            raise DriftError(
                f"the export computes something else; nothing was written: {tower} tower: {why}"
            )
    return figures
