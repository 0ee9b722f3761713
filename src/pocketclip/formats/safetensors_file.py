"""The tensors of a `.safetensors` file, described without reading their numbers.

    tensors, metadata = read_header(path)

The file begins with 8 bytes, the length of a JSON header; the header names types, shapes and
offsets; the numbers follow. The `safetensors` package reads bfloat16 with torch only. Its checks
are made here too: the tensors fill the rest of the file without gaps and without sharing a byte.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pocketclip.formats.json_text import load_json
from pocketclip.formats.stored_tensor import (
    ITEMSIZE,
    FileStamp,
    Record,
    StoredTensor,
    check_view,
    damaged,
)

MAX_HEADER = 1 << 24
"""Limit on the header in bytes; a thousand tensors need 100 kB."""
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32",
    "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip


def read_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return the tensors of a file by name, in the order of their numbers, and its metadata.

    Raises:
        CheckpointError: the file is truncated or damaged, or has numbers of an unknown type.
        OSError: it cannot be read.
    """
    stamp = FileStamp.of(path)
    try:
        return _parse(stamp)
    except (ValueError, KeyError, TypeError) as error:
        reason = f"a tensor has no {error}" if isinstance(error, KeyError) else error
        raise damaged(path, reason) from error


def _parse(stamp: FileStamp) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    with stamp.open() as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > min(MAX_HEADER, stamp.size - 8):
            raise ValueError(f"its header has {length} bytes")
        header = load_json(handle.read(length), what="its header")
    if not isinstance(header, dict):
        raise TypeError("its header is no object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise TypeError("its metadata are not texts")
    spans = {name: _span(name, facts) for name, facts in header.items()}
    tensors, end = {}, 0
    for name, (begin, behind) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != end:
            raise ValueError(f"{name} does not begin where the tensor before it ends")
        tensors[name] = _tensor(Record(stamp, name, 8 + length + begin, behind - begin), header)
        end = behind
    if end != stamp.size - 8 - length:
        raise ValueError(f"its tensors take {end} bytes of {stamp.size - 8 - length}")
    return tensors, metadata


def _span(name: str, facts: Any) -> tuple[int, int]:
    begin, end = facts["data_offsets"]
    if not (type(begin) is type(end) is int and 0 <= begin <= end):
        raise ValueError(f"the offsets of {name} are {begin!r} and {end!r}")
    return begin, end


def _tensor(record: Record, header: dict[str, Any]) -> StoredTensor:
    stored, shape = header[record.name]["dtype"], header[record.name]["shape"]
    if stored not in _DTYPES:
        raise ValueError(f"{record.name} has the unknown type {stored!r}")
    if not isinstance(shape, list):
        raise TypeError(f"the shape of {record.name} is no list")
    tensor = check_view(record, _DTYPES[stored], shape)
    if math.prod(shape) * ITEMSIZE[tensor.dtype] != record.size:
        raise ValueError(f"{record.name} has {record.size} bytes, but its shape is {shape}")
    return tensor
