"""A tower to OpenVINO's format, read from the ONNX graph that `pocketclip.graph` builds.

    write(graph_towers(model), Path("image.xml"), kind="image", precision="fp32")

`image.bin` beside `image.xml` holds the weights, which the runtime maps into memory.

Shapes: B batch, H W height and width of a photograph, S side, T tokens, D embedding.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pocketclip import zoo
from pocketclip.errors import MissingDependencyError, how_to_install
from pocketclip.export import onnx
from pocketclip.export.towers import GraphTowers
from pocketclip.export.tracing import quiet
from pocketclip.graph.ports import Kind, Port, tower_facts
from pocketclip.infer.backends import import_openvino, openvino_core

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
SUFFIX = ".xml"
_WEIGHT_INPUTS = {"Convolution": 1, "MatMul": 1, "Gather": 0}
"""Operations with weights, and the index of the weights among their inputs."""
_WITHOUT_BIAS, _FEATURES = "/WithoutBiases", "_features"


def write(towers: GraphTowers, path: Path, *, kind: Kind, precision: str) -> dict[str, Any]:
    """Write one tower; int8 is made from fp32, see `quantize_openvino`.

    Args:
        towers: the pair that the tower belongs to.
        path: the `.xml` to write, a `.bin` beside it.
        kind: which tower.
        precision: `fp32`; `fp16` stores the weights in half the space; `bf16` stores fp32 weights
            and computes in bf16 where the processor can.

    Returns:
        The bundle's entry of the tower.

    Raises:
        MissingDependencyError: the package is not installed.
        ExportError: a weight is not finite.
    """
    openvino = package()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder) / f"{kind}{onnx.SUFFIX}"
        onnx.write(towers, file, kind=kind, precision="fp32")
        with quiet():
            # Unlike `read_model`, it folds what the reader of ONNX leaves behind.
            model = openvino.convert_model(file)
        name_operations(model)
        save(model, path, half=precision == "fp16")
        out = facts(model, path.name)
        del model  # the file is mapped into memory
    return out


def package() -> Any:
    """Return the `openvino` package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return import_openvino()
    except ImportError as error:
        raise MissingDependencyError(
            f"exporting to OpenVINO needs openvino: {how_to_install('openvino')}"
        ) from error


def save(model: Any, path: Path, *, half: bool = False) -> None:
    """Write a model as `.xml` and `.bin`."""
    package().save_model(model, os.fspath(path), compress_to_fp16=half)


def facts(model: Any, file: str) -> dict[str, Any]:
    """Return a bundle's entry of a model."""

    def port(node: Any) -> Port:
        shape = [d.get_length() if d.is_static else None for d in node.get_partial_shape()]
        dtype = str(np.dtype(node.get_element_type().to_dtype()))
        return Port(node.get_any_name(), dtype, shape)

    return tower_facts(
        file,
        port(model.inputs[0]),
        port(model.outputs[0]),
        dynamic_batch=model.inputs[0].get_partial_shape()[0].is_dynamic,
    )


def name_operations(model: Any) -> None:
    """Name the operations with weights of a model read from ONNX after their modules.

    The reader gives the name of a convolution's node to the sum with its bias, and the name of an
    output to what computes it.
    """
    for operation in model.get_ordered_ops():
        name = operation.get_friendly_name()
        if weights_of(operation) is None:
            continue
        if name.endswith(_FEATURES):
            operation.set_friendly_name(f"{name.removesuffix(_FEATURES)}.head")
        elif name.endswith(_WITHOUT_BIAS):
            path = name.removesuffix(_WITHOUT_BIAS)
            for reader in operation.output(0).get_target_inputs():
                if reader.get_node().get_friendly_name() == path:
                    reader.get_node().set_friendly_name(f"{path}/bias")
            operation.set_friendly_name(path)


def weights_of(operation: Any) -> Any:
    """Return the constant that holds an operation's float weights, or None."""
    index = _WEIGHT_INPUTS.get(operation.get_type_name())
    if index is None:
        return None
    node = operation.input_value(index).get_node()
    while node.get_type_name() == "Convert":  # weights stored in fewer bits
        node = node.input_value(0).get_node()
    floats = node.get_type_name() == "Constant" and node.get_element_type().is_real()
    return node if floats else None


def add_preprocessing(path: Path, config: zoo.PreprocessConfig) -> dict[str, Any]:
    """Put the evaluation transform before an image tower that takes levels, in its file.

    The graph then takes uint8 (B, H, W, 3) of any size. The resize is OpenVINO's imitation of
    Pillow's.

    Returns:
        The bundle's entry of the tower.
    """
    package()
    import openvino.opset11 as ops

    model = openvino_core().read_model(os.fspath(path))
    old = model.get_parameters()[0]

    def whole(*values: int) -> Any:
        return ops.constant(np.array(values, np.int64))

    photo = ops.parameter([-1, -1, -1, 3], np.uint8, name="photo")
    photo.output(0).get_tensor().set_names({"photo"})
    if config.resize == "squash":
        target = whole(config.size, config.size)
    else:
        size = ops.gather(ops.shape_of(photo), whole(1, 2), whole(0))  # H, W
        short = ops.reduce_min(size, whole(0), keep_dims=True)
        target = ops.divide(ops.multiply(size, whole(config.size)), short)  # rounds down
    resized = ops.interpolate(
        photo,
        target,
        mode="bicubic_pillow" if config.interpolation == "bicubic" else "bilinear_pillow",
        shape_calculation_mode="sizes",
        axes=whole(1, 2),
        cube_coeff=-0.5,
    )
    over = ops.convert(ops.subtract(target, whole(config.size)), "f32")
    middle = ops.round(ops.multiply(over, ops.constant(np.float32(0.5))), "half_to_even")
    corner = ops.convert(middle, "i64")
    end = ops.add(corner, whole(config.size))
    square = ops.slice(resized, corner, end, whole(1, 1), whole(1, 2))
    planes = ops.convert(ops.transpose(square, whole(0, 3, 1, 2)), "f32")
    old.output(0).replace(planes.output(0))
    model.add_parameters([photo])
    model.remove_parameter(old)
    model.validate_nodes_and_infer_types()
    # Not onto the file itself: its weights are mapped into memory.
    beside = path.with_name(f"with-{path.name}")
    save(model, beside)
    out = facts(model, path.name)
    del model, old
    beside.with_suffix(".bin").replace(path.with_suffix(".bin"))
    beside.replace(path)
    return out
