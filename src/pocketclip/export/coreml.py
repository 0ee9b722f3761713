"""A tower to Core ML's `.mlpackage`, whose graph cannot be executed except on a Mac or a phone.

    write(towers.image, towers.image_example, Path("image.mlpackage"), kind="image",
          precision="fp16", towers=towers)

Here the package is read back: its input and output types, its operations, and every weight, which
is put into a copy of the tower and compared. `add_check` leaves in a bundle what a Mac needs to
execute both towers and to compare.

The image tower takes an image of the operating system, RGB, S x S, and scales it itself.

Shapes: N photographs or captions, B batch, S side, T tokens, D embedding.
"""

from __future__ import annotations

import copy
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
)
from pocketclip.export import device, verify
from pocketclip.export.device import Kind, Run, quiet
from pocketclip.export.towers import Towers
from pocketclip.storage.local import files_in, write_whole_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

PRECISIONS = ("fp32", "fp16", "int8", "pal6")
SUFFIX = ".mlpackage"
DEPLOYMENTS = ("ios16", "ios17")
NOT_EXECUTED = "not executed here: Core ML runs on Apple's systems only; run check_on_mac.py there"
MAX_BATCH = 64
LEAST_COMPARED = 0.99
"""The share of the weights that has to be found again in a package."""
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
            "exporting to Core ML needs coremltools: pip install 'pocketclip[coreml]'"
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
    min_cosine: float = device.INT8_COSINE,
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
        towers: where it comes from.
        calibration: rows, as the example's, on which int8 and pal6 have to stay near the tower.
        keep: layers that int8 and pal6 leave alone in any case, named as the tower's parameters.
        deployment: the oldest system: `ios16` (macOS 13) or `ios17` (macOS 14).
        min_cosine: how near int8 has to stay to the tower on `calibration`.

    Returns:
        What the bundle says of it; `weights` holds the figures of the round trip.

    Raises:
        MissingDependencyError: the package is not installed.
        ExportError: the target lacks an operation (the message names the layer), a weight does not
            come back, or the weights that do give something else.
    """
    package()
    check_options(deployment=deployment)
    model = _converted(tower, example, kind, precision, towers, deployment)
    kept: list[str] = []
    notes = [NOT_EXECUTED, f"for {deployment} and later"]
    inputs = device.rows(calibration, example)
    wanted = device.embeddings(tower, inputs)
    if precision in ("int8", "pal6"):
        model, kept, more = _smaller(model, tower, precision, inputs, wanted, keep, min_cosine)
        notes += more
    path.parent.mkdir(parents=True, exist_ok=True)
    # An earlier attempt may be there; the bundle's own folder is a temporary one.
    with write_whole_folder(path, files_in) as temporary, quiet():
        saved = temporary / f"tower{SUFFIX}"
        model.save(os.fspath(saved))
        for part in list(saved.iterdir()):
            part.rename(temporary / part.name)
        saved.rmdir()
    found = inspect(path)
    weights = _round_trip(tower, _read_weights(path), precision, inputs, wanted)
    batch: int | None = None if kind == "text" else 1
    given = {**found["input"], "shape": [batch, *found["input"]["shape"][1:]]}
    output = {**found["output"], "shape": [batch, _width(wanted)]}
    return {
        "file": path.name,
        "input": given,
        "output": output,
        "dynamic_batch": batch is None,
        "kept": kept,
        "notes": notes,
        "weights": weights,
        "operations": found["operations"],
        "deployment": deployment,
    }


def _width(embeddings: NDArray[Any]) -> int:
    return int(embeddings.shape[-1])


def _converted(
    tower: nn.Module, example: Tensor, kind: Kind, precision: str, towers: Towers, deployment: str
) -> Any:
    """Return the tower as a model of coremltools, in fp32 or fp16."""
    import torch

    ct = package()
    target = {"ios16": ct.target.iOS16, "ios17": ct.target.iOS17}[deployment]
    shapes = None
    if kind == "text":
        one = example.int()
        shapes = ({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},)
        batch = ct.RangeDim(1, MAX_BATCH, default=1)
        given = ct.TensorType(name="ids", shape=(batch, example.shape[1]), dtype=np.int32)
    else:
        one = example[:1].contiguous()
        tower, given = _image_input(tower, towers)
    program = device.program(tower, one, shapes)
    with quiet():
        try:
            program = program.run_decompositions({})
            for node in program.graph.nodes:  # the one spelling of "and" that it has no name for
                if node.target is torch.ops.aten.__and__.Tensor:
                    node.target = torch.ops.aten.logical_and.default
            return ct.convert(
                program,
                convert_to="mlprogram",
                inputs=[given],
                outputs=[ct.TensorType(name=f"{kind}_features", dtype=np.float32)],
                minimum_deployment_target=target,
                compute_precision=ct.precision.FLOAT32
                if precision == "fp32"
                else ct.precision.FLOAT16,
                skip_model_load=True,
            )
        except Exception as error:
            raise device.lacking("Core ML", kind, program, error) from error


def _image_input(tower: nn.Module, towers: Towers) -> tuple[nn.Module, Any]:
    """Return the tower as it takes what the image type can scale to, and that type.

    The type knows one factor and a shift per channel: enough unless the deviations differ.
    """
    import torch
    from torch import nn

    ct, preprocess = package(), towers.config.preprocess
    size = towers.config.image_size
    mean, std = np.array(preprocess.mean, np.float64), np.array(preprocess.std, np.float64)
    scale, bias = 1 / 255, [0.0, 0.0, 0.0]
    if towers.pixels == "levels":
        scale = 1.0
    elif np.ptp(std) == 0:
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
    given = ct.ImageType(
        name="image",
        shape=(1, 3, size, size),
        scale=scale,
        bias=bias,
        color_layout=ct.colorlayout.RGB,
    )
    return tower, given


def _smaller(
    model: Any,
    tower: nn.Module,
    precision: str,
    inputs: Sequence[NDArray[Any]],
    wanted: NDArray[Any],
    keep: Collection[str],
    min_cosine: float,
) -> tuple[Any, list[str], list[str]]:
    """Return the model with small weights, the layers that were left alone, and notes."""
    import coremltools.optimize.coreml as cto

    with quiet():
        names = {m: str(_parameter(m, tower)) for m in cto.get_weights_metadata(model)
                 if _parameter(m, tower)}  # fmt: skip
    if precision == "int8":
        change, config = (
            cto.linear_quantize_weights,
            cto.OpLinearQuantizerConfig(
                mode="linear_symmetric", dtype="int8", granularity="per_channel"
            ),
        )
    else:
        change, config = (
            cto.palettize_weights,
            cto.OpPalettizerConfig(mode="kmeans", nbits=6),
        )

    def made(kept: Collection[str]) -> Any:
        alone = {name: None for name, layer in names.items() if layer in kept}
        settings = cto.OptimizationConfig(global_config=config, op_name_configs=alone)
        with quiet():
            return change(model, settings)

    def build(kept: frozenset[str]) -> Run:
        return _with_weights(tower, _values(made(kept)._mil_program))

    layers = [name for name, _ in tower.named_parameters() if name in set(names.values())]
    kept, notes = device.keep_until_good(layers, build, inputs, wanted, keep, min_cosine)
    return made(kept), kept, notes


def _parameter(name: str, tower: nn.Module) -> str | None:
    """Return which parameter of the tower a constant of the package holds, by its name."""
    for suffix in ("_to_fp16", "_quantized", "_palettized"):
        name = name.replace(suffix, "")
    found = {f"p_{p.replace('.', '_')}": p for p, _ in tower.named_parameters()}
    return found.get(name) or found.get(name.replace("p_inner_", "p_", 1))


def _values(program: Any) -> dict[str, NDArray[Any]]:
    """Return the constants of a MIL program by name, small weights as what they stand for."""
    found: dict[str, NDArray[Any]] = {}
    for function in program.functions.values():
        for operation in function.operations:
            if operation.op_type == "const":
                value = operation.outputs[0].val
            elif operation.op_type.startswith("constexpr"):
                value = operation.materialized_val_inference()
            else:
                continue
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                found[operation.name] = value
    return found


def _read_weights(path: Path) -> dict[str, NDArray[Any]]:
    """Return the constants of a package on disk."""
    from coremltools.converters.mil.frontend.milproto.load import load

    ct = package()
    with quiet():
        spec = ct.utils.load_spec(os.fspath(path))
        weights = path / "Data" / "com.apple.CoreML" / "weights"
        return _values(load(spec, spec.specificationVersion, os.fspath(weights)))


def _with_weights(tower: nn.Module, values: Mapping[str, NDArray[Any]]) -> Run:
    """Return what runs a copy of the tower in torch with the values of a package."""
    import torch

    other = copy.deepcopy(tower)
    parameters = dict(other.named_parameters())
    for name, value in values.items():
        parameter = _parameter(name, other)
        if parameter is not None and parameters[parameter].shape == value.shape:
            with torch.no_grad():
                parameters[parameter].copy_(torch.from_numpy(value.astype(np.float32)))
    return lambda row: device.embeddings(other, [row])


def _round_trip(
    tower: nn.Module,
    values: Mapping[str, NDArray[Any]],
    precision: str,
    inputs: Sequence[NDArray[Any]],
    wanted: NDArray[Any],
) -> dict[str, Any]:
    """Compare the weights of a package to the tower's, and what both give in torch.

    Raises:
        ExportError: a weight differs by more than the precision explains, or is not found.
        DriftError: the tower with them gives something else.
    """
    source = {name: p.detach().numpy() for name, p in tower.named_parameters()}
    errors: dict[str, float] = {}
    for name, value in values.items():
        parameter = _parameter(name, tower)
        if parameter is None or source[parameter].shape != value.shape:
            continue
        ours = source[parameter].astype(np.float64)
        small = "quantized" in name or "palettized" in name
        errors[parameter] = _relative(ours, value)
        bound = _bound(ours, precision if small or precision == "fp32" else "fp16")
        if not np.abs(ours - value).max() <= bound:
            raise ExportError(
                f"the weights of {parameter} did not come back from the package: they are off by "
                f"{np.abs(ours - value).max():.2e}, and {precision} explains {bound:.2e}"
            )
    found = np.concatenate([_with_weights(tower, values)(row) for row in inputs])
    figures = verify.compare(found, wanted)
    why = verify.failure(figures, verify.GATES[precision])
    if why is not None:
        raise DriftError(
            f"the tower with the weights of the package gives something else: {why}; nothing was "
            "written"
        )
    count = sum(p.size for p in source.values())
    share = sum(source[name].size for name in errors) / count
    if share < LEAST_COMPARED:
        raise ExportError(
            f"only {100 * share:.1f} % of the weights were found again in the package: this "
            "version of coremltools names them otherwise; install one that "
            "pocketclip[coreml] asks for"
        )
    return {
        "compared": len(errors),
        "compared_share": round(share, 4),
        "not_compared": sorted(set(source) - set(errors)),
        "max_relative_error": max(errors.values(), default=0.0),
        "min_cosine_of_tower_with_them": figures["min_cosine"],
        "max_abs_error_of_tower_with_them": figures["max_abs_error"],
    }


def _relative(ours: NDArray[Any], value: NDArray[Any]) -> float:
    return float(np.abs(ours - value).max() / max(np.abs(ours).max(), 1e-30))


def _bound(ours: NDArray[Any], precision: str) -> float:
    """Return how far a weight may be off: half a step of its storage, and some rounding."""
    largest = float(np.abs(ours).max())
    if precision == "int8":  # half a step, and the rounding of its scale to fp16
        return largest / 127 / 2 + largest * 2**-10
    if precision == "fp32":  # stored as they are
        return largest * 2**-23
    if precision == "pal6":  # the distance to the nearest of 64 values, which crowd in the middle
        return 0.25 * largest
    return largest * 2**-11 + 2**-24


def inspect(path: Path) -> dict[str, Any]:
    """Return what a package holds: `input`, `output` and `operations`, without executing it.

    Raises:
        MissingDependencyError: coremltools is not installed.
        BundleError: it is no package, or damaged.
    """
    ct = package()
    try:
        with quiet():
            spec = ct.utils.load_spec(os.fspath(path))
        description = spec.description
        given, found = description.input[0], description.output[0]
        block = next(iter(spec.mlProgram.functions["main"].block_specializations.values()))
        operations = Counter(operation.type for operation in block.operations)
        weights = path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
        if not weights.is_file():
            raise BundleError(f"{path} has no weights; copy the bundle again, or export it again")
        return {
            "input": _port(given),
            "output": _port(found),
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
    """Leave in a bundle what a Mac needs to execute both towers and compare.

    Args:
        folder: the bundle's.
        images: photographs after resize and crop, (N, S, S, 3).
        ids: captions, (N, T).
        image_embeddings: what the model says of the photographs, (N, D).
        text_embeddings: what it says of the captions, (N, D).
        min_cosine: what the embeddings computed there have to reach.
        max_abs_error: how far a component of theirs may be off; None: any.

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
