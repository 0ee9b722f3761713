"""A tower to ONNX, for ONNX Runtime and other readers of ONNX.

    write(towers.image, towers.image_example, Path("image.onnx"), kind="image", precision="fp32",
          towers=towers)

Operator set 18: from set 20 on GELU is one operator, which ONNX Runtime runs more slowly than the
pattern that it recognises in set 18 (docs/internals/performance.md).

Shapes: B batch, H W height and width of a photograph, S side, T tokens, D embedding.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pocketclip import zoo
from pocketclip.errors import MissingDependencyError, how_to_install
from pocketclip.export.towers import Towers, export_program
from pocketclip.export.tracing import Kind, missing_operation, quiet
from pocketclip.graph.ports import Port, tower_facts

if TYPE_CHECKING:
    from torch import Tensor, nn

PRECISIONS = ("fp32", "fp16", "int8")
SUFFIX = ".onnx"
_OPSET = 18
# Read by the versions of ONNX Runtime of the last two years.
_IR_VERSION = 10


def write(
    tower: nn.Module,
    example: Tensor,
    path: Path,
    *,
    kind: Kind,
    precision: str,
    towers: Towers,
) -> dict[str, Any]:
    """Write one tower in fp32 or fp16; int8 is made from fp32, see `quantize_onnx`.

    Args:
        tower: maps `example` to embeddings (B, D).
        example: pixels (2, 3, S, S) or ids (2, T).
        path: the file to write.
        kind: which tower.
        precision: `fp32`, or `fp16` for the weights and their computations.
        towers: the pair that `tower` belongs to.

    Returns:
        The bundle's entry of the tower.

    Raises:
        MissingDependencyError: the package is not installed.
        ExportError: the target lacks an operation; the message names the layer.
    """
    package()
    program, dynamic = export_program(tower, example, kind=kind, towers=towers)
    with quiet():
        import torch

        try:
            made = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["pixels" if kind == "image" else "ids"],
                output_names=[f"{kind}_features"],
                opset_version=_OPSET,
                verbose=False,
            )
        except Exception as error:
            raise missing_operation("ONNX", kind, program, error) from error
        assert made is not None
        proto = made.model_proto
    _name_axes(proto, kind, dynamic)
    proto.ir_version = _IR_VERSION
    if precision == "fp16":
        proto = _half(proto)
    for node in proto.graph.node:  # drop the file names and lines of this machine
        scopes = [p for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"]
        del node.metadata_props[:]
        node.metadata_props.extend(scopes)
    save(proto, path)
    return facts(proto, path.name)


def save(proto: Any, path: Path) -> None:
    """Write a model to `path` and its weights to `path`.data, which is mapped into memory."""
    data = f"{path.name}.data"
    path.with_name(data).unlink(missing_ok=True)  # onnx would append to it
    package().save(
        proto, os.fspath(path), save_as_external_data=True, location=data, size_threshold=1024
    )
    if path.with_name(data).exists():  # created readable by its owner only
        path.with_name(data).chmod(path.stat().st_mode)


def package() -> Any:
    """Return the `onnx` package.

    Raises:
        MissingDependencyError: it, or what writes it, is not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"exporting to ONNX needs onnx and onnxscript: {how_to_install('onnx')}"
        ) from error
    return onnx


def facts(proto: Any, file: str) -> dict[str, Any]:
    """Return a bundle's entry of a model."""
    onnx = package()

    def port(value: Any) -> Port:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        return Port(value.name, str(dtype), [d.dim_value or None for d in tensor.shape.dim])

    graph = proto.graph
    return tower_facts(
        file,
        port(graph.input[0]),
        port(graph.output[0]),
        dynamic_batch=not graph.input[0].type.tensor_type.shape.dim[0].dim_value,
    )


def _name_axes(proto: Any, kind: str, dynamic: Sequence[str | None]) -> None:
    for axis, name in enumerate(dynamic):
        if name is not None:
            proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    proto.graph.name = f"{kind}_tower"


def _half(proto: Any) -> Any:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weights too small for fp16: verification judges
        return convert_float_to_float16(proto, keep_io_types=True)


def add_preprocessing(path: Path, config: zoo.PreprocessConfig) -> dict[str, Any]:
    """Put the evaluation transform before an image tower that takes levels, in its file.

    The graph then takes uint8 (B, H, W, 3) of any size. ONNX's antialiased resize has
    Pillow's weights.

    Returns:
        The bundle's entry of the tower.
    """
    onnx = package()
    from onnx import TensorProto, helper, numpy_helper

    proto = onnx.load(os.fspath(path))
    graph = proto.graph
    side = config.size
    numbers = {
        "side": np.array([side]), "zero": np.array([0]), "two": np.array([2]),
        "half": np.array([0.5], np.float32), "rows": np.array([1]), "columns": np.array([2]),
        "three": np.array([3]), "crop_axes": np.array([1, 2]),
    }  # fmt: skip

    def node(kind: str, inputs: Sequence[str], out: str, **attributes: Any) -> Any:
        names = [f"photo_{name}" if name in numbers else name for name in inputs]
        return helper.make_node(kind, names, [out], **attributes)

    steps = [
        node("Shape", ["photo"], "photo_shape"),
        node("Slice", ["photo_shape", "zero", "rows"], "photo_batch"),
        node("Slice", ["photo_shape", "rows", "three"], "photo_size"),  # H, W
        node("ReduceMin", ["photo_size"], "photo_short", keepdims=1),
        node("Mul", ["photo_size", "side"], "photo_scaled"),
        node("Div", ["photo_scaled", "photo_short"], "photo_target"),  # rounds down
        node("Concat", ["photo_batch", "photo_target", "three"], "photo_sizes", axis=0),
        node("Resize", ["photo", "", "", "photo_sizes"], "photo_resized", antialias=1,
             mode="cubic" if config.interpolation == "bicubic" else "linear", cubic_coeff_a=-0.5,
             coordinate_transformation_mode="half_pixel", exclude_outside=1),
        node("Sub", ["photo_target", "side"], "photo_over"),
        node("Cast", ["photo_over"], "photo_over_float", to=TensorProto.FLOAT),
        node("Mul", ["photo_over_float", "half"], "photo_middle"),
        node("Round", ["photo_middle"], "photo_corner_float"),  # halves to even
        node("Cast", ["photo_corner_float"], "photo_corner", to=TensorProto.INT64),
        node("Add", ["photo_corner", "side"], "photo_end"),
        node("Slice", ["photo_resized", "photo_corner", "photo_end", "crop_axes"], "photo_square"),
        node("Transpose", ["photo_square"], "photo_planes", perm=[0, 3, 1, 2]),
        node("Cast", ["photo_planes"], graph.input[0].name, to=TensorProto.FLOAT),
    ]  # fmt: skip
    tower = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*steps, *tower])
    graph.initializer.extend(numpy_helper.from_array(v, f"photo_{n}") for n, v in numbers.items())
    shape: list[str | int | None] = ["batch", "height", "width", 3]
    graph.input.append(helper.make_tensor_value_info("photo", TensorProto.UINT8, shape))
    save(proto, path)
    return facts(proto, path.name)
