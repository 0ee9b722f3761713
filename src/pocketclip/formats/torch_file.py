"""Files that `torch.save` wrote, read without torch and without running anything in them.

    file = read_torch_file(path)
    file.loaded  # {"state_dict": {"a.weight": View(...)}, "epoch": 3}
    tensor = file.tensor(view)  # StoredTensor; tensor.read() is an array

Both of torch's forms are read: zip archives, and what torch wrote before 1.6, which is several
pickles with the numbers behind them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pocketclip.errors import CheckpointError
from pocketclip.formats.stored_tensor import (
    ITEMSIZE,
    FileStamp,
    Record,
    StoredTensor,
    check_view,
    damaged,
)
from pocketclip.formats.torch_pickle import (
    MAX_PICKLE,
    ForeignError,
    Pickled,
    PickleError,
    Storage,
    View,
    read_pickle,
)
from pocketclip.formats.torch_zip import find_pickle, read_records

ZIP = b"PK\x03\x04"
"""The first bytes of an archive."""
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MAX_LEGACY = 2 * MAX_PICKLE
_COUNT = struct.Struct("<q")
_SMALL = 1 << 20
"""Records up to this size that hold no numbers are read, and their checksums compared."""
_NUMBERS = re.compile(r"[^/]+/data/")


@dataclass(frozen=True, slots=True)
class TorchFile:
    """A file whose pickle was read, and whose numbers were not."""

    stamp: FileStamp
    loaded: Any
    """What was saved, with a `View` for each tensor."""
    find: Callable[[Storage], Record]
    """Returns the bytes of a storage; raises `PickleError` if they are not there."""
    byte_order: str = "<"

    def tensor(self, view: View) -> StoredTensor:
        """Return one of the tensors in `loaded`.

        Raises:
            CheckpointError: the file does not hold all of it.
        """
        try:
            storage, record = view.storage, self.find(view.storage)
            size = ITEMSIZE[view.dtype]
            if storage.dtype and storage.dtype != view.dtype:
                raise PickleError("its pickle describes a storage of two types")
            begin, count = 0, storage.count
            if not storage.dtype:
                count //= size
            if storage.part is not None:
                _, begin, count = storage.part
                if begin + count > storage.count:
                    raise PickleError("its pickle describes a part of a storage that cannot be")
            try:
                # Its own limits first, then those of the part within the storage.
                check_view(record, view.dtype, view.shape, offset=view.offset,
                           strides=view.strides, numbers=count)  # fmt: skip
                return check_view(
                    record, view.dtype, view.shape, offset=begin + view.offset,
                    strides=view.strides, byte_order=self.byte_order,
                )  # fmt: skip
            except ValueError as error:
                raise PickleError(f"its pickle describes a tensor with {error}") from error
        except PickleError as error:
            raise damaged(self.stamp.path, error) from error


def read_torch_file(path: Path) -> TorchFile:
    """Return what a file of either form holds.

    Raises:
        CheckpointError: it is damaged or truncated, or holds more than tensors and plain values.
        OSError: it cannot be read.
    """
    stamp = FileStamp.of(path)
    with stamp.open() as handle:
        is_archive = handle.read(len(ZIP)) == ZIP
    try:
        return _read_archive(stamp) if is_archive else _read_legacy(stamp)
    except ForeignError as error:
        _refuse(path, error)
    except PickleError as error:
        raise damaged(path, error) from error


def _refuse(path: Path, error: ForeignError) -> NoReturn:
    if error.name:
        raise CheckpointError(
            f"{path} is refused: its pickle holds {error.name} and not only tensors; none of it "
            "was run. Save the bare state_dict and load that"
        ) from error
    raise CheckpointError(
        f"{path} is refused: its pickle is damaged, or holds more than tensors; none of it was run"
    ) from error


def _read_archive(stamp: FileStamp) -> TorchFile:
    records = read_records(stamp)
    name = find_pickle(records, stamp.path)
    folder = name.removesuffix("data.pkl")
    order = b"little"
    for other, record in records.items():
        if other != name and record.size <= _SMALL and not _NUMBERS.match(other):
            content = _content(record)
            order = content if other == f"{folder}byteorder" else order
    if order not in (b"little", b"big"):
        raise PickleError("its byte order is unknown")
    loaded = read_pickle(_content(records[name])).value

    def find(storage: Storage) -> Record:
        record = records.get(f"{folder}data/{storage.key}")
        if record is None or storage.part is not None:
            raise PickleError(f"its record {folder}data/{storage.key} is missing")
        size = storage.count * ITEMSIZE.get(storage.dtype, 1)
        if record.size < size:
            raise PickleError(
                f"its record {record.name} has {record.size} bytes, but its tensor {size}"
            )
        return record

    return TorchFile(stamp, loaded, find, ">" if order == b"big" else "<")


def _content(record: Record) -> bytes:
    return b"".join(bytes(chunk) for chunk in record.chunks(0, record.size))


def _read_legacy(stamp: FileStamp) -> TorchFile:
    """Read magic number, version, system, contents and keys; the storages follow in that order."""
    for size in (_SMALL, _MAX_LEGACY):
        with stamp.open() as handle:
            head = handle.read(min(size, stamp.size))
        try:
            pickled, keys, end = _read_pickles(head)
            break
        except (PickleError, ForeignError):
            if len(head) == stamp.size or size == _MAX_LEGACY:
                raise
    if sorted(keys) != sorted(pickled.storages):
        raise PickleError("its list of storages does not fit its tensors")
    records = {}
    with stamp.open() as handle:
        for key in keys:
            storage = pickled.storages[key]
            size = storage.count * ITEMSIZE.get(storage.dtype, 1)
            handle.seek(end)
            count, end = handle.read(_COUNT.size), end + _COUNT.size + size
            if end > stamp.size:
                raise PickleError("its tensors are longer")
            if _COUNT.unpack(count) != (storage.count,):
                raise PickleError("a storage has another length than its pickle describes")
            records[key] = Record(stamp, key, end - size, size)
    return TorchFile(stamp, pickled.value, lambda storage: records[storage.key])


def _read_pickles(head: bytes) -> tuple[Pickled, list[str], int]:
    end, parts = 0, []
    for expected in (_MAGIC, _PROTOCOL, None, None, None):
        parts.append(read_pickle(head, end))
        end = parts[-1].end
        if expected is not None and parts[-1].value != expected:
            raise PickleError("it is a pickle, but does not begin as torch's files do")
    keys = parts[4].value
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise PickleError("its list of storages is damaged")
    return parts[3], keys, end
