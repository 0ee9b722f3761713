"""One export from beginning to end: towers, quantisation, verification, bundle.

    export(checkpoint.load("runs/small"), "phone/", target="openvino", precision="fp16")

A bundle appears at `out` whole and verified, or not at all.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketclip import __version__, zoo
from pocketclip.errors import ExportError
from pocketclip.export import verify
from pocketclip.export.towers import Pixels, Towers, prepare
from pocketclip.files import write_whole_folder
from pocketclip.infer.bundle import (
    MANIFEST,
    TOKENIZER,
    TOWERS,
    Bundle,
    is_bundle,
    read,
    write_manifest,
)
from pocketclip.infer.encoder import Encoder
from pocketclip.preprocess import Preprocess
from pocketclip.tokenizer import Tokenizer, portable

if TYPE_CHECKING:
    from pocketclip.nn.clip import CLIP

TARGETS = ("onnx", "openvino", "coreml", "executorch", "litert")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "pal6")
ANY_SIZE = ("onnx", "openvino")
"""The targets whose graphs can hold the evaluation transform for photographs of any size."""
_CALIBRATED = ("onnx", "openvino", "executorch", "litert")
MIN_CALIBRATION = 16

Say = Callable[[str], None]
Accuracy = Callable[[Encoder], float]


def export(
    model: CLIP,
    out: str | os.PathLike[str],
    *,
    target: str,
    precision: str = "fp32",
    preprocessing: bool = False,
    normalize: bool = False,
    photos: Sequence[Any] = (),
    captions: Sequence[str] = (),
    calibration: Sequence[Any] = (),
    accuracy: Accuracy | None = None,
    say: Say = lambda _text: None,
    **options: Any,
) -> Bundle:
    """Export a model and verify what came out.

    Args:
        model: fused or not; unchanged.
        out: the bundle's folder: new, empty, or an older bundle, which is replaced.
        target: one of `TARGETS`.
        precision: one of `PRECISIONS`, as far as the target has it.
        preprocessing: put the evaluation transform into the image tower's graph.
        normalize: let the towers return unit embeddings.
        photos: more photographs to verify with than the package's own.
        captions: more captions to verify with.
        calibration: photographs like those that will be used, which int8 is calibrated with.
        accuracy: returns the top-1 of an encoder in percent; it may fall by at most
            `verify.MAX_POINTS_LOST`.
        say: is told what is being done.
        options: of the target (`deployment` of Core ML: `ios16` or `ios17`).

    Raises:
        ExportError: the target cannot do this, or the result is beyond a gate.
        MissingDependencyError: the target's package is not installed.
    """
    writer = _writer(target, precision, preprocessing=preprocessing)
    place = Path(out)
    _check_place(place)
    if precision == "int8" and target in _CALIBRATED and len(calibration) < MIN_CALIBRATION:
        raise ExportError(
            f"int8 is calibrated with photographs like those that will be used: give at least "
            f"{MIN_CALIBRATION} (100 to 500 are better), with --calibration FOLDER"
        )
    if not isinstance(model.config, zoo.ModelConfig) or model.inference_only:
        raise ExportError("export the model itself, not a form that was made for inference")
    any_size = preprocessing and target in ANY_SIZE
    pixels: Pixels = "levels" if preprocessing and target != "coreml" else "preprocessed"
    say("preparing the towers")
    wanted = verify.reference(model, photos, captions)
    towers = prepare(model, normalize=normalize, pixels=pixels, widen=target == "openvino")
    examples = _examples(towers, calibration, wanted) if precision == "int8" else None
    with write_whole_folder(place) as folder:
        facts = {}
        for kind in TOWERS:
            say(f"writing the {kind} tower for {target}, {precision}")
            facts[kind] = writer(kind, towers, folder, precision, examples, options)
        if any_size:
            module = importlib.import_module(f"pocketclip.export.{target}")
            path = folder / str(facts["image"]["file"])
            facts["image"] |= _without_kept(module.add_preprocessing(path, towers.config.preprocess))
        (folder / TOKENIZER).write_text(portable(towers.config.text.context_length), "utf-8")
        about = {
            "pocketclip": __version__,
            "space_id": model.space_id,
            "model": zoo.to_dict(model.config),
            "logit_scale": float(model.logit_scale.detach().exp()),
            "target": target,
            "precision": precision,
            "image_input": "photo" if any_size else "image" if target == "coreml" else pixels,
            "normalized": normalize,
            **facts,
        }
        say("verifying")
        figures = _verified(folder, about, towers, wanted)
        if accuracy is not None:
            say("comparing the accuracy")
            figures["accuracy"] = _accuracy(folder, about, figures, model, accuracy)
        names = [os.fspath(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
        write_manifest(folder, {**about, "verification": figures}, names)
    return read(place)


def _check_place(place: Path) -> None:
    if place.exists() and not place.is_dir():
        raise ExportError(f"{place} is a file; a bundle is a folder")
    if place.is_dir() and any(place.iterdir()) and not is_bundle(place):
        raise ExportError(f"{place} holds other files; choose an empty or new folder")


Writer = Callable[
    [str, Towers, Path, str, "Mapping[str, Sequence[NDArray[Any]]] | None", Mapping[str, Any]],
    dict[str, Any],
]


def _writer(target: str, precision: str, *, preprocessing: bool) -> Writer:
    """Return what writes a tower, having checked that it can be done at all."""
    if target not in TARGETS:
        raise ExportError(f"unknown format {target!r}; it is {', '.join(TARGETS)}")
    if precision not in PRECISIONS:
        raise ExportError(f"unknown precision {precision!r}; it is {', '.join(PRECISIONS)}")
    module = importlib.import_module(f"pocketclip.export.{target}")
    if precision not in module.PRECISIONS:
        raise ExportError(
            f"{target} has no {precision} here; it has {', '.join(module.PRECISIONS)}"
        )
    if preprocessing and target not in (*ANY_SIZE, "coreml"):
        raise ExportError(
            f"{target} has no operation that resizes as the evaluation does; leave "
            f"--preprocessing out, or export to {' or '.join(ANY_SIZE)}"
        )
    module.package()
    return _runtime_tower if target in ANY_SIZE else _device_tower


def _runtime_tower(
    kind: str,
    towers: Towers,
    folder: Path,
    precision: str,
    examples: Mapping[str, Sequence[NDArray[Any]]] | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a tower for ONNX Runtime or OpenVINO."""
    target = options["target"]
    module = importlib.import_module(f"pocketclip.export.{target}")
    tower, example = _of(towers, kind)
    path = folder / f"{kind}{module.SUFFIX}"
    return dict(module.write(tower, example, path, kind=kind, precision=precision, towers=towers))


def _device_tower(
    kind: str,
    towers: Towers,
    folder: Path,
    precision: str,
    examples: Mapping[str, Sequence[NDArray[Any]]] | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a tower for a phone."""
    raise NotImplementedError


def _of(towers: Towers, kind: str) -> tuple[Any, Any]:
    if kind == "image":
        return towers.image, towers.image_example
    return towers.text, towers.text_example


def _without_kept(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key not in ("kept", "notes")}
