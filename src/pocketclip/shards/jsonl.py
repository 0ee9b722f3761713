"""Read and write jsonl shards in the format of the `ml-mobileclip-dr` generator.

    for sample in read_lines(stream, "00000000.jsonl.gz"):
        ...

Each line is a JSON object: `uid`, `url`, `image` (base64), `text` (or `caption`, `texts`), lists of
synthetic captions (`syn_text...`, `..._captions`), `param_aug`, embeddings under names with `emb`
or `embedding` (nested lists, or base64 of a gzipped pickle of a float array), and other metadata.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import pickle
import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from pocketclip.errors import DataError, MissingDependencyError, how_to_install
from pocketclip.shards.codec import MAX_PICKLE, gunzip
from pocketclip.shards.layout import CAPTIONS, MORE, json_of, parameters, separate
from pocketclip.shards.unpickle import floats_from_pickle
from pocketclip.types import Embeddings, Sample

MAX_LINE = 1 << 26
"""Most bytes of a line: 64 MiB; decoded text takes up to four times as many."""
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.zstd")
_EMBEDDING = re.compile(r"(^|_)emb(eddings?)?[0-9]*$")
_PERHAPS = re.compile(r"(^|[^a-zA-Z])emb")
_UNFILLED = "{self.tag_suffix}"  # the generator leaves this in its names
_GZIP = "H4sI"  # how base64 of gzip begins


def read_lines(stream: BinaryIO, name: str) -> Iterator[Sample]:
    """Yield the samples of a jsonl file, which may be compressed.

    Args:
        stream: the file; gzip and Zstandard are recognised by their first bytes.
        name: of the file, for messages.

    Raises:
        DataError: the file is truncated or damaged, or a line is not a valid record.
        MissingDependencyError: the file is in Zstandard, and zstandard is not installed.
    """
    number = 0
    try:
        lines = _unpacked(stream)
        while line := lines.readline(MAX_LINE):
            number += 1
            if len(line) >= MAX_LINE:
                raise DataError(f"longer than the limit of {MAX_LINE:,} bytes")
            if line.strip():
                yield sample_of(_parse(line), number)
    except DataError as error:
        raise DataError(f"{name}: line {number}: {error}") from error
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{name}: truncated or damaged after line {number} ({error})") from error


def sample_of(record: dict[str, Any], number: int = 0) -> Sample:
    """Return the sample of one record; its uid is made from `number` if it has none.

    Raises:
        DataError: a value has the wrong type.
    """
    record = dict(record)
    uid = record.pop("uid", None)
    if uid is None or uid == "":
        uid = record.pop("id", None)
    if uid is None or uid == "":
        uid = f"{max(number - 1, 0):08d}"
    sample = Sample(uid=str(uid), image=_image(record.pop("image", None)))
    url = record.pop("url", None)
    sample.url = None if url is None else str(url)
    for key in ("text", "texts", "caption"):
        value = record.pop(key, None)
        if value is not None and "text" not in sample.captions:
            sample.captions["text"] = _texts(key, [value] if isinstance(value, str) else value)
    sample.param_aug = parameters(record.pop("param_aug", None))
    for key, value in record.items():
        if _is_embedding(key, value):
            sample.embeddings[_plain(key)] = _embedding(key, value)
        elif CAPTIONS.search(key) and isinstance(value, list):
            sample.captions[key] = _texts(key, value)
        else:
            sample.meta[key] = value
    for other in ("texts", "caption"):  # embeddings named after the captions' former key
        if f"{other}_emb" in sample.embeddings and "text_emb" not in sample.embeddings:
            sample.embeddings["text_emb"] = sample.embeddings.pop(f"{other}_emb")
    separate(sample)
    return sample


def record_of(sample: Sample) -> dict[str, Any]:
    """Return the record of a sample for the generator's reader, with float32 embeddings.

    Raises:
        DataError: the sample is of a materialised set.
    """
    if sample.views is not None:
        raise DataError("jsonl shards hold no views of a materialised set: write a tar")
    record: dict[str, Any] = {**sample.meta, "uid": sample.uid}
    if sample.url is not None:
        record["url"] = sample.url
    if sample.image is not None:
        record["image"] = base64.b64encode(sample.image).decode()
    texts = sample.captions.get("text", [])
    if texts:
        record["text"] = texts[0]
    if len(texts) > 1:
        record[MORE] = texts[1:]
    record.update({key: value for key, value in sample.captions.items() if key != "text"})
    if sample.param_aug is not None:
        record["param_aug"] = sample.param_aug
    for key, array in sample.embeddings.items():
        if key == "text_emb" and len(texts) > 1:
            record[f"{MORE}_emb"] = _pickled(array[1:])
            array = array[:1]
        record[key] = _pickled(array)
    return record


def _pickled(array: Embeddings) -> str:
    data = pickle.dumps(np.ascontiguousarray(array, np.float32), protocol=4)
    return base64.b64encode(gzip.compress(data, compresslevel=6, mtime=0)).decode()


def _parse(line: bytes) -> dict[str, Any]:
    record = json_of(line, "it", MAX_LINE)
    if not isinstance(record, dict):
        raise DataError(f"a {type(record).__name__}, not an object")
    return record


def _image(value: Any) -> bytes | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise DataError(f"image is a {type(value).__name__}, not base64 text")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"image is not base64 ({error})") from error


def _texts(key: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DataError(f"{key} is not a list of captions")
    return value


def _is_embedding(key: str, value: Any) -> bool:
    """Return whether a value is embeddings, not metadata with `emb` in its key."""
    named = _EMBEDDING.search(key.replace(_UNFILLED, "")) is not None
    if isinstance(value, str):
        return named or ("emb" in key and value.startswith(_GZIP))
    first = value
    while isinstance(first, list) and first:
        first = first[0]
    numbers = isinstance(first, float) and _PERHAPS.search(key) is not None
    return isinstance(value, list) and (named or numbers)


def _plain(key: str) -> str:
    return re.sub("embeddings?", "emb", key.replace(_UNFILLED, ""))


def _embedding(key: str, value: Any) -> Embeddings:
    if isinstance(value, str):
        try:
            array = floats_from_pickle(gunzip(base64.b64decode(value, validate=True), MAX_PICKLE))
        except (binascii.Error, ValueError) as error:
            raise DataError(f"{key} is not base64 ({error})") from error
        except DataError as error:
            raise DataError(f"{key}: {error}") from error
    else:
        try:
            with np.errstate(over="ignore"):
                array = np.array(value, np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(f"{key} is not an array of floats") from error
    return array[None] if array.ndim == 1 else array


def _unpacked(stream: BinaryIO) -> BinaryIO:
    head = stream.read(4)
    stream.seek(0)
    if head[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=stream)  # type: ignore[return-value]
    if head == b"\x28\xb5\x2f\xfd":
        return io.BufferedReader(_Zstandard(stream), 1 << 16)
    return stream


class _Zstandard(io.RawIOBase):
    """Unpacks a Zstandard stream; unlike the library's reader, it raises if the stream is cut."""

    _CHUNK = 1024  # unpacks to at most 32 MiB, which is the memory that it takes

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._frame = self._new_frame()
        self._in_frame = False
        self._unread = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._unread:
            packed = self._stream.read(self._CHUNK)
            if not packed:
                if self._in_frame:
                    raise EOFError("the Zstandard data end too soon")
                return 0
            self._unread = memoryview(self._unpack(packed))
        count = min(len(buffer), len(self._unread))
        buffer[:count], self._unread = self._unread[:count], self._unread[count:]
        return count

    def _unpack(self, packed: bytes) -> bytes:
        out = b""
        while packed:
            try:
                out += self._frame.decompress(packed)
            except zstandard_module().ZstdError as error:
                raise EOFError(str(error)) from error
            self._in_frame, packed = not self._frame.eof, b""
            if self._frame.eof:
                packed, self._frame = self._frame.unused_data, self._new_frame()
        return out

    def _new_frame(self) -> Any:
        return zstandard_module().ZstdDecompressor().decompressobj()


def zstandard_module() -> Any:
    """Return the package zstandard.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"Zstandard files need zstandard: {how_to_install('reinforce')}"
        ) from error
    return zstandard
