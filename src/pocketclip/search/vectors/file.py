"""The file of a matrix: vectors that are mapped into memory, and the ids of their contents.

| bytes | what |
|---|---|
| 0 to 4095 | `MAGIC`, then one line of JSON (`Header`), then spaces |
| then | vectors (N, D), float32 or float16, little-endian |
| then | ids (N,), int64, ascending |

It is replaced as a whole, by renaming: processes that have the old one mapped keep it.

Shapes: N vectors, D embedding.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.storage.local import write_whole

MAGIC = b"pocketclip matrix 1\n"
_HEADER_BYTES = 4096  # a page: the vectors can be mapped and given back by pages
_LARGE = 256 << 20
"""Bytes of vectors from which pages are given back after use."""
_SCATTERED = 32  # vectors that are picked out of a large file at once

Batch = tuple[NDArray[np.int64], NDArray[np.float16]]
"""Ids (B,) and vectors (B, D)."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself; only `check` reads the whole file and compares the hash."""

    space_id: str | None
    generation: int
    token: int
    """See `Database.token`."""
    rows: int
    width: int
    dtype: str
    """`<f4` or `<f2`."""
    longest: float
    """The length of the longest vector."""
    sha256: str
    """Of everything after the header."""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        row = self.width * np.dtype(self.dtype).itemsize + 8
        return _HEADER_BYTES + self.rows * row


@dataclass(frozen=True, slots=True)
class Block:
    """Vectors that lie together, in a mapped file or in memory."""

    header: Header
    ids: NDArray[np.int64]
    vectors: NDArray[Any]
    mapped: mmap.mmap | None = None

    def take(self, places: NDArray[np.int64]) -> NDArray[Any]:
        """Return the vectors (R, D) at some places (R,)."""
        if not self._is_large:
            return self.vectors.take(places, axis=0)
        out = np.empty((len(places), self.header.width), self.vectors.dtype)
        for start in range(0, len(places), _SCATTERED):
            part = slice(start, start + _SCATTERED)
            self.vectors.take(places[part], axis=0, out=out[part], mode="clip")
            self.release()  # around each vector the system maps up to 2 MB
        return out

    def release(self) -> None:
        """Give back the memory of a large file; what is read again is mapped again.

        So searching a million vectors takes the memory of what is read at once: the system keeps
        the pages as long as nobody else needs them.
        """
        if self._is_large and hasattr(mmap, "MADV_DONTNEED"):
            assert self.mapped is not None
            self.mapped.madvise(mmap.MADV_DONTNEED)

    @property
    def _is_large(self) -> bool:
        return self.mapped is not None and self.vectors.nbytes > _LARGE


def map_file(path: Path) -> Block | None:
    """Map a file; None if there is none or it is not whole.

    Its hash is not compared: that would read it all.
    """
    try:
        with path.open("rb") as handle:
            if os.fstat(handle.fileno()).st_size < _HEADER_BYTES:
                return None
            mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        return None
    header = _parse(mapped[:_HEADER_BYTES])
    if header is None or len(mapped) != header.size:
        return None
    count = header.rows * header.width
    vectors = np.frombuffer(mapped, header.dtype, count, _HEADER_BYTES)
    ids = np.frombuffer(mapped, "<i8", header.rows, _HEADER_BYTES + vectors.nbytes)
    return Block(header, ids, vectors.reshape(header.rows, header.width), mapped)


def write_file(path: Path, header: Header, batches: Iterable[Batch]) -> Block:
    """Write a file whole, readable by the user only, and return it mapped.

    Args:
        path: the file; its folder exists.
        header: what is known before; `rows`, `longest` and the hash are found.
        batches: the vectors in the order of their ids.

    Raises:
        OSError: it cannot be written.
    """
    with write_whole(path) as temporary:
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(b" " * _HEADER_BYTES)
            digest = hashlib.sha256()
            ids, longest = [np.empty(0, np.int64)], 0.0
            for numbers, rows in batches:
                vectors = rows.astype(np.float32)
                longest = max(longest, float(_lengths(vectors).max(initial=0)))
                data = (rows if header.dtype == "<f2" else vectors).data
                digest.update(data)
                handle.write(data)
                ids.append(numbers)
            numbers = np.concatenate(ids).astype("<i8", copy=False)
            digest.update(numbers.data)
            handle.write(numbers.data)
            header = dataclasses.replace(
                header, rows=len(numbers), longest=longest, sha256=digest.hexdigest()
            )
            text = json.dumps(dataclasses.asdict(header)).encode()
            handle.seek(0)
            handle.write((MAGIC + text).ljust(_HEADER_BYTES))
        # Mapped before it is renamed: afterwards another process may have replaced it again.
        block = map_file(temporary)
        assert block is not None, "just written"
    return block


def read_batches(header: Header, batches: Iterable[Batch]) -> Block:
    """Return vectors as a block in memory; `header.rows` is how many there are."""
    ids = np.empty(header.rows, np.int64)
    vectors = np.empty((header.rows, header.width), header.dtype)
    longest, start = 0.0, 0
    for numbers, rows in batches:
        end = start + len(numbers)
        ids[start:end] = numbers
        vectors[start:end] = rows
        longest = max(longest, float(_lengths(rows.astype(np.float32)).max(initial=0)))
        start = end
    return Block(dataclasses.replace(header, longest=longest), ids, vectors)


def is_intact(block: Block) -> bool:
    """Return whether a mapped file has the hash that its header says."""
    assert block.mapped is not None
    with memoryview(block.mapped) as view:
        return hashlib.sha256(view[_HEADER_BYTES:]).hexdigest() == block.header.sha256


def _lengths(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", vectors, vectors)))


def _parse(data: bytes) -> Header | None:
    if not data.startswith(MAGIC):
        return None
    try:
        header = Header(**json.loads(data[len(MAGIC) :]))
        numbers = (header.generation, header.rows, header.width)
        known = header.dtype in ("<f4", "<f2") and isinstance(header.longest, float)
        return header if known and all(type(n) is int and n >= 0 for n in numbers) else None
    except (ValueError, TypeError):
        return None
