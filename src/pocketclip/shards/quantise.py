"""Quantise embeddings to int8 or int6, with a scale per vector and teacher.

    rows = pack(embeddings, "int8", dims=(768, 768))  # a structured array, one record per row
    embeddings = unpack(rows)

A record is self-describing: the field `int8.K` holds the embedding of teacher K, and `scale` one
float16 per teacher. `numpy.load` reads it without pickles, and every row can be read alone.

`int8` divides the embedding by its scale and rounds. `int6` first rotates it, by fixed random signs
and a Hadamard transform. That spreads the few large components of typical embeddings, so that the
values are close to a normal distribution. Each value is then stored as the nearest of 64 levels,
which are optimal for that distribution, times the scale; four values take three bytes.
`benchmarks/storage.py` measures the size and the error in a teacher's affinities.

Shapes: N rows, D width, K teachers, d width of one teacher's embedding.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import DataError
from pocketclip.types import Embeddings

QUANTISED = ("int8", "int6")
_FIELD = re.compile(r"(int8|int6)\.(\d+)")
# Levels with the density p(x)^(1/3), optimal for many levels (Panter and Dite 1951).
_LEVELS = np.array(
    [3**0.5 * NormalDist().inv_cdf((i + 0.5) / 64) for i in range(64)], dtype=np.float32
)
_BETWEEN = (_LEVELS[1:] + _LEVELS[:-1]) / 2


def pack(embeddings: Embeddings, code: str, dims: Sequence[int] = ()) -> NDArray[Any]:
    """Return (N,) records of `embeddings` (N, D).

    Args:
        embeddings: finite values.
        code: one of `QUANTISED`.
        dims: the width of each teacher's embedding, D in total; empty: one teacher.

    Raises:
        DataError: the widths do not fit, or a value is too large for a float16 scale.
    """
    rows, width = embeddings.shape
    dims = tuple(dims) or (width,)
    if sum(dims) != width:
        raise DataError(
            f"teachers of {' + '.join(map(str, dims))} dimensions do not add up to {width}"
        )
    if code == "int6" and any(d % 4 for d in dims):
        raise DataError(f"int6 needs widths that are multiples of 4, not {dims}: use int8")
    fields: list[Any] = [
        (f"{code}.{k}", "i1", (d,)) if code == "int8" else (f"{code}.{k}", "u1", (d * 3 // 4,))
        for k, d in enumerate(dims)
    ]
    records = np.zeros(rows, np.dtype([*fields, ("scale", "<f2", (len(dims),))]))
    starts = np.cumsum([0, *dims])
    for k in range(len(dims)):
        vectors = embeddings[:, starts[k] : starts[k + 1]].astype(np.float32)
        quantise = _quantise8 if code == "int8" else _quantise6
        records[f"{code}.{k}"], records["scale"][:, k] = quantise(vectors)
    return records


def is_packed(array: NDArray[Any]) -> bool:
    """Return whether `array` holds records of `pack`."""
    return packed_code(array) is not None


def packed_code(array: NDArray[Any]) -> str | None:
    """Return the code of records of `pack`, or None for any other array."""
    names = array.dtype.names or ()
    if array.ndim != 1 or len(names) < 2 or names[-1] != "scale":
        return None
    matches = [_FIELD.fullmatch(name) for name in names[:-1]]
    codes = {match[1] for match in matches if match}
    ordered = [match and int(match[2]) for match in matches] == list(range(len(matches)))
    scale = array.dtype["scale"]
    is_valid = scale.base == np.dtype("<f2") and scale.shape == (len(matches),)
    for match, name in zip(matches, names, strict=False):
        field = array.dtype[name]
        kind = "i1" if match and match[1] == "int8" else "u1"
        is_valid = is_valid and field.base == np.dtype(kind) and len(field.shape) == 1
        is_valid = is_valid and (kind == "i1" or field.shape[0] % 3 == 0)
    return codes.pop() if is_valid and ordered and len(codes) == 1 else None


def unpacked_size(records: NDArray[Any]) -> int:
    """Return the number of floats in the result of `unpack`."""
    names = (records.dtype.names or ())[:-1]
    widths = [records.dtype[name].shape[0] for name in names]
    if packed_code(records) == "int6":
        widths = [width // 3 * 4 for width in widths]
    return len(records) * sum(widths)


def unpack(records: NDArray[Any]) -> Embeddings:
    """Return float32 embeddings (N, D) of records.

    Raises:
        DataError: they are not records of `pack`.
    """
    code = packed_code(records)
    if code is None:
        raise DataError(f"records of unknown dtype {records.dtype}")
    scales = records["scale"].astype(np.float32)
    by_teacher = []
    for k in range(scales.shape[1]):
        values = records[f"{code}.{k}"]
        scale = scales[:, k : k + 1]
        if code == "int8":
            by_teacher.append(values.astype(np.float32) * scale)
        else:
            by_teacher.append(_unrotate(_LEVELS[_unpack6(values)] * scale))
    return np.concatenate(by_teacher, axis=1)


def _quantise8(vectors: Embeddings) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Return values (N, d) and scales (N,)."""
    scale = _half(np.abs(vectors).max(axis=1, initial=0.0) / np.float32(127))
    return np.clip(np.rint(vectors / _safe(scale)), -127, 127).astype(np.int8), scale


def _quantise6(vectors: Embeddings) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Return packed values (N, 3 d / 4) and scales (N,)."""
    vectors = _rotate(vectors)
    scale = _half(np.sqrt(np.mean(vectors * vectors, axis=1)))
    for _ in range(2):  # fit the scale to the levels, then the levels to the scale
        chosen = _LEVELS[np.searchsorted(_BETWEEN, vectors / _safe(scale))]
        scale = _half(
            (vectors * chosen).sum(axis=1) / np.maximum((chosen * chosen).sum(axis=1), 1e-9)
        )
    return _pack6(np.searchsorted(_BETWEEN, vectors / _safe(scale))), scale


def _half(scale: NDArray[Any]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        out = scale.astype(np.float16)
    if not np.isfinite(out).all():
        raise DataError(
            f"embeddings as large as {scale.max():g} exceed a float16 scale: normalise them"
        )
    return out


def _safe(scale: NDArray[np.float16]) -> Embeddings:
    return np.where(scale > 0, scale, 1).astype(np.float32)[:, None]


def _pack6(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Pack four values from 0 to 63 into three bytes, the first in the lowest bits."""
    width = values.shape[1]
    four = values.astype(np.int32).reshape(len(values), width // 4, 4)
    word = four[..., 0] | four[..., 1] << 6 | four[..., 2] << 12 | four[..., 3] << 18
    three = np.stack([word & 255, word >> 8 & 255, word >> 16 & 255], axis=-1)
    return three.astype(np.uint8).reshape(len(values), width * 3 // 4)


def _unpack6(packed: NDArray[np.uint8]) -> NDArray[np.int32]:
    groups = packed.shape[1] // 3
    three = packed.astype(np.int32).reshape(len(packed), groups, 3)
    word = three[..., 0] | three[..., 1] << 8 | three[..., 2] << 16
    four = np.stack([word & 63, word >> 6 & 63, word >> 12 & 63, word >> 18 & 63], axis=-1)
    return four.reshape(len(packed), groups * 4)


@functools.lru_cache(maxsize=32)
def _signs(width: int) -> Embeddings:
    # RandomState's streams are frozen by numpy's policy; a Generator's are not.
    bits = np.random.RandomState(20311).randint(0, 2, width)
    return (bits * 2 - 1).astype(np.float32)


def _rotate(vectors: Embeddings) -> Embeddings:
    return _hadamard(vectors * _signs(vectors.shape[1]))


def _unrotate(vectors: Embeddings) -> Embeddings:
    return _hadamard(vectors) * _signs(vectors.shape[1])


def _hadamard(x: Embeddings) -> Embeddings:
    """Orthonormal Walsh-Hadamard transform within blocks of a power of two; its own inverse."""
    rows, width = x.shape
    block = width & -width  # the largest power of two that divides the width
    half = 1
    while half < block:
        pairs = x.reshape(rows, width // (2 * half), 2, half)
        x = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2)
        half *= 2
    return x.reshape(rows, width) * np.float32(block**-0.5)
