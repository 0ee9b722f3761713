"""A tower to LiteRT's `.tflite`, executed by LiteRT's own interpreter.

    write(towers.image, towers.image_example, Path("image.tflite"), kind="image", precision="fp32",
          towers=towers)

The batch is one, because LiteRT's delegates for phones require it. Token ids are int32.

int8 stores the weights in int8. Linear layers compute in int8, on activations that are scaled at
run time; convolutions convert their weights back to float. Fixed activation scales were tried: for
the whole tower they gave cosines of 0.77 (S0, image) and 0.93 (text), for convolutions alone 0.995
at two to three times the time.

Shapes: B batch, S side, T tokens, D embedding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.export.mobile import (
    ConvertedTower,
    LoadedTower,
    MobileFormat,
    Run,
    embeddings,
    rows,
    write_file,
)
from pocketclip.export.quantize import choose_layers
from pocketclip.export.towers import Towers
from pocketclip.export.tracing import missing_operation, quiet, trace
from pocketclip.graph.ports import Kind, Port
from pocketclip.infer.gates import INT8_SEARCH_THRESHOLD_MOBILE

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
details = interpreter.get_input_details()[0]
interpreter.set_tensor(details["index"], numpy.zeros(details["shape"], details["dtype"]))
interpreter.invoke()
"""


FORMAT = MobileFormat(
    name="LiteRT",
    packages=_PACKAGES,
    package_name="litert-torch",
    extra="litert",
    probe_code=_PROBE,
)
package = FORMAT.load_packages


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
    min_cosine: float = INT8_SEARCH_THRESHOLD_MOBILE,
) -> dict[str, Any]:
    """Write one tower.

    Args:
        tower: maps `example` to embeddings (B, D).
        example: pixels (B, 3, S, S) or ids (B, T); the first row is traced.
        path: the `.tflite` to write.
        kind: which tower.
        precision: `fp32`; `fp16`, the weights in half the space; `int8`, in a quarter.
        towers: the pair that `tower` belongs to.
        calibration: rows for int8, shaped like `example`.
        keep: layers that stay in higher precision in any case, named as in the bundle's entry.
        min_cosine: the smallest cosine, on `calibration`, of int8 to the tower.

    Returns:
        The bundle's entry of the tower.

    Raises:
        MissingDependencyError: the package is not installed.
        ExportError: the target lacks an operation (the message names the layer), or int8 stays
            too far from the tower.
    """
    package()
    first_row = example[:1].contiguous()
    if kind == "text":
        first_row = first_row.int()
    model = _converted(tower, first_row, kind)
    kept: list[str] = []
    notes = ["the batch is 1"]
    if precision == "fp16":
        model = _quantised(model, _casting)
    elif precision == "int8":
        inputs = rows(calibration, first_row)
        model, kept, more = _int8(model, tower, inputs, keep, min_cosine)
        notes += more
    input_details, output_details = _details(_interpreter(model))
    converted = ConvertedTower(
        content=model,
        input=_port("pixels" if kind == "image" else "ids", input_details),
        output=_port(f"{kind}_features", output_details),
        kept=kept,
        notes=notes,
    )
    return write_file(path, converted)


def _converted(tower: nn.Module, first_row: Tensor, kind: Kind) -> bytes:
    """Return the tower as a `.tflite` in fp32, its ports named."""
    import litert_torch
    from torch import nn

    name = "pixels" if kind == "image" else "ids"

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tower

        def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
            return {f"{kind}_features": self.inner(inputs[name])}

    program = trace(tower, first_row)
    with quiet():
        try:
            model = litert_torch.convert(Named().eval(), sample_kwargs={name: first_row})
            return bytes(model.model_content())
        except Exception as error:
            raise missing_operation("LiteRT", kind, program, error) from error


def _interpreter(model: bytes | str) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    with quiet():
        source = {"model_content": model} if isinstance(model, bytes) else {"model_path": model}
        interpreter = Interpreter(**source, num_threads=1)
        interpreter.allocate_tensors()
    return interpreter


def _details(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return interpreter.get_input_details()[0], interpreter.get_output_details()[0]


def _shape(details: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in details["shape"])


def _port(name: str, details: dict[str, Any]) -> Port:
    return Port(name, str(np.dtype(details["dtype"])), _shape(details))


def _quantised(model: bytes, configure: Callable[[Any], None]) -> bytes:
    """Return a model quantised as `configure` sets up the quantiser."""
    from ai_edge_quantizer import quantizer

    with quiet():
        worker = quantizer.Quantizer(bytearray(model))
        configure(worker)
        return bytes(worker.quantize().quantized_model)


def _casting(worker: Any) -> None:
    """Set up a quantiser to store every weight in fp16."""
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
    """Return the quantised model, the layers kept in higher precision, and notes."""
    operations = _operations_with_weights(model, tower)

    def quantised(kept: Collection[str]) -> bytes:
        if not set(operations) - set(kept):
            return model
        return _quantised(model, lambda worker: _int8_weights(worker, operations, kept))

    choice = choose_layers(
        list(operations),
        lambda kept: FORMAT.checked_runner(_load(quantised(kept)), "the model"),
        inputs,
        embeddings(tower, inputs),
        keep=keep,
        min_cosine=min_cosine,
    )
    return quantised(choice.kept), choice.kept, choice.notes()


def _int8_weights(
    worker: Any, operations: dict[str, tuple[str, str]], kept: Collection[str]
) -> None:
    """Set up a quantiser for int8 in the operations that are not `kept`."""
    from ai_edge_quantizer import qtyping

    for name, (operation, scope) in operations.items():
        if name in kept:
            continue
        settings = {
            "regex": f"^{re.escape(scope)};$",
            "operation_name": qtyping.TFLOperationName[operation],
            "num_bits": 8,
        }
        if _INT8[operation] == "dynamic":
            worker.add_dynamic_config(**settings)
        else:
            worker.add_weight_only_config(**settings)


def _operations_with_weights(model: bytes, tower: nn.Module) -> dict[str, tuple[str, str]]:
    """Return the operations that int8 changes: layer -> (operation, name of its output tensor)."""
    from ai_edge_litert import schema_py_generated as schema

    content = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(model), 0))
    kinds = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    layers = _fingerprints(tower)
    graph, operations = content.subgraphs[0], {}
    for operator in graph.operators:
        code = content.operatorCodes[operator.opcodeIndex]
        # Codes below 128 are also in the older field; the larger one counts.
        operation = kinds[max(code.builtinCode, code.deprecatedBuiltinCode)]
        if operation not in _INT8:
            continue
        weights = content.buffers[graph.tensors[operator.inputs[1]].buffer].data
        if weights is None:
            continue
        scope = graph.tensors[operator.outputs[0]].name.decode()
        layer = layers.get(_fingerprint(np.frombuffer(bytes(weights), np.float32)), scope)
        operations[layer if layer not in operations else scope] = (operation, scope)
    return operations


def _fingerprints(tower: nn.Module) -> dict[tuple[int, str], str]:
    """Return the layers' names by fingerprints of their weights.

    The converter's names leave out the numbers of blocks, and it folds a normalisation's weight
    into the linear layer after it.
    """
    from torch import nn

    modules = dict(tower.named_modules())
    norms = {n: m.weight for n, m in modules.items() if type(m) is nn.LayerNorm}
    names = {}
    for name, module in modules.items():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
            names[_fingerprint(module.weight.detach().numpy())] = name
        for norm, gain in norms.items() if isinstance(module, nn.Linear) else ():
            same_block = name.startswith(norm.rpartition(".")[0] + ".")
            if same_block and gain.numel() == module.in_features:
                scaled = (module.weight * gain).detach().numpy()
                names.setdefault(_fingerprint(scaled), name)
    return names


def _fingerprint(weights: NDArray[Any]) -> tuple[int, str]:
    # Independent of the order and shape in which a format stores them.
    return weights.size, f"{np.sum(np.square(weights, dtype=np.float64)):.7e}"


def open_tower(path: Path, *, trusted: bool = False) -> Run:
    """Return a function that runs a `.tflite` here; see `MobileFormat.open_tower`."""
    return FORMAT.open_tower(path, _load, trusted=trusted)


def _load(model: bytes | str) -> LoadedTower:
    interpreter = _interpreter(model)
    input_details, output_details = _details(interpreter)

    def execute(row: NDArray[Any]) -> NDArray[Any]:
        interpreter.set_tensor(input_details["index"], row)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(output_details["index"]))

    return LoadedTower(shape=_shape(input_details), dtype=input_details["dtype"], execute=execute)
