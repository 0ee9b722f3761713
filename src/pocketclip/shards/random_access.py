"""Any sample of a tar shard, at once: the file is memory-mapped, its headers are scanned once.

    with MappedShard("00000000.tar") as shard:
        uid, parts = shard[17]  # {"jpg": b"...", "txt": b"...", ...}

The scan notes where each sample begins and nothing else (8 bytes per sample); it can be kept, for
other processes. Headers other than the plain ones that shards are made of are left to
`pocketclip.shards.tar`, which also tells what is wrong with a damaged archive; so are names whose
key has a dot or a folder.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Container, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import DataError
from pocketclip.formats.tar import MAX_MEMBER, padded, parse_plain_header
from pocketclip.shards.layout import PART_OF
from pocketclip.shards.tar import BLOCK, group_at, groups, members
from pocketclip.storage.local import write_whole

_ZEROS = bytes(BLOCK)


class _UnusualError(Exception):
    """A header that is not a plain one."""


class MappedShard:
    """A local tar shard; a context manager.

    Args:
        path: the file.
        name: in messages; default: the path.
        kept: where the scan is kept, or to be kept, as a file; None: nowhere.

    Raises:
        DataError: the archive is empty, cut or damaged, or the file is missing.
    """

    def __init__(self, path: Path, *, name: str = "", kept: Path | None = None) -> None:
        self._path, self.name = path, name or str(path)
        try:
            with path.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise DataError(f"{self.name}: the tar is empty: its end is missing") from error
        except OSError as error:
            raise DataError(f"{self.name}: {error.strerror or error}") from error
        try:
            found = _read(kept) if kept is not None else None
            self._begins = self._scan() if found is None else found
            if found is None and kept is not None:
                _write(kept, self._begins)
        except BaseException:
            self._map.close()
            raise

    def __enter__(self) -> MappedShard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()

    def __len__(self) -> int:
        return len(self._begins) - 1

    def __getitem__(self, index: int) -> tuple[str, dict[str, bytes]]:
        """Return the uid of sample `index`, from 0, and its members' bytes by key."""
        return self.read(index)

    def read(self, index: int, unwanted: Container[str] = ()) -> tuple[str, dict[str, bytes]]:
        """Return what `[index]` does, without the members of some keys.

        Raises:
            DataError: no sample stands there; the file has changed.
        """
        begin, end = int(self._begins[index]), int(self._begins[index + 1])
        uid, parts, total = "", {}, 0
        try:
            for place, title, size in self._members(begin, end):
                uid, key = _plain_name(title)
                if key in unwanted or key in parts:
                    continue
                total += size
                if total > MAX_MEMBER:
                    raise _UnusualError
                parts[key] = self._map[place : place + size]
        except _UnusualError:
            return self._read_any(begin, end, unwanted)
        return uid, parts

    def _read_any(
        self, begin: int, end: int, unwanted: Container[str]
    ) -> tuple[str, dict[str, bytes]]:
        with self._path.open("rb") as stream:
            group = group_at(stream, begin, end, self.name)
        group.check([key for key in PART_OF if key not in unwanted])
        return group.uid, {key: data for key, data in group.parts.items() if key not in unwanted}

    def _scan(self) -> NDArray[np.int64]:
        """Return where each sample begins, and where the last one ends."""
        begins, end = [], 0
        try:
            stem, seen = "", set[str]()
            for place, title, size in self._members(0, len(self._map)):
                uid, key = _plain_name(title)
                if stem != uid or key in seen:
                    begins.append(place - BLOCK)
                    stem, seen = uid, set()
                seen.add(key)
                end = padded(place + size)
            # Another archive may follow the end of this one.
            if not begins or len(self._map) < end + 2 * BLOCK or not self._blank(end):
                raise _UnusualError
            begins.append(end)
        except _UnusualError:
            begins = self._scan_any()
        return np.array(begins, np.int64)

    def _blank(self, begin: int) -> bool:
        """Return whether nothing but zeros follows."""
        step = 1 << 20
        return not any(
            self._map[place : place + step].strip(b"\0")
            for place in range(begin, len(self._map), step)
        )

    def _scan_any(self) -> list[int]:
        with self._path.open("rb") as stream:
            spans = [(g.begin, g.end) for g in groups(members(stream, self.name, load=False))]
        if not spans:
            raise DataError(f"{self.name}: the tar holds no samples")
        # What stands between two samples is taken for the end of the first.
        return [begin for begin, _ in spans] + [spans[-1][1]]

    def _members(self, begin: int, end: int) -> Iterator[tuple[int, str, int]]:
        """Yield (begin of the bytes, name, size) of each file up to `end`, or to a zero block."""
        view, place = self._map, begin
        while place < end:
            header = view[place : place + BLOCK]
            if not header[0] and header == _ZEROS:
                return
            if len(header) < BLOCK:
                raise _UnusualError
            parsed = parse_plain_header(header)
            if parsed is None:
                raise _UnusualError
            title, size = parsed
            place += BLOCK
            if padded(place + size) > end:
                raise _UnusualError
            yield place, title, size
            place = padded(place + size)


def _plain_name(title: str) -> tuple[str, str]:
    """Return uid and suffix where no rule but the first dot is needed to tell them apart."""
    uid, dot, suffix = title.partition(".")
    suffix = suffix.lower()
    if not uid or not dot or "/" in title or ("." in suffix and suffix not in PART_OF):
        raise _UnusualError
    return uid, suffix


def _read(path: Path) -> NDArray[np.int64] | None:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def _write(path: Path, begins: NDArray[np.int64]) -> None:
    # A full disk only means that the next process scans again.
    with (
        contextlib.suppress(OSError),
        write_whole(path, tidy=False) as temporary,
        temporary.open("wb") as stream,
    ):
        np.save(stream, begins, allow_pickle=False)
