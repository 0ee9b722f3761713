"""Tar archives as shards need them: streamed, with offsets, and strict about their end.

    for group in groups(members(stream, "00000000.tar")):
        group.uid, group.parts["jpg"]

The standard library's reader keeps every header in memory and takes a file that was cut between
two members for a whole one. This one holds one sample at a time, and says where each begins, so
that a reader with a map of offsets can fetch any sample by itself.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from pocketclip.errors import DataError
from pocketclip.shards.codec import MAX_BYTES

BLOCK = 512
_ZEROS = bytes(BLOCK)
_FILE = b"0\0" + b"7"
_END = 2 * BLOCK  # zeros that end an archive; more may follow


@dataclass(slots=True, frozen=True)
class Member:
    """One file of an archive."""

    name: str
    begin: int
    """Where its first header stands, extended headers included."""
    end: int
    """Where the next member begins."""
    size: int
    data: bytes = b""
    """Empty if it was not asked for."""


@dataclass(slots=True)
class Group:
    """The members of one sample."""

    uid: str
    begin: int
    end: int = 0
    parts: dict[str, bytes] = field(default_factory=dict)
    """Bytes by key, which is the lower-case name after the first dot."""
    names: dict[str, str] = field(default_factory=dict)
    """The members' whole names by key, for messages."""


def members(stream: BinaryIO, name: str, *, load: bool = True) -> Iterator[Member]:
    """Yield the files of the archive that begins where `stream` stands.

    Args:
        stream: positioned at a header; with `load` it is only read forwards.
        name: of the archive, for messages.
        load: whether to read the members' bytes; without, they are skipped by seeking.

    Raises:
        DataError: the archive is cut or damaged. What came before it is good.
    """
    place = stream.tell() if stream.seekable() else 0
    begin, path, size = place, None, None
    while True:
        header = stream.read(BLOCK)
        if header == _ZEROS:
            _check_end(stream, name)
            return
        if len(header) < BLOCK:
            what = f"cut at byte {place + len(header)}" if place else "empty"
            raise DataError(f"{name}: the tar is {what}: its end is missing")
        info = _parse(header, name, place)
        length = info.size if size is None else size
        place += BLOCK
        if info.type in (b"x", b"g", b"L", b"K"):
            data = _take(stream, length, name, info.name)
            place += _padded(length)
            if info.type == b"x":
                path, size = _extended(data, name)
            elif info.type == b"L":
                path = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
            continue
        title = info.name if path is None else path
        regular = info.type in (b"0", b"\0", b"7")
        if not regular and info.type != b"5":
            raise DataError(f"{name}: {title} is a link or device, not a file; unpack it yourself")
        stored = length if regular else 0
        data = b""
        if load and regular:
            data = _take(stream, stored, name, title)
        elif stored:
            stream.seek(_padded(stored), io.SEEK_CUR)
        place += _padded(stored)
        if regular:
            yield Member(title, begin, place, stored, data)
        begin, path, size = place, None, None


def groups(found: Iterator[Member]) -> Iterator[Group]:
    """Yield the samples of an archive: neighbouring members of one base name.

    A key that comes a second time begins another sample of the same uid. Names without a dot
    are not of a sample. When the archive turns out to be cut, the sample it was cut in is not
    yielded.

    Raises:
        DataError: what `members` raises.
    """
    group: Group | None = None
    stem = ""
    for member in found:
        folder, _, base = member.name.rpartition("/")
        uid, dot, key = base.partition(".")
        if not dot or not uid:
            continue
        key = key.lower()
        if group is not None and (f"{folder}/{uid}" != stem or key in group.parts):
            yield group
            group = None
        if group is None:
            group, stem = Group(uid, member.begin), f"{folder}/{uid}"
        group.parts[key] = member.data
        group.names[key] = member.name
        group.end = member.end
    if group is not None:
        yield group


def group_in(data: bytes, name: str) -> Group:
    """Return the sample that is the bytes `Group.begin` to `Group.end` of the archive `name`.

    Raises:
        DataError: they are not one whole sample.
    """
    found = list(groups(members(io.BytesIO(data + bytes(_END)), name)))
    if len(found) != 1 or found[0].end != len(data):
        raise DataError(f"{name}: no whole sample where one was; the file has changed")
    return found[0]


def entry(name: str, data: bytes) -> bytes:
    """Return what stands in an archive for the file `name`: header, bytes, padding.

    Nobody's name, no time and no machine are in it.
    """
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    head = info.tobuf(tarfile.PAX_FORMAT)
    return head + data + bytes(_padded(len(data)) - len(data))


def ending(size: int) -> bytes:
    """Return the zeros that end an archive of `size` bytes; archives are read in 10,240 bytes."""
    return bytes(_END + -(size + _END) % tarfile.RECORDSIZE)


@dataclass(slots=True, frozen=True)
class _Header:
    name: str
    size: int
    type: bytes


def _parse(header: bytes, name: str, place: int) -> _Header:
    try:
        said = int(header[148:156].strip(b" \0") or b"0", 8)
        if said != sum(header[:148]) + 8 * 32 + sum(header[156:]):
            raise ValueError
        size = _number(header[124:136])
    except ValueError as error:
        if place == 0 and header[:2] == b"\x1f\x8b":
            raise DataError(f"{name}: the tar is gzipped; unpack it first (gunzip)") from error
        what = f"damaged at byte {place}" if place else "no tar archive"
        raise DataError(f"{name}: {what}: no header stands there") from error
    title = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0":  # GNU's own form has other things in the prefix
        prefix = header[345:500].split(b"\0", 1)[0]
        title = prefix + b"/" + title if prefix else title
    return _Header(title.decode("utf-8", "surrogateescape"), size, header[156:157])


def _number(digits: bytes) -> int:
    if digits[0] == 0x80:  # base 256, for sizes of 8 GiB and more
        return int.from_bytes(digits[1:], "big")
    return int(digits.split(b"\0", 1)[0].strip() or b"0", 8)


def _extended(data: bytes, name: str) -> tuple[str | None, int | None]:
    """Return path and size of an extended header: records of `LENGTH KEY=VALUE`."""
    path, size = None, None
    while data.strip(b"\0"):
        length, space, _ = data.partition(b" ")
        if not space or not length.isdigit() or not 0 < int(length) <= len(data):
            raise DataError(f"{name}: damaged extended header")
        record = data[len(length) + 1 : int(length) - 1]
        key, _, value = record.partition(b"=")
        if key == b"path":
            path = value.decode("utf-8", "surrogateescape")
        elif key == b"size":
            if not value.isdigit():
                raise DataError(f"{name}: damaged extended header")
            size = int(value)
        data = data[int(length) :]
    return path, size


def _take(stream: BinaryIO, size: int, name: str, title: str) -> bytes:
    if size > MAX_BYTES:
        raise DataError(f"{name}: {title} has {size} bytes, more than the limit of {MAX_BYTES}")
    data = stream.read(_padded(size))
    if len(data) < _padded(size):
        raise DataError(f"{name}: the tar is cut in the middle of {title}")
    return data[:size]


def _check_end(stream: BinaryIO, name: str) -> None:
    rest = stream.read(BLOCK)
    if rest != _ZEROS:
        raise DataError(f"{name}: the tar's end is cut or damaged: a block of zeros is missing")
    while rest := stream.read(1 << 16):
        if rest.strip(b"\0"):
            raise DataError(f"{name}: data follow the tar's end; unpack and pack it again")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
