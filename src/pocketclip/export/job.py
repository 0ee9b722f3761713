"""One export from beginning to end: towers, quantisation, verification, bundle.

    export(checkpoint.load("runs/small"), "phone/", target="openvino", precision="fp16")

The bundle appears at `out` whole and verified, or not at all. How close it must be to the model is
in `pocketclip.infer.gates`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketclip import zoo
from pocketclip._deprecated import renamed_arguments
from pocketclip._version import __version__
from pocketclip.devices import is_installed
from pocketclip.errors import ExportError, MissingDependencyError
from pocketclip.export import verify_towers
from pocketclip.export.features import add_features, check_features
from pocketclip.export.quantize_openvino import NO_NNCF
from pocketclip.export.tower_files import TowerFiles, calibration_rows
from pocketclip.export.towers import GraphTowers, Towers, prepare
from pocketclip.graph.build import Pixels
from pocketclip.graph.writer import StoredArrays
from pocketclip.infer import verify
from pocketclip.infer.bundle import (
    TOKENIZER,
    Bundle,
    check_runtime_path,
    own_files,
    read,
    unwritten_bundle,
    write_manifest,
)
from pocketclip.infer.comparison import store_check_frame, until_verified
from pocketclip.infer.convert import remove_scratch
from pocketclip.infer.encoder import Encoder
from pocketclip.infer.gates import INT8_SEARCH_THRESHOLDS, MAX_POINTS_LOST
from pocketclip.license import write_entry
from pocketclip.progress import ProgressReporter, as_reporter
from pocketclip.storage.local import refuse_others, write_whole_folder
from pocketclip.tokenizer import portable

if TYPE_CHECKING:
    from pocketclip.nn.clip import CLIP

TARGETS = ("onnx", "openvino", "coreml", "executorch", "litert")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "pal6")
FROM_WEIGHTS = ("onnx", "openvino")
"""The targets whose graphs are built from the weights, without torch."""
ANY_SIZE = FROM_WEIGHTS
"""The targets whose graphs can hold the evaluation transform for photographs of any size."""
_CALIBRATED = ("onnx", "openvino", "executorch", "litert")
MIN_CALIBRATION = 16

log = logging.getLogger(__name__)
Accuracy = Callable[[Encoder], float]


@renamed_arguments(say="reporter")
def export(
    model: CLIP,
    out: str | os.PathLike[str],
    *,
    target: str,
    precision: str = "fp32",
    preprocessing: bool = False,
    normalize: bool = False,
    features: bool = False,
    photos: Sequence[Any] = (),
    captions: Sequence[str] = (),
    calibration: Sequence[Any] = (),
    accuracy: Accuracy | None = None,
    reporter: ProgressReporter | Callable[[str], None] | None = None,
    **options: Any,
) -> Bundle:
    """Export a model, and verify the result.

    Args:
        model: fused or not; unchanged.
        out: the bundle's folder: new, empty, or an older bundle, which is replaced.
        target: one of `TARGETS`.
        precision: one of `PRECISIONS` that the target supports.
        preprocessing: put the evaluation transform into the image tower's graph.
        normalize: both towers return unit embeddings.
        features: add the image tower's feature maps, for images of any size; see
            `pocketclip.infer.features`.
        photos: photographs to verify with, in addition to the package's own.
        captions: captions to verify with, in addition to the package's own.
        calibration: photographs like those to be used later, with which int8 is calibrated.
        accuracy: returns the top-1 of an encoder in percent, which may fall by at most
            `gates.MAX_POINTS_LOST`.
        reporter: receives one sentence per step.
        options: of the target (`deployment` of Core ML: `ios16` or `ios17`).

    Raises:
        ExportError: the target cannot do this.
        DriftError: the result is beyond a gate.
        MissingDependencyError: the target's package is not installed.
    """
    path = Path(out)
    module = check(
        target, precision, path, preprocessing=preprocessing, features=features,
        calibration=len(calibration), labelled=accuracy is not None, **options,
    )  # fmt: skip
    if model.inference_only:
        raise ExportError("export the model itself, not a variant that was made for inference")
    report = as_reporter(reporter)
    report.stage("preparing the towers")
    reference = verify.compute_reference(model, photos, captions)
    towers = _towers(
        model, target, preprocessing=preprocessing, normalize=normalize, features=features
    )
    rows = None
    if precision in ("int8", "pal6"):
        rows = calibration_rows(towers, calibration or reference.photos, reference.captions, report)
        readable = len(rows["image"])
        if not readable:
            raise ExportError("none of the photographs to calibrate with can be read")
        if readable < len(calibration):
            check(target, precision, path, preprocessing=preprocessing, calibration=readable,
                  labelled=accuracy is not None, **options)  # fmt: skip
    about = {
        "pocketclip": __version__,
        "space_id": model.space_id,
        "model": zoo.to_dict(model.config),
        "logit_scale": reference.logit_scale,
        "target": target,
        "precision": precision,
        "image_input": (
            "photo" if preprocessing else "image" if target == "coreml" else "preprocessed"
        ),
        "normalized": normalize,
    }
    with _remove_new_parents(path), write_whole_folder(path, own_files) as folder:
        (folder / TOKENIZER).write_text(portable(towers.config.text.context_length), "utf-8")
        files = TowerFiles(module, folder, towers, rows, options, about)
        figures = _write_until_verified(files, model, reference, accuracy, report)
        if not figures["verified"]:
            log.warning("%s, %s: %s", target, precision, figures["reason"])
        remove_scratch(folder)
        if features:
            assert isinstance(towers, GraphTowers)
            add_features(files, towers, model, report)
        entries: dict[str, Any] = {}
        if target == "onnx":
            entries["check"] = store_check_frame(unwritten_bundle(folder, files.about))
        licence = write_entry(model.license, folder)
        if licence is not None:
            entries["licence"] = licence
        names = [os.fspath(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
        write_manifest(folder, {**files.about, "verification": figures, **entries}, names)
    return read(path)


def _towers(
    model: CLIP, target: str, *, preprocessing: bool, normalize: bool, features: bool
) -> Towers | GraphTowers:
    if target not in FROM_WEIGHTS:
        return prepare(model, normalize=normalize)
    # OpenVINO has a resize of its own, nearer to Pillow's than that of ONNX.
    photo: Pixels = "photo" if target == "onnx" else "levels"
    return GraphTowers(
        weights=model.arrays(),
        config=model.config,
        pixels=photo if preprocessing else "preprocessed",
        normalized=normalize,
        stored=StoredArrays() if features else None,
    )


def _write_until_verified(
    files: TowerFiles,
    model: CLIP,
    reference: verify.Reference,
    accuracy: Accuracy | None,
    reporter: ProgressReporter,
) -> dict[str, Any]:
    """Write both towers, in int8 with more and more layers in fp32, until they pass the gates.

    Returns:
        The figures of the verification.

    Raises:
        DriftError: the last attempt is beyond a gate too.
    """
    from pocketclip.nn.reparam import fuse  # late: `check` works without torch

    original: float | None = None

    def attempt(threshold: float | None) -> dict[str, Any]:
        nonlocal original
        files.write(threshold, reporter)
        reporter.stage("verifying")
        figures = verify_towers.verify_towers(files, reference)
        if accuracy is not None:
            reporter.stage("comparing the accuracy")
            if original is None:
                original = accuracy(Encoder(fuse(model)))
            exported = accuracy(verify_towers.open_encoder(files, figures, model))
            figures["accuracy"] = verify_towers.compare_accuracies(original, exported)
            figures["gate"]["max_points_lost"] = MAX_POINTS_LOST
        return figures

    thresholds = INT8_SEARCH_THRESHOLDS if files.quantized else (None,)
    return until_verified([functools.partial(attempt, t) for t in thresholds], reporter)


@contextlib.contextmanager
def _remove_new_parents(path: Path) -> Iterator[None]:
    """Remove the parents of `path` that were created within the block, if the block fails."""
    missing = [folder for folder in path.resolve().parents if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):  # another process put something there
                folder.rmdir()
        raise


def check(
    target: str,
    precision: str,
    path: Path,
    *,
    preprocessing: bool = False,
    features: bool = False,
    calibration: int = 0,
    labelled: bool = False,
    **options: Any,
) -> Any:
    """Check everything that can be checked before any work; return the target's module.

    Args:
        target: as in `export`.
        precision: as in `export`.
        path: the bundle's folder.
        preprocessing: as in `export`.
        features: as in `export`.
        calibration: number of photographs to calibrate with.
        labelled: whether accuracies will be compared.
        options: of the target.

    Raises:
        ExportError: the target cannot do this, or `path` holds something else.
        MissingDependencyError: the target's package is not installed.
    """
    if target not in TARGETS:
        raise ExportError(f"unknown format {target!r}; the formats are {', '.join(TARGETS)}")
    if precision not in PRECISIONS:
        raise ExportError(
            f"unknown precision {precision!r}; the precisions are {', '.join(PRECISIONS)}"
        )
    module = importlib.import_module(f"pocketclip.export.{target}")
    if precision not in module.PRECISIONS:
        raise ExportError(
            f"{target} has no {precision}; its precisions are {', '.join(module.PRECISIONS)}"
        )
    unknown = [name for name in options if target != "coreml" or name != "deployment"]
    if unknown:
        raise ExportError(f"{target} has no option --{' or --'.join(unknown)}")
    if preprocessing and target not in ANY_SIZE:
        raise ExportError(
            f"{target} has no operation that resizes as the evaluation does; leave "
            f"--preprocessing out, or export to {' or '.join(ANY_SIZE)}"
        )
    if features:
        check_features(target, precision)
    if options:
        module.check_options(**options)
    if precision == "int8" and target in _CALIBRATED:
        check_calibration(calibration)
    if labelled and target == "coreml":
        raise ExportError(
            "a coreml bundle cannot be executed here, so its accuracy cannot be measured: leave "
            "--labelled out"
        )
    check_runtime_path(path)
    refuse_others(path, own_files, ExportError)
    if target != "onnx":  # which the base install writes
        module.package()
    if target == "openvino" and precision == "int8" and not is_installed("nncf"):
        raise MissingDependencyError(NO_NNCF)
    return module


def check_calibration(count: int) -> None:
    """Refuse to calibrate int8 with too few photographs.

    Raises:
        ExportError: there are fewer than `MIN_CALIBRATION`.
    """
    if count < MIN_CALIBRATION:
        raise ExportError(
            "int8 is calibrated with photographs like those that will be used: give at least "
            f"{MIN_CALIBRATION} (100 to 500 are better), with --calibration FOLDER"
        )
