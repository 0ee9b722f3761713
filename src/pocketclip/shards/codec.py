"""Encode embeddings as one member of a shard, `npz` or `pth.gz`, and decode them.

    key, data = encode({"image_emb": array}, "bfloat16")  # ("pth.gz", b"...")
    arrays, dtype = decode(key, data)                     # float32 whatever the bytes hold

`npz` holds float32, float16 or the records of `quantise`; `pth.gz` is a gzipped torch file of
bfloat16 tensors, as published. Decoding trusts no input: no pickle runs except in torch's
`weights_only` reader, and every size is checked before memory is allocated.

Shapes: N rows of a key, D width.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import DataError, MissingDependencyError, how_to_install
from pocketclip.formats.npy import parse_npy
from pocketclip.shards import torchfile
from pocketclip.shards.quantise import (
    QUANTISED,
    is_packed,
    pack,
    packed_code,
    unpack,
    unpacked_size,
)
from pocketclip.types import Embeddings

DTYPES = ("float32", "float16", "bfloat16", *QUANTISED)
MEMBERS = ("npz", "pth.gz")
"""Keys of members with embeddings; if a sample has both, the first counts, as in published sets."""
MAX_BYTES = 1 << 27
"""Most bytes that a member may unpack to, before and after conversion to float32: 128 MiB."""
MAX_ENTRIES = 1 << 16
"""Most entries of a zip."""
MAX_PICKLE = 1 << 23
"""Most bytes of a pickle; each can become an object of some 50 bytes."""


def encode(
    arrays: Mapping[str, Embeddings], dtype: str, teacher_dims: Sequence[int] = ()
) -> tuple[str, bytes]:
    """Return the member's key and bytes of float32 `arrays`, each (N, D).

    The same arrays give the same bytes (with the same zlib and torch, for bfloat16).

    Args:
        arrays: embeddings by key.
        dtype: one of `DTYPES`.
        teacher_dims: the width of each teacher's embeddings; int8 and int6 have a scale for each.

    Raises:
        DataError: the dtype is unknown, or cannot hold a value.
        MissingDependencyError: the dtype is bfloat16, and torch is not installed.
    """
    if dtype == "bfloat16":
        return "pth.gz", _encode_torch(arrays)
    if dtype not in DTYPES:
        raise DataError(f"unknown dtype {dtype}: use one of {', '.join(DTYPES)}")
    out: dict[str, NDArray[Any]] = {}
    for key, array in arrays.items():
        if dtype in QUANTISED:
            out[key] = pack(array, dtype, teacher_dims)
        else:
            with np.errstate(over="ignore"):
                out[key] = array.astype(np.dtype(dtype).newbyteorder("<"))
            if not np.isfinite(out[key]).all():
                raise DataError(f"{key} has a value that {dtype} cannot hold")
    return "npz", _encode_npz(out)


def first_rows(npz: bytes, key: str, count: int) -> bytes:
    """Return an `npz` member with only the first `count` rows of a key; values stay as they are.

    Raises:
        DataError: the bytes are damaged.
    """
    arrays = _raw_arrays(npz)
    if key in arrays:
        arrays[key] = arrays[key][:count]
    return _encode_npz(arrays)


def without_deflation(packed: tuple[str, bytes]) -> tuple[str, bytes]:
    """Return a member (key, bytes) with the same arrays, quicker to unpack: a `pth.gz` is stored.

    Deflation saves a fifth of bfloat16 embeddings, and unpacking it takes as long as decoding a
    small JPEG.

    Raises:
        DataError: the bytes are damaged.
    """
    key, data = packed
    if key != "pth.gz":
        return packed
    return key, gzip.compress(gunzip(data), compresslevel=0, mtime=0)


def decode(member: str, data: bytes) -> tuple[dict[str, Embeddings], str]:
    """Return float32 arrays by key, and their stored dtype.

    A single row becomes (1, D), a list of rows (N, D). Arrays of other types than floats are left
    out, unless their key contains `emb`.

    Raises:
        DataError: the bytes are damaged or too large, or embeddings are not arrays of floats.
        MissingDependencyError: the member is `pth.gz`, and torch is not installed.
    """
    raw = _decode_npz(data) if member == "npz" else _decode_gzipped(data)
    dtypes = sorted({dtype for _, dtype in raw.values()})
    return {key: array for key, (array, _) in raw.items()}, "+".join(dtypes)


def gunzip(data: bytes, limit: int | None = None) -> bytes:
    """Return unpacked gzip data; it stops unpacking at the limit.

    Args:
        data: one gzip file, or several concatenated ones.
        limit: most bytes to unpack to; None: `MAX_BYTES`.

    Raises:
        DataError: the data are damaged or cut, or exceed the limit.
    """
    limit = MAX_BYTES if limit is None else limit
    blocks: list[bytes] = []
    remaining, packed = limit, data
    while not blocks or packed.strip(b"\0"):
        unpacker = zlib.decompressobj(wbits=31)
        try:
            block = unpacker.decompress(packed, remaining + 1)
        except zlib.error as error:
            raise DataError(f"damaged gzip data ({error})") from error
        remaining -= len(block)
        if remaining < 0:
            raise DataError(f"unpacks to more than {limit} bytes")
        if not unpacker.eof:
            raise DataError("damaged gzip data (it ends too soon)")
        blocks.append(block)
        if len(blocks) > 64:  # each copies all the data behind it
            raise DataError("gzip data with more than 64 members")
        packed = unpacker.unused_data
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)


def _torch() -> Any:
    """Import torch; nothing else in this layer does."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"bfloat16 embeddings (pth.gz) need torch: {how_to_install('train')}"
        ) from error
    return torch


def _encode_torch(arrays: Mapping[str, Embeddings]) -> bytes:
    torch = _torch()
    tensors = {
        # A copy, because torch warns of read-only arrays.
        key: torch.from_numpy(np.array(array, np.float32)).to(torch.bfloat16)
        for key, array in arrays.items()
    }
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return gzip.compress(buffer.getvalue(), compresslevel=6, mtime=0)


def _decode_gzipped(data: bytes) -> dict[str, tuple[Embeddings, str]]:
    torch = (
        _torch()
    )  # also for a file that could be read without it: whether it works is then known
    unpacked = gunzip(data)
    arrays = torchfile.read(unpacked)
    return _decode_torch(torch, unpacked) if arrays is None else arrays


def _decode_torch(torch: Any, unpacked: bytes) -> dict[str, tuple[Embeddings, str]]:
    _check_torch_file(unpacked)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols
            loaded = torch.load(io.BytesIO(unpacked), map_location="cpu", weights_only=True)
    except Exception as error:
        # Arbitrary bytes make the restricted unpickler fail with errors of any type.
        raise DataError(
            "torch file refused because it holds more than tensors or is damaged; none of it "
            f"was run ({type(error).__name__})"
        ) from error
    if not isinstance(loaded, dict):
        raise DataError(f"torch file with a {type(loaded).__name__}, not named tensors")
    out = {}
    remaining = MAX_BYTES // 4  # floats of all keys, which may be views of the same few bytes
    for key, value in loaded.items():
        rows = _rows(torch, value)
        if rows is None:
            if "emb" in str(key):
                raise DataError(f"torch file: {key} is not a tensor of floats")
            continue
        remaining -= sum(row.numel() if isinstance(row, torch.Tensor) else len(row) for row in rows)
        if remaining < 0:
            raise DataError(f"torch file: unpacks to more than {MAX_BYTES} bytes of floats")
        dtypes = {str(getattr(row, "dtype", "float32")).removeprefix("torch.") for row in rows}
        try:
            out[str(key)] = np.vstack([_row(torch, row) for row in rows]), "+".join(sorted(dtypes))
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise DataError(f"torch file: {key} is not an array of floats") from error
    return out


def _check_torch_file(data: bytes) -> None:
    """Refuse a file whose contents could grow in torch beyond what its size shows."""
    if any(name in data for name in (b"_codecs\nencode\n", b"\nbytearray\n")):
        raise DataError("torch file that creates bytes, which no tensor needs; none of it was run")
    if not data.startswith(b"PK"):  # the format before torch 1.6: consecutive pickles
        if len(data) > MAX_PICKLE:
            raise DataError(f"torch file in the old format with more than {MAX_PICKLE} bytes")
        return
    _check_directory(data, "torch file")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise DataError(f"damaged torch file ({error})") from error
    if sum(entry.file_size for entry in entries) > MAX_BYTES:
        raise DataError(f"torch file: unpacks to more than {MAX_BYTES} bytes")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise DataError("torch file with a compressed record, which torch never writes")
        if entry.filename.endswith(".pkl") and entry.file_size > MAX_PICKLE:
            raise DataError(f"torch file with a pickle of more than {MAX_PICKLE} bytes")


def _rows(torch: Any, value: Any) -> list[Any] | None:
    """Return the rows of an array, as tensors or lists of numbers, or None if it has none."""
    rows = [value]
    kinds = (list, tuple)
    if isinstance(value, kinds) and value and isinstance(value[0], (*kinds, torch.Tensor)):
        rows = list(value)
    return rows if rows and all(_is_row(torch, row) for row in rows) else None


def _is_row(torch: Any, row: Any) -> bool:
    if isinstance(row, torch.Tensor):
        in_memory = row.device.type == "cpu" and row.layout == torch.strided
        return bool(in_memory and row.is_floating_point() and row.ndim)
    return isinstance(row, (list, tuple)) and bool(row) and isinstance(row[0], float)


def _row(torch: Any, row: Any) -> Embeddings:
    if isinstance(row, torch.Tensor):
        return np.asarray(row.detach().float().numpy())
    if not all(isinstance(number, (int, float)) for number in row):
        raise TypeError("not numbers")  # nested lists could have any size
    return np.array(row, np.float32)


def _encode_npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    # Stored, not deflated: floats hardly shrink, and versions of zlib give different bytes.
    # `numpy.savez` would write the time too.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for key, array in arrays.items():
            entry = zipfile.ZipInfo(f"{key}.npy", (1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            header = io.BytesIO()
            np.lib.format.write_array(header, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(entry, header.getvalue())
    return buffer.getvalue()


def _decode_npz(data: bytes) -> dict[str, tuple[Embeddings, str]]:
    out = {}
    remaining = MAX_BYTES // 4  # floats; quantised ones have fewer bytes
    with _explained():
        for key, array in _raw_arrays(data).items():
            if "emb" in key or is_packed(array) or (array.dtype.kind == "f" and array.ndim):
                remaining -= unpacked_size(array) if is_packed(array) else array.size
                if remaining < 0:
                    raise DataError(f"unpacks to more than {MAX_BYTES} bytes of floats")
                out[key] = _floats(key, array)
    return out


def _raw_arrays(data: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of an npz as they are stored."""
    with _explained():
        _check_directory(data, "npz")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > MAX_BYTES:
                raise DataError(f"unpacks to more than {MAX_BYTES} bytes")
            out = {}
            for entry in entries:
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise DataError("has a compression that numpy never writes")
                key = entry.filename.removesuffix(".npy")
                out[key] = _npy(key, archive.read(entry))
    return out


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn the errors of a damaged npz into a DataError."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise DataError(f"damaged npz ({error})") from error
    except (OSError, EOFError, struct.error, ValueError, LookupError) as error:
        raise DataError(f"damaged npz ({error})") from error


def _check_directory(data: bytes, what: str) -> None:
    """Refuse a zip with so many entries that their list would fill the memory."""
    if data.count(b"PK\1\2") > MAX_ENTRIES:
        raise DataError(f"{what} with more than {MAX_ENTRIES} entries")


def _npy(key: str, data: bytes) -> NDArray[Any]:
    try:
        return parse_npy(data)
    except DataError as error:
        raise DataError(f"{key} {error}") from error


def _floats(key: str, array: NDArray[Any]) -> tuple[Embeddings, str]:
    if is_packed(array):
        return unpack(array), str(packed_code(array))
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise DataError(f"{key} holds {array.dtype}, not floats")
    name = array.dtype.newbyteorder("=").name
    with np.errstate(over="ignore"):
        return np.array(np.atleast_2d(array), np.float32, order="C"), name
