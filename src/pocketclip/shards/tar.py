"""Samples in tar archives: members that follow one another under the same key.

    for group in groups(members(stream, "00000000.tar")):
        group.uid, group.parts["jpg"]

One sample is held at a time, and each says where it begins, so that a reader with a map of
offsets can fetch any sample by itself. The headers are read by `pocketclip.formats.tar`.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from pocketclip.errors import DataError
from pocketclip.formats.tar import (
    BLOCK,
    MAX_MEMBER,
    Member,
    TarError,
    keyed,
    members,
    uid_of_key,
)

__all__ = ["BLOCK", "Group", "Member", "ending", "entry", "group_at", "group_in", "groups"]
__all__ += ["members"]

_END = 2 * BLOCK  # zeros that end an archive; more may follow


@dataclass(slots=True)
class Group:
    """The members of one sample."""

    uid: str
    """Its key, with `_` for slashes and dots."""
    bare_uid: str
    """The same without folders."""
    begin: int
    end: int = 0
    parts: dict[str, bytes] = field(default_factory=dict)
    """Bytes by suffix, which is in small letters, see `tarfiles.split_name`."""
    names: dict[str, str] = field(default_factory=dict)
    """The members' whole names by suffix, for messages."""
    sizes: dict[str, int] = field(default_factory=dict)
    """The members' bytes by suffix, of those too whose data cannot be had."""
    faults: dict[str, str] = field(default_factory=dict)
    """Why the data of a member cannot be had, by suffix."""

    def check(self, wanted: Container[str]) -> None:
        """Refuse the sample if a member whose suffix is among `wanted` cannot be had.

        Raises:
            DataError: so it is; the message begins with the suffix.
        """
        for suffix, fault in self.faults.items():
            if suffix in wanted:
                raise DataError(f"{suffix}: {fault}")

    def add(self, suffix: str, member: Member) -> None:
        """Take in one more member."""
        self.names[suffix], self.sizes[suffix] = member.name, member.size
        self.end = member.end
        fault = member.fault
        if not fault and sum(map(len, self.parts.values())) + len(member.data) > MAX_MEMBER:
            fault = f"the sample has more than the limit of {MAX_MEMBER:,} bytes in all"
        if fault:
            self.faults[suffix] = fault
        else:
            self.parts[suffix] = member.data


def groups(found: Iterator[Member]) -> Iterator[Group]:
    """Yield the samples of an archive: neighbouring members of one key.

    A suffix that comes a second time begins another sample of the same uid. Names without a dot
    are not of a sample. When the archive turns out to be cut, the sample it was cut in is not
    yielded.

    Raises:
        TarError: what `members` raises.
    """
    group: Group | None = None
    current = ""
    try:
        for key, suffix, member in keyed(found):
            if group is not None and (key != current or suffix in group.names):
                yield group
                group = None
            if group is None:
                group, current = _begun(key, member.begin), key
            group.add(suffix, member)
    except TarError as error:
        if group is not None and error.spares(current):
            yield group
        raise
    if group is not None:
        yield group


def _begun(key: str, begin: int) -> Group:
    return Group(uid_of_key(key), uid_of_key(key.rpartition("/")[2]), begin)


def group_at(stream: BinaryIO, begin: int, end: int, name: str) -> Group:
    """Return the one sample that stands between two bytes of the archive `name`.

    Raises:
        DataError: there is not one whole sample.
    """
    stream.seek(begin)
    found = list(groups(members(stream, name, end=end)))
    if len(found) != 1 or found[0].end > end:
        raise DataError(f"{name}: no whole sample where one was; the file has changed")
    return found[0]


def group_in(data: bytes, name: str) -> Group:
    """Return the sample that is the bytes `Group.begin` to `Group.end` of the archive `name`.

    Raises:
        DataError: they are not one whole sample.
    """
    return group_at(io.BytesIO(data), 0, len(data), name)


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


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
