"""A tensor in a file: its shape and type are known, its numbers are read when asked for.

    tensor.shape, tensor.dtype  # (512, 768), "bfloat16"
    array = tensor.read()  # float32 (512, 768)

The bytes pass through a small buffer and not through a memory map: a map's pages would count as
memory of this process, and a file that shrinks while it is mapped ends the process.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import CheckpointError, one_line
from pocketclip.formats.escaping import escape_controls

MAX_GROWTH = 20
"""Limit on the size of what is read from a file, relative to the file's size."""
FREE = 1 << 28
"""Bytes to which `MAX_GROWTH` does not apply."""
MAX_TENSORS = 100_000
"""Limit on the tensors of a file; the largest model here has about a thousand."""
MAX_DIMS = 32
ALIGNMENT = 64
"""Of arrays in memory, in bytes: a line of the cache, as torch aligns its tensors."""
_CHUNK = 1 << 20
_FLOATS = {"float16": "f2", "bfloat16": "u2", "float32": "f4", "float64": "f8"}
_OTHERS = {
    "bool": "u1", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4",
    "uint32": "u4", "int64": "i8", "uint64": "u8", "complex64": "c8", "complex128": "c16",
}  # fmt: skip
_CODES = {**_FLOATS, **_OTHERS}
ITEMSIZE = {dtype: int(code[1:]) for dtype, code in _CODES.items()}
"""Bytes of one number, by the names of types that can be read."""


def damaged(path: Path, reason: object) -> CheckpointError:
    """Return the error for a file that contradicts itself; names in it are made safe to show."""
    return CheckpointError(
        f"{path} is truncated or damaged: {escape_controls(one_line(reason, 300))}"
    )


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What a file was when its description was read."""

    path: Path
    size: int
    changed_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Return the stamp of an existing file."""
        return cls(path, *_facts(path.stat()))

    def open(self) -> BinaryIO:
        """Open the file, if it is still the same.

        Raises:
            CheckpointError: it is gone, or another one has its name.
        """
        try:
            handle = self.path.open("rb")
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error.strerror})") from error
        if _facts(os.fstat(handle.fileno())) != (self.size, self.changed_ns, self.inode):
            handle.close()
            raise CheckpointError(f"{self.path} was changed while it was read; read it again")
        return handle


def _facts(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


@dataclass(slots=True)
class Record:
    """Consecutive bytes of a file, which may be deflated and have a checksum."""

    file: FileStamp
    name: str
    begin: int
    """Offset in the file."""
    size: int
    """Bytes, once inflated."""
    packed: int | None = None
    """Bytes in the file, if they are deflated."""
    checksum: int | None = None
    """CRC-32 of the inflated bytes; compared when the record is first read, then no more."""
    _is_checked: bool = field(default=False, init=False)

    def chunks(self, begin: int, end: int) -> Iterator[memoryview]:
        """Yield the bytes from `begin` to `end`; each piece is overwritten by the next.

        Pieces have `_CHUNK` bytes, except the last.

        Raises:
            CheckpointError: the file was changed, is truncated, or the checksum is wrong.
        """
        if self.checksum is None or self._is_checked:
            yield from self._raw(begin, end)
        elif (begin, end) == (0, self.size):
            yield from self._checked()
        else:
            for _ in self._checked():
                pass
            yield from self._raw(begin, end)

    def _checked(self) -> Iterator[memoryview]:
        checksum = 0
        for chunk in self._raw(0, self.size):
            checksum = zlib.crc32(chunk, checksum)
            yield chunk
        if checksum != self.checksum:
            raise self._damaged(f"the checksum of its record {self.name} is wrong")
        self._is_checked = True

    def _raw(self, begin: int, end: int) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(_CHUNK, max(end - begin, 1))))
        with self.file.open() as handle:
            handle.seek(self.begin + (begin if self.packed is None else 0))
            source = handle if self.packed is None else _Inflating(handle, self.packed, begin)
            while begin < end:
                piece = buffer[: end - begin]
                try:
                    self._fill(source, piece)
                except zlib.error as error:
                    raise self._damaged(f"its record {self.name} cannot be inflated") from error
                begin += len(piece)
                yield piece

    def _fill(self, source: Any, piece: memoryview) -> None:
        done = 0
        while done < len(piece):
            count = source.readinto(piece[done:])
            if not count:
                raise self._damaged(f"its record {self.name} ends too soon")
            done += count

    def _damaged(self, reason: str) -> CheckpointError:
        return damaged(self.file.path, reason)


class _Inflating:
    """Reads deflated bytes piece by piece, so that they are never all in memory."""

    def __init__(self, handle: BinaryIO, packed: int, skip: int) -> None:
        self._handle, self._left, self._rest = handle, packed, b""
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        while skip > 0:
            got = len(self._some(min(skip, _CHUNK)))
            if not got:
                return
            skip -= got

    def _some(self, limit: int) -> bytes:
        while not self._inflate.eof:
            if not self._rest:
                self._rest = self._handle.read(min(_CHUNK, self._left))
                self._left -= len(self._rest)
            is_end = not self._rest
            out = self._inflate.decompress(self._rest, limit)
            self._rest = self._inflate.unconsumed_tail
            if out or is_end:
                return out
        return b""

    def readinto(self, piece: memoryview) -> int:
        out = self._some(len(piece))
        piece[: len(out)] = out
        return len(out)


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor in a file: a view of a record's numbers.

    Made by `check_view`, which sees that all of it lies inside the record.
    """

    record: Record
    dtype: str
    """The stored type: `float16`, `bfloat16`, `float32`, `float64`, `int64`, `bool`, ..."""
    shape: tuple[int, ...]
    begin: int
    """Offset of the first number in the record, in bytes."""
    strides: tuple[int, ...]
    """Distances in the record between neighbours along each side, in numbers."""
    byte_order: str = "<"

    @property
    def is_float(self) -> bool:
        """Whether `read` gives float32."""
        return self.dtype in _FLOATS

    @property
    def span(self) -> int:
        """Number of the record's bytes from the first to the last of this tensor."""
        return _reach(self.shape, self.strides) * ITEMSIZE[self.dtype]

    def read(self) -> NDArray[Any]:
        """Return the numbers in a new C-contiguous array: float32 for every type of float.

        Its memory begins at a multiple of `ALIGNMENT`, so that torch can use it as it is. Each call
        reads the file. float64 is rounded to the nearest float32, and to infinity beyond its range;
        the other floats are exact. Other types stay what they are.

        Raises:
            CheckpointError: the file was changed since it was opened, or is damaged.
        """
        stored = np.dtype(self.byte_order + _CODES[self.dtype])
        kind = np.dtype(np.float32) if self.is_float else stored.newbyteorder("=")
        out = _aligned(self.shape, np.dtype(np.bool_) if self.dtype == "bool" else kind)
        if _is_contiguous(self.shape, self.strides):
            self._read_into(out.reshape(-1), stored, self._convert)
        elif out.size:
            raw = np.empty(self.span // stored.itemsize, stored)
            self._read_into(raw, stored, lambda numbers: numbers)
            steps = [step * stored.itemsize for step in self.strides]
            out[...] = self._convert(np.lib.stride_tricks.as_strided(raw, self.shape, steps))
        return out

    def _read_into(self, flat: NDArray[Any], stored: np.dtype[Any], convert: Any) -> None:
        done = 0
        for chunk in self.record.chunks(self.begin, self.begin + flat.size * stored.itemsize):
            numbers = np.frombuffer(chunk, stored)
            flat[done : done + numbers.size] = convert(numbers)
            done += numbers.size

    def _convert(self, numbers: NDArray[Any]) -> NDArray[Any]:
        if self.dtype == "bfloat16":  # the upper half of a float32
            return (numbers.astype(np.uint32) << np.uint32(16)).view(np.float32)
        if self.dtype == "bool":
            return numbers != 0
        with np.errstate(over="ignore", invalid="ignore"):
            return numbers.astype(np.float32, copy=False) if self.is_float else numbers


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    begin = -raw.ctypes.data % ALIGNMENT
    return raw[begin : begin + size].view(dtype).reshape(shape)


def aligned_copy(array: NDArray[Any]) -> NDArray[Any]:
    """Return a C-contiguous copy in memory that begins at a multiple of `ALIGNMENT`."""
    out = _aligned(array.shape, array.dtype)
    out[...] = array
    return out


def check_view(
    record: Record,
    dtype: str,
    shape: Sequence[int],
    *,
    offset: int = 0,
    strides: Sequence[int] | None = None,
    numbers: int | None = None,
    byte_order: str = "<",
) -> StoredTensor:
    """Return the tensor that a file describes, once it is clear that the record holds all of it.

    Args:
        record: the bytes.
        dtype: one of `ITEMSIZE`.
        shape: the sides.
        offset: of the first number, in numbers.
        strides: in numbers; None for a contiguous tensor.
        numbers: how many of the record's numbers the tensor may use; None for all.
        byte_order: `<` or `>`.

    Raises:
        ValueError: a side, a stride or the offset is no count, or the tensor exceeds the record.
    """
    sides = tuple(shape)
    given = sides if strides is None else tuple(strides)
    if len(sides) != len(given) or len(sides) > MAX_DIMS:
        raise ValueError(f"{len(sides)} sides and {len(given)} strides")
    if not all(type(count) is int and 0 <= count < 1 << 62 for count in (offset, *sides, *given)):
        raise ValueError("a size that is no count")
    steps = _contiguous(sides) if strides is None else given
    whole = record.size // ITEMSIZE[dtype]
    most = whole if numbers is None else min(numbers, whole)
    reach = _reach(sides, steps)
    if reach and offset + reach > most:
        raise ValueError(f"{offset + reach} numbers of its {most}")
    return StoredTensor(
        record, dtype, sides, offset * ITEMSIZE[dtype] if reach else 0, steps, byte_order
    )


def check_growth(tensors: Sequence[StoredTensor], file: FileStamp) -> None:
    """Refuse tensors that take far more memory or reading than their file's size explains.

    Several tensors may be views of the same bytes, and one tensor may repeat the same number.

    Raises:
        CheckpointError: the limits `FREE` and `MAX_GROWTH` are exceeded.
    """
    if len(tensors) > MAX_TENSORS:
        raise CheckpointError(f"{file.path} has more than {MAX_TENSORS} tensors")
    total = sum(math.prod(tensor.shape) * ITEMSIZE[tensor.dtype] for tensor in tensors)
    # To reach the first number of a deflated record, all that is before it is inflated.
    work = sum(t.span if t.record.packed is None else t.record.size for t in tensors)
    for size in (total, work):
        if size > max(FREE, MAX_GROWTH * file.size):
            raise CheckpointError(
                f"{file.path} unpacks to {size / 1e9:.1f} GB, more than {MAX_GROWTH} times its "
                "size: it is not a weight file"
            )


def _reach(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return the distance from a tensor's first number to behind its last; 0 if it is empty."""
    if 0 in shape:
        return 0
    return 1 + sum((side - 1) * step for side, step in zip(shape, strides, strict=True))


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Return whether the numbers lie in order; sides of one number have no neighbours."""
    expected = 1
    for side, step in zip(reversed(shape), reversed(strides), strict=True):
        if side != 1 and step != expected:
            return False
        expected *= side
    return True
