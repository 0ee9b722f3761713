"""The image tower's feature maps beside the towers of an ONNX bundle, verified as they are.

features.onnx   the graph, for images of any size
features.onnx.data   the weights that `image.onnx.data` does not hold; it refers to the others
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketclip import devices, zoo
from pocketclip.errors import DriftError, ExportError
from pocketclip.export.tower_files import TowerFiles
from pocketclip.export.towers import GraphTowers
from pocketclip.feature_maps import total_stride
from pocketclip.graph.features import write_features
from pocketclip.infer.bundle import FEATURES, Bundle, unwritten_bundle
from pocketclip.infer.comparison import own_photos
from pocketclip.infer.features import FeatureExtractor, prepare_pixels
from pocketclip.preprocess import Preprocess
from pocketclip.progress import ProgressReporter

if TYPE_CHECKING:
    from pocketclip.nn.clip import CLIP

GATES = {"fp32": 1e-4, "fp16": 1e-2}
"""The largest difference of a value, relative to the map's largest value, by precision."""


def check_features(target: str, precision: str) -> None:
    """Refuse formats and precisions without feature maps.

    Raises:
        ExportError: it is not ONNX in fp32 or fp16.
    """
    if target != "onnx":
        raise ExportError(
            f"{target} bundles have no feature maps: leave --features out, or export to onnx"
        )
    if precision not in GATES:
        raise ExportError(
            f"feature maps are exported in {' or '.join(GATES)}, not in {precision}: leave "
            "--features out, or choose another precision"
        )


def add_features(
    files: TowerFiles, towers: GraphTowers, model: CLIP, reporter: ProgressReporter
) -> None:
    """Write the feature maps into a bundle's folder, verify them, and note them in the manifest.

    Args:
        files: the bundle's towers, which were written.
        towers: the towers that they were written from.
        model: the model in torch.
        reporter: receives a stage for each step.

    Raises:
        DriftError: they do not reproduce the model.
    """
    reporter.stage("writing the feature maps")
    entry = write_features(
        towers.weights, towers.config, files.folder / f"{FEATURES}{files.module.SUFFIX}",
        precision="fp16" if files.precision == "fp16" else "fp32", stored=towers.stored,
    )  # fmt: skip
    files.about[FEATURES] = entry
    reporter.stage("verifying the feature maps")
    bundle = unwritten_bundle(files.folder, files.about)
    figures = verify_features(bundle, model, files.precision, devices.cores())
    files.about[FEATURES] = {**entry, "verification": figures}


def verify_features(bundle: Bundle, model: CLIP, precision: str, threads: int) -> dict[str, Any]:
    """Compare a bundle's maps with the model's; return the figures.

    A photograph of the package is compared at the model's own size and at a wide one.

    Raises:
        DriftError: a map differs by more than its gate.
        ExportError: the model itself gives maps that are not finite.
    """
    own, exported = FeatureExtractor(model.eval(), threads), FeatureExtractor(bundle, threads)
    preprocess, photo = Preprocess(model.config.preprocess), own_photos()[0]
    gate, errors = GATES[precision], dict[str, float]()
    sizes = compared_sizes(model.config)
    for size in sizes:
        pixels = prepare_pixels(preprocess, [photo], size)
        expected = own(pixels)
        for name, found in exported(pixels).items():
            if not np.isfinite(expected[name]).all():
                raise ExportError(f"the model itself is not usable: {name} is not finite")
            error = _relative_error(found, expected[name])
            if not error <= gate:
                raise DriftError(
                    "the exported features do not reproduce the model; nothing was written: "
                    f"{name} at {size[0]} x {size[1]} pixels differs by {error:.2e} of its "
                    f"largest value; the gate is {gate}"
                )
            errors[name] = max(error, errors.get(name, 0.0))
    return {"sizes": [list(size) for size in sizes], "max_relative_error": errors, "gate": gate}


def compared_sizes(config: zoo.ModelConfig) -> tuple[tuple[int, int], ...]:
    """Return the sizes (H, W) that features are compared at: the model's, and a wide one.

    That of MCi is not a multiple of its strides.
    """
    step, side = total_stride(config.image), config.image_size
    low, wide = (max(1, round(side * share / step)) * step for share in (0.75, 1.5))
    odd = 1 if isinstance(config.image, zoo.MCiConfig) else 0
    return (side, side), (low + odd, wide + odd)


def _relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    if found.shape != expected.shape:
        return float("inf")
    largest = float(np.abs(expected).max())
    difference = float(np.abs(found - expected).max())
    return difference / largest if largest else difference
