"""An exported tower in int8 for OpenVINO, made by NNCF.

    facts = quantize_openvino(Path("fp32/image.xml"), Path("int8/image.xml"), pixels)
    facts["kept"], facts["min_cosine"]  # (["image.stem.0.conv"], 0.9961)

NNCF quantises the whole tower once; the layers that int8 harms are then reverted to fp32, until the
embeddings are near enough to the fp32 tower's (`quantize.py`).

Shapes: B batch, S side of the image in pixels, T tokens.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import defaultdict
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import ExportError, MissingDependencyError, how_to_install, last_line
from pocketclip.export import openvino as writer
from pocketclip.export.quantize import batches_to_compare, check_arguments, choose_layers
from pocketclip.export.tracing import quiet
from pocketclip.graph.moe import ROUTER, module_name
from pocketclip.infer.backends import openvino_core, openvino_runner
from pocketclip.infer.gates import INT8_SEARCH_THRESHOLD

NO_NNCF = f"int8 for OpenVINO needs nncf: {how_to_install('openvino')}"
_FLOAT = ["Add", "Multiply", "ReduceMean", "Concat", "GroupConvolution"]
"""Operations that stay in fp32: int8 costs them much accuracy, for some photographs more than for
others, and saves no time. Products of two activations (attention, pooling) stay in fp32 too."""
_MOVES = ("Reshape", "Transpose", "Gather", "VariadicSplit")
"""Operations that only move values, and before which NNCF rounds."""


def quantize_openvino(
    source: Path,
    target: Path,
    calibration: Sequence[NDArray[Any]],
    *,
    keep: Collection[str] = (),
    min_cosine: float = INT8_SEARCH_THRESHOLD,
    threads: int = 1,
) -> dict[str, Any]:
    """Write an int8 variant of a tower for OpenVINO.

    Args:
        source: the tower in fp32, `.xml` or `.onnx`.
        target: the `.xml` to write, a `.bin` beside it, in a folder that nothing reads yet; not
            `source`.
        calibration: batches for the tower: pixels float32 (B, 3, S, S) or ids int64 (B, T).
        keep: layers that stay in fp32 in any case.
        min_cosine: the smallest cosine of an embedding of `calibration` to the fp32 tower's.
        threads: number of threads for the comparisons.

    Returns:
        As `quantize_onnx`.

    Raises:
        MissingDependencyError: `openvino` or `nncf` is not installed.
        ExportError: `source` cannot be read, `calibration` is empty, or `min_cosine` cannot be
            reached.
    """
    writer.package()
    nncf = _import_nncf()
    check_arguments(source, target, calibration)
    try:
        plain = openvino_core().read_model(os.fspath(source))
        reference = openvino_runner(plain, threads)
        reference(calibration[0])
    except Exception as error:
        raise ExportError(f"{source}: OpenVINO cannot run it: {last_line(error)}") from error
    full = _quantize_all(nncf, plain, calibration)
    choice = choose_layers(
        quantizable_operations(plain),
        lambda kept: openvino_runner(revert_operations(full, plain, kept), threads),
        *batches_to_compare(reference, calibration),
        keep=keep,
        min_cosine=min_cosine,
    )
    writer.save(revert_operations(full, plain, choice.kept), target)
    return choice.facts()


def quantizable_operations(model: Any) -> list[str]:
    """Return the names of an OpenVINO model's operations with weights, in the model's order.

    The experts of a mixture have one name. Routers stay float, as in `qdq.layers`.
    """
    names = (
        module_name(operation.get_friendly_name())
        for operation in model.get_ordered_ops()
        if writer.weights_of(operation) is not None
    )
    return [name for name in dict.fromkeys(names) if not name.endswith(ROUTER)]


def _float_products(model: Any) -> list[str]:
    """Return the names of products of two activations, and of routers."""
    return [
        name
        for operation in model.get_ordered_ops()
        if operation.get_type_name() == "MatMul"
        for name in [operation.get_friendly_name()]
        if writer.weights_of(operation) is None or name.endswith(ROUTER)
    ]


def _import_nncf() -> Any:
    """Return the `nncf` package, with its telemetry switched off."""
    if "nncf" not in sys.modules:
        os.environ.setdefault("NNCF_CI", "1")
    try:
        with quiet():
            logger_class = logging.getLoggerClass()
            import nncf

            logging.setLoggerClass(logger_class)  # NNCF changes it for every later logger
    except ImportError as error:
        raise MissingDependencyError(NO_NNCF) from error
    return nncf


def _quantize_all(nncf: Any, plain: Any, calibration: Sequence[NDArray[Any]]) -> Any:
    """Return `plain` with every operation in int8 that NNCF quantises."""
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    # NNCF's own function for this changes the levels of all handlers.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    # In a separate thread: NNCF makes several cores, see `openvino_core`, and what they do to the
    # stack for signals ends with the thread.
    with quiet(), ThreadPoolExecutor(1) as thread:
        full = thread.submit(
            nncf.quantize,
            plain.clone(),
            nncf.Dataset(list(calibration)),
            subset_size=len(calibration),
            # Zero points for activations: GELU's outputs are hardly ever below zero, and a
            # symmetric range would waste a bit on them. All figures: docs/internals/performance.md.
            preset=nncf.QuantizationPreset.MIXED,
            # No model type: the smoothing that `TRANSFORMER` brings overfits a few captions.
            ignored_scope=nncf.IgnoredScope(
                types=_FLOAT, names=_float_products(plain), validate=False
            ),
            advanced_parameters=AdvancedQuantizationParameters(
                # Weights of 7 bits: on processors without dot-product instructions 8 bits
                # saturate, and a bundle must compute the same everywhere.
                overflow_fix=OverflowFix.ENABLE,
                # The widest range over all photographs. The usual mean of their ranges clips what
                # matters in a few of them.
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                disable_bias_correction=True,  # takes half of the time and changes little
            ),
        ).result()
    _share_ranges(full)
    return full


def _share_ranges(model: Any) -> None:
    """Give all experts of a mixture the widest of their activations' ranges, in place.

    NNCF gives an expert that no calibration token chose a range of zero, and so a result of zero.
    """
    from openvino.opset13 import constant

    groups: dict[str, list[Any]] = defaultdict(list)
    for operation in model.get_ordered_ops():
        name = operation.get_friendly_name()
        rounds = operation.get_type_name() == "FakeQuantize"
        if rounds and module_name(name) != name and not _is_weight(operation):
            groups[module_name(name)].append(operation)
    for group in groups.values():
        ends = [[float(_number(o, index)) for index in (1, 2)] for o in group]
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        step = max(high - low, 1e-8) / 255
        low = round(low / step) * step  # zero itself has to be representable
        for operation in group:
            for index, end in enumerate((low, low + 255 * step, low, low + 255 * step), 1):
                shape = operation.get_input_shape(index)
                value = constant(np.full(shape, end, np.float32))
                operation.input(index).replace_source_output(value.output(0))


def _is_weight(operation: Any) -> bool:
    node = operation.input_value(0).get_node()
    return node.get_type_name() in ("Constant", "Convert")


def _number(operation: Any, index: int) -> NDArray[Any]:
    return np.asarray(operation.input_value(index).get_node().get_data()).reshape(())


def revert_operations(full: Any, plain: Any, kept: Collection[str]) -> Any:
    """Return a copy of a quantised OpenVINO model with the named operations in fp32 again.

    Args:
        full: NNCF's quantised version of `plain`.
        plain: the model in fp32, with the same names.
        kept: names from `quantizable_operations(plain)`. With all of them, the result is `plain`.
    """
    if kept and set(quantizable_operations(plain)) <= set(kept):
        return plain.clone()
    model = full.clone()
    kept = set(kept)
    originals = {o.get_friendly_name(): o for o in plain.get_ordered_ops()}
    for operation in model.get_ordered_ops():
        if module_name(operation.get_friendly_name()) not in kept:
            continue
        original = originals.get(operation.get_friendly_name())
        if original is None or original.get_type_name() != operation.get_type_name():
            continue  # of a similar name, such as a bias
        for index in range(operation.get_input_size()):
            _revert_input(operation, original, index)
    model.validate_nodes_and_infer_types()
    return model


def _revert_input(operation: Any, original: Any, index: int) -> None:
    from openvino.opset13 import constant

    port, node = operation.input(index), operation.input_value(index).get_node()
    original_node = original.input_value(index).get_node()
    if original_node.get_type_name() == "Constant" and node.get_type_name() != "Constant":
        port.replace_source_output(constant(original_node.get_data()).output(0))
        return
    while node.get_type_name() in _MOVES:
        port, node = node.input(0), node.input_value(0).get_node()
    if node.get_type_name() == "FakeQuantize":
        port.replace_source_output(node.input_value(0))
