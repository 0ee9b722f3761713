"""Checks the zip archives that `torch.save` writes, before torch reads them.

    stored = check(path)  # CheckpointError if anything is wrong
    torch.load(path, mmap=stored)

torch locates a tensor's bytes by the offset of a record and the size of the tensor. Mapping a file
is therefore correct only if every record is stored uncompressed and is as long as its tensor. torch
compares no checksums either. Both are checked here, from the archive's directory and the pickle,
which is read with inert placeholders for everything that it names.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pocketclip.errors import CheckpointError

MAX_PICKLE = 1 << 26
"""Limit on the bytes of the pickle that describes the tensors; 1 MB suffices for a billion
parameters."""
MAX_GROWTH = 20
"""Limit on the unpacked size relative to the file's size."""
FREE = 1 << 28
"""Unpacked bytes to which `MAX_GROWTH` does not apply."""
_CHUNK = 1 << 24
_LEGACY_PICKLES = 5
_MAKE_BYTES = {("_codecs", "encode"), ("builtins", "bytearray"), ("__builtin__", "bytearray")}
_LOCAL = struct.Struct("<4s2xHH16xHH")
_ITEMSIZE = {
    "ComplexDoubleStorage": 16, "DoubleStorage": 8, "ComplexFloatStorage": 8, "LongStorage": 8,
    "FloatStorage": 4, "IntStorage": 4, "QInt32Storage": 4, "HalfStorage": 2,
    "BFloat16Storage": 2, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
    "QInt8Storage": 1, "QUInt8Storage": 1, "QUInt4x2Storage": 1, "QUInt2x4Storage": 1,
    "UntypedStorage": 1,
}  # fmt: skip


def check(path: Path) -> bool:
    """Return whether every record is stored uncompressed, so that the file can be mapped.

    Raises:
        CheckpointError: the file is damaged or not written by `torch.save`, record names repeat,
            or a tensor is longer than its record.
        OSError: the file cannot be read.
    """
    try:
        with (
            zipfile.ZipFile(path) as archive,
            path.open("rb") as handle,
            mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as whole,
        ):
            records = _records(archive, path)
            begins = {name: _check_record(archive, r, whole) for name, r in records.items()}
            name = _pickle_name(records, path)
            if records[name].compress_type == zipfile.ZIP_STORED:
                data = whole[begins[name] : begins[name] + records[name].file_size]
            else:
                data = archive.read(name)
            _check_storages(data, name.removesuffix(".pkl"), records)
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, _DamageError) as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from error
    except (NotImplementedError, RuntimeError, ValueError, LookupError) as error:
        # An unknown compression method, encryption, or an invalid directory.
        raise CheckpointError(
            f"{path} is damaged, or not an archive that torch wrote: {error}"
        ) from error
    return all(record.compress_type == zipfile.ZIP_STORED for record in records.values())


def check_legacy(path: Path) -> None:
    """Check the pickles of a file written before torch 1.6, or of a plain pickle.

    Raises:
        CheckpointError: the pickles create more bytes than any weight file needs, or describe
            tensors longer than the file.
        OSError: the file cannot be read.
    """
    with mapped(path) as handle:
        for _ in range(_LEGACY_PICKLES):
            reader = _Inert(handle)
            try:
                reader.load()
            except _DamageError as error:
                raise CheckpointError(f"{path} is refused: {error}") from error
            except Exception:  # malformed bytes raise anything; torch reports the problem
                return
            if sum(reader.storages.values()) > len(handle):
                raise CheckpointError(f"{path} is truncated or damaged: its tensors are longer")


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """Yield a file as a memory map.

    If a pickle requests gigabytes, a map returns only what exists, while `read` of a file would
    allocate the memory first.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        yield whole


class _DamageError(Exception):
    """The damage, without the path."""


def _records(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the archive's records by name; repeated names are an error."""
    records = {record.filename: record for record in archive.infolist()}
    # torch ignores case when it looks names up.
    if len({name.lower() for name in records}) < len(archive.infolist()):
        raise _DamageError("several of its records have the same name")
    if not records or min(record.header_offset for record in records.values()):
        raise _DamageError("it does not begin with its first record")
    unpacked = sum(record.file_size for record in records.values())
    if unpacked > max(FREE, MAX_GROWTH * path.stat().st_size):
        raise CheckpointError(
            f"{path} unpacks to {unpacked / 1e9:.1f} GB, more than {MAX_GROWTH} times its size: "
            "it is not a weight file"
        )
    return records


def _check_record(archive: zipfile.ZipFile, record: zipfile.ZipInfo, whole: mmap.mmap) -> int:
    """Return the offset of a record's bytes, after checking its header and checksum."""
    start = record.header_offset
    signature, flags, method, name_length, extra = _LOCAL.unpack_from(whole, start)
    begin = start + _LOCAL.size + name_length + extra
    name = whole[start + _LOCAL.size : start + _LOCAL.size + name_length]
    expected_name = record.orig_filename.encode("utf-8" if record.flag_bits & 0x800 else "cp437")
    if signature != b"PK\3\4" or method != record.compress_type or name != expected_name:
        raise _DamageError(f"its record {record.filename} is not at the offset in the directory")
    if (flags | record.flag_bits) & 1:
        raise _DamageError(f"its record {record.filename} is encrypted")
    if begin + record.compress_size > archive.start_dir:
        raise _DamageError(f"its record {record.filename} is truncated")
    if method != zipfile.ZIP_STORED:
        with archive.open(record) as unpacked:  # compares the checksum at the end
            while unpacked.read(_CHUNK):
                pass
        return begin
    if record.compress_size != record.file_size:
        raise _DamageError(f"its record {record.filename} has contradictory sizes")
    checksum, end = 0, begin + record.file_size
    for offset in range(begin, end, _CHUNK):
        checksum = zlib.crc32(whole[offset : min(offset + _CHUNK, end)], checksum)
    # `torch.serialization.set_crc32_options(False)` writes zeros.
    if record.CRC not in (0, checksum):
        raise _DamageError(f"the checksum of its record {record.filename} is wrong")
    return begin


def _pickle_name(records: Mapping[str, zipfile.ZipInfo], path: Path) -> str:
    names = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(names) != 1:
        raise CheckpointError(f"{path} is a zip archive, but not one that torch.save wrote")
    if records[names[0]].file_size > MAX_PICKLE:
        raise CheckpointError(f"{path}: its pickle is larger than {MAX_PICKLE >> 20} MiB")
    return names[0]


def _check_storages(data: bytes, folder: str, records: Mapping[str, zipfile.ZipInfo]) -> None:
    """Compare the sizes of tensors in the pickle with those of the records in `folder`."""
    reader = _Inert(io.BytesIO(data))
    try:
        reader.load()
    except _DamageError:
        raise
    except Exception as error:  # malformed bytes raise anything
        raise _DamageError("its pickle cannot be read; it was not run") from error
    for key, size in reader.storages.items():
        record = records.get(f"{folder}/{key}")
        if record is None:
            raise _DamageError(f"its record {folder}/{key} is missing")
        if record.file_size < size:
            raise _DamageError(
                f"its record {folder}/{key} has {record.file_size} bytes, but its tensor {size}"
            )


class _Nothing:
    """A placeholder for everything in a pickle; accepts all calls and does nothing."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> _Nothing:
        return object.__new__(cls)

    def _ignore(self, *_args: Any) -> None: ...

    size = 0
    """Number of bytes, if this is a placeholder for bytes."""

    __init__ = __setstate__ = __setitem__ = append = extend = add = _ignore


class _Inert(pickle._Unpickler):
    """Collects the sizes of storages in a pickle; the unpickler in C would allocate memory."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.storages: dict[str, int] = {}
        self._remaining = MAX_PICKLE

    def _count_bytes(self, value: Any = b"", *_args: Any) -> _Nothing:
        """Replace calls that create bytes, and limit their total."""
        made = _Nothing()
        made.size = value if isinstance(value, int) else getattr(value, "size", 0)
        if isinstance(value, (str, bytes, list)):
            made.size = len(value)
        self._remaining -= max(0, made.size)
        if self._remaining < 0:
            raise _DamageError("its pickle creates more bytes than any weight file needs")
        return made

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _MAKE_BYTES:
            return self._count_bytes
        return type(name.rpartition(".")[2], (_Nothing,), {})

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError(f"extension {code}")

    def persistent_load(self, pid: Any) -> Any:
        """Record the size in `("storage", class, key, device, elements)`; old files add a view."""
        if isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage":
            itemsize = _ITEMSIZE.get(getattr(pid[1], "__name__", ""), 1)
            key, size = str(pid[2]), int(pid[4]) * itemsize
            self.storages[key] = max(size, self.storages.get(key, 0))
        return _Nothing()
