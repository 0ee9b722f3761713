"""A tower to LiteRT's `.tflite`, and executed by its own interpreter.

    write(towers.image, towers.image_example, Path("image.tflite"), kind="image", precision="fp32",
          towers=towers)

The batch is one, as LiteRT's delegates for phones want it. Token ids are int32.

int8 keeps the weights in int8; linear layers compute with them on activations that are scaled as
they come, convolutions widen them. Activations of fixed scales were tried: the whole tower so gave
cosines of 0.77 (S0, image) and 0.93 (text), convolutions alone 0.995 at two to three times the
time of this.

Shapes: B batch, S side, T tokens, D embedding.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import BundleError, MissingDependencyError
from pocketclip.export import device
from pocketclip.export.device import Kind, Run, quiet
from pocketclip.export.towers import Towers
from pocketclip.storage.local import write_whole

if TYPE_CHECKING:
    from torch import Tensor, nn

PRECISIONS = ("fp32", "fp16", "int8")
SUFFIX = ".tflite"
_INT8 = {"FULLY_CONNECTED": "dynamic", "CONV_2D": "weights", "DEPTHWISE_CONV_2D": "weights",
         "EMBEDDING_LOOKUP": "weights"}  # fmt: skip
_PACKAGES = ("ai_edge_litert.interpreter", "ai_edge_quantizer.quantizer", "litert_torch")
_PROBE = """
import sys
import numpy
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(sys.argv[1], num_threads=1)
interpreter.allocate_tensors()
given = interpreter.get_input_details()[0]
interpreter.set_tensor(given["index"], numpy.zeros(given["shape"], given["dtype"]))
interpreter.invoke()
"""


def package() -> None:
    """Load the packages that write and run this format.

    Raises:
        MissingDependencyError: one is not installed.
    """
    try:
        with quiet():
            for name in _PACKAGES:
                importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            "exporting to LiteRT needs litert-torch: pip install 'pocketclip[litert]'"
        ) from error


def write(
    tower: nn.Module,
    example: Tensor,
    path: Path,
    *,
    kind: Kind,
    precision: str,
    towers: Towers,  # noqa: ARG001  (every target is called alike)
    calibration: Sequence[NDArray[Any]] | None = None,
    keep: Collection[str] = (),
    min_cosine: float = device.INT8_COSINE,
) -> dict[str, Any]:
    """Write one tower.

    Args:
        tower: maps `example` to embeddings (B, D).
        example: pixels (B, 3, S, S) or ids (B, T); the first row is traced.
        path: the `.tflite` to write.
        kind: which tower.
        precision: `fp32`; `fp16`, the weights in half the space; `int8`, in a quarter.
        towers: where it comes from.
        calibration: rows, as the example's, on which int8 has to stay near the tower.
        keep: layers that int8 leaves alone in any case, named as the facts name them.
        min_cosine: how near int8 has to stay to the tower on `calibration`.

    Returns:
        What the bundle says of it.

    Raises:
        MissingDependencyError: the package is not installed.
        ExportError: the target lacks an operation (the message names the layer), or int8 stays
            too far from the tower.
    """
    package()
    one = example[:1].contiguous()
    if kind == "text":
        one = one.int()
    model = _converted(tower, one, kind)
    kept: list[str] = []
    notes = ["the batch is 1"]
    if precision == "fp16":
        model = _quantised(model, _casting)
    elif precision == "int8":
        inputs = device.rows(calibration, one)
        model, kept, more = _int8(model, tower, inputs, keep, min_cosine)
        notes += more
    with write_whole(path) as temporary:
        temporary.write_bytes(model)
    given, found = _ports(_interpreter(model))
    return device.facts(
        path.name,
        ("pixels" if kind == "image" else "ids", str(np.dtype(given["dtype"])), _shape(given)),
        (f"{kind}_features", str(np.dtype(found["dtype"])), _shape(found)),
        kept=kept,
        notes=notes,
    )


def _converted(tower: nn.Module, one: Tensor, kind: Kind) -> bytes:
    """Return the tower as a `.tflite` in fp32, its ports named."""
    import litert_torch
    from torch import nn

    name = "pixels" if kind == "image" else "ids"

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tower

        def forward(self, **given: Tensor) -> dict[str, Tensor]:
            return {f"{kind}_features": self.inner(given[name])}

    source = device.program(tower, one)
    with quiet():
        try:
            made = litert_torch.convert(Named().eval(), sample_kwargs={name: one})
            return bytes(made.model_content())
        except Exception as error:
            raise device.lacking("LiteRT", kind, source, error) from error


def _interpreter(model: bytes | str) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    with quiet():
        given = {"model_content": model} if isinstance(model, bytes) else {"model_path": model}
        interpreter = Interpreter(**given, num_threads=1)
        interpreter.allocate_tensors()
    return interpreter


def _ports(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return interpreter.get_input_details()[0], interpreter.get_output_details()[0]


def _shape(port: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in port["shape"])


def _quantised(model: bytes, recipe: Any) -> bytes:
    """Return a model after what `recipe` sets in a quantiser."""
    from ai_edge_quantizer import quantizer

    with quiet():
        worker = quantizer.Quantizer(bytearray(model))
        recipe(worker)
        return bytes(worker.quantize().quantized_model)


def _casting(worker: Any) -> None:
    """Set: every weight in fp16."""
    from ai_edge_quantizer import algorithm_manager, qtyping

    worker.update_quantization_recipe(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        algorithm_key=algorithm_manager.AlgorithmName.FLOAT_CASTING,
        op_config=qtyping.OpQuantizationConfig(
            weight_tensor_config=qtyping.TensorQuantizationConfig(
                num_bits=16, dtype=qtyping.TensorDataType.FLOAT
            ),
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        ),
    )


def _int8(
    model: bytes,
    tower: nn.Module,
    inputs: Sequence[NDArray[Any]],
    keep: Collection[str],
    min_cosine: float,
) -> tuple[bytes, list[str], list[str]]:
    """Return the quantised model, the layers that were left alone, and notes."""
    scopes = _weighted(model, tower)
    wanted = device.embeddings(tower, inputs)

    def quantised(kept: Collection[str]) -> bytes:
        if not set(scopes) - set(kept):
            return model
        return _quantised(model, lambda worker: _weights(worker, scopes, kept))

    kept, notes = device.keep_until_good(
        list(scopes),
        lambda some: _runner(_interpreter(quantised(some))),
        inputs,
        wanted,
        keep,
        min_cosine,
    )
    return quantised(kept), kept, notes


def _weights(worker: Any, scopes: dict[str, tuple[str, str]], kept: Collection[str]) -> None:
    """Set: int8 for the operations `scopes` that are not `kept`."""
    from ai_edge_quantizer import qtyping

    for name, (operation, scope) in scopes.items():
        if name in kept:
            continue
        place = {
            "regex": f"^{re.escape(scope)};$",
            "operation_name": qtyping.TFLOperationName[operation],
            "num_bits": 8,
        }
        if _INT8[operation] == "dynamic":
            worker.add_dynamic_config(**place)
        else:
            worker.add_weight_only_config(**place)


def _weighted(model: bytes, tower: nn.Module) -> dict[str, tuple[str, str]]:
    """Return the operations that int8 changes: layer -> (operation, name of its output)."""
    from ai_edge_litert import schema_py_generated as schema

    content = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(model), 0))
    kinds = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    layers = _fingerprints(tower)
    graph, found = content.subgraphs[0], {}
    for operator in graph.operators:
        code = content.operatorCodes[operator.opcodeIndex]
        # Codes below 128 stand in the older field too; the larger one counts.
        operation = kinds[max(code.builtinCode, code.deprecatedBuiltinCode)]
        if operation not in _INT8:
            continue
        data = content.buffers[graph.tensors[operator.inputs[1]].buffer].data
        if data is None:
            continue
        scope = graph.tensors[operator.outputs[0]].name.decode()
        layer = layers.get(_fingerprint(np.frombuffer(bytes(data), np.float32)), scope)
        found[layer if layer not in found else scope] = (operation, scope)
    return found


def _fingerprints(tower: nn.Module) -> dict[tuple[int, str], str]:
    """Return the layers by what their weights are, as the converter leaves them.

    Its own names leave out the numbers of blocks. A normalisation's weight becomes part of the
    linear layer after it.
    """
    from torch import nn

    modules = dict(tower.named_modules())
    norms = {n: m.weight for n, m in modules.items() if type(m) is nn.LayerNorm}
    found = {}
    for name, module in modules.items():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
            found[_fingerprint(module.weight.detach().numpy())] = name
        for norm, gain in norms.items() if isinstance(module, nn.Linear) else ():
            same_block = name.startswith(norm.rpartition(".")[0] + ".")
            if same_block and gain.numel() == module.in_features:
                scaled = (module.weight * gain).detach().numpy()
                found.setdefault(_fingerprint(scaled), name)
    return found


def _fingerprint(weights: NDArray[Any]) -> tuple[int, str]:
    # The same in whatever order and shape a format holds them.
    return weights.size, f"{np.sum(np.square(weights, dtype=np.float64)):.7e}"


def _runner(interpreter: Any, path: str = "the model") -> Run:
    given, found = _ports(interpreter)

    def run(row: NDArray[Any]) -> NDArray[Any]:
        if tuple(row.shape) != _shape(given):
            raise BundleError(f"{path} takes {_shape(given)}, not {tuple(row.shape)}")
        interpreter.set_tensor(given["index"], np.ascontiguousarray(row, given["dtype"]))
        interpreter.invoke()
        return np.array(interpreter.get_tensor(found["index"]))

    return run


def open_tower(path: Path, *, trusted: bool = False) -> Run:
    """Return a function that runs a tower here: a row (1, ...) to its embedding (1, D).

    Args:
        path: the `.tflite`.
        trusted: it was written by this process or its hash was compared; otherwise it is first
            loaded in a process of its own, because a damaged file can crash the one that loads it.

    Raises:
        MissingDependencyError: the package is not installed.
        BundleError: the file cannot be loaded; or, when running, the input does not fit.
    """
    package()
    if not trusted:
        device.probe(path, _PROBE, "LiteRT")
    try:
        return _runner(_interpreter(os.fspath(path)), os.fspath(path))
    except Exception as error:
        raise BundleError(f"{path}: LiteRT cannot load it: {error}") from error
