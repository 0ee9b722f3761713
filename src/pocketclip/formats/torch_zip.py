"""The zip archives that `torch.save` writes, checked before anything of them is used.

    stored = check(path)  # CheckpointError if anything is wrong
    torch.load(path, mmap=stored)

torch finds a tensor's bytes by the place of a record and the tensor's own size. A mapped file is
therefore right only if every record is stored as it is and as long as its tensor. torch compares
no checksums either, mapped or not. Both are done here, from the archive's directory and from the
pickle, which is read with inert stand-ins for whatever it names.
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
"""Bytes of the pickle that names the tensors; that of a billion parameters has about 1 MB."""
MAX_GROWTH = 20
"""How many times larger than the file its unpacked records may be, if they exceed `FREE`."""
FREE = 1 << 28
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
    """Return whether every record is stored as it is, so that the file may be mapped.

    Raises:
        CheckpointError: it is no archive of torch's, it is damaged, records have the same name,
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
        # A method that zipfile does not know, encryption, or a nonsensical directory.
        raise CheckpointError(f"{path} is damaged, or no archive of torch's: {error}") from error
    return all(record.compress_type == zipfile.ZIP_STORED for record in records.values())


def check_legacy(path: Path) -> None:
    """Look through the pickles of a file of before torch 1.6, or through a bare one.

    Raises:
        CheckpointError: they make more bytes than any weight file needs, or name tensors that are
            longer than the file.
        OSError: the file cannot be read.
    """
    with mapped(path) as handle:
        for _ in range(_LEGACY_PICKLES):
            reader = _Inert(handle)
            try:
                reader.load()
            except _DamageError as error:
                raise CheckpointError(f"{path} is refused: {error}") from error
            except Exception:  # bytes of any kind fail in any way; torch says what is wrong
                return
            if sum(reader.storages.values()) > len(handle):
                raise CheckpointError(f"{path} is truncated or damaged: its tensors are longer")


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """Yield a file as a map, which gives what there is where a pickle asks for gigabytes.

    A file's own `read` takes the memory first.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        yield whole


class _DamageError(Exception):
    """What is wrong, without the path."""


def _records(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the archive's records by name, none of them twice."""
    records = {record.filename: record for record in archive.infolist()}
    # torch looks names up without regard to case.
    if len({name.lower() for name in records}) < len(archive.infolist()):
        raise _DamageError("several of its records have the same name")
    if not records or min(record.header_offset for record in records.values()):
        raise _DamageError("it does not begin with its first record")
    unpacked = sum(record.file_size for record in records.values())
    if unpacked > max(FREE, MAX_GROWTH * path.stat().st_size):
        raise CheckpointError(
            f"{path} unpacks to {unpacked / 1e9:.1f} GB, more than {MAX_GROWTH} times its size: "
            "it is no weight file"
        )
    return records


def _check_record(archive: zipfile.ZipFile, record: zipfile.ZipInfo, whole: mmap.mmap) -> int:
    """Return where a record's bytes begin; its header and checksum fit the directory."""
    start = record.header_offset
    signature, flags, method, name_length, extra = _LOCAL.unpack_from(whole, start)
    begin = start + _LOCAL.size + name_length + extra
    name = whole[start + _LOCAL.size : start + _LOCAL.size + name_length]
    wanted = record.orig_filename.encode("utf-8" if record.flag_bits & 0x800 else "cp437")
    if signature != b"PK\3\4" or method != record.compress_type or name != wanted:
        raise _DamageError(f"its record {record.filename} is not where its directory says")
    if (flags | record.flag_bits) & 1:
        raise _DamageError(f"its record {record.filename} is encrypted")
    if begin + record.compress_size > archive.start_dir:
        raise _DamageError(f"its record {record.filename} is cut")
    if method != zipfile.ZIP_STORED:
        with archive.open(record) as unpacked:  # which compares the checksum at the end
            while unpacked.read(_CHUNK):
                pass
        return begin
    if record.compress_size != record.file_size:
        raise _DamageError(f"its record {record.filename} has two sizes")
    found, end = 0, begin + record.file_size
    for place in range(begin, end, _CHUNK):
        found = zlib.crc32(whole[place : min(place + _CHUNK, end)], found)
    # `torch.serialization.set_crc32_options(False)` writes zeros.
    if record.CRC not in (0, found):
        raise _DamageError(f"the checksum of its record {record.filename} does not fit")
    return begin


def _pickle_name(records: Mapping[str, zipfile.ZipInfo], path: Path) -> str:
    names = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(names) != 1:
        raise CheckpointError(f"{path} is a zip archive, but not one that torch.save wrote")
    if records[names[0]].file_size > MAX_PICKLE:
        raise CheckpointError(f"{path}: its pickle is larger than {MAX_PICKLE >> 20} MiB")
    return names[0]


def _check_storages(data: bytes, folder: str, records: Mapping[str, zipfile.ZipInfo]) -> None:
    """Compare what a pickle says of its tensors' sizes to those of the records in `folder`."""
    reader = _Inert(io.BytesIO(data))
    try:
        reader.load()
    except _DamageError:
        raise
    except Exception as error:  # bytes of any kind fail in any way
        raise _DamageError("its pickle cannot be read; nothing of it was run") from error
    for key, size in reader.storages.items():
        record = records.get(f"{folder}/{key}")
        if record is None:
            raise _DamageError(f"its record {folder}/{key} is missing")
        if record.file_size < size:
            raise _DamageError(
                f"its record {folder}/{key} has {record.file_size} bytes, and its tensor {size}"
            )


class _Nothing:
    """Stands for whatever a pickle names or makes; takes everything, does nothing."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> _Nothing:
        return object.__new__(cls)

    def _ignore(self, *_args: Any) -> None: ...

    size = 0
    """Bytes, of what would be bytes."""

    __init__ = __setstate__ = __setitem__ = append = extend = add = _ignore


class _Inert(pickle._Unpickler):
    """Collects what a pickle says of its storages; the unpickler in C takes memory as told."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.storages: dict[str, int] = {}
        self._room = MAX_PICKLE

    def _take(self, value: Any = b"", *_args: Any) -> _Nothing:
        """Stand for what makes bytes: a program may do so any number of times, or many at once."""
        made = _Nothing()
        made.size = value if isinstance(value, int) else getattr(value, "size", 0)
        if isinstance(value, (str, bytes, list)):
            made.size = len(value)
        self._room -= max(0, made.size)
        if self._room < 0:
            raise _DamageError("its pickle makes more bytes than any weight file needs")
        return made

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _MAKE_BYTES:
            return self._take
        return type(name.rpartition(".")[2], (_Nothing,), {})

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError(f"extension {code}")

    def persistent_load(self, pid: Any) -> Any:
        """Note `("storage", class, key, device, elements)`, in older files with a view after it."""
        if isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage":
            itemsize = _ITEMSIZE.get(getattr(pid[1], "__name__", ""), 1)
            key, size = str(pid[2]), int(pid[4]) * itemsize
            self.storages[key] = max(size, self.storages.get(key, 0))
        return _Nothing()
