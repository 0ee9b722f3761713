"""A tower to ExecuTorch's `.pte`, lowered to XNNPACK, and executed by its own runtime.

    write(towers.image, towers.image_example, Path("image.pte"), kind="image", precision="fp32",
          towers=towers)

The batch is one: the runtime (1.5) fails on these towers when a free batch is not at its largest.

Shapes: B batch, S side, T tokens, D embedding.
"""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import BundleError, ExportError, MissingDependencyError, PocketclipError
from pocketclip.export import device
from pocketclip.export.device import Kind, Run, quiet
from pocketclip.export.towers import Towers
from pocketclip.storage.local import write_whole

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
given = method.metadata.input_tensor_meta(0)
types = {4: torch.int64, 6: torch.float32}
method.execute([torch.ones(given.sizes(), dtype=types[given.dtype()])])
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
            "exporting to ExecuTorch needs executorch: pip install 'pocketclip[executorch]'"
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
        path: the `.pte` to write.
        kind: which tower.
        precision: `fp32`; `fp16`, computed in half precision inside; `int8`: the image tower with
            weights and activations in int8 (static), the text tower's linear layers with int8
            weights and activations scaled as they come (dynamic).
        towers: where it comes from.
        calibration: rows for int8, as the example's.
        keep: layers (module paths) that int8 leaves alone in any case.
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
    kept: list[str] = []
    notes = ["the batch is 1", "lowered to XNNPACK"]
    if precision == "fp32":
        ready = device.program(tower, one)
    elif precision == "fp16":
        ready = device.program(_half(tower), one)
    else:
        ready, kept, more = _int8(tower, one, kind, calibration, keep, min_cosine)
        notes += more
    buffer = _lower(ready, kind)
    with write_whole(path) as temporary:
        temporary.write_bytes(buffer)
    dtype = str(one.numpy().dtype)
    width = ready.graph_module.graph.output_node().args[0][0].meta["val"].shape[-1]
    return device.facts(
        path.name,
        ("pixels" if kind == "image" else "ids", dtype, tuple(one.shape)),
        (f"{kind}_features", "float32", (1, int(width))),
        kept=kept,
        notes=notes,
    )


def _lower(ready: ExportedProgram, kind: Kind) -> bytes:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with quiet():
        try:
            edge = to_edge_transform_and_lower(ready, partitioner=[XnnpackPartitioner()])
            return bytes(edge.to_executorch().buffer)
        except Exception as error:
            raise device.lacking("ExecuTorch", kind, ready, error) from error


def _half(tower: nn.Module) -> nn.Module:
    """Return a copy that computes in half precision between float32 ends.

    Layer norms stay in float32: the kernel of the runtime (1.5) is wrong in half precision from
    some 200 channels on (cosine 0.7 to 0.96 on random rows of 256 to 768).
    """
    from torch import nn

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(tower).half()
            for module in self.inner.modules():
                if isinstance(module, nn.LayerNorm):
                    module.float()
                    module.register_forward_pre_hook(lambda _module, given: (given[0].float(),))
                    module.register_forward_hook(lambda _module, _given, out: out.half())

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.half() if x.is_floating_point() else x).float()

    return Half().eval()


def _int8(
    tower: nn.Module,
    one: Tensor,
    kind: Kind,
    calibration: Sequence[NDArray[Any]] | None,
    keep: Collection[str],
    min_cosine: float,
) -> tuple[ExportedProgram, list[str], list[str]]:
    """Return the quantised program, the layers that were left alone, and notes."""
    import torch

    inputs = device.rows(calibration, one)
    wanted = device.embeddings(tower, inputs)
    source = _half_embeddings(tower) if kind == "text" else tower
    graph = device.program(source, one).module()

    def quantised(kept: Collection[str]) -> Any:
        with quiet():
            return _quantised(graph, inputs, kept, dynamic=kind == "text")

    def build(kept: frozenset[str]) -> Run:
        model = quantised(kept)

        def run(row: NDArray[Any]) -> NDArray[Any]:
            with torch.inference_mode():
                return np.asarray(model(torch.from_numpy(row)).numpy())

        return run

    layers = device.layers_of(graph.graph)
    kept, notes = device.keep_until_good(layers, build, inputs, wanted, keep, min_cosine)
    if kind == "text":
        notes.append("int8 weights of linear layers; token embeddings are fp16")
    return device.program(quantised(kept), one), kept, notes


def _quantised(
    graph: Any, inputs: Sequence[NDArray[Any]], kept: Collection[str], *, dynamic: bool
) -> Any:
    """Return a traced tower with pairs of quantising operations, but none in layers `kept`."""
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    quantizer = XNNPACKQuantizer().set_global(config)
    quantizer.set_filter_function(lambda node: device.layer_of(node) not in kept)
    prepared = prepare_pt2e(copy.deepcopy(graph), quantizer)
    with torch.no_grad():
        for row in inputs:
            prepared(torch.from_numpy(row))
    return convert_pt2e(prepared)


def _half_embeddings(tower: nn.Module) -> nn.Module:
    """Return a copy whose token embeddings are stored in half precision.

    XNNPACK has no int8 embedding, and in the published text towers they are most of the size.
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
    """Return a function that runs a tower here: a row (1, ...) to its embedding (1, D).

    Args:
        path: the `.pte`.
        trusted: it was written by this process or its hash was compared; otherwise it is first
            loaded in a process of its own, because a damaged file can crash the one that loads it.

    Raises:
        MissingDependencyError: the package is not installed.
        BundleError: the file cannot be loaded; or, when running, the input does not fit.
    """
    import torch

    package()
    if not trusted:
        device.probe(path, _PROBE, "ExecuTorch")
    from executorch.runtime import Runtime, Verification

    try:
        with quiet():
            loaded = Runtime.get().load_program(
                os.fspath(path), verification=Verification.InternalConsistency
            )
            method = loaded.load_method("forward")
        assert method is not None
        given = method.metadata.input_tensor_meta(0)
    except PocketclipError:
        raise
    except Exception as error:
        raise BundleError(f"{path}: ExecuTorch cannot load it: {error}") from error
    shape, dtype = tuple(given.sizes()), np.int64 if given.dtype() == 4 else np.float32

    def run(row: NDArray[Any]) -> NDArray[Any]:
        if tuple(row.shape) != shape:
            raise BundleError(f"{path} takes {shape}, not {tuple(row.shape)}")
        tensor = torch.from_numpy(np.ascontiguousarray(row, dtype))
        try:
            (out,) = method.execute([tensor])
        except Exception as error:
            raise ExportError(f"{path}: ExecuTorch cannot run it: {error}") from error
        # Copied: the next run writes its result to the same place.
        return np.array(out.numpy())

    run.program = loaded  # type: ignore[attr-defined]  # lives as long as what runs it
    return run
