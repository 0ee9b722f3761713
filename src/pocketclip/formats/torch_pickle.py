"""The pickles in torch's files, read without running anything that they name.

    pickled = read_pickle(data)
    pickled.value  # {"state_dict": {"a.weight": View(...), ...}, "epoch": 3}

A pickle is a program for a small stack machine, and may call any function it names. This machine
knows the instructions that torch writes and no others. Of the names, it knows those of
`torch.load(weights_only=True)`; each becomes an inert record, and so does every call of it. No
class or function of any library is ever looked up. What a call would have made is a `View` (a
tensor), an `Unusual` (a tensor of a kind that is no weight), a dict, or a `Called` that only says
what it was. A dict's keys are strings and plain values: nothing else is hashed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_PICKLE = 1 << 26
"""Limit on the bytes of a pickle; 1 MB suffices for a billion parameters."""
MAX_STEPS = 4_000_000
"""Limit on the instructions of a pickle, each of which may take a hundred bytes of memory."""
_MAX_ODD_KEYS = 1000
_MAX_KEY = 16
_NAME = re.compile(r"[\w.]{1,200}")
_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8", "QUInt8Storage": "quint8", "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4", "UntypedStorage": "",
}  # fmt: skip
_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")
_DTYPES = frozenset(
    {
        "float16", "bfloat16", "float32", "float64", "half", "float", "double", "complex32",
        "complex64", "complex128", "chalf", "cfloat", "cdouble", "uint8", "int8", "int16", "int32",
        "int64", "short", "int", "long", "uint16", "uint32", "uint64", "bool", "qint8", "quint8",
        "qint32", "quint4x2", "quint2x4", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
        "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2", "bits8", "bits16", "bits1x8",
        "bits2x4", "bits4x2",
    }
)  # fmt: skip
_CALLABLE = frozenset(
    {
        "torch.Size", "torch.device", "torch.serialization._get_layout", "_codecs.encode",
        "builtins.bytearray", "builtins.set", "builtins.complex", "collections.Counter",
    }
)  # fmt: skip
_CONSTANT = frozenset(
    {
        "torch.Tensor", "torch.per_tensor_affine", "torch.per_tensor_symmetric",
        "torch.per_channel_affine", "torch.per_channel_symmetric",
        "torch.per_channel_affine_float_qparams",
    }
)  # fmt: skip
_UNUSUAL = frozenset(
    {
        "torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_qtensor",
        "torch._utils._rebuild_nested_tensor", "torch._utils._rebuild_meta_tensor_no_storage",
        "torch._utils._rebuild_wrapper_subclass",
        "torch._utils._rebuild_device_tensor_from_numpy",
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    }
)  # fmt: skip


class PickleError(Exception):
    """The pickle is damaged, too large, or no pickle of torch; the message says how."""


class ForeignError(Exception):
    """The pickle holds more than tensors and plain values."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self.name = name
        """What it names; empty if that is unknown."""


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """A name in the pickle, of a type, a function or a constant."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Called:
    """What a call of a known name would have made, other than a tensor or a dict."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """`("storage", type, key, device, count)`: the numbers of one or several tensors."""

    key: str
    dtype: str
    """Empty if it is untyped: then `count` is in bytes."""
    count: int
    part: tuple[str, int, int] | None = None
    """In files of before torch 1.6, name, offset and count of the part that a tensor views."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A tensor: a view of a storage, in numbers."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Unusual:
    """A tensor that is not dense numbers: sparse, quantised, nested, without data, ..."""

    kind: str


@dataclass(frozen=True, slots=True)
class Pickled:
    """What a pickle describes."""

    value: Any
    storages: dict[str, Storage]
    """All storages that it names, by key."""
    end: int
    """Offset behind the pickle."""


class Entries(dict[Any, Any]):
    """An `OrderedDict`."""


def read_pickle(data: bytes, begin: int = 0) -> Pickled:
    """Return what the pickle at `begin` describes.

    Raises:
        ForeignError: it names anything but tensors and plain values, or uses instructions that
            torch does not write.
        PickleError: it is damaged or too large.
    """
    machine = _Machine(data, begin)
    try:
        return Pickled(machine.run(), machine.storages, machine.position)
    except UnicodeDecodeError as error:
        raise PickleError("its pickle holds a text that is not UTF-8") from error
    except (struct.error, IndexError, KeyError, ValueError) as error:
        raise PickleError("its pickle ends too soon or contradicts itself") from error


class _Machine:
    def __init__(self, data: bytes, begin: int) -> None:
        self._data = data
        self.position = begin
        self.storages: dict[str, Storage] = {}
        self._parts: dict[str, Storage] = {}
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        """The stacks below each mark."""
        self._memo: dict[int, Any] = {}
        self._odd_keys = 0

    def run(self) -> Any:
        limit, steps, data = self.position + MAX_PICKLE, _STEPS, self._data
        for _ in range(MAX_STEPS):
            code = data[self.position]
            self.position += 1
            if code == _STOP:
                return self._stack.pop()
            if code not in steps:
                raise ForeignError
            steps[code](self)
            if self.position > limit:
                break
        raise PickleError("its pickle is larger than any weight file needs")

    # --- bytes of the program

    def _take(self, count: int) -> bytes:
        begin, self.position = self.position, self.position + count
        if self.position > len(self._data):
            raise PickleError("its pickle ends too soon")
        return self._data[begin : self.position]

    def _byte(self) -> int:
        value = self._data[self.position]
        self.position += 1
        return value

    def _word(self) -> int:
        return int.from_bytes(self._take(4), "little")

    def _line(self) -> str:
        end = self._data.find(b"\n", self.position, self.position + 1000)
        if end < 0:
            raise PickleError("its pickle has a name without an end")
        return self._take(end + 1 - self.position)[:-1].decode()

    # --- the stack

    def _to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _protocol(self) -> None:
        self._byte()  # torch writes 2; what other versions add is no known instruction

    def _mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _tuple_to_mark(self) -> None:
        items = self._to_mark()
        self._stack.append(tuple(items))

    # The most frequent steps; the others are in the table at the end.

    def _text(self) -> None:
        self._stack.append(self._take(self._word()).decode())

    def _small(self) -> None:
        self._stack.append(self._byte())

    def _recall(self) -> None:
        self._stack.append(self._memo[self._byte()])

    def _remember(self) -> None:
        self._memo[self._byte()] = self._stack[-1]

    def _remember_far(self) -> None:
        self._memo[self._word()] = self._stack[-1]

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise ForeignError
        target.extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict and type(target) is not Entries:
            raise ForeignError
        self._fill(target, list(zip(items[::2], items[1::2], strict=True)))

    def _fill(self, target: dict[Any, Any], pairs: list[Any]) -> None:
        for key, value in pairs:
            if type(key) is not str:
                self._check_key(key)
            target[key] = value

    def _check_key(self, key: Any) -> None:
        """Allow keys that are quick to hash and do not collide by design."""
        if type(key) is int and -(1 << 60) < key < 1 << 60:
            return
        self._odd_keys += 1
        parts = key if type(key) is tuple else (key,)
        plain = (str, int, float, bool, type(None), Named, Called)
        if len(parts) > _MAX_KEY or not all(isinstance(part, plain) for part in parts):
            raise ForeignError
        if self._odd_keys > _MAX_ODD_KEYS:
            raise PickleError("its pickle has too many keys that are no texts")

    # --- names and calls

    def _global(self) -> None:
        module, name = self._line(), self._line()
        module = {"__builtin__": "builtins", "torch.tensor": "torch._tensor"}.get(module, module)
        full = f"{module}.{name}"
        is_storage = module in _STORAGE_MODULES and name in _STORAGES
        if (
            is_storage
            or full in _CALLS
            or full in _CONSTANT
            or (module == "torch" and name in _DTYPES)
        ):
            self._stack.append(Named(full))
        else:
            raise ForeignError(full if _NAME.fullmatch(full) else "")

    def _call(self) -> None:
        args, function = self._stack.pop(), self._stack.pop()
        if type(function) is not Named or type(args) is not tuple:
            raise ForeignError
        self._stack.append(self._made(function.name, args))

    def _made(self, name: str, args: tuple[Any, ...]) -> Any:
        if name == "collections.OrderedDict":
            made = Entries()
            # Python 2 wrote the entries as pairs.
            pairs = args[0] if args else []
            if len(args) > 1 or not _are_pairs(pairs):
                raise PickleError("its pickle has a dict that is none")
            self._fill(made, pairs)
            return made
        try:
            call = _CALLS[name]
        except KeyError:
            raise ForeignError(name) from None
        return call(name, args)

    def _build(self) -> None:
        self._stack.pop()  # attributes of an `OrderedDict`, such as a state dict's `_metadata`
        if type(self._stack[-1]) is not Entries:
            raise ForeignError

    def _persistent(self) -> None:
        described = self._stack.pop()
        if type(described) is not tuple or len(described) not in (5, 6):
            raise ForeignError
        word, kind, key, _device, count, *part = described
        if word != "storage" or type(kind) is not Named:
            raise ForeignError
        name = kind.name.rpartition(".")[2]
        if name not in _STORAGES or type(key) is not str or not _is_count(count):
            raise PickleError("its pickle describes a storage that cannot be")
        storage = Storage(key, _STORAGES[name], count, _part(part[0] if part else None))
        before = self.storages.setdefault(key, storage)
        if (before.dtype, before.count) != (storage.dtype, storage.count):
            raise PickleError("its pickle describes a storage in two ways")
        if storage.part is not None and storage != self._parts.setdefault(storage.part[0], storage):
            raise PickleError("its pickle describes a part of a storage in two ways")
        self._stack.append(storage)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 60


def _are_pairs(value: Any) -> bool:
    return type(value) is list and all(
        type(pair) in (list, tuple) and len(pair) == 2 for pair in value
    )


def _part(part: Any) -> tuple[str, int, int] | None:
    if part is None:
        return None
    if type(part) is tuple and len(part) == 3:
        name, offset, count = part
        if type(name) is str and _is_count(offset) and _is_count(count):
            return name, offset, count
    raise PickleError("its pickle describes a part of a storage that cannot be")


# --- what calls of the known names make


def _called(name: str, _args: tuple[Any, ...]) -> Called:
    return Called(name)


def _unusual(name: str, _args: tuple[Any, ...]) -> Unusual:
    kind = name.rpartition(".")[2].removeprefix("_rebuild_").removesuffix("_tensor")
    return Unusual("sparse or quantised" if kind in ("sparse", "qtensor") else kind)


def _parameter(_name: str, args: tuple[Any, ...]) -> View | Unusual:
    """`Parameter(data, requires_grad, ...)` is its tensor."""
    if args and type(args[0]) in (View, Unusual):
        tensor: View | Unusual = args[0]
        return tensor
    raise PickleError("its pickle has a parameter without a tensor")


def _subclass(_name: str, args: tuple[Any, ...]) -> Any:
    """`_rebuild_from_type_v2(function, type, args, state)`: a tensor with attributes."""
    if len(args) < 3:
        raise PickleError("its pickle describes a tensor that cannot be")
    function, kind, inner = args[:3]
    plain = ("torch.Tensor", "torch.nn.parameter.Parameter")
    if type(function) is not Named or type(kind) is not Named or type(inner) is not tuple:
        raise PickleError("its pickle describes a tensor that cannot be")
    if function.name not in _TENSORS or kind.name not in plain:
        raise ForeignError(function.name)
    return _CALLS[function.name](function.name, inner)


def _tensor(name: str, args: tuple[Any, ...]) -> View | Unusual:
    """`_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata)`.

    In v3, `dtype` comes before `metadata`, which negates the numbers or makes them complex.
    """
    if len(args) < 4:
        raise PickleError("its pickle describes a tensor that cannot be")
    storage, offset, shape, strides = args[:4]
    if type(storage) is not Storage or type(shape) is not tuple or type(strides) is not tuple:
        raise PickleError("its pickle describes a tensor that cannot be")
    if not all(map(_is_count, (offset, *shape, *strides))):
        raise PickleError("its pickle describes a tensor with sizes that are no counts")
    dtype, metadata = storage.dtype or "uint8", args[6:]
    if name.endswith("_v3"):
        if len(args) < 7 or type(args[6]) is not Named:
            raise PickleError("its pickle describes a tensor that cannot be")
        dtype, metadata = args[6].name.removeprefix("torch."), args[7:]
    if any(metadata):
        return Unusual("negated")
    return View(storage, dtype, offset, shape, strides)


_TENSORS = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
_CALLS: dict[str, Callable[[str, tuple[Any, ...]], Any]] = {
    **dict.fromkeys(_CALLABLE, _called),
    **dict.fromkeys(_UNUSUAL, _unusual),
    **dict.fromkeys(_TENSORS, _tensor),
    "collections.OrderedDict": _called,  # see `_Machine._made`
    "torch.nn.parameter.Parameter": _parameter,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _subclass,
}


def _push(make: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda m: m._stack.append(make(m))


_EMPTY_SET = Called("builtins.set")
_STOP = ord(".")
_STEPS: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine._protocol,
    ord("c"): _Machine._global,
    ord("R"): _Machine._call,
    0x81: _Machine._call,  # NEWOBJ
    ord("b"): _Machine._build,
    ord("Q"): _Machine._persistent,
    ord("("): _Machine._mark,
    ord("a"): lambda m: m._append([m._stack.pop()]),
    ord("e"): lambda m: m._append(m._to_mark()),
    ord("s"): lambda m: m._set([m._stack.pop(-2), m._stack.pop()]),
    ord("u"): lambda m: m._set(m._to_mark()),
    ord("t"): _Machine._tuple_to_mark,
    0x85: lambda m: m._tuple(1),
    0x86: lambda m: m._tuple(2),
    0x87: lambda m: m._tuple(3),
    ord("N"): _push(lambda _: None),
    0x88: _push(lambda _: True),
    0x89: _push(lambda _: False),
    ord(")"): _push(lambda _: ()),
    ord("]"): _push(lambda _: []),
    ord("}"): _push(lambda _: {}),
    0x8F: _push(lambda _: _EMPTY_SET),
    ord("J"): _push(lambda m: int.from_bytes(m._take(4), "little", signed=True)),
    ord("K"): _Machine._small,
    ord("M"): _push(lambda m: int.from_bytes(m._take(2), "little")),
    ord("G"): _push(lambda m: struct.unpack(">d", m._take(8))[0]),
    ord("X"): _Machine._text,
    ord("U"): _push(lambda m: m._take(m._byte()).decode()),
    0x8A: _push(lambda m: int.from_bytes(m._take(m._byte()), "little", signed=True)),
    ord("h"): _Machine._recall,
    ord("j"): _push(lambda m: m._memo[m._word()]),
    ord("q"): _Machine._remember,
    ord("r"): _Machine._remember_far,
}
