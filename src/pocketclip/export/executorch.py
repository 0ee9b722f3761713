"""A tower to ExecuTorch's `.pte`, lowered to XNNPACK and executed by ExecuTorch's own runtime.

    write(towers.image, towers.image_example, Path("image.pte"), kind="image", precision="fp32",
          towers=towers)

The batch is one: the runtime (1.5) fails on these towers when a free batch is not at its largest.

Shapes: B batch, S side, T tokens, D embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
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
from pocketclip.export.tracing import layer_of, layers_of, missing_operation, quiet, trace
from pocketclip.graph.ports import Kind, Port
from pocketclip.infer.gates import INT8_SEARCH_THRESHOLD_MOBILE

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

PRECISIONS = ("fp32", "fp16", "int8")
SUFFIX = ".pte"
_PACKAGES = (
    "executorch.backends.xnnpack.partition.xnnpack_partitioner",
    "executorch.exir",
    "executorch.runtime",
    "torchao.quantization.pt2e.quantize_pt2e",
)
_PROBE = """
import sys
from executorch.runtime import Runtime, Verification
program = Runtime.get().load_program(sys.argv[1], verification=Verification.InternalConsistency)
method = program.load_method("forward")
if method is None:
    raise SystemExit("it has no method 'forward'")
import torch
tensor = method.metadata.input_tensor_meta(0)
types = {4: torch.int64, 6: torch.float32}
method.execute([torch.ones(tensor.sizes(), dtype=types[tensor.dtype()])])
"""


FORMAT = MobileFormat(
    name="ExecuTorch",
    packages=_PACKAGES,
    package_name="executorch",
    extra="executorch",
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
        path: the `.pte` to write.
        kind: which tower.
        precision: `fp32`; `fp16`, computed in half precision inside; `int8`: the image tower with
            weights and activations in int8 (static), the text tower's linear layers with int8
            weights and activations scaled at run time (dynamic).
        towers: the pair that `tower` belongs to.
        calibration: rows for int8, shaped like `example`.
        keep: layers (module paths) that stay in higher precision in any case.
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
    kept: list[str] = []
    notes = ["the batch is 1", "lowered to XNNPACK"]
    if precision == "fp32":
        program = trace(tower, first_row)
    elif precision == "fp16":
        program = trace(_half(tower), first_row)
    else:
        inputs = rows(calibration, first_row)
        program, kept, more = _int8(tower, first_row, kind, inputs, keep, min_cosine)
        notes += more
    width = program.graph_module.graph.output_node().args[0][0].meta["val"].shape[-1]
    name, dtype = "pixels" if kind == "image" else "ids", str(first_row.numpy().dtype)
    converted = ConvertedTower(
        content=_lower(program, kind),
        input=Port(name, dtype, tuple(first_row.shape)),
        output=Port(f"{kind}_features", "float32", (1, int(width))),
        kept=kept,
        notes=notes,
    )
    return write_file(path, converted)


def _lower(program: ExportedProgram, kind: Kind) -> bytes:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with quiet():
        try:
            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            return bytes(edge.to_executorch().buffer)
        except Exception as error:
            raise missing_operation("ExecuTorch", kind, program, error) from error


def _half(tower: nn.Module) -> nn.Module:
    """Return a copy that computes in half precision between float32 ends, routers in float32.

    Layer norms stay in float32: the runtime's kernel (1.5) is wrong in half precision from about
    200 channels on (cosine 0.7 to 0.96 on random rows of 256 to 768).
    """
    from torch import nn

    from pocketclip.nn.cpu_optimize import SeparateExperts

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(tower).half()
            for module in self.inner.modules():
                if isinstance(module, nn.LayerNorm):
                    module.float()
                    module.register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(),))
                    module.register_forward_hook(lambda _module, _inputs, out: out.half())
                elif isinstance(module, SeparateExperts):
                    module.router.float()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.half() if x.is_floating_point() else x).float()

    return Half().eval()


def _int8(
    tower: nn.Module,
    first_row: Tensor,
    kind: Kind,
    inputs: Sequence[NDArray[Any]],
    keep: Collection[str],
    min_cosine: float,
) -> tuple[ExportedProgram, list[str], list[str]]:
    """Return the quantised program, the layers kept in higher precision, and notes."""
    import torch

    source = _half_embeddings(tower) if kind == "text" else tower
    graph = trace(source, first_row).module()

    def quantised(kept: Collection[str]) -> Any:
        with quiet():
            return _quantised(graph, inputs, kept, dynamic=kind == "text")

    def build(kept: frozenset[str]) -> Run:
        model = quantised(kept)

        def run(row: NDArray[Any]) -> NDArray[Any]:
            with torch.inference_mode():
                return np.asarray(model(torch.from_numpy(row)).numpy())

        return run

    reference = embeddings(tower, inputs)
    choice = choose_layers(
        layers_of(graph.graph), build, inputs, reference, keep=keep, min_cosine=min_cosine
    )
    notes = choice.notes()
    if kind == "text":
        notes.append("int8 weights of linear layers; token embeddings are fp16")
    return trace(quantised(choice.kept), first_row), choice.kept, notes


def _quantised(
    graph: Any, inputs: Sequence[NDArray[Any]], kept: Collection[str], *, dynamic: bool
) -> Any:
    """Return a traced tower with quantise-dequantise pairs, except in the layers `kept`."""
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    quantizer = XNNPACKQuantizer().set_global(config)
    quantizer.set_filter_function(lambda node: layer_of(node) not in kept)
    prepared = prepare_pt2e(copy.deepcopy(graph), quantizer)
    with torch.no_grad():
        for row in inputs:
            prepared(torch.from_numpy(row))
    return convert_pt2e(prepared)


def _half_embeddings(tower: nn.Module) -> nn.Module:
    """Return a copy whose token embeddings are stored in half precision.

    XNNPACK has no int8 embedding, and embeddings are most of a published text tower's size.
    """
    from torch import nn

    class HalfEmbedding(nn.Module):
        def __init__(self, table: nn.Embedding) -> None:
            super().__init__()
            self.table = table.half()

        def forward(self, ids: Tensor) -> Tensor:
            return self.table(ids).float()

    out = copy.deepcopy(tower)
    for module in list(out.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Embedding):
                setattr(module, name, HalfEmbedding(child))
    return out


def open_tower(path: Path, *, trusted: bool = False) -> Run:
    """Return a function that runs a `.pte` here; see `MobileFormat.open_tower`."""
    return FORMAT.open_tower(path, _load, trusted=trusted)


def _load(path: str) -> LoadedTower:
    import torch
    from executorch.runtime import Runtime, Verification

    with quiet():
        program = Runtime.get().load_program(path, verification=Verification.InternalConsistency)
        method = program.load_method("forward")
    assert method is not None
    metadata = method.metadata.input_tensor_meta(0)

    def execute(row: NDArray[Any]) -> NDArray[Any]:
        (out,) = method.execute([torch.from_numpy(row)])
        return np.asarray(out.numpy())

    return LoadedTower(
        shape=tuple(metadata.sizes()),
        dtype=np.int64 if metadata.dtype() == 4 else np.float32,
        execute=execute,
        program=program,
    )
