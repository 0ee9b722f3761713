"""Read small torch files of plain bfloat16 or float32 tensors without torch.

    arrays = read(data)  # {"image_emb": float32 (A, D), ...}; None: leave the file to torch

`torch.load` takes a millisecond to unpickle some hundred bytes. That pickle holds the names,
shapes and offsets of the tensors. It is the same for all samples of a set with equally many
captions, so its result is cached by its bytes. For any other kind of tensor or file this module
returns None, and torch's own restricted reader decides.

Shapes: A rows of a key, D width.
"""

from __future__ import annotations

import functools
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.formats.stored_tensor import ITEMSIZE
from pocketclip.formats.torch_pickle import ForeignError, PickleError, View, read_pickle
from pocketclip.types import Embeddings

MAX_BYTES = 1 << 27
"""Most bytes of all floats; several tensors may be views of the same few bytes."""
_MAX_PICKLE = 1 << 14
_END = struct.Struct("<4s4H2LH")
_ENTRY = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL = struct.Struct("<4s2B4HL2L2H")
_DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor as the pickle describes it."""

    record: str
    dtype: str
    begin: int
    """Offset in the record, in bytes."""
    shape: tuple[int, int]


class _UnknownError(Exception):
    """The file is of another kind; torch reads it."""


def read(data: bytes) -> dict[str, tuple[Embeddings, str]] | None:
    """Return the arrays and their stored dtypes by key, or None if only torch can read them."""
    try:
        records = _records(data)
        name = next((name for name in records if name.endswith("/data.pkl")), "")
        begin, end = records[name]
        if end - begin > _MAX_PICKLE:
            return None
        tensors = _layout(data[begin:end])
        stem = name[: -len("data.pkl")]
        order = records.get(stem + "byteorder", (0, 0))
        floats = sum(math.prod(tensor.shape) for _, tensor in tensors)
        if data[slice(*order)] not in (b"", b"little") or floats * 4 > MAX_BYTES:
            return None
        stem += "data/"
        return {
            key: (_array(data, records[stem + tensor.record], tensor), tensor.dtype)
            for key, tensor in tensors
        }
    except (_UnknownError, KeyError, ValueError, struct.error):
        return None


def _records(data: bytes) -> dict[str, tuple[int, int]]:
    """Return the first and last byte of each record of a zip; none is deflated."""
    tail = data.rfind(b"PK\5\6", -(_END.size + 64))
    if tail < 0:
        raise _UnknownError
    count, offset = _END.unpack_from(data, tail)[4], _END.unpack_from(data, tail)[6]
    out = {}
    for _ in range(count):
        head = _ENTRY.unpack_from(data, offset)
        method, packed, size, name_length, extra, comment = (
            head[i] for i in (6, 10, 11, 12, 13, 14)
        )
        local = head[18]
        # All ones: the size is in another record (zip64).
        if head[0] != b"PK\1\2" or method or packed != size or max(size, local) == 0xFFFFFFFF:
            raise _UnknownError
        begin = offset + _ENTRY.size
        name = data[begin : begin + name_length].decode("ascii")
        header = _LOCAL.unpack_from(data, local)
        start = local + _LOCAL.size + header[-2] + header[-1]
        if header[0] != b"PK\3\4" or start + size > len(data) or name in out:
            raise _UnknownError
        out[name] = start, start + size
        offset = begin + name_length + extra + comment
    return out


def _array(data: bytes, span: tuple[int, int], tensor: _Tensor) -> Embeddings:
    begin, count = span[0] + tensor.begin, math.prod(tensor.shape)
    itemsize = ITEMSIZE[tensor.dtype]
    if begin + count * itemsize > span[1]:
        raise _UnknownError
    if itemsize == 4:
        floats: Embeddings = np.frombuffer(data, "<f4", count, begin).astype(np.float32)
        return floats.reshape(tensor.shape)
    halves: NDArray[Any] = np.frombuffer(data, "<u2", count, begin).astype(np.uint32)
    halves <<= np.uint32(16)  # a bfloat16 is the upper half of a float32
    return halves.view(np.float32).reshape(tensor.shape)


@functools.lru_cache(maxsize=1024)
def _layout(pickled: bytes) -> tuple[tuple[str, _Tensor], ...]:
    try:
        loaded = read_pickle(pickled).value
    except (PickleError, ForeignError) as error:
        raise _UnknownError from error
    if type(loaded) is not dict:
        raise _UnknownError
    return tuple((str(key), _tensor(value)) for key, value in loaded.items())


def _tensor(view: Any) -> _Tensor:
    if type(view) is not View or view.dtype not in _DTYPES or view.storage.dtype != view.dtype:
        raise _UnknownError
    if view.storage.part is not None or len(view.shape) != 2 or view.strides != (view.shape[1], 1):
        raise _UnknownError
    begin = view.offset * ITEMSIZE[view.dtype]
    return _Tensor(view.storage.key, view.dtype, begin, (view.shape[0], view.shape[1]))
