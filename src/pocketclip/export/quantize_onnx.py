"""An exported tower in int8 for ONNX Runtime.

    facts = quantize_onnx(Path("fp32/image.onnx"), Path("int8/image.onnx"), pixels)
    facts["kept"], facts["min_cosine"]  # (["image.stem.0.conv"], 0.9961)

Layers that gain from int8 are quantised (`qdq.py`); those that int8 harms stay in fp32, until the
embeddings are near enough to the fp32 tower's (`quantize.py`).

Shapes: B batch, S side of the image in pixels, T tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pocketclip.errors import ExportError, last_line
from pocketclip.export import qdq
from pocketclip.export.gelu_tables import with_tables
from pocketclip.export.quantize import batches_to_compare, check_arguments, choose_layers
from pocketclip.export.sensitivity import Run
from pocketclip.graph import proto as onnx
from pocketclip.infer.backends import onnx_session
from pocketclip.infer.gates import INT8_SEARCH_THRESHOLD

_MAX_BYTES = 2**31 - 2**20
"""Of a model as one message of protobuf, which the search for layers hands to ONNX Runtime."""


def quantize_onnx(
    source: Path,
    target: Path,
    calibration: Sequence[NDArray[Any]],
    *,
    keep: Collection[str] = (),
    min_cosine: float = INT8_SEARCH_THRESHOLD,
    threads: int = 1,
) -> dict[str, Any]:
    """Write an int8 variant of an ONNX tower.

    Args:
        source: the tower in fp32, as `pocketclip.graph` writes it.
        target: the file to write, its weights beside it, in a folder that nothing reads yet (see
            `pocketclip.storage.local.write_whole_folder`); not `source`.
        calibration: batches for the tower: pixels float32 (B, 3, S, S) or ids int64 (B, T).
        keep: layers that stay in fp32 in any case.
        min_cosine: the smallest cosine of an embedding of `calibration` to the fp32 tower's.
        threads: number of threads for the comparisons.

    Returns:
        `kept`: module paths of the layers left in fp32; `quantised`: number of layers in int8;
        `min_cosine` and `min_cosine_before` (with every layer in int8); `tried`: number of models
        built.

    Raises:
        ExportError: `source` cannot be read or is too large, `calibration` is empty, or
            `min_cosine` cannot be reached.
    """
    check_arguments(source, target, calibration)
    _check_size(source)

    def runner(model: bytes) -> Run:
        session = onnx_session(model, threads)
        name = session.get_inputs()[0].name
        return lambda array: session.run(None, {name: array})[0]

    try:
        proto = onnx.read_model(source)
        reference = runner(proto.SerializeToString())
        ranges = qdq.calibrate(proto, lambda model: onnx_session(model, threads), calibration)
    except Exception as error:
        raise ExportError(f"{source}: ONNX Runtime cannot run it: {last_line(error)}") from error

    def write(kept: Collection[str]) -> Any:
        return with_tables(qdq.quantised(proto, ranges, kept))

    choice = choose_layers(
        list(dict.fromkeys(layer.name for layer in qdq.layers(proto))),
        lambda kept: runner(write(kept).SerializeToString()),
        *batches_to_compare(reference, calibration),
        keep=keep,
        min_cosine=min_cosine,
    )
    onnx.write_model(write(choice.kept), target, external=True)
    return choice.facts()


def _check_size(source: Path) -> None:
    data = source.with_name(f"{source.name}.data")
    size = sum(path.stat().st_size for path in (source, data) if path.exists())
    if size > _MAX_BYTES:
        raise ExportError(
            f"a tower with {size / 1e9:.1f} GB of weights in fp32 is too large to become int8 for "
            "ONNX Runtime, where the limit is 2 GB: take fp16, or OpenVINO"
        )
