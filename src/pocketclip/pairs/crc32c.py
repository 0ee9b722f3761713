"""CRC-32C (Castagnoli), the checksum of tfrecords: by google-crc32c if installed, else in numpy.

Byte by byte, Python would spend more time on it than on everything else. A CRC is linear over
GF(2): the data is laid out in rows of 256 bytes, the states of all rows advance together, and the
rows are joined by the operator that appends 256 zero bytes.

Polynomial and mask: RFC 3720 (B.4), and TensorFlow's record format.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78
_ROW = 256
_STEP = 1 << 22
_ONES = 0xFFFFFFFF


def masked_crc32c(data: bytes | memoryview) -> int:
    """Return the masked CRC-32C of `data`."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & _ONES


def crc32c(data: bytes | memoryview) -> int:
    """Return the CRC-32C of `data`."""
    native = _native()
    return crc32c_numpy(data) if native is None else native(bytes(data))


@lru_cache
def _native() -> Callable[[bytes], int] | None:
    try:
        import google_crc32c
    except ImportError:
        return None
    # Its fallback in pure Python is slower than ours.
    return google_crc32c.value if google_crc32c.implementation == "c" else None


def crc32c_numpy(data: bytes | memoryview) -> int:
    """Return the CRC-32C of `data`, without google-crc32c."""
    view, crc = memoryview(data), _ONES
    for begin in range(0, len(view), _STEP):  # in steps, as the rows take as much memory again
        crc = _advance(view[begin : begin + _STEP], crc)
    return crc ^ _ONES


def _advance(data: memoryview, crc: int) -> int:
    """Return the state after `data`, starting from the state `crc`."""
    table = _table()
    if len(data) < 4 * _ROW:
        steps = table.tolist()
        for byte in data:
            crc = steps[(crc ^ byte) & 255] ^ (crc >> 8)
        return crc
    # Leading zeros change nothing once the state is folded into the first bytes.
    rows = -(-len(data) // _ROW)
    padded = np.zeros(rows * _ROW, np.uint8)
    start = len(padded) - len(data)
    padded[start:] = np.frombuffer(data, np.uint8)
    padded[start : start + 4] ^= np.frombuffer(crc.to_bytes(4, "little"), np.uint8)
    lanes = _advance_rows(np.zeros(rows, np.uint32), padded.reshape(rows, _ROW).T)
    shift = _shift()
    crc = 0
    for lane in lanes.tolist():
        crc = (
            shift[0][crc & 255]
            ^ shift[1][crc >> 8 & 255]
            ^ shift[2][crc >> 16 & 255]
            ^ shift[3][crc >> 24]
            ^ lane
        )
    return int(crc)


def _advance_rows(state: NDArray[np.uint32], columns: NDArray[Any]) -> NDArray[np.uint32]:
    table = _table()
    for column in np.ascontiguousarray(columns):
        state = table[(state ^ column) & 255] ^ (state >> np.uint32(8))
    return state


@lru_cache
def _table() -> NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table.astype(np.uint32)


@lru_cache
def _shift() -> list[list[int]]:
    """Return the operator that appends 256 zero bytes: a table for each of the CRC's four bytes."""
    values = np.arange(256, dtype=np.uint32)
    states = np.concatenate([values << np.uint32(8 * byte) for byte in range(4)])
    zeros = np.zeros((_ROW, 1), np.uint8)
    table: list[list[int]] = _advance_rows(states, zeros).reshape(4, 256).tolist()
    return table
