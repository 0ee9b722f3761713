"""A tower to OpenVINO's format, by its own reader of torch's exported programs.

    write(towers.image, towers.image_example, Path("image.xml"), kind="image", precision="fp32",
          towers=towers)

Beside `image.xml` stands `image.bin` with the weights, which the runtime maps into memory.

Shapes: B batch, H W height and width of a photograph, S side, T tokens, D embedding.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pocketclip import zoo
from pocketclip.errors import MissingDependencyError
from pocketclip.export.device import lacking, quiet
from pocketclip.export.towers import Towers, exported
from pocketclip.infer.backends import openvino_core

if TYPE_CHECKING:
    from torch import Tensor, nn

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
SUFFIX = ".xml"


def write(
    tower: nn.Module,
    example: Tensor,
    path: Path,
    *,
    kind: Literal["image", "text"],
    precision: str,
    towers: Towers,
) -> dict[str, Any]:
    """Write one tower; int8 is made from fp32, see `quantize`.

    Args:
        tower: maps `example` to embeddings (B, D).
        example: pixels (2, 3, S, S) or ids (2, T).
        path: the `.xml` to write, a `.bin` beside it.
        kind: which tower.
        precision: `fp32`; `fp16` stores the weights in half the space; `bf16` is computed in
            where the processor can (the weights stay `fp32`).
        towers: where both come from.

    Returns:
        What the bundle says of it.

    Raises:
        MissingDependencyError: the package is not installed.
        ExportError: the target lacks an operation; the message names the layer.
    """
    from pocketclip.export.quantize import named

    openvino = package()
    program, dynamic = exported(tower, example, kind=kind, towers=towers)
    with quiet():
        try:
            model = openvino.convert_model(program)
        except Exception as error:
            raise lacking("OpenVINO", kind, program, error) from error
    port = model.inputs[0]
    port.get_tensor().set_names({"pixels" if kind == "image" else "ids"})
    model.outputs[0].get_tensor().set_names({f"{kind}_features"})
    shape = [-1 if name else size for name, size in zip(dynamic, example.shape, strict=True)]
    model.reshape({port: openvino.PartialShape(shape)})
    named(model, tower, kind)
    save(model, path, half=precision == "fp16")
    return facts(model, path.name)


def package() -> Any:
    """Return the `openvino` package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError(
            "exporting to OpenVINO needs openvino: pip install 'pocketclip[openvino]'"
        ) from error
    return openvino


def save(model: Any, path: Path, *, half: bool = False) -> None:
    """Write a model as `.xml` and `.bin`."""
    package().save_model(model, os.fspath(path), compress_to_fp16=half)


def facts(model: Any, file: str) -> dict[str, Any]:
    """Return what a bundle says of a model: its file, input and output."""

    def describe(port: Any) -> dict[str, Any]:
        shape = [d.get_length() if d.is_static else None for d in port.get_partial_shape()]
        dtype = str(np.dtype(port.get_element_type().to_dtype()))
        return {"name": port.get_any_name(), "dtype": dtype, "shape": shape}

    return {
        "file": file,
        "input": describe(model.inputs[0]),
        "output": describe(model.outputs[0]),
        "dynamic_batch": model.inputs[0].get_partial_shape()[0].is_dynamic,
        "kept": [],
        "notes": [],
    }


def add_preprocessing(path: Path, config: zoo.PreprocessConfig) -> dict[str, Any]:
    """Put the evaluation transform before an image tower that takes levels, in its file.

    The graph then takes uint8 (B, H, W, 3) of any size. The resize is OpenVINO's imitation of
    Pillow's.

    Returns:
        What the bundle says of it.
    """
    package()
    import openvino.opset11 as ops

    model = openvino_core().read_model(os.fspath(path))
    old = model.get_parameters()[0]

    def whole(*values: int) -> Any:
        return ops.constant(np.array(values, np.int64))

    photo = ops.parameter([-1, -1, -1, 3], np.uint8, name="photo")
    photo.output(0).get_tensor().set_names({"photo"})
    size = ops.gather(ops.shape_of(photo), whole(1, 2), whole(0))  # H, W
    short = ops.reduce_min(size, whole(0), keep_dims=True)
    target = ops.divide(ops.multiply(size, whole(config.size)), short)  # whole numbers: cut off
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
    # Not over the file whose weights are mapped into memory.
    beside = path.with_name(f"with-{path.name}")
    save(model, beside)
    out = facts(model, path.name)
    del model, old
    beside.with_suffix(".bin").replace(path.with_suffix(".bin"))
    beside.replace(path)
    return out
