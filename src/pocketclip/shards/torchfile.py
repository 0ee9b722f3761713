"""Small torch files of plain bfloat16 or float32 tensors, read without torch.

    arrays = read(data)  # {"image_emb": float32 (A, D), ...}, or None: leave it to torch

`torch.load` takes a millisecond to unpickle some hundred bytes. These name the tensors and say
where their numbers lie, and are the same for every sample of a set with as many captions, so what
they say is remembered by their bytes. The pickle is read with inert records in place of the few
names that such a file needs, as in `unpickle`; with any other name, and any other kind of tensor,
this module answers None and torch's own restricted reader decides.

Shapes: A rows of a key, D width.
"""

from __future__ import annotations

import functools
import io
import math
import pickle
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.types import Embeddings

MAX_BYTES = 1 << 27
"""Of floats in all: several tensors may be views of the same few bytes."""
_LARGEST_PICKLE = 1 << 14
_END = struct.Struct("<4s4H2LH")
_ENTRY = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL = struct.Struct("<4s2B4HL2L2H")
_KINDS = {"BFloat16Storage": ("bfloat16", 2), "FloatStorage": ("float32", 4)}


@dataclass(frozen=True, slots=True)
class _Tensor:
    """What a pickle says of one tensor."""

    record: str
    dtype: str
    begin: int
    """In bytes of the record."""
    shape: tuple[int, int]


class _UnknownError(Exception):
    """Nothing wrong: a file of another kind."""


def read(data: bytes) -> dict[str, tuple[Embeddings, str]] | None:
    """Return the arrays and their stored dtypes by key, or None if it takes torch to read them."""
    try:
        records = _records(data)
        name = next((name for name in records if name.endswith("/data.pkl")), "")
        begin, end = records[name]
        if end - begin > _LARGEST_PICKLE:
            return None
        tensors = _layout(data[begin:end])
        stem = name[: -len("data.pkl")]
        order = records.get(stem + "byteorder", (0, 0))
        floats = sum(math.prod(found.shape) for _, found in tensors)
        if data[slice(*order)] not in (b"", b"little") or floats * 4 > MAX_BYTES:
            return None
        stem += "data/"
        return {
            key: (_array(data, records[stem + found.record], found), found.dtype)
            for key, found in tensors
        }
    except (_UnknownError, KeyError, ValueError, struct.error):
        return None


def _records(data: bytes) -> dict[str, tuple[int, int]]:
    """Return where the bytes of each record of a zip begin and end; none is deflated."""
    tail = data.rfind(b"PK\5\6", -(_END.size + 64))
    if tail < 0:
        raise _UnknownError
    count, place = _END.unpack_from(data, tail)[4], _END.unpack_from(data, tail)[6]
    out = {}
    for _ in range(count):
        head = _ENTRY.unpack_from(data, place)
        method, packed, size, name_length, extra, comment = (
            head[i] for i in (6, 10, 11, 12, 13, 14)
        )
        local = head[18]
        # Sizes of all ones stand elsewhere; flag 1 is encryption.
        if head[0] != b"PK\1\2" or method or packed != size or max(size, local) == 0xFFFFFFFF:
            raise _UnknownError
        begin = place + _ENTRY.size
        name = data[begin : begin + name_length].decode("ascii")
        where = _LOCAL.unpack_from(data, local)
        start = local + _LOCAL.size + where[-2] + where[-1]
        if where[0] != b"PK\3\4" or start + size > len(data) or name in out:
            raise _UnknownError
        out[name] = start, start + size
        place = begin + name_length + extra + comment
    return out


def _array(data: bytes, span: tuple[int, int], tensor: _Tensor) -> Embeddings:
    begin, count = span[0] + tensor.begin, math.prod(tensor.shape)
    itemsize = 2 if tensor.dtype == "bfloat16" else 4
    if begin + count * itemsize > span[1]:
        raise _UnknownError
    if itemsize == 4:
        floats: Embeddings = np.frombuffer(data, "<f4", count, begin).astype(np.float32)
        return floats.reshape(tensor.shape)
    halves: NDArray[Any] = np.frombuffer(data, "<u2", count, begin).astype(np.uint32)
    halves <<= np.uint32(16)  # a bfloat16 is the upper half of a float32
    return halves.view(np.float32).reshape(tensor.shape)


class _Rebuilt:
    """`_rebuild_tensor_v2(storage, offset, shape, stride, requires_grad, hooks)`."""

    def __init__(self, *args: Any) -> None:
        self.args = args


class _Kind:
    """The class of a storage."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Inert(pickle._Unpickler):
    """Knows what a dict of plain tensors needs and no other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Rebuilt
        if (module, name) == ("collections", "OrderedDict"):
            return _Rebuilt
        if module == "torch" and name in _KINDS:
            return _Kind(name)
        raise _UnknownError

    def persistent_load(self, pid: Any) -> Any:
        return pid


@functools.lru_cache(maxsize=1024)
def _layout(pickled: bytes) -> tuple[tuple[str, _Tensor], ...]:
    try:
        loaded = _Inert(io.BytesIO(pickled)).load()
        if type(loaded) is not dict:
            raise _UnknownError
        return tuple((str(key), _tensor(value)) for key, value in loaded.items())
    except Exception as error:  # bytes of any kind fail in any way; torch says what is wrong
        raise _UnknownError from error


def _tensor(value: Any) -> _Tensor:
    (_, kind, record, device, _), offset, shape, stride = value.args[:4]
    dtype, itemsize = _KINDS[kind.name]
    numbers = [offset, *shape, *stride]
    plain = all(type(number) is int and 0 <= number < 1 << 40 for number in numbers)
    if not plain or len(shape) != 2 or stride != (shape[1], 1) or device != "cpu":
        raise _UnknownError
    return _Tensor(str(record), dtype, offset * itemsize, (shape[0], shape[1]))
