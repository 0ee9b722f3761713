"""A float ONNX graph with its layers in int8, as quantise-dequantise pairs that runtimes fuse.

Dense convolutions and matrix products with constant weights are quantised: symmetric weights of 7
bits, one scale per output channel. Seven, because processors without dot-product instructions add
two products of 8 by 8 bits in 16 bits, where they saturate (255 * 127 * 2 > 32767). Activations are
uint8 with a zero point. Embedding tables become int8 with one scale per row. Everything else stays
float, depthwise convolutions too: ONNX Runtime's int8 kernels for them are slower than its float
ones (docs/internals/performance.md).

Source: arXiv 1712.05877, section 2, for the affine scheme and int32 biases.

Shapes: O output channels, C input channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.graph import proto as onnx
from pocketclip.graph.moe import ROUTER, module_name

WEIGHT_LEVELS = 63
"""The largest magnitude of a quantised weight: 7 bits, see above."""
TABLE_LEVELS = 127
MIN_WEIGHTS = 512
"""Smaller weight tensors stay float: int8 would save next to nothing."""

Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Layer:
    """A node that can be quantised."""

    name: str  # the path of its module
    node: str
    weight: str
    axis: int  # of the weight's output channels, or rows


def layers(proto: Any) -> list[Layer]:
    """Return the layers of a model that can be quantised, in the order of its graph.

    The experts of a mixture have one name. Routers stay float, since a small change of what they
    compute changes which experts a token goes to.
    """
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    out = []
    for node in proto.graph.node:
        if node.name.endswith(ROUTER):
            continue
        index = {"Conv": 1, "MatMul": 1, "Gemm": 1, "Gather": 0}.get(node.op_type)
        weight = None if index is None else constants.get(node.input[index])
        if weight is not None and (axis := _axis(node, weight)) is not None:
            out.append(Layer(module_name(node.name), node.name, weight.name, axis))
    return out


def _axis(node: Any, weight: Any) -> int | None:
    """Return the axis of the output channels, or None if the node should stay float."""
    if weight.data_type != 1 or np.prod(weight.dims) < MIN_WEIGHTS:  # 1: float32
        return None
    attributes = {a.name: a for a in node.attribute}
    if node.op_type == "Conv":
        return 0 if "group" not in attributes or attributes["group"].i == 1 else None
    if node.op_type == "Gather":
        row_wise = "axis" not in attributes or attributes["axis"].i == 0
        return 0 if len(weight.dims) == 2 and row_wise else None
    if node.op_type == "Gemm":
        if any(attributes[n].f != 1 for n in ("alpha", "beta") if n in attributes):
            return None
        if "transA" in attributes and attributes["transA"].i:
            return None
        return 0 if "transB" in attributes and attributes["transB"].i else 1
    return 1 if len(weight.dims) == 2 else None


def calibrate(
    proto: Any,
    open_session: Callable[[bytes], Any],
    calibration: Sequence[NDArray[Any]],
    *,
    percentile: float = 100.0,
) -> dict[str, tuple[float, float]]:
    """Return the range of every activation to quantise, over all of `calibration`.

    The experts of a mixture share their ranges: some may process no token of `calibration`.

    Args:
        proto: the float model.
        open_session: opens an ONNX Runtime session on a serialised model.
        calibration: batches for the model's input.
        percentile: the share of a batch's values that a range covers, in percent; values beyond it
            are clipped. The widest range of all batches counts.
    """
    activations = _activations(proto, layers(proto))
    watched = onnx.messages().ModelProto()
    watched.CopyFrom(proto)
    known = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    watched.graph.output.extend(
        onnx.messages().ValueInfoProto(name=name) for name in activations if name not in known
    )
    session = open_session(watched.SerializeToString())
    input_name = session.get_inputs()[0].name
    fetched = [name for name in activations if name != input_name]
    # Zero itself has to be representable.
    ranges = dict.fromkeys(map(module_name, activations), (0.0, 0.0))
    for batch in calibration:
        values = dict(zip(fetched, session.run(fetched, {input_name: batch}), strict=True))
        values[input_name] = batch
        for name in activations:
            if not values[name].size:
                continue
            low, high = _range(values[name], percentile)
            shared = module_name(name)
            ranges[shared] = min(low, ranges[shared][0]), max(high, ranges[shared][1])
    return ranges


def _range(values: NDArray[Any], percentile: float) -> tuple[float, float]:
    if percentile >= 100:
        return float(values.min()), float(values.max())
    low, high = np.percentile(values, [100 - percentile, percentile])
    return float(low), float(high)


def _activations(proto: Any, chosen: Iterable[Layer]) -> list[str]:
    """Return the names of the layers' inputs and of the convolutions' outputs."""
    names = {layer.node for layer in chosen}
    out: dict[str, None] = {}
    for node in proto.graph.node:
        if node.name in names and node.op_type != "Gather":
            out[node.input[0]] = None
            if node.op_type == "Conv":
                out[node.output[0]] = None
    return list(out)


def quantised(proto: Any, ranges: Ranges, keep: Collection[str] = ()) -> Any:
    """Return a copy of a float model with all layers but `keep` in int8.

    Args:
        proto: the model.
        ranges: from `calibrate`.
        keep: names of layers, see `layers`, that stay float.
    """
    return _Writer(proto, ranges, [x for x in layers(proto) if x.name not in set(keep)]).write()


class _Writer:
    def __init__(self, proto: Any, ranges: Ranges, chosen: Sequence[Layer]) -> None:
        self.ranges = ranges
        self.proto = onnx.messages().ModelProto()
        self.proto.CopyFrom(proto)
        self.graph = self.proto.graph
        self.chosen = {layer.node: layer for layer in chosen}
        self.constants = {t.name: t for t in self.graph.initializer}
        self.nodes: list[Any] = []
        self.added: list[Any] = []
        self.pairs: dict[str, str] = {}  # activation -> its dequantised name
        self.weights: dict[str, str] = {}

    def write(self) -> Any:
        """Rewrite the graph and drop float weights that no node reads any more."""
        for node in list(self.graph.node):
            layer = self.chosen.get(node.name)
            if layer is None:
                self.nodes.append(node)
            elif node.op_type == "Gather":
                self._gather(node, layer)
            else:
                self._product(node, layer)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend(self.added)
        read = {name for node in self.graph.node for name in node.input}
        still_read = [t for t in self.graph.initializer if t.name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend(still_read)
        return self.proto

    def _product(self, node: Any, layer: Layer) -> None:
        activation = node.input[0]
        node.input[0] = self._pair(activation)
        node.input[1], scale = self._weight(layer)
        if node.op_type == "MatMul":
            self.nodes.append(node)
            return
        if len(node.input) > 2 and node.input[2] in self.constants:
            # Fused kernels add the bias to their 32-bit sums, so it needs their scale.
            node.input[2] = self._bias(node, scale * self._affine(activation)[0])
        if node.op_type == "Gemm":
            self.nodes.append(node)
            return
        # Kernels of convolutions return uint8: readers take the dequantised output.
        name = node.output[0]
        node.output[0] = f"{name}_float"
        self.nodes.append(node)
        self._pair(name, source=node.output[0], result=name)
        self.pairs[name] = name

    def _gather(self, node: Any, layer: Layer) -> None:
        table = self._array(layer.weight)  # (V, C)
        scale = _scales(table, layer.axis, TABLE_LEVELS)
        name, (_, ids), result = layer.weight, node.input, node.output[0]
        self._constant(f"{name}_int8", _rounded(table, scale, layer.axis, TABLE_LEVELS))
        self._constant(f"{name}_scale", scale[:, None])
        make = onnx.make_node
        self.nodes += [
            make("Gather", [f"{name}_int8", ids], [f"{result}_int8"], f"{node.name}_int8"),
            make("Gather", [f"{name}_scale", ids], [f"{result}_scale"], f"{node.name}_scale"),
            make("Cast", [f"{result}_int8"], [f"{result}_whole"], f"{node.name}_cast", to=1),
            make("Mul", [f"{result}_whole", f"{result}_scale"], [result], node.name),
        ]

    def _affine(self, activation: str) -> tuple[float, int]:
        """Return scale and zero point of an activation in uint8."""
        low, high = self.ranges[module_name(activation)]
        scale = max(high - low, 1e-8) / 255
        return scale, int(np.clip(round(-low / scale), 0, 255))

    def _pair(self, name: str, source: str | None = None, result: str | None = None) -> str:
        """Add a quantise-dequantise pair for an activation, once; return its output."""
        if name in self.pairs:
            return self.pairs[name]
        scale, zero = self._affine(name)
        self._constant(f"{name}_scale", np.float32(scale))
        self._constant(f"{name}_zero", np.uint8(zero))
        out = result or f"{name}_dequantised"
        make, settings = onnx.make_node, [f"{name}_scale", f"{name}_zero"]
        uint8 = f"{name}_uint8"
        self.nodes += [
            make("QuantizeLinear", [source or name, *settings], [uint8], f"{name}_quantise"),
            make("DequantizeLinear", [uint8, *settings], [out], f"{name}_dequantise"),
        ]
        self.pairs[name] = out
        return out

    def _weight(self, layer: Layer) -> tuple[str, NDArray[np.float32]]:
        """Add int8 weights; return their dequantised name and their scales (O,)."""
        name, array = layer.weight, self._array(layer.weight)
        scale = _scales(array, layer.axis, WEIGHT_LEVELS)
        out = f"{name}_dequantised"
        if name not in self.weights:
            self._constant(f"{name}_int8", _rounded(array, scale, layer.axis, WEIGHT_LEVELS))
            self._dequantise(name, f"{name}_int8", scale, layer.axis, out)
            self.weights[name] = out
        return out, scale

    def _bias(self, node: Any, scale: NDArray[Any]) -> str:
        """Add a bias in `scale`; named after its node, because equal biases share a tensor."""
        name = f"{node.name}_bias"
        array = self._array(node.input[2]).astype(np.float64) / scale
        limit = 2**31 - 1
        whole = np.clip(np.round(array), -limit, limit).astype(np.int32)
        out = f"{name}_dequantised"
        self._constant(f"{name}_int32", whole)
        self._dequantise(name, f"{name}_int32", scale.astype(np.float32), 0, out)
        return out

    def _dequantise(
        self, name: str, whole: str, scale: NDArray[np.float32], axis: int, out: str
    ) -> None:
        self._constant(f"{name}_scales", scale)
        node = onnx.make_node(
            "DequantizeLinear", [whole, f"{name}_scales"], [out], f"{name}_dequantise", axis=axis
        )
        self.nodes.append(node)

    def _array(self, name: str) -> NDArray[np.float32]:
        return np.asarray(onnx.array_from_tensor(self.constants[name]))

    def _constant(self, name: str, value: Any) -> None:
        self.added.append(onnx.tensor_from_array(np.asarray(value), name))


def _scales(array: NDArray[np.float32], axis: int, levels: int) -> NDArray[np.float32]:
    """Return one scale per index of `axis`, so that the largest magnitude is the last level."""
    others = tuple(a for a in range(array.ndim) if a != axis)
    largest = np.abs(array).max(axis=others)
    return np.asarray(np.maximum(largest, 1e-8) / levels, np.float32)


def _rounded(
    array: NDArray[np.float32], scale: NDArray[np.float32], axis: int, levels: int
) -> NDArray[np.int8]:
    shape = [1] * array.ndim
    shape[axis] = -1
    return np.clip(np.round(array / scale.reshape(shape)), -levels, levels).astype(np.int8)
