"""Reads arrays in numpy's file format without trusting their content.

    parse_npy(data)  # a read-only array over `data`, not a copy

numpy's own reader evaluates the header as Python source, of which a few kilobytes can exhaust the
interpreter's stack, and allocates memory by the header before checking the size of the file.
"""

from __future__ import annotations

import ast
import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import DataError

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000
_STRING = re.compile(r"'[^'\\\n]*'|\"[^\"\\\n]*\"")
_PLAIN = re.compile(r"(?:[\[\](){},:\s]|True|False|\d{1,19}(?!\d))*")
_MAX_DEPTH = 8


def parse_npy(data: bytes) -> NDArray[Any]:
    """Return the array of an npy file; it shares the memory of `data`.

    Raises:
        DataError: `data` is not an npy file, is damaged or truncated, or is a pickle of objects,
            which is never run. The message completes the caller's "FILE ...".
    """
    if data[:6] != _MAGIC or len(data) < 12:
        raise DataError("is not a numpy array")
    start = 12 if data[6] > 1 else 10
    length = int.from_bytes(data[8:start], "little")
    if length > _MAX_HEADER:
        raise DataError(f"has a header of {length} bytes")
    try:
        head = _literal(data[start : start + length].decode("utf-8").strip())
        dtype, shape = np.dtype(_descr(head["descr"])), head["shape"]
        order = "F" if head["fortran_order"] else "C"
        if type(shape) is not tuple or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError(f"the shape {shape}")
        size = math.prod(shape) * dtype.itemsize
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise DataError("has a damaged numpy header") from error
    if dtype.hasobject:
        raise DataError("is a pickle of Python objects, which is never run")
    body = memoryview(data)[start + length :]
    if size != len(body):
        raise DataError(
            f"is truncated or too long: its shape {shape} does not fit its {len(body)} bytes"
        )
    if len(shape) > 32 or not dtype.itemsize:
        raise DataError(f"has the shape {shape} of {dtype}, which is not an array of numbers")
    return np.frombuffer(body, dtype).reshape(shape, order=order)  # type: ignore[call-overload]


def _literal(text: str) -> Any:
    """Return the value of a header: a dict of strings, integers, lists and tuples."""
    plain = _STRING.sub("", text)
    depth = deepest = 0
    for character in plain:
        depth += (character in "[({") - (character in "])}")
        deepest = max(deepest, depth)
    if not _PLAIN.fullmatch(plain) or deepest > _MAX_DEPTH:
        raise ValueError("not the header of an array")
    return ast.literal_eval(text)


def _descr(descr: Any) -> Any:
    if isinstance(descr, list):  # of a structured array
        return [tuple(field) for field in descr]
    return descr
