"""Verifies and runs the towers of a bundle before the bundle is written.

Shapes: B batch, D embedding, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import DriftError
from pocketclip.export.tower_files import TowerFiles, calibration_rows
from pocketclip.infer import verify
from pocketclip.infer.backends import RUNS, Run, TorchBackend
from pocketclip.infer.bundle import TOWERS, unwritten_bundle
from pocketclip.infer.encoder import Encoder
from pocketclip.infer.gates import MAX_POINTS_LOST, Gate, describe_gates, gates_of
from pocketclip.preprocess import Preprocess
from pocketclip.tokenizer import Tokenizer
from pocketclip.types import Embeddings

if TYPE_CHECKING:
    from pocketclip.nn.clip import CLIP


def verify_towers(files: TowerFiles, reference: verify.Reference) -> dict[str, Any]:
    """Return the figures of the comparison with the model.

    Core ML's towers cannot be executed here: their weights were compared when they were written,
    and the bundle gets a script with which a Mac executes them.

    Raises:
        DriftError: the towers are beyond their gate.
    """
    if files.target in RUNS:
        return verify.verify(unwritten_bundle(files.folder, files.about), reference)
    gates = gates_of(files.precision, files.about["image_input"])
    if not hasattr(files.module, "open_tower"):
        figures = _add_check(files, reference, gates["image"])
    else:
        runs = {tower: files.module.open_tower(path) for tower, path in files.paths.items()}
        rows = calibration_rows(files.towers, reference.photos, reference.captions)
        inputs: dict[str, NDArray[Any]] = {t: np.concatenate(rows[t]) for t in TOWERS}
        inputs["text"] = inputs["text"][: len(reference.captions)]
        figures = verify.compare_towers(runs, inputs, reference, gates["image"])
    return {**figures, "gate": describe_gates(gates)}


def _add_check(files: TowerFiles, reference: verify.Reference, gate: Gate) -> dict[str, Any]:
    """Add the script that verifies the bundle elsewhere; return the figures known here."""
    config = files.towers.config
    structure = {tower: files.module.inspect(path) for tower, path in files.paths.items()}
    squares = np.stack([Preprocess(config.preprocess).to_uint8(p) for p in reference.photos])
    ids = Tokenizer(warn=False)(list(reference.captions), config.text.context_length)
    files.module.add_check(
        files.folder, squares, ids, reference.image, reference.text, gate.cosine, gate.error
    )
    return {
        "executed": False,
        "verified": False,
        "reason": files.module.NOT_EXECUTED,
        "judged": "the towers in torch with the weights that were read back",
        **structure,
    }


class _RowBackend(TorchBackend):
    """The towers of a target without a backend in `infer`, run one row at a time."""

    def __init__(self, model: CLIP, runs: Mapping[str, Run]) -> None:
        super().__init__(model)
        self.runs = runs

    def image(self, pixels: NDArray[Any]) -> Embeddings:
        return np.concatenate([self.runs["image"](row[None]) for row in pixels])

    def text(self, ids: NDArray[np.int64]) -> Embeddings:
        # The encoder cuts a batch to its longest text; these towers need the full length.
        ids = np.pad(ids, ((0, 0), (0, self.model.config.text.context_length - ids.shape[1])))
        return np.concatenate([self.runs["text"](row[None]) for row in ids])


def open_encoder(files: TowerFiles, figures: Mapping[str, Any], model: CLIP) -> Encoder:
    """Return an encoder that runs the towers that were written.

    Args:
        files: the towers.
        figures: of their verification.
        model: the model, whose transform and tokenizer serve targets without a backend.
    """
    if files.target in RUNS:
        # The target's own backend: another one may be faster, but the gates are for this one.
        return Encoder(unwritten_bundle(files.folder, files.about, figures), RUNS[files.target][0])
    encoder = Encoder(model)
    encoder.backend = _RowBackend(
        model, {tower: files.module.open_tower(path) for tower, path in files.paths.items()}
    )
    return encoder


def compare_accuracies(original: float, exported: float) -> dict[str, float]:
    """Return both accuracies, in percent.

    Raises:
        DriftError: the export's is lower by more than `gates.MAX_POINTS_LOST`.
    """
    if not original - exported <= MAX_POINTS_LOST:
        raise DriftError(
            f"the export classifies {exported:.2f} % of the labelled photographs correctly, the "
            f"model {original:.2f} %: more than {MAX_POINTS_LOST} points lost; nothing was written"
        )
    return {"model_top1": original, "top1": exported}
