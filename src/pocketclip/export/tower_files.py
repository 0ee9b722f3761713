"""The files of both towers in the folder that becomes a bundle.

    files = TowerFiles(module, folder, towers, rows, options, about)
    files.write(None, ProgressReporter())

Shapes: C channels, H W height and width, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip import devices
from pocketclip.errors import ImageError
from pocketclip.export.quantize_onnx import quantize_onnx
from pocketclip.export.quantize_openvino import quantize_openvino
from pocketclip.export.towers import GraphTowers, Towers
from pocketclip.infer.bundle import TOWERS
from pocketclip.infer.convert import SCRATCH
from pocketclip.preprocess import Preprocess
from pocketclip.progress import ProgressReporter
from pocketclip.tokenizer import Tokenizer

_MAX_ROWS = 64
"""Most calibration rows that the writers for phones compare for each set of layers."""
_QUANTIZE = {"onnx": quantize_onnx, "openvino": quantize_openvino}
_TEXTS = tuple(
    prompt.format(name)
    for prompt in ("a photo of {}.", "{}", "{} on a table, seen from above", "a drawing of {}")
    for name in ("a dog", "two children", "red apples", "the old town", "a cup", "snow", "bread")
)
"""Texts that calibrate the text tower, besides the captions that verify it."""


class TowerFiles:
    """Both towers in a bundle's folder, written once or, in int8, until they pass the gates.

    Args:
        module: of the target, such as `pocketclip.export.onnx`.
        folder: the bundle's, which nothing reads yet.
        towers: the towers to write.
        rows: calibration rows for each tower, see `calibration_rows`; None without quantisation.
        options: of the target.
        about: the bundle's manifest; each write adds the towers' entries to a copy.
    """

    def __init__(
        self,
        module: Any,
        folder: Path,
        towers: Towers | GraphTowers,
        rows: Mapping[str, Sequence[NDArray[Any]]] | None,
        options: Mapping[str, Any],
        about: Mapping[str, Any],
    ) -> None:
        self.module, self.folder, self.towers = module, folder, towers
        self.rows, self.options = rows, options
        self.about: dict[str, Any] = dict(about)
        self.target: str = about["target"]
        self.precision: str = about["precision"]

    @property
    def quantized(self) -> bool:
        """Whether some layers may have to stay in higher precision."""
        return self.precision in ("int8", "pal6")

    @property
    def paths(self) -> dict[str, Path]:
        """The towers' files."""
        return {tower: self.folder / str(self.about[tower]["file"]) for tower in TOWERS}

    def write(self, min_cosine: float | None, reporter: ProgressReporter) -> None:
        """Write both towers.

        Args:
            min_cosine: for quantised towers, the smallest cosine to the fp32 tower on the
                calibration rows; None without quantisation.
            reporter: receives a stage per tower.
        """
        for kind in TOWERS:
            reporter.stage(f"writing the {kind} tower")
            self.about[kind] = self._write_tower(kind, min_cosine)
        if self.about["image_input"] == "photo" and self.towers.pixels != "photo":
            entry = self.about["image"]
            path = self.folder / str(entry["file"])
            described = self.module.add_preprocessing(path, self.towers.config.preprocess)
            entry |= {key: described[key] for key in ("input", "output", "dynamic_batch")}

    def _write_tower(self, kind: str, min_cosine: float | None) -> dict[str, Any]:
        path = self.folder / f"{kind}{self.module.SUFFIX}"
        if self.target not in _QUANTIZE:
            options = dict(self.options)
            if self.rows is not None and min_cosine is not None:
                # Every set of layers is compared on all of these rows.
                rows = self.rows[kind]
                options |= {
                    "calibration": rows[:: -(-len(rows) // _MAX_ROWS)],
                    "min_cosine": min_cosine,
                }
            return self._write_float(kind, path, self.precision, **options)
        for file in self.folder.glob(f"{kind}.*"):
            file.unlink()  # an earlier attempt is still mapped into memory: never write over it
        if min_cosine is None:
            return self._write_float(kind, path, self.precision)
        assert self.rows is not None
        source = self.folder / f"{SCRATCH}{kind}{self.module.SUFFIX}"
        # Inputs and outputs of int8 are those of fp32, which an earlier attempt described.
        exists = source.exists()
        entry = self.about[kind] if exists else self._write_float(kind, source, "fp32")
        choice = _QUANTIZE[self.target](
            source, path, self.rows[kind], min_cosine=min_cosine, threads=devices.cores()
        )
        return {**entry, "file": path.name, "kept": choice["kept"], "quantisation": choice}

    def _write_float(self, kind: str, path: Path, precision: str, **options: Any) -> dict[str, Any]:
        towers = self.towers
        if isinstance(towers, GraphTowers):
            return dict(self.module.write(towers, path, kind=kind, precision=precision))
        tower = towers.image if kind == "image" else towers.text
        example = towers.image_example if kind == "image" else towers.text_example
        return dict(
            self.module.write(
                tower, example, path, kind=kind, precision=precision, towers=towers, **options
            )
        )


def calibration_rows(
    towers: Towers | GraphTowers,
    photos: Sequence[Any],
    captions: Sequence[str],
    reporter: ProgressReporter | None = None,
) -> dict[str, list[NDArray[Any]]]:
    """Return rows for both towers: pixels (1, C, H, W), or (1, H, W, C) in uint8, and ids (1, T).

    Args:
        towers: the towers that the rows are for.
        photos: photographs; one that cannot be read is reported and left out.
        captions: captions; the package's own texts follow them.
        reporter: receives one sentence per unreadable photograph.
    """
    preprocess = Preprocess(towers.config.preprocess)

    def pixels(photo: Any) -> NDArray[Any]:
        if towers.pixels == "preprocessed":
            return preprocess(photo)[None]
        square = preprocess.to_uint8(photo)[None]  # the graph's resizing does not change it
        return (
            square if towers.pixels == "photo" else square.transpose(0, 3, 1, 2).astype(np.float32)
        )

    ids = Tokenizer(warn=False)([*captions, *_TEXTS], towers.config.text.context_length)
    images = []
    for photo in photos:
        try:
            images.append(pixels(photo))
        except ImageError as error:
            if reporter is not None:
                reporter.stage(f"skipped: {error}")
    return {"image": images, "text": [row[None] for row in ids]}
