"""The image tower's feature maps beside the towers of an ONNX bundle, verified as they are.

features.onnx   the graph, for images of any size
features.onnx.data   the weights that `image.onnx.data` does not hold; it refers to the others
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pocketclip import devices
from pocketclip.errors import ExportError
from pocketclip.export.tower_files import TowerFiles
from pocketclip.export.towers import GraphTowers
from pocketclip.graph.features import write_features
from pocketclip.infer.bundle import FEATURES, unwritten_bundle
from pocketclip.infer.features import GATES, verify_features
from pocketclip.progress import ProgressReporter

if TYPE_CHECKING:
    from pocketclip.nn.clip import CLIP


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
