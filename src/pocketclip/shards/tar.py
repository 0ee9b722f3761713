"""Samples in tar archives: consecutive members with the same key.

    for group in groups(members(stream, "00000000.tar")):
        group.uid, group.members["jpg"]

One sample is in memory at a time. Each has its offsets, so that it can be read alone later.
`pocketclip.formats.tar` reads the headers.
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
    padded,
    uid_of_key,
)

__all__ = ["BLOCK", "Group", "Member", "ending", "entry", "group_at", "group_in", "groups"]
__all__ += ["members"]

_END = 2 * BLOCK  # zeros that end an archive; more may follow


@dataclass(slots=True)
class Group:
    """The members of one sample."""

    uid: str
    """The sample's key, with `_` for slashes and dots."""
    bare_uid: str
    """The uid without the folders."""
    begin: int
    """Offset of the first header."""
    end: int = 0
    """Offset behind the last member."""
    members: dict[str, bytes] = field(default_factory=dict)
    """Contents by suffix in small letters, see `pocketclip.formats.tar.split_name`."""
    names: dict[str, str] = field(default_factory=dict)
    """The members' names by suffix, for messages."""
    sizes: dict[str, int] = field(default_factory=dict)
    """The members' sizes by suffix, including unreadable members."""
    faults: dict[str, str] = field(default_factory=dict)
    """Why a member is unreadable, by suffix."""

    def check(self, suffixes: Container[str]) -> None:
        """Check that the members with these suffixes are readable.

        Raises:
            DataError: one is not; the message begins with its suffix.
        """
        for suffix, fault in self.faults.items():
            if suffix in suffixes:
                raise DataError(f"{suffix}: {fault}")

    def add(self, suffix: str, member: Member) -> None:
        """Add a member."""
        self.names[suffix], self.sizes[suffix] = member.name, member.size
        self.end = member.end
        fault = member.fault
        if not fault and sum(map(len, self.members.values())) + len(member.data) > MAX_MEMBER:
            fault = f"the sample has more than the limit of {MAX_MEMBER:,} bytes in all"
        if fault:
            self.faults[suffix] = fault
        else:
            self.members[suffix] = member.data


def groups(archive: Iterator[Member]) -> Iterator[Group]:
    """Yield the samples of an archive: consecutive members with one key.

    A repeated suffix begins another sample of the same uid. Members without a dot in their name
    belong to no sample. If the archive is cut, the sample at the cut is not yielded.

    Raises:
        TarError: as `members`.
    """
    group: Group | None = None
    current = ""
    try:
        for key, suffix, member in keyed(archive):
            if group is not None and (key != current or suffix in group.names):
                yield group
                group = None
            if group is None:
                group, current = _new_group(key, member.begin), key
            group.add(suffix, member)
    except TarError as error:
        if group is not None and error.spares(current):
            yield group
        raise
    if group is not None:
        yield group


def _new_group(key: str, begin: int) -> Group:
    return Group(uid_of_key(key), uid_of_key(key.rpartition("/")[2]), begin)


def group_at(stream: BinaryIO, begin: int, end: int, name: str) -> Group:
    """Return the one sample between two offsets of the archive `name`.

    Raises:
        DataError: there is not exactly one whole sample.
    """
    stream.seek(begin)
    samples = list(groups(members(stream, name, end=end)))
    if len(samples) != 1 or samples[0].end > end:
        raise DataError(
            f"{name}: no whole sample at bytes {begin:,} to {end:,}; the file was changed while it "
            "was read: run again"
        )
    return samples[0]


def group_in(data: bytes, name: str) -> Group:
    """Return the sample in bytes `Group.begin` to `Group.end` of the archive `name`.

    Raises:
        DataError: the bytes are not exactly one whole sample.
    """
    return group_at(io.BytesIO(data), 0, len(data), name)


def entry(name: str, data: bytes) -> bytes:
    """Return the bytes of an archive for the file `name`: header, contents, padding.

    They depend on name and contents only, not on user, time or machine.
    """
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    head = info.tobuf(tarfile.PAX_FORMAT)
    return head + data + bytes(padded(len(data)) - len(data))


def ending(size: int) -> bytes:
    """Return the zeros that end an archive of `size` bytes; its length is a multiple of 10,240."""
    return bytes(_END + -(size + _END) % tarfile.RECORDSIZE)
