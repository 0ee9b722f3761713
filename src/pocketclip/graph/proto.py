"""ONNX model files, read and written with the `protobuf` package alone.

    model = proto.read_model(Path("image.onnx"))
    node = proto.make_node("Relu", ["x"], ["y"], "image.act")
    model.graph.node.append(node)
    proto.write_model(model, Path("changed.onnx"))

ONNX Runtime requires `protobuf`. The package `onnx` would add 28 MB to every install, half of it
test data, and its versions exclude versions of `protobuf`.

The messages are those of ONNX's schema, with its field names and numbers, so code for `onnx`'s
classes works on these. Fields that are not listed here survive reading and writing.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from pocketclip.errors import ExportError
from pocketclip.storage.local import write_whole

FLOAT: Final = 1
UINT8: Final = 2
INT8: Final = 3
INT32: Final = 6
INT64: Final = 7
FLOAT16: Final = 10
EXTERNAL: Final = 1
"""A tensor's `data_location` if its values are in another file."""
_EXTERNAL_BYTES: Final = 1024
"""Smaller arrays are stored in the graph itself."""
_ALIGNMENT: Final = 64

_CODES: Final[Mapping[str, int]] = {
    "float32": FLOAT,
    "uint8": UINT8,
    "int8": INT8,
    "uint16": 4,
    "int16": 5,
    "int32": INT32,
    "int64": INT64,
    "bool": 9,
    "float16": FLOAT16,
    "float64": 11,
    "uint32": 12,
    "uint64": 13,
}
_NAMES: Final = {code: name for name, code in _CODES.items()}

# message: its fields as "name number type", "*" if repeated, "**" if repeated and packed. Enums
# are int32, which has the same encoding.
_SCHEMA: Final[Mapping[str, str]] = {
    "StringStringEntryProto": "key 1 string, value 2 string",
    "OperatorSetIdProto": "domain 1 string, version 2 int64",
    "Dimension": "dim_value 1 int64, dim_param 2 string, denotation 3 string",
    "TensorShapeProto": "dim 1 Dimension*",
    "TensorType": "elem_type 1 int32, shape 2 TensorShapeProto",
    "TypeProto": "tensor_type 1 TensorType, denotation 6 string",
    "ValueInfoProto": "name 1 string, type 2 TypeProto, doc_string 3 string",
    "TensorProto": (
        "dims 1 int64*, data_type 2 int32, float_data 4 float**, int32_data 5 int32**, "
        "string_data 6 bytes*, int64_data 7 int64**, name 8 string, raw_data 9 bytes, "
        "double_data 10 double**, uint64_data 11 uint64**, doc_string 12 string, "
        "external_data 13 StringStringEntryProto*, data_location 14 int32"
    ),
    "AttributeProto": (
        "name 1 string, f 2 float, i 3 int64, s 4 bytes, t 5 TensorProto, g 6 GraphProto, "
        "floats 7 float*, ints 8 int64*, strings 9 bytes*, tensors 10 TensorProto*, "
        "graphs 11 GraphProto*, doc_string 13 string, type 20 int32, ref_attr_name 21 string"
    ),
    "NodeProto": (
        "input 1 string*, output 2 string*, name 3 string, op_type 4 string, "
        "attribute 5 AttributeProto*, doc_string 6 string, domain 7 string, overload 8 string, "
        "metadata_props 9 StringStringEntryProto*"
    ),
    "GraphProto": (
        "node 1 NodeProto*, name 2 string, initializer 5 TensorProto*, doc_string 10 string, "
        "input 11 ValueInfoProto*, output 12 ValueInfoProto*, value_info 13 ValueInfoProto*"
    ),
    "ModelProto": (
        "ir_version 1 int64, producer_name 2 string, producer_version 3 string, "
        "domain 4 string, model_version 5 int64, doc_string 6 string, graph 7 GraphProto, "
        "opset_import 8 OperatorSetIdProto*, metadata_props 14 StringStringEntryProto*"
    ),
}
_ONE_OF: Final = {"Dimension": ("dim_value", "dim_param"), "TypeProto": ("tensor_type",)}
_PACKAGE: Final = "pocketclip.onnx"
_ATTRIBUTE: Final = {
    name: number
    for number, name in enumerate(
        ("FLOAT", "INT", "STRING", "TENSOR", "GRAPH", "FLOATS", "INTS", "STRINGS"), 1
    )
}
"""`AttributeProto.AttributeType`."""
_VALUE_FIELDS: Final = {
    "float32": "float_data", "float64": "double_data", "int64": "int64_data",
    "uint32": "uint64_data", "uint64": "uint64_data",
}  # fmt: skip
"""Where other writers list a tensor's values; those of other types are in `int32_data`."""


@functools.cache
def messages() -> Any:
    """Return the classes of messages as attributes: `messages().NodeProto` and so on."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(
        name="pocketclip/onnx.proto", package=_PACKAGE, syntax="proto2"
    )
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        if name in _ONE_OF:
            message.oneof_decl.add(name="value")
        for entry in fields.split(", "):
            label, number, kind = entry.split(" ")
            field = message.field.add(name=label, number=int(number))
            field.label = kinds.LABEL_REPEATED if "*" in kind else kinds.LABEL_OPTIONAL
            if kind.endswith("**"):
                field.options.packed = True
            kind = kind.rstrip("*")
            if kind in _SCHEMA:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                field.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
            if label in _ONE_OF.get(name, ()):
                field.oneof_index = 0
    # A pool of its own: the default one may hold the messages of `onnx`.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    classes = {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _SCHEMA
    }
    return SimpleNamespace(**classes)


def dtype_code(dtype: DTypeLike) -> int:
    """Return ONNX's number of a numpy dtype.

    Raises:
        ExportError: ONNX has none.
    """
    name = np.dtype(dtype).name
    if name not in _CODES:
        raise ExportError(f"ONNX has no arrays of {name}")
    return _CODES[name]


def code_dtype(code: int) -> np.dtype[Any]:
    """Return the numpy dtype of one of ONNX's numbers.

    Raises:
        ExportError: numpy has none.
    """
    if code not in _NAMES:
        raise ExportError(f"numpy has no arrays of ONNX's type {code}")
    return np.dtype(_NAMES[code])


def make_node(
    operator: str, inputs: Iterable[str], outputs: Iterable[str], name: str = "", **attributes: Any
) -> Any:
    """Return a node. An attribute is a number, a text, an array, or a list of numbers or texts."""
    node = messages().NodeProto(op_type=operator, name=name, input=inputs, output=outputs)
    for key, value in sorted(attributes.items()):
        _fill(node.attribute.add(name=key), value)
    return node


def _fill(attribute: Any, value: Any) -> None:
    """Set an attribute's value and type."""
    if isinstance(value, float):
        attribute.f, attribute.type = value, _ATTRIBUTE["FLOAT"]
    elif isinstance(value, int | np.integer):
        attribute.i, attribute.type = int(value), _ATTRIBUTE["INT"]
    elif isinstance(value, str):
        attribute.s, attribute.type = value.encode(), _ATTRIBUTE["STRING"]
    elif isinstance(value, np.ndarray):
        attribute.t.CopyFrom(tensor_from_array(value, attribute.name))
        attribute.type = _ATTRIBUTE["TENSOR"]
    elif value and all(isinstance(x, float) for x in value):
        attribute.floats.extend(value)
        attribute.type = _ATTRIBUTE["FLOATS"]
    elif all(isinstance(x, int | np.integer) for x in value):
        attribute.ints.extend(int(x) for x in value)
        attribute.type = _ATTRIBUTE["INTS"]
    else:
        attribute.strings.extend(x.encode() for x in value)
        attribute.type = _ATTRIBUTE["STRINGS"]


def make_value(name: str, dtype: DTypeLike, shape: Sequence[int | str]) -> Any:
    """Return the declaration of an input or output; axes of any size are given by a name."""
    value = messages().ValueInfoProto(name=name)
    value.type.tensor_type.elem_type = dtype_code(dtype)
    dims = value.type.tensor_type.shape.dim
    value.type.tensor_type.shape.SetInParent()  # no axes is a shape too, that of a scalar
    for size in shape:
        dims.add(**({"dim_param": size} if isinstance(size, str) else {"dim_value": size}))
    return value


def tensor_from_array(array: ArrayLike, name: str = "") -> Any:
    """Return a tensor with the values of an array in it."""
    values = np.asarray(array)
    data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    return messages().TensorProto(
        name=name, dims=values.shape, data_type=dtype_code(values.dtype), raw_data=data
    )


def external_tensor(array: NDArray[Any], name: str, location: str, offset: int) -> Any:
    """Return a tensor whose values stand at `offset` of a file beside the model's."""
    tensor = messages().TensorProto(
        name=name,
        dims=array.shape,
        data_type=dtype_code(array.dtype),
        data_location=EXTERNAL,
    )
    for key, value in {"location": location, "offset": offset, "length": array.nbytes}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def append_tensor(file: BinaryIO, array: NDArray[Any], name: str) -> Any:
    """Return a tensor; large values are appended to `file`, which lies beside the model's."""
    if array.nbytes < _EXTERNAL_BYTES:
        return tensor_from_array(array, name)
    file.write(b"\0" * (-file.tell() % _ALIGNMENT))
    offset = file.tell()
    # `tofile` would say of a full disk only how much was written, without an `errno`.
    file.write(np.ascontiguousarray(array).data)
    return external_tensor(array, name, Path(file.name).name, offset)


def make_model(
    name: str,
    *,
    nodes: Iterable[Any],
    inputs: Iterable[Any],
    outputs: Iterable[Any],
    initializers: Iterable[Any] = (),
    opset: int,
    ir_version: int,
) -> Any:
    """Return a model of one graph.

    Args:
        name: the graph's name.
        nodes: in the order of computation, from `make_node`.
        inputs: from `make_value`.
        outputs: from `make_value`.
        initializers: weights, from `tensor_from_array` or `external_tensor`.
        opset: version of ONNX's own operators.
        ir_version: version of the file format, which older runtimes may not read.
    """
    model = messages().ModelProto(ir_version=ir_version, producer_name="pocketclip")
    model.opset_import.add(domain="", version=opset)
    model.graph.name = name
    model.graph.node.extend(nodes)
    model.graph.input.extend(inputs)
    model.graph.output.extend(outputs)
    model.graph.initializer.extend(initializers)
    return model


def array_from_tensor(tensor: Any) -> NDArray[Any]:
    """Return a tensor's values.

    Raises:
        ExportError: the values are in another file (`read_model` reads them in), numpy has no
            such dtype, or their number is wrong.
    """
    if tensor.data_location == EXTERNAL:
        raise ExportError(f"the values of {tensor.name} are in another file")
    dtype, shape = code_dtype(tensor.data_type), tuple(tensor.dims)
    if tensor.raw_data:
        flat = np.frombuffer(tensor.raw_data, dtype.newbyteorder("<")).astype(dtype)
    else:
        stored = getattr(tensor, _VALUE_FIELDS.get(dtype.name, "int32_data"))
        if dtype == np.float16:  # listed by their bits
            flat = np.array(stored, np.uint16).view(np.float16)
        else:
            flat = np.array(stored, dtype)
    if flat.size != np.prod(shape):
        raise ExportError(
            f"{tensor.name} should have shape {list(shape)} but has {flat.size} values"
        )
    return flat.reshape(shape)


def read_model(path: Path) -> Any:
    """Return a model with all of its weights in memory, those beside its file included.

    Raises:
        ExportError: the file is not an ONNX model, or the file of its weights is too short.
        OSError: a file cannot be read.
    """
    from google.protobuf.message import DecodeError

    model = messages().ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ExportError(f"{path} is not an ONNX model: {error}") from error
    for tensor in model.graph.initializer:
        if tensor.data_location == EXTERNAL:
            _read_in(tensor, path.parent)
    return model


def _read_in(tensor: Any, folder: Path) -> None:
    where = {entry.key: entry.value for entry in tensor.external_data}
    name = where["location"]
    if os.path.basename(name) != name:  # noqa: PTH119
        raise ExportError(f"the weights of {tensor.name} are outside of {folder}: {name}")
    with (folder / name).open("rb") as file:
        file.seek(int(where.get("offset", 0)))
        data = file.read(int(where["length"])) if "length" in where else file.read()
    size = int(np.prod(tuple(tensor.dims))) * code_dtype(tensor.data_type).itemsize
    if len(data) != size:
        raise ExportError(f"{folder / name} is too short: {tensor.name} is missing")
    tensor.raw_data = data
    tensor.ClearField("data_location")
    del tensor.external_data[:]


def write_model(model: Any, path: Path, *, external: bool = False) -> None:
    """Write a model; each file appears whole or not at all.

    Args:
        model: unchanged.
        path: its file.
        external: put large weights into `path`.data, which readers map into memory.
    """
    if external:
        copy = messages().ModelProto()
        copy.CopyFrom(model)
        with write_whole(path.with_name(f"{path.name}.data")) as temporary:
            _write_tensors(copy, temporary, f"{path.name}.data")
        model = copy
    with write_whole(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


def _write_tensors(model: Any, path: Path, name: str) -> None:
    """Move the large weights of a model into a file that will have another name."""
    with path.open("wb") as file:
        for tensor in model.graph.initializer:
            moved = append_tensor(file, array_from_tensor(tensor), tensor.name)
            for entry in moved.external_data:
                entry.value = name if entry.key == "location" else entry.value
            tensor.CopyFrom(moved)
