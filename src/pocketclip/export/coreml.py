"""A tower to Core ML's `.mlpackage`, which only Apple's systems can execute.

    write(towers.image, towers.image_example, Path("image.mlpackage"), kind="image",
          precision="fp16", towers=towers)

Instead of executing the package, `write` reads it back: its input and output types, its operations,
and every weight, which goes into a copy of the tower for comparison. `add_check` adds a script to a
bundle with which a Mac executes both towers and compares.

The image tower takes an image of the operating system, RGB, S x S, and scales its values itself.

Shapes: N photographs or captions, B batch, S side, T tokens, D embedding.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import (
    BundleError,
    DriftError,
    ExportError,
    MissingDependencyError,
    first_line,
    how_to_install,
)
from pocketclip.export.mobile import Run, embeddings, rows
from pocketclip.export.quantize import choose_layers
from pocketclip.export.towers import Towers
from pocketclip.export.tracing import missing_operation, quiet, trace
from pocketclip.graph.ports import Kind, Port, tower_facts
from pocketclip.infer.comparison import compare
from pocketclip.infer.gates import GATES, INT8_SEARCH_THRESHOLD_MOBILE, gate_failure
from pocketclip.storage.local import files_in, write_whole_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

PRECISIONS = ("fp32", "fp16", "int8", "pal6")
SUFFIX = ".mlpackage"
DEPLOYMENTS = ("ios16", "ios17")
NOT_EXECUTED = "not executed here: Core ML runs on Apple's systems only; run check_on_mac.py there"
MAX_BATCH = 64
MIN_COMPARED_SHARE = 0.99
"""The smallest share of the weights that must be recognised in a package."""
_SCRIPT = "check_on_mac.py"
_ARRAYS = "check_on_mac.npz"


def check_options(*, deployment: str) -> None:
    """Refuse options that do not exist."""
    if deployment not in DEPLOYMENTS:
        raise ExportError(f"unknown deployment {deployment!r}; it is {', '.join(DEPLOYMENTS)}")


def package() -> Any:
    """Return the `coremltools` package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        with quiet():
            import coremltools
            import coremltools.optimize.coreml
    except ImportError as error:
        raise MissingDependencyError(
            f"exporting to Core ML needs coremltools: {how_to_install('coreml')}"
        ) from error
    return coremltools


def write(
    tower: nn.Module,
    example: Tensor,
    path: Path,
    *,
    kind: Kind,
    precision: str,
    towers: Towers,
    calibration: Sequence[NDArray[Any]] | None = None,
    keep: Collection[str] = (),
    min_cosine: float = INT8_SEARCH_THRESHOLD_MOBILE,
    deployment: str = "ios16",
) -> dict[str, Any]:
    """Write one tower, and read its weights back.

    Args:
        tower: maps `example` to embeddings (B, D).
        example: pixels (B, 3, S, S) or ids (B, T).
        path: the `.mlpackage` (a folder) to write.
        kind: which tower.
        precision: `fp32`; `fp16`; `int8`, fp16 with weights in int8, a scale per channel; `pal6`,
            fp16 with weights as 6-bit indices into 64 values found by k-means.
        towers: the pair that `tower` belongs to.
        calibration: rows shaped like `example`, on which int8 and pal6 must stay near the tower.
        keep: layers that stay in fp16 in any case, named as the tower's parameters.
        deployment: the oldest system: `ios16` (macOS 13) or `ios17` (macOS 14).
        min_cosine: the smallest cosine, on `calibration`, of int8 and pal6 to the tower.

    Returns:
        The bundle's entry of the tower; `weights` holds the figures of the round trip.

    Raises:
        MissingDependencyError: the package is not installed.
        ExportError: the target lacks an operation (the message names the layer), or a weight
            cannot be read back as it was.
        DriftError: the tower with the weights of the package computes something else.
    """
    package()
    check_options(deployment=deployment)
    model = _converted(tower, example, kind, precision, towers, deployment)
    kept: list[str] = []
    notes = [NOT_EXECUTED, f"for {deployment} and later"]
    inputs = rows(calibration, example)
    expected = embeddings(tower, inputs)
    if precision in ("int8", "pal6"):
        model, kept, more = _compress(model, tower, precision, inputs, expected, keep, min_cosine)
        notes += more
    path.parent.mkdir(parents=True, exist_ok=True)
    # An earlier attempt may be there; the bundle's own folder is a temporary one.
    with write_whole_folder(path, files_in) as temporary, quiet():
        saved = temporary / f"tower{SUFFIX}"
        model.save(os.fspath(saved))
        for file in list(saved.iterdir()):
            file.rename(temporary / file.name)
        saved.rmdir()
    structure = inspect(path)
    weights = _round_trip(tower, _read_weights(path), precision, inputs, expected)
    batch: int | None = None if kind == "text" else 1
    image, features = structure["input"], structure["output"]
    return tower_facts(
        path.name,
        Port(image["name"], image["dtype"], [batch, *image["shape"][1:]]),
        Port(features["name"], features["dtype"], [batch, int(expected.shape[-1])]),
        dynamic_batch=batch is None,
        kept=kept,
        notes=notes,
        weights=weights,
        operations=structure["operations"],
        deployment=deployment,
    )


def _converted(
    tower: nn.Module, example: Tensor, kind: Kind, precision: str, towers: Towers, deployment: str
) -> Any:
    """Return the tower as a model of coremltools, in fp32 or fp16."""
    import torch

    ct = package()
    target = {"ios16": ct.target.iOS16, "ios17": ct.target.iOS17}[deployment]
    shapes = None
    if kind == "text":
        traced_input = example.int()
        shapes = ({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},)
        batch = ct.RangeDim(1, MAX_BATCH, default=1)
        input_type = ct.TensorType(name="ids", shape=(batch, example.shape[1]), dtype=np.int32)
    else:
        traced_input = example[:1].contiguous()
        tower, input_type = _image_input(tower, towers)
    program = trace(tower, traced_input, shapes)
    with quiet():
        try:
            program = program.run_decompositions({})
            for node in program.graph.nodes:  # coremltools does not know this "and"
                if node.target is torch.ops.aten.__and__.Tensor:
                    node.target = torch.ops.aten.logical_and.default
            return ct.convert(
                program,
                convert_to="mlprogram",
                inputs=[input_type],
                outputs=[ct.TensorType(name=f"{kind}_features", dtype=np.float32)],
                minimum_deployment_target=target,
                compute_precision=ct.precision.FLOAT32
                if precision == "fp32"
                else ct.transform.FP16ComputePrecision(op_selector=lambda op: not _routes(op)),
                skip_model_load=True,
            )
        except Exception as error:
            raise missing_operation("Core ML", kind, program, error) from error


def _routes(operation: Any) -> bool:
    """Return whether an operation belongs to the router of a mixture of experts.

    Routers stay in float32, since a rounded logit can change which experts are chosen. They are a
    linear layer, a softmax and the choice of the largest.
    """
    following = {"linear": "softmax", "softmax": "topk"}.get(operation.op_type)
    if following is None:
        return bool(operation.op_type == "topk")
    return any(
        child.op_type == following and _routes(child) for child in operation.outputs[0].child_ops
    )


def _image_input(tower: nn.Module, towers: Towers) -> tuple[nn.Module, Any]:
    """Return the tower for Core ML's image input, and the type of that input.

    The type has one factor for all channels and a shift per channel. Where the channels' standard
    deviations differ, the tower scales instead.
    """
    import torch
    from torch import nn

    ct, preprocess = package(), towers.config.preprocess
    size = towers.config.image_size
    mean, std = np.array(preprocess.mean, np.float64), np.array(preprocess.std, np.float64)
    scale, bias = 1 / 255, [0.0, 0.0, 0.0]
    if np.ptp(std) == 0:
        scale, bias = float(1 / (255 * std[0])), [float(x) for x in -mean / std]
    else:

        class Scaled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = tower
                self.shift: Tensor
                self.gain: Tensor
                self.register_buffer("shift", torch.tensor(mean).float().reshape(3, 1, 1))
                self.register_buffer("gain", torch.tensor(1 / std).float().reshape(3, 1, 1))

            def forward(self, image: Tensor) -> Tensor:
                return self.inner((image - self.shift) * self.gain)

        tower = Scaled().eval()
    input_type = ct.ImageType(
        name="image",
        shape=(1, 3, size, size),
        scale=scale,
        bias=bias,
        color_layout=ct.colorlayout.RGB,
    )
    return tower, input_type


def _compress(
    model: Any,
    tower: nn.Module,
    precision: str,
    inputs: Sequence[NDArray[Any]],
    expected: NDArray[Any],
    keep: Collection[str],
    min_cosine: float,
) -> tuple[Any, list[str], list[str]]:
    """Return the model with compressed weights, the layers that stay in fp16, and notes."""
    import coremltools.optimize.coreml as cto

    with quiet():
        names = {m: str(_parameter(m, tower)) for m in cto.get_weights_metadata(model)
                 if _parameter(m, tower)}  # fmt: skip
    if precision == "int8":
        compress, config = (
            cto.linear_quantize_weights,
            cto.OpLinearQuantizerConfig(
                mode="linear_symmetric", dtype="int8", granularity="per_channel"
            ),
        )
    else:
        compress, config = (
            cto.palettize_weights,
            cto.OpPalettizerConfig(mode="kmeans", nbits=6),
        )

    def compressed(kept: Collection[str]) -> Any:
        uncompressed = {name: None for name, layer in names.items() if layer in kept}
        settings = cto.OptimizationConfig(global_config=config, op_name_configs=uncompressed)
        with quiet():
            return compress(model, settings)

    def build(kept: frozenset[str]) -> Run:
        return _with_weights(tower, _values(compressed(kept)._mil_program))

    layers = [name for name, _ in tower.named_parameters() if name in set(names.values())]
    choice = choose_layers(layers, build, inputs, expected, keep=keep, min_cosine=min_cosine)
    return compressed(choice.kept), choice.kept, choice.notes()


def _parameter(name: str, tower: nn.Module) -> str | None:
    """Return the name of the tower's parameter that a constant of the package holds."""
    for suffix in ("_to_fp16", "_quantized", "_palettized"):
        name = name.replace(suffix, "")
    parameters = {f"p_{p.replace('.', '_')}": p for p, _ in tower.named_parameters()}
    return parameters.get(name) or parameters.get(name.replace("p_inner_", "p_", 1))


def _values(program: Any) -> dict[str, NDArray[Any]]:
    """Return the constants of a MIL program by name; compressed weights are decompressed."""
    values: dict[str, NDArray[Any]] = {}
    for function in program.functions.values():
        for operation in function.operations:
            if operation.op_type == "const":
                value = operation.outputs[0].val
            elif operation.op_type.startswith("constexpr"):
                value = operation.materialized_val_inference()
            else:
                continue
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                values[operation.name] = value
    return values


def _read_weights(path: Path) -> dict[str, NDArray[Any]]:
    """Return the constants of a package on disk."""
    from coremltools.converters.mil.frontend.milproto.load import load

    ct = package()
    with quiet():
        spec = ct.utils.load_spec(os.fspath(path))
        weights = path / "Data" / "com.apple.CoreML" / "weights"
        return _values(load(spec, spec.specificationVersion, os.fspath(weights)))


def _with_weights(tower: nn.Module, values: Mapping[str, NDArray[Any]]) -> Run:
    """Return a function that runs a copy of the tower in torch, with the values of a package."""
    import torch

    other = copy.deepcopy(tower)
    parameters, equal = dict(other.named_parameters()), _equal_parameters(tower)
    for name, value in values.items():
        parameter = _parameter(name, other)
        if parameter is not None and parameters[parameter].shape == value.shape:
            with torch.no_grad():
                for twin in equal[parameter]:
                    parameters[twin].copy_(torch.from_numpy(value.astype(np.float32)))
    return lambda row: embeddings(other, [row])


def _equal_parameters(tower: nn.Module) -> dict[str, list[str]]:
    """Return each parameter's name -> the names of those with the same values, its own among them.

    coremltools stores them once, under one of these names: experts begin as copies.
    """
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, parameter in tower.named_parameters():
        digest = hashlib.sha256(parameter.detach().numpy().tobytes()).digest()
        groups.setdefault((parameter.shape, digest), []).append(name)
    return {name: names for names in groups.values() for name in names}


def _round_trip(
    tower: nn.Module,
    values: Mapping[str, NDArray[Any]],
    precision: str,
    inputs: Sequence[NDArray[Any]],
    expected: NDArray[Any],
) -> dict[str, Any]:
    """Compare the weights of a package with the tower's, and the embeddings by both in torch.

    Raises:
        ExportError: a weight differs by more than the precision explains, or is missing.
        DriftError: the tower with these weights computes something else.
    """
    source = {name: p.detach().numpy() for name, p in tower.named_parameters()}
    equal = _equal_parameters(tower)
    errors: dict[str, float] = {}
    for name, value in values.items():
        parameter = _parameter(name, tower)
        if parameter is None or source[parameter].shape != value.shape:
            continue
        ours = source[parameter].astype(np.float64)
        compressed = "quantized" in name or "palettized" in name
        errors[parameter] = _relative(ours, value)
        bound = _bound(ours, precision if compressed or precision == "fp32" else "fp16")
        if not np.abs(ours - value).max() <= bound:
            raise ExportError(
                f"the weights of {parameter} in the package differ from the model's by up to "
                f"{np.abs(ours - value).max():.2e}; {precision} explains {bound:.2e}; nothing was "
                "written"
            )
    actual = np.concatenate([_with_weights(tower, values)(row) for row in inputs])
    figures = compare(actual, expected)
    why = gate_failure(figures, GATES[precision])
    if why is not None:
        raise DriftError(
            "the tower with the weights of the package does not reproduce the model: "
            f"{why}; nothing was written"
        )
    compared = {twin for name in errors for twin in equal[name]}
    count = sum(p.size for p in source.values())
    share = sum(source[name].size for name in compared) / count
    if share < MIN_COMPARED_SHARE:
        raise ExportError(
            f"only {100 * share:.1f} % of the weights were recognised in the package, because this "
            "version of coremltools names them differently; install a supported one: "
            f"{how_to_install('coreml')}"
        )
    return {
        "compared": len(compared),
        "compared_share": round(share, 4),
        "not_compared": sorted(set(source) - compared),
        "max_relative_error": max(errors.values(), default=0.0),
        "min_cosine_of_tower_with_them": figures["min_cosine"],
        "max_abs_error_of_tower_with_them": figures["max_abs_error"],
    }


def _relative(ours: NDArray[Any], value: NDArray[Any]) -> float:
    return float(np.abs(ours - value).max() / max(np.abs(ours).max(), 1e-30))


def _bound(ours: NDArray[Any], precision: str) -> float:
    """Return the largest error of a weight: half a step of its storage, and some rounding."""
    largest = float(np.abs(ours).max())
    if precision == "int8":  # half a step, plus the rounding of its scale to fp16
        return largest / 127 / 2 + largest * 2**-10
    if precision == "fp32":  # stored unchanged
        return largest * 2**-23
    if precision == "pal6":  # the distance to the nearest of 64 values, which are dense near zero
        return 0.25 * largest
    return largest * 2**-11 + 2**-24


def inspect(path: Path) -> dict[str, Any]:
    """Return a package's `input`, `output` and `operations`, without executing it.

    Raises:
        MissingDependencyError: coremltools is not installed.
        BundleError: it is not a package, or it is damaged.
    """
    ct = package()
    try:
        with quiet():
            spec = ct.utils.load_spec(os.fspath(path))
        description = spec.description
        block = next(iter(spec.mlProgram.functions["main"].block_specializations.values()))
        operations = Counter(operation.type for operation in block.operations)
        weights = path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
        if not weights.is_file():
            raise BundleError(f"{path} has no weights; copy the bundle again, or export it again")
        return {
            "input": _port(description.input[0]),
            "output": _port(description.output[0]),
            "operations": {k: v for k, v in sorted(operations.items()) if k != "const"},
        }
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(
            f"{path} is not a Core ML package, or damaged: {first_line(error)}"
        ) from error


def _port(feature: Any) -> dict[str, Any]:
    if feature.type.WhichOneof("Type") == "imageType":
        image = feature.type.imageType
        space = image.ColorSpace.Name(image.colorSpace)
        return {"name": feature.name, "dtype": f"image {space}",
                "shape": [1, 3, image.height, image.width]}  # fmt: skip
    array = feature.type.multiArrayType
    dtype = array.ArrayDataType.Name(array.dataType).lower()
    return {"name": feature.name, "dtype": dtype, "shape": list(array.shape)}


def add_check(
    folder: Path,
    images: NDArray[np.uint8],
    ids: NDArray[Any],
    image_embeddings: NDArray[Any],
    text_embeddings: NDArray[Any],
    min_cosine: float,
    max_abs_error: float | None = None,
) -> list[str]:
    """Add to a bundle the script and the arrays with which a Mac executes and compares it.

    Args:
        folder: the bundle's.
        images: photographs after resize and crop, (N, S, S, 3).
        ids: captions, (N, T).
        image_embeddings: the model's embeddings of the photographs, (N, D).
        text_embeddings: the model's embeddings of the captions, (N, D).
        min_cosine: the smallest cosine that passes.
        max_abs_error: the largest difference of a component that passes; None for no limit.

    Returns:
        The names of the files.
    """
    np.savez_compressed(
        folder / _ARRAYS,
        images=images,
        ids=np.asarray(ids, np.int32),
        image_embeddings=np.asarray(image_embeddings, np.float32),
        text_embeddings=np.asarray(text_embeddings, np.float32),
        min_cosine=np.float64(min_cosine),
        max_abs_error=np.float64(np.inf if max_abs_error is None else max_abs_error),
    )
    script = resources.files("pocketclip") / "data" / _SCRIPT
    (folder / _SCRIPT).write_bytes(script.read_bytes())
    return [_ARRAYS, _SCRIPT]
