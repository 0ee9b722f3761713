"""One ONNX graph under construction.

    graph = GraphWriter(Path("image.onnx"), "image_tower")
    x = graph.input("pixels", np.float32, ["batch", 3, 256, 256])
    x = graph.node("Relu", [x], "image.act")
    graph.output("image_features", x, ["batch", 512])
    graph.save()

Weights go to `image.onnx.data` as they come, so that one array at a time is in memory; ONNX Runtime
maps that file into memory.

Operator set 18: from set 20 on GELU is one operator, which OpenVINO runs more slowly than the
pattern that it and ONNX Runtime recognise in set 18 (docs/internals/performance.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import ExportError
from pocketclip.graph import proto

OPSET = 18
# The lowest version of ONNX Runtime that the package accepts (1.19) reads this one.
IR_VERSION = 10
_HALF_VALUES = 1024
"""Smaller arrays keep float32 in fp16."""
_LARGEST_HALF = float(np.finfo(np.float16).max)


class StoredArrays:
    """Where the arrays of finished files are, so that a graph beside them can refer to them."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, tuple[int, ...], bytes], tuple[str, int]] = {}

    def place(self, array: NDArray[Any]) -> tuple[str, int] | None:
        """Return the file and the offset of an array that was noted, or None."""
        return self._places.get(self._key(array))

    def note(self, array: NDArray[Any], file: str, offset: int) -> None:
        """Note that `file` holds an array at an offset in bytes."""
        self._places[self._key(array)] = file, offset

    @staticmethod
    def _key(array: NDArray[Any]) -> tuple[str, tuple[int, ...], bytes]:
        digest = hashlib.sha256(np.ascontiguousarray(array).data).digest()
        return str(array.dtype), array.shape, digest


class GraphWriter:
    """A graph to which nodes and weights are added in the order of computation.

    Args:
        path: the file to write; the weights go to the file with `.data` appended to its name.
        name: the graph's name.
        half: store large weights in float16. They are cast to float32 when a session starts, so
            that the file is half as large and runs as fast.
        stored: arrays of other graphs in the same folder: equal ones are not stored again. This
            graph's are noted in it.
    """

    def __init__(
        self, path: Path, name: str, *, half: bool = False, stored: StoredArrays | None = None
    ) -> None:
        self.path, self.name, self.half, self.stored = path, name, half, stored
        self.data_path = path.with_name(f"{path.name}.data")
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._initializers: list[Any] = []
        self._names: set[str] = set()
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._data = self.data_path.open("wb")

    def close(self) -> None:
        """Close the data file; nothing can be added afterwards."""
        self._data.close()

    # --- inputs and outputs

    def input(self, name: str, dtype: Any, shape: Sequence[int | str]) -> str:
        """Add an input; axes of any size are given by a name. Return its name."""
        self._inputs.append(proto.make_value(name, dtype, shape))
        self._names.add(name)
        return name

    def output(self, name: str, tensor: str, shape: Sequence[int | str]) -> None:
        """Make `tensor`, float32, an output of the graph under another name."""
        self.node("Identity", [tensor], name)
        self._outputs.append(proto.make_value(name, np.float32, shape))

    # --- nodes

    def node(self, operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node with one output; return the output's name, which is also the node's."""
        return self.nodes(operator, inputs, [name], **attributes)[0]

    def nodes(
        self, operator: str, inputs: Sequence[str], names: Sequence[str], **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs, named after the first; return their names."""
        outputs = [self._unique(name) for name in names]
        self._nodes.append(proto.make_node(operator, inputs, outputs, outputs[0], **attributes))
        return outputs

    def _unique(self, name: str) -> str:
        unique, count = name, 1
        while unique in self._names:
            count += 1
            unique = f"{name}:{count}"
        self._names.add(unique)
        return unique

    # --- weights and constants

    def weight(
        self, name: str, array: NDArray[Any], *, finite: bool = True, may_halve: bool = True
    ) -> str:
        """Add a float array, rounded to float32 or float16; return its name.

        Args:
            name: of the array.
            array: of any shape.
            finite: refuse infinite values.
            may_halve: store it in float16 if the graph does so with large arrays.

        Raises:
            ExportError: a value is not finite, or too large for float16.
        """
        values = _float32(name, array, finite=finite)
        if not (finite and may_halve and self._is_halved(values)):
            return self._add(name, values)
        return self.node("Cast", [self._add_half(name, values)], name, to=proto.FLOAT)

    def gather(self, name: str, table: NDArray[Any], indices: str) -> str:
        """Add the rows of a table that `indices` name; return the node's name.

        In float16, only the rows that are read are cast.

        Raises:
            ExportError: as `weight`.
        """
        values = _float32(f"{name}.weight", table)
        if not self._is_halved(values):
            return self.node("Gather", [self._add(f"{name}.weight", values), indices], name)
        stored = self._add_half(f"{name}.weight", values)
        rows = self.node("Gather", [stored, indices], name)
        return self.node("Cast", [rows], f"{name}/float", to=proto.FLOAT)

    def _is_halved(self, values: NDArray[np.float32]) -> bool:
        return self.half and values.size >= _HALF_VALUES

    def _add_half(self, name: str, values: NDArray[np.float32]) -> str:
        if np.abs(values).max() > _LARGEST_HALF:
            raise ExportError(f"{name} has values beyond float16: use fp32")
        return self._add(f"{name}.fp16", values.astype(np.float16))

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """Return the name of a constant; equal ones are stored once."""
        array = np.array(value, dtype)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            label = "_".join(map(str, array.flatten())) if array.size <= 6 else "array"
            self._constants[key] = self._add(f"constant_{label}", array, inline=True)
        return self._constants[key]

    def _add(self, name: str, array: NDArray[Any], *, inline: bool = False) -> str:
        name = self._unique(name)
        place = None if inline or self.stored is None else self.stored.place(array)
        if inline:
            tensor = proto.tensor_from_array(array, name)
        elif place is not None:
            tensor = proto.external_tensor(array, name, *place)
        else:
            tensor = proto.append_tensor(self._data, array, name)
            if self.stored is not None and tensor.data_location == proto.EXTERNAL:
                offset = self._data.tell() - array.nbytes
                self.stored.note(array, self.data_path.name, offset)
        self._initializers.append(tensor)
        return name

    def save(self) -> None:
        """Write the graph; call it once, after everything was added."""
        self.close()
        model = proto.make_model(
            self.name,
            nodes=self._nodes,
            inputs=self._inputs,
            outputs=self._outputs,
            initializers=self._initializers,
            opset=OPSET,
            ir_version=IR_VERSION,
        )
        self.path.write_bytes(model.SerializeToString(deterministic=True))
        if not self.data_path.stat().st_size:
            self.data_path.unlink()


def _float32(name: str, array: NDArray[Any], *, finite: bool = True) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, np.float32)
    if finite and not np.isfinite(values).all():
        raise ExportError(f"{name} is not finite: fetch or copy the weights again")
    return values
