"""Write one shard, tar or jsonl, whole or not at all.

with ShardWriter("out/00000000.tar", dtype="bfloat16") as writer:
    writer.write(sample)
writer.stats.sha256
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import sys
from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.shards.check import faults
from pocketclip.shards.codec import DTYPES
from pocketclip.shards.jsonl import record_of, zstandard_module
from pocketclip.shards.layout import LAYOUTS, PART_OF, build, dump, finite, plain
from pocketclip.shards.tar import ending, entry
from pocketclip.types import Sample

_PICTURES = ("image", "views")
_NOT_OPEN = "use the writer in a with block: with ... as writer: writer.write(sample)"


@dataclass(slots=True, kw_only=True)
class ShardStats:
    """The description of a shard in the index."""

    name: str
    """The file's name within its folder."""
    samples: int = 0
    bytes: int = 0
    sha256: str = ""
    parts: dict[str, int] = field(default_factory=dict)
    """Bytes by part; `tar` is headers and padding. The sum is `bytes`."""
    columns: list[str] = field(default_factory=list)
    """The columns of its samples, sorted: `image`, keys of captions and embeddings, ..."""
    dtype: str = ""
    """The stored dtype of embeddings; several are joined by `+`."""
    dims: int = 0
    """The width of embeddings."""


class ShardWriter:
    """A tar of samples in the published layout; a context manager.

    The same samples give the same bytes at any time and for any user. If the block raises,
    nothing is left at `path`.

    Args:
        path: a local file, or an object in a store.
        dtype: the type to store embeddings in: float32, float16, bfloat16, int8 or int6.
        layout: `named`, also called `v2` (each key of captions has embeddings of its own), or
            `v1` (`text_emb` holds the rows of the one synthetic key too).
        images: whether to write the images, or the views in their place.
        teacher_dims: the width of each teacher's embedding.

    Raises:
        DataError: an unknown dtype or layout.
        StorageError: `path` cannot be written to.
    """

    def __init__(
        self,
        path: str,
        *,
        dtype: str = "bfloat16",
        layout: str = "named",
        images: bool = True,
        teacher_dims: Sequence[int] = (),
    ) -> None:
        if dtype not in DTYPES:
            raise DataError(f"unknown dtype {dtype}; choose from {', '.join(DTYPES)}")
        layout = "named" if layout == "v2" else layout
        if layout not in LAYOUTS:
            raise DataError(
                f"unknown layout {layout}; choose from {', '.join(LAYOUTS)}, v2 (named)"
            )
        self.path = str(path)
        self.dtype = dtype
        self.layout = layout
        self.images = images
        self.teacher_dims = tuple(teacher_dims)
        self.stats = ShardStats(name=self.path.replace("\\", "/").rsplit("/", 1)[-1])
        self._uids: set[str] = set()
        self._columns: set[str] = set()
        self._dtypes: set[str] = set()
        self._hash = hashlib.sha256()
        self._out: BinaryIO | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> ShardWriter:
        local = self._stack.enter_context(storage.write_whole(self.path, tidy=False))
        self._out = self._stack.enter_context(local.open("wb"))
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            try:
                self._finish()
            except BaseException:
                self._stack.__exit__(*sys.exc_info())
                raise
        self._out = None
        self._stack.__exit__(*error)

    def write(
        self, sample: Sample, *, packed: tuple[str, bytes] | None = None, packed_dtype: str = ""
    ) -> None:
        """Add a sample; when this raises, none of it was written and other samples can follow.

        Args:
            sample: its embeddings are arrays, tensors or lists, by the keys of `types.Sample`.
            packed: the embeddings' member (key, bytes) of another shard, to be written unchanged.
            packed_dtype: the dtype of `packed`.

        Raises:
            DataError: the uid is invalid or repeated, numbers of captions and embeddings differ,
                or a value is not finite; the message begins with the uid.
            OSError: the disk is full.
        """
        if self._out is None:
            raise DataError(f"{self.path}: {_NOT_OPEN}")
        sample = _checked(sample, self._uids, self.teacher_dims)
        try:
            members = build(
                sample,
                dtype=self.dtype,
                layout=self.layout,
                teacher_dims=self.teacher_dims,
                packed=packed,
            )
            if not self.images:
                members = {
                    key: data for key, data in members.items() if PART_OF[key] not in _PICTURES
                }
            if not members:
                raise DataError("the sample holds nothing to write")
            entries = {key: entry(f"{sample.uid}.{key}", data) for key, data in members.items()}
        except (DataError, UnicodeEncodeError) as error:
            raise DataError(f"{_shown(sample.uid)}: {error}") from error
        for key, data in members.items():
            self._put(entries[key], PART_OF[key], len(data))
        self._uids.add(sample.uid)
        self._columns |= _count(self.stats, sample, images=self.images)
        if sample.embeddings:
            self._dtypes.add(packed_dtype if packed is not None else self.dtype)

    def _put(self, data: bytes, part: str, size: int) -> None:
        assert self._out is not None
        self._out.write(data)
        self._hash.update(data)
        counts = self.stats.parts
        counts[part] = counts.get(part, 0) + size
        counts["tar"] = counts.get("tar", 0) + len(data) - size
        self.stats.bytes += len(data)

    def _finish(self) -> None:
        self._put(ending(self.stats.bytes), "tar", 0)
        self.stats.parts = dict(sorted(self.stats.parts.items()))
        self.stats.sha256 = self._hash.hexdigest()
        self.stats.columns = sorted(self._columns)
        self.stats.dtype = "+".join(sorted(self._dtypes))


class JsonlWriter:
    """Writes a jsonl shard for the `ml-mobileclip-dr` generator; embeddings are float32.

    A context manager like `ShardWriter`: if the block raises, nothing is left at `path`.

    Args:
        path: a local file, or an object in a store; ends in `.jsonl`, `.jsonl.gz` or `.jsonl.zst`.
        images: whether to write the images.

    Raises:
        DataError: the path has another suffix.
        MissingDependencyError: `.zst`, and zstandard is not installed.
    """

    def __init__(self, path: str, *, images: bool = True) -> None:
        self.path = str(path)
        if not self.path.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
            raise DataError(f"{path}: end the name in .jsonl, .jsonl.gz or .jsonl.zst")
        self.images = images
        self.stats = ShardStats(name=self.path.replace("\\", "/").rsplit("/", 1)[-1])
        self._uids: set[str] = set()
        self._columns: set[str] = set()
        self._stack = contextlib.ExitStack()
        self._file: _HashedFile | None = None
        self._out: Any = None

    def __enter__(self) -> JsonlWriter:
        local = self._stack.enter_context(storage.write_whole(self.path, tidy=False))
        self._file = _HashedFile(self._stack.enter_context(local.open("wb")))
        out: Any = self._file
        if self.path.endswith(".gz"):  # with neither name nor time in the file
            out = self._stack.enter_context(gzip.GzipFile("", "wb", 6, out, mtime=0))
        elif self.path.endswith(".zst"):
            packer = zstandard_module().ZstdCompressor()
            out = self._stack.enter_context(packer.stream_writer(out, closefd=False))
        self._out = out
        return self

    def __exit__(self, *error: Any) -> None:
        self._out = None
        self._stack.__exit__(*error)
        assert self._file is not None
        self.stats.bytes, self.stats.sha256 = self._file.bytes, self._file.hash.hexdigest()
        self.stats.parts = {"lines": self._file.bytes}
        self.stats.columns = sorted(self._columns)

    def write(self, sample: Sample) -> None:
        """Add a sample; when this raises, none of it was written and other samples can follow.

        Raises:
            DataError: as `ShardWriter.write`.
        """
        if self._out is None:
            raise DataError(f"{self.path}: {_NOT_OPEN}")
        sample = _checked(sample, self._uids)
        try:
            record = record_of(sample if self.images else replace(sample, image=None))
            line = dump(finite(record)) + b"\n"
        except (DataError, UnicodeEncodeError) as error:
            raise DataError(f"{_shown(sample.uid)}: {error}") from error
        self._out.write(line)
        self._uids.add(sample.uid)
        self._columns |= _count(self.stats, sample, images=self.images)
        if sample.embeddings:
            self.stats.dtype = "float32"


def _checked(sample: Sample, uids: Container[str], teacher_dims: Sequence[int] = ()) -> Sample:
    """Return `sample` with arrays as embeddings, if it may follow samples with these uids.

    Raises:
        DataError: it may not; the message begins with the uid.
    """
    sample = plain(sample)
    if sample.uid in uids:
        raise DataError(f"{_shown(sample.uid)}: another sample has this uid")
    for _, reason in faults(sample, teacher_dims):
        raise DataError(f"{_shown(sample.uid)}: {reason}")
    return sample


def _count(stats: ShardStats, sample: Sample, *, images: bool) -> set[str]:
    """Add a written sample to the statistics, and return its columns."""
    stats.samples += 1
    stats.dims = max([stats.dims, *(array.shape[1] for array in sample.embeddings.values())])
    return columns(sample) - (set() if images else {"image", "views"})


def _shown(uid: str) -> str:
    return uid if uid.isprintable() else repr(uid)  # a message is one line


class _HashedFile:
    """Counts and hashes the bytes written to a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hash = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def columns(sample: Sample) -> set[str]:
    """Return the columns of a sample, as the index lists them."""
    names = {*sample.captions, *sample.embeddings}
    for name in ("image", "param_aug", "url", "views"):
        if getattr(sample, name) is not None:
            names.add(name)
    return names | ({"meta"} if sample.meta else set())
