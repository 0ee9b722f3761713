"""The zip archives that `torch.save` writes: where each record is, and whether it can be trusted.

    records = read_records(stamp)  # {"archive/data.pkl": Record(...), "archive/data/0": ...}

A tensor's bytes are located by the archive's directory. Each record's own header must agree with
it, names must not repeat, and every record has a checksum, which is compared when it is read.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from pocketclip.errors import CheckpointError, one_line
from pocketclip.formats.escaping import escape_controls
from pocketclip.formats.stored_tensor import FREE, MAX_GROWTH, FileStamp, Record, damaged
from pocketclip.formats.torch_pickle import MAX_PICKLE

MAX_DIRECTORY = 1 << 23
"""Limit on the archive's directory in bytes; a thousand records need 100 kB."""
_LOCAL = struct.Struct("<4s2xHH16xHH")


def read_records(file: FileStamp) -> dict[str, Record]:
    """Return the records of an archive by name.

    Raises:
        CheckpointError: the file is damaged or not written by `torch.save`, or record names repeat.
        OSError: the file cannot be read.
    """
    path = file.path
    try:
        with file.open() as handle, zipfile.ZipFile(_Bounded(handle)) as archive:
            entries = _entries(archive, path, file.size)
            return {name: _record(archive, entry, handle, file) for name, entry in entries.items()}
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, _DamageError) as error:
        raise damaged(path, error) from error
    except (NotImplementedError, RuntimeError, ValueError, LookupError) as error:
        # An unknown compression method, encryption, or an invalid directory.
        raise CheckpointError(
            f"{path} is damaged, or not an archive that torch wrote: "
            + escape_controls(one_line(error))
        ) from error


def find_pickle(records: dict[str, Record], path: Path) -> str:
    """Return the name of the record that describes the tensors.

    Raises:
        CheckpointError: `torch.save` did not write this archive, or the pickle is too large.
    """
    names = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(names) != 1:
        raise CheckpointError(f"{path} is a zip archive, but not one that torch.save wrote")
    if names[0].replace("data.pkl", "constants.pkl") in records:
        raise CheckpointError(
            f"{path} is a TorchScript archive; save its state_dict() as .pt and load that"
        )
    if records[names[0]].size > MAX_PICKLE:
        raise CheckpointError(f"{path}: its pickle is larger than {MAX_PICKLE >> 20} MiB")
    return names[0]


class _DamageError(Exception):
    """The damage, without the path."""


class _Bounded(io.RawIOBase):
    """A file that gives no more at once than a directory may have; `zipfile` has no limit."""

    def __init__(self, handle: BinaryIO) -> None:
        super().__init__()
        self._handle = handle

    def read(self, size: int = -1) -> bytes:
        data = self._handle.read(min(size, MAX_DIRECTORY + 1) if size >= 0 else MAX_DIRECTORY + 1)
        if len(data) > MAX_DIRECTORY:
            raise _DamageError(f"its directory is larger than {MAX_DIRECTORY >> 20} MiB")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._handle.seek(offset, whence)

    def tell(self) -> int:
        return self._handle.tell()

    def seekable(self) -> bool:
        return True


def _entries(archive: zipfile.ZipFile, path: Path, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the archive's directory by name; repeated names are an error."""
    entries = {entry.filename: entry for entry in archive.infolist()}
    # torch ignores case when it looks names up.
    if len({name.lower() for name in entries}) < len(archive.infolist()):
        raise _DamageError("several of its records have the same name")
    if not entries or min(entry.header_offset for entry in entries.values()):
        raise _DamageError("it does not begin with its first record")
    unpacked = sum(entry.file_size for entry in entries.values())
    if unpacked > max(FREE, MAX_GROWTH * size):
        raise CheckpointError(
            f"{path} unpacks to {unpacked / 1e9:.1f} GB, more than {MAX_GROWTH} times its size: "
            "it is not a weight file"
        )
    return entries


def _record(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, handle: BinaryIO, file: FileStamp
) -> Record:
    """Return where a record's bytes are, after comparing its header with the directory."""
    name = entry.filename
    expected = entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")
    handle.seek(entry.header_offset)
    head = handle.read(_LOCAL.size + len(expected))
    signature, flags, method, name_length, extra = _LOCAL.unpack_from(head)
    is_same = name_length == len(expected) and head[_LOCAL.size :] == expected
    if signature != b"PK\3\4" or method != entry.compress_type or not is_same:
        raise _DamageError(f"its record {name} is not at the offset in the directory")
    if (flags | entry.flag_bits) & 1:
        raise _DamageError(f"its record {name} is encrypted")
    begin = entry.header_offset + _LOCAL.size + name_length + extra
    if begin + entry.compress_size > archive.start_dir:
        raise _DamageError(f"its record {name} is truncated")
    if method == zipfile.ZIP_DEFLATED:
        return Record(file, name, begin, entry.file_size, entry.compress_size, entry.CRC)
    if method != zipfile.ZIP_STORED:
        raise NotImplementedError(f"its record {name} is compressed as torch never does")
    if entry.compress_size != entry.file_size:
        raise _DamageError(f"its record {name} has contradictory sizes")
    # `torch.serialization.set_crc32_options(False)` writes zeros.
    return Record(file, name, begin, entry.file_size, checksum=entry.CRC or None)
