"""Random access to the samples of a tar shard: it is memory-mapped, and its headers scanned once.

    with MappedShard("00000000.tar") as shard:
        uid, contents = shard[17]  # {"jpg": b"...", "txt": b"...", ...}

The scan stores the offset of each sample (8 bytes per sample) and can be cached in a file for other
processes. Its fast path reads the plain headers of our own shards. Other headers, names with a
folder or with a dot in the key, and damaged archives are left to `pocketclip.shards.tar`.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketclip._deprecated import renamed_arguments
from pocketclip.errors import DataError
from pocketclip.formats.tar import MAX_MEMBER, padded, parse_plain_header
from pocketclip.shards.layout import PART_OF
from pocketclip.shards.tar import BLOCK, group_at, groups, members
from pocketclip.storage.local import write_whole

_ZEROS = bytes(BLOCK)


class _UnusualError(Exception):
    """A header that the fast path does not read."""


class MappedShard:
    """A local tar shard; a context manager.

    Args:
        path: the file.
        name: the name for messages; empty: the path.
        cache: a file with the cached scan, written if it does not exist; None: no cache.

    Raises:
        DataError: the archive is empty, truncated or damaged, or the file is missing.
    """

    @renamed_arguments(kept="cache")
    def __init__(self, path: Path, *, name: str = "", cache: Path | None = None) -> None:
        self._path, self.name = path, name or str(path)
        try:
            with path.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise DataError(f"{self.name}: the tar is empty (0 bytes)") from error
        except OSError as error:
            raise DataError(f"{self.name}: {error.strerror or error}") from error
        try:
            cached = _read_scan(cache) if cache is not None else None
            self._offsets = self._scan() if cached is None else cached
            if cached is None and cache is not None:
                _write_scan(cache, self._offsets)
        except BaseException:
            self._map.close()
            raise

    def __enter__(self) -> MappedShard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._map.close()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> tuple[str, dict[str, bytes]]:
        """Return the uid of sample `index`, from 0, and the contents of its members by key."""
        return self.read(index)

    def read(self, index: int, skip: Container[str] = ()) -> tuple[str, dict[str, bytes]]:
        """Return the uid of sample `index`, and its members by key without the keys in `skip`.

        Raises:
            DataError: the file was changed while it was read.
        """
        begin, end = int(self._offsets[index]), int(self._offsets[index + 1])
        try:
            uid, spans = self._spans(begin, end)
            wanted = {key: span for key, span in spans.items() if key not in skip}
            if sum(size for _, size in wanted.values()) > MAX_MEMBER:
                raise _UnusualError
        except _UnusualError:
            return self._read_any(begin, end, skip)
        return uid, {key: self._map[at : at + size] for key, (at, size) in wanted.items()}

    def read_lazily(self, index: int) -> tuple[str, Mapping[str, bytes]]:
        """Return the uid of sample `index`, and its members by key, each copied when it is taken.

        Raises:
            DataError: the file was changed while it was read.
        """
        begin, end = int(self._offsets[index]), int(self._offsets[index + 1])
        try:
            uid, spans = self._spans(begin, end)
        except _UnusualError:
            return self._read_any(begin, end, ())
        return uid, _Members(self._map, spans)

    def _spans(self, begin: int, end: int) -> tuple[str, dict[str, tuple[int, int]]]:
        """Return the uid of a sample, and (offset, size) of its members by key."""
        uid, spans = "", dict[str, tuple[int, int]]()
        for offset, name, size in self._members(begin, end):
            uid, key = _plain_name(name)
            spans.setdefault(key, (offset, size))
        return uid, spans

    def _read_any(self, begin: int, end: int, skip: Container[str]) -> tuple[str, dict[str, bytes]]:
        with self._path.open("rb") as stream:
            group = group_at(stream, begin, end, self.name)
        group.check([key for key in PART_OF if key not in skip])
        return group.uid, {key: data for key, data in group.members.items() if key not in skip}

    def _scan(self) -> NDArray[np.int64]:
        """Return the offset of each sample, and the end of the last one."""
        offsets, end = [], 0
        try:
            stem, seen = "", set[str]()
            for offset, name, size in self._members(0, len(self._map)):
                uid, key = _plain_name(name)
                if stem != uid or key in seen:
                    offsets.append(offset - BLOCK)
                    stem, seen = uid, set()
                seen.add(key)
                end = padded(offset + size)
            # Another archive may follow the end of this one.
            if not offsets or len(self._map) < end + 2 * BLOCK or not self._only_zeros_after(end):
                raise _UnusualError
            offsets.append(end)
        except _UnusualError:
            offsets = self._scan_any()
        return np.array(offsets, np.int64)

    def _only_zeros_after(self, begin: int) -> bool:
        """Return whether the file holds only zeros from `begin` on."""
        step = 1 << 20
        return not any(
            self._map[offset : offset + step].strip(b"\0")
            for offset in range(begin, len(self._map), step)
        )

    def _scan_any(self) -> list[int]:
        with self._path.open("rb") as stream:
            spans = [(g.begin, g.end) for g in groups(members(stream, self.name, load=False))]
        if not spans:
            raise DataError(f"{self.name}: the tar holds no samples")
        # Bytes between two samples count as the end of the first.
        return [begin for begin, _ in spans] + [spans[-1][1]]

    def _members(self, begin: int, end: int) -> Iterator[tuple[int, str, int]]:
        """Yield (offset of the contents, name, size) of each file, up to `end` or a zero block."""
        view, offset = self._map, begin
        while offset < end:
            header = view[offset : offset + BLOCK]
            if not header[0] and header == _ZEROS:
                return
            if len(header) < BLOCK:
                raise _UnusualError
            parsed = parse_plain_header(header)
            if parsed is None:
                raise _UnusualError
            name, size = parsed
            offset += BLOCK
            if padded(offset + size) > end:
                raise _UnusualError
            yield offset, name, size
            offset = padded(offset + size)


class _Members(Mapping[str, bytes]):
    """The members of a sample in a mapped file, by key."""

    def __init__(self, file: mmap.mmap, spans: Mapping[str, tuple[int, int]]) -> None:
        self._file, self._spans = file, spans

    def __getitem__(self, key: str) -> bytes:
        offset, size = self._spans[key]
        return self._file[offset : offset + size]

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __contains__(self, key: object) -> bool:
        return key in self._spans  # Mapping's own would copy the member


def _plain_name(name: str) -> tuple[str, str]:
    """Return uid and suffix if splitting at the first dot is enough."""
    uid, dot, suffix = name.partition(".")
    suffix = suffix.lower()
    if not uid or not dot or "/" in name or ("." in suffix and suffix not in PART_OF):
        raise _UnusualError
    return uid, suffix


def _read_scan(path: Path) -> NDArray[np.int64] | None:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def _write_scan(path: Path, offsets: NDArray[np.int64]) -> None:
    # On a full disk the next process scans again.
    with (
        contextlib.suppress(OSError),
        write_whole(path, tidy=False) as temporary,
        temporary.open("wb") as stream,
    ):
        np.save(stream, offsets, allow_pickle=False)
