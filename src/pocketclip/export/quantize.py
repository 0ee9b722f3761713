"""An exported tower in int8, for ONNX Runtime and for OpenVINO.

    facts = quantise_onnx(Path("fp32/image.onnx"), Path("int8/image.onnx"), pixels)
    facts["kept"], facts["min_cosine"]  # (["image.stem.0.conv"], 0.9921)

Both start from the tower in fp32, put everything that gains from it into int8, and give layers
back to fp32 until the embeddings are near enough to those of the tower itself, see
`pocketclip.export.sensitivity`.

Shapes: B batch, S side of the image in pixels, T tokens, D embedding.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import ExportError, MissingDependencyError, last_line
from pocketclip.export.device import quiet
from pocketclip.export.qdq import plain_path
from pocketclip.export.sensitivity import Found, Run, search
from pocketclip.types import Embeddings

if TYPE_CHECKING:
    from torch import nn

NO_NNCF = "int8 for OpenVINO needs nncf: pip install 'pocketclip[openvino]'"
MIN_COSINE = 0.995
"""More than the 0.99 that an export has to reach: photographs that were not compared do worse (a
trained model with 0.990 here had 0.984 on 2,485 others, and lost 0.6 points of accuracy; with this,
0.1)."""
MAX_CHECKED = 64
"""How many calibration rows are also compared."""
_WEIGHTED = {"Convolution": 1, "MatMul": 1, "Gather": 0}
"""OpenVINO's operations with weights, and the place of those among their inputs."""
_FLOAT = ["Add", "Multiply", "ReduceMean", "Concat", "GroupConvolution"]
"""Operations that lose much in int8, some photographs more than others, and gain no time."""

Array = NDArray[Any]


def quantise_onnx(
    source: Path,
    target: Path,
    calibration: Sequence[Array],
    *,
    keep: Collection[str] = (),
    min_cosine: float = MIN_COSINE,
    threads: int = 1,
) -> dict[str, Any]:
    """Write an int8 form of an ONNX tower.

    Args:
        source: the tower in fp32, as `pocketclip.export.onnx` writes it.
        target: the file to write, the weights beside it, in a folder that nobody reads yet (see
            `pocketclip.storage.local.write_whole_folder`); not `source`.
        calibration: batches for the tower: pixels float32 (B, 3, S, S) or ids int64 (B, T).
        keep: layers to leave in fp32 in any case.
        min_cosine: the smallest cosine of an embedding of `calibration` to the fp32 tower's.
        threads: how many threads the comparisons use.

    Returns:
        `kept`: paths of the modules left in fp32; `quantised`: how many layers are in int8;
        `min_cosine` and `min_cosine_before` (with every layer in int8); `tried`: how many models
        were built.

    Raises:
        MissingDependencyError: `onnx` is not installed.
        ExportError: `source` cannot be read, nothing was given to calibrate with, or the gate
            cannot be held.
    """
    from pocketclip.export import onnx as writer
    from pocketclip.export import qdq
    from pocketclip.infer.backends import onnx_session

    onnx = writer.package()
    _check_arguments(source, target, calibration)

    def run(model: bytes) -> Run:
        session = onnx_session(model, threads)
        name = session.get_inputs()[0].name
        return lambda array: session.run(None, {name: array})[0]

    try:
        proto = onnx.load(os.fspath(source))
        reference = run(proto.SerializeToString())
        ranges = qdq.calibrate(proto, lambda m: onnx_session(m, threads), calibration)
    except Exception as error:
        raise ExportError(f"{source}: ONNX Runtime cannot run it: {last_line(error)}") from error
    names = _unique(layer.name for layer in qdq.layers(proto))
    _check_names(keep, names)
    found = search(
        [name for name in names if name not in keep],
        lambda kept: run(qdq.quantised(proto, ranges, kept | set(keep)).SerializeToString()),
        *_compared(reference, calibration),
        min_cosine,
    )
    made = qdq.quantised(proto, ranges, {*found.kept, *keep})
    writer.save(made, target)
    return _facts(found, names, keep)


def quantise_openvino(
    source: Path,
    target: Path,
    calibration: Sequence[Array],
    *,
    keep: Collection[str] = (),
    min_cosine: float = MIN_COSINE,
    threads: int = 1,
) -> dict[str, Any]:
    """Write an int8 form of a tower for OpenVINO, made by NNCF.

    Args:
        source: the tower in fp32, `.xml` or `.onnx`.
        target: the `.xml` to write, a `.bin` beside it, likewise; not `source`.
        calibration: batches for the tower: pixels float32 (B, 3, S, S) or ids int64 (B, T).
        keep: layers to leave in fp32 in any case.
        min_cosine: the smallest cosine of an embedding of `calibration` to the fp32 tower's.
        threads: how many threads the comparisons use.

    Returns:
        As `quantise_onnx`. Names are modules' where `named` gave the model such.

    Raises:
        MissingDependencyError: `openvino` or `nncf` is not installed.
        ExportError: as `quantise_onnx`.
    """
    from pocketclip.export import openvino as writer
    from pocketclip.infer.backends import openvino_core, openvino_runner

    writer.package()
    nncf = _nncf()
    _check_arguments(source, target, calibration)
    try:
        plain = openvino_core().read_model(os.fspath(source))
        reference = openvino_runner(plain, threads)
        reference(calibration[0])
    except Exception as error:
        raise ExportError(f"{source}: OpenVINO cannot run it: {last_line(error)}") from error
    names = quantisable(plain)
    _check_names(keep, names)
    full = _nncf_model(nncf, plain, calibration)
    found = search(
        [name for name in names if name not in keep],
        lambda kept: openvino_runner(reverted(full, plain, kept | set(keep)), threads),
        *_compared(reference, calibration),
        min_cosine,
    )
    writer.save(reverted(full, plain, {*found.kept, *keep}), target)
    return _facts(found, names, keep)


def named(model: Any, tower: nn.Module, kind: str) -> None:
    """Name the operations of an OpenVINO model after the modules whose weights they have.

    The converter forgets the modules; equal weights tell them.

    Args:
        model: the `openvino.Model`, converted from `tower`.
        tower: as in `Towers`: the tower of the model stands under `tower` in it.
        kind: `image` or `text`.
    """
    paths: dict[bytes, str] = {}
    for name, value in tower.state_dict().items():
        path, _, leaf = name.rpartition(".")
        if leaf == "weight" and value.ndim > 1:
            array = value.detach().numpy()
            paths.setdefault(array.tobytes(), plain_path(f"{kind}.{path.removeprefix('tower.')}"))
    for operation in model.get_ordered_ops():
        constant = _weights(operation)
        if constant is not None:
            path_found = paths.pop(np.ascontiguousarray(constant.get_data()).tobytes(), None)
            if path_found is not None:
                operation.set_friendly_name(path_found)


def quantisable(model: Any) -> list[str]:
    """Return the names of the operations with weights of an OpenVINO model, in their order."""
    return _unique(
        operation.get_friendly_name()
        for operation in model.get_ordered_ops()
        if _weights(operation) is not None
    )


def _weights(operation: Any) -> Any:
    """Return the constant that an operation multiplies with, or None."""
    place = _WEIGHTED.get(operation.get_type_name())
    if place is None:
        return None
    node = operation.input_value(place).get_node()
    while node.get_type_name() == "Convert":  # weights stored in fewer bits
        node = node.input_value(0).get_node()
    floats = node.get_type_name() == "Constant" and node.get_element_type().is_real()
    return node if floats else None


def _nncf() -> Any:
    """Return the `nncf` package, kept from reporting its use to its makers."""
    if "nncf" not in sys.modules:
        os.environ.setdefault("NNCF_CI", "1")
    try:
        with quiet():
            before = logging.getLoggerClass()
            import nncf

            logging.setLoggerClass(before)  # which it changes for all that come after it
    except ImportError as error:
        raise MissingDependencyError(NO_NNCF) from error
    return nncf


def _nncf_model(nncf: Any, plain: Any, calibration: Sequence[Array]) -> Any:
    """Return `plain` with everything in int8 that NNCF puts into it."""
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    # Its own function for that sets the levels of everybody's handlers.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    # In a thread of its own: NNCF has many cores, see `openvino_core`, and what they do to the
    # stack for signals ends with the thread.
    with quiet(), ThreadPoolExecutor(1) as thread:
        return thread.submit(
            nncf.quantize,
            plain.clone(),
            nncf.Dataset(list(calibration)),
            subset_size=len(calibration),
            # Zero points for activations: GELU's are hardly ever below zero, and a symmetric range
            # would waste a bit on them. All figures: docs/internals/performance.md.
            preset=nncf.QuantizationPreset.MIXED,
            # No model type: the smoothing that `TRANSFORMER` brings fits few captions too closely.
            ignored_scope=nncf.IgnoredScope(types=_FLOAT, validate=False),
            advanced_parameters=AdvancedQuantizationParameters(
                # Weights of 7 bits: on processors without dot-product instructions 8 saturate,
                # and a bundle must compute the same everywhere.
                overflow_fix=OverflowFix.ENABLE,
                # The widest range of all photographs; the mean of their ranges, which is usual,
                # cuts off what a few of them are about.
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                disable_bias_correction=True,  # takes half of the time and changes little
            ),
        ).result()


def reverted(full: Any, plain: Any, kept: Collection[str]) -> Any:
    """Return a copy of a quantised OpenVINO model with the named operations in fp32 again.

    Args:
        full: what NNCF made of `plain`.
        plain: the model in fp32, with the same names.
        kept: names out of `quantisable(plain)`. With all of them, the result is `plain`.
    """
    if kept and set(quantisable(plain)) <= set(kept):
        return plain.clone()
    model = full.clone()
    kept = set(kept)
    originals = {o.get_friendly_name(): o for o in plain.get_ordered_ops()}
    for operation in model.get_ordered_ops():
        if operation.get_friendly_name() not in kept:
            continue
        original = originals[operation.get_friendly_name()]
        if original.get_type_name() != operation.get_type_name():
            continue  # another operation of the same name, such as a bias
        for place in range(operation.get_input_size()):
            _revert_input(operation, original, place)
    model.validate_nodes_and_infer_types()
    return model


def _revert_input(operation: Any, original: Any, place: int) -> None:
    from openvino.opset13 import constant

    port, node = operation.input(place), operation.input_value(place).get_node()
    was = original.input_value(place).get_node()
    if was.get_type_name() == "Constant" and node.get_type_name() != "Constant":
        port.replace_source_output(constant(was.get_data()).output(0))
        return
    while node.get_type_name() in ("Reshape", "Transpose"):  # NNCF rounds before these
        port, node = node.input(0), node.input_value(0).get_node()
    if node.get_type_name() == "FakeQuantize":
        port.replace_source_output(node.input_value(0))


def _compared(reference: Run, calibration: Sequence[Array]) -> tuple[list[Array], Embeddings]:
    """Return the batches to compare, and what the float tower says of them."""
    inputs = list(calibration)
    if len(inputs) > MAX_CHECKED:
        inputs = [inputs[i * len(inputs) // MAX_CHECKED] for i in range(MAX_CHECKED)]
    return inputs, np.concatenate([reference(batch) for batch in inputs])


def _facts(found: Found, names: Sequence[str], keep: Collection[str]) -> dict[str, Any]:
    kept = [name for name in names if name in {*found.kept, *keep}]
    return {
        "kept": kept,
        "quantised": len(names) - len(kept),
        "min_cosine": found.after.min_cosine,
        "min_cosine_before": found.before.min_cosine,
        "tried": found.tried,
    }


def _check_arguments(source: Path, target: Path, calibration: Sequence[Array]) -> None:
    if not calibration:
        raise ExportError("int8 needs inputs to calibrate with; give some photographs")
    if source.resolve() == target.resolve():
        raise ExportError(f"{target} is also what is quantised; write to another file")


def _check_names(keep: Collection[str], names: Sequence[str]) -> None:
    unknown = sorted(set(keep) - set(names))
    if unknown:
        raise ExportError(f"no layer {unknown[0]!r} to keep; layers are {', '.join(names)}")


def _unique(names: Any) -> list[str]:
    return list(dict.fromkeys(names))
