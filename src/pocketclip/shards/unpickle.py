"""Read arrays of floats from an untrusted pickle, without running anything that it names.

    array = floats_from_pickle(data)

A pickle is a program that may call any function it names. Here the few names in the pickle of a
numpy array become inert records of their arguments, and any other name is refused. The array is
made from the records afterwards, once its size is checked. The data never reach numpy's own
rebuilding code, which trusts its input. The unpickler is Python's, because the one in C allocates
any size that the data state.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import numpy as np

from pocketclip.errors import DataError
from pocketclip.shards.codec import MAX_BYTES, MAX_PICKLE
from pocketclip.types import Embeddings

_KINDS = ("f2", "f4", "f8")


def floats_from_pickle(data: bytes) -> Embeddings:
    """Return the float32 array that a pickle of a numpy array, or of nested lists, holds.

    Raises:
        DataError: it is damaged, or holds anything else; none of it is run.
    """
    if len(data) > MAX_PICKLE:
        raise DataError(f"pickle of more than {MAX_PICKLE} bytes; none of it was run")
    try:
        loaded = _Inert(io.BytesIO(data)).load()
        return _array(loaded)
    except DataError:
        raise
    except Exception as error:
        # Arbitrary bytes make the unpickler fail in any way, MemoryError among them.
        raise DataError(f"damaged pickle ({type(error).__name__}); none of it was run") from None


class _Record:
    """An object that the pickle describes: its arguments and its state."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dtype(_Record):
    """`numpy.dtype(kind, align, copy)`, then a state that begins with version and byte order."""


class _Buffer(_Record):
    """`_frombuffer(bytes, dtype, shape, order)`: an array in protocol 5."""


class _Blank(_Record):
    """`_reconstruct(ndarray, shape, typecode)`: an array whose state has its contents."""


class _Scalar(_Record):
    """`scalar(dtype, bytes)`: one number."""


def _no_bytes() -> bytes:
    """`bytes()`: empty bytes in protocols 0 to 2; with arguments it could allocate any size."""
    return b""


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Record,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
}
for _core in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = _Buffer
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = _Blank
    _KNOWN[f"{_core}.multiarray", "scalar"] = _Scalar


class _Inert(pickle._Unpickler):
    """An unpickler that knows the names above, `_codecs.encode`, and no other."""

    _remaining = MAX_BYTES

    def _latin1(self, text: str, encoding: str) -> bytes:
        """`_codecs.encode`: bytes in protocols 0 to 2."""
        if encoding != "latin1":
            raise DataError(f"pickle that encodes to {encoding}; none of it was run")
        self._remaining -= len(text)  # the pickle may encode one text any number of times
        if self._remaining < 0:
            raise DataError(f"unpacks to more than {MAX_BYTES} bytes")
        return text.encode("latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return self._latin1
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise DataError(
                f"pickle that names {module}.{name}, which no array of floats needs; none of "
                "it was run"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise DataError(f"pickle that refers to an object outside of it ({pid!r})")


def _array(loaded: Any) -> Embeddings:
    if isinstance(loaded, _Buffer):
        buffer, dtype, shape, order = loaded.args
        return _from_bytes(buffer, dtype, shape, order == "F")
    if isinstance(loaded, _Blank):
        _, shape, dtype, fortran, buffer = loaded.state
        return _from_bytes(buffer, dtype, shape, bool(fortran))
    if isinstance(loaded, (list, tuple)):
        return _from_lists(loaded)
    raise DataError(f"pickle of a {type(loaded).__name__}, not of an array of floats")


def _dtype(record: Any) -> np.dtype[Any]:
    if not isinstance(record, _Dtype) or record.args[0] not in _KINDS:
        kind = record.args[0] if isinstance(record, _Dtype) else type(record).__name__
        raise DataError(f"pickle of an array of {kind!r}, not of floats")
    order = record.state[1] if record.state else "="
    if order not in ("<", ">", "=", "|"):
        raise DataError("pickle of an array of unknown byte order")
    return np.dtype(order.replace("|", "=") + record.args[0])


def _from_bytes(buffer: Any, dtype: Any, shape: Any, fortran: bool) -> Embeddings:
    kind = _dtype(dtype)
    if isinstance(buffer, pickle.PickleBuffer) or not isinstance(buffer, (bytes, bytearray)):
        raise DataError("pickle of an array without its bytes")
    sides = [shape] if isinstance(shape, int) else list(shape)
    if not all(type(side) is int and side >= 0 for side in sides) or len(sides) > 4:
        raise DataError("pickle of an array of impossible shape")
    if math.prod(sides) * kind.itemsize != len(buffer) or len(buffer) > MAX_BYTES:
        raise DataError(f"pickle of an array of shape {sides} in {len(buffer)} bytes")
    array = np.frombuffer(buffer, kind).reshape(sides, order="F" if fortran else "C")
    with np.errstate(over="ignore"):
        return np.array(array, np.float32, order="C")


def _from_lists(loaded: Any) -> Embeddings:
    # A list may contain another one many times at no cost, so sizes are checked first.
    rows = list(loaded) if any(isinstance(row, (list, tuple)) for row in loaded) else [loaded]
    if any(not isinstance(row, (list, tuple)) or len(row) != len(rows[0]) for row in rows):
        raise DataError("pickle of lists of different lengths, not of an array")
    if len(rows) * len(rows[0]) * 4 > MAX_BYTES:
        raise DataError(f"unpacks to more than {MAX_BYTES} bytes")
    out = np.empty((len(rows), len(rows[0])), np.float32)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            out[i, j] = _number(value)
    return out if rows[0] is not loaded else out[0]


def _number(value: Any) -> float:
    if isinstance(value, _Scalar):
        dtype, data = value.args
        return float(np.frombuffer(data, _dtype(dtype), count=1)[0])
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(f"pickle of lists of {type(value).__name__}, not of floats")
    return float(value)
