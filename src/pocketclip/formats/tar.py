"""Tar archives from anywhere, streamed: plain, concatenated, truncated, damaged or hostile.

    for key, suffix, member in keyed(members(stream, "00000000.tar")):
        key, suffix, member.data  # "cat/0001", "syn.json", b"..."

The only reader of tar headers in this package. The standard library's reader keeps every header
in memory, ends at the first block of zeros, accepts a file that was cut between two members, and
loops forever on a negative size. This one holds one member at a time and limits all that it
allocates.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from pocketclip.errors import DataError

BLOCK = 512
MAX_MEMBER = 1 << 28
"""Limit on the bytes of a member, and on the bytes read for one sample: 256 MiB."""
MAX_EXTENDED = 1 << 20
"""Limit on the bytes of an extended header, which holds a long name: 1 MiB."""
_LARGEST_SIZE = 1 << 62
_ZEROS = bytes(BLOCK)
_SKIP = 1 << 20
_FILES = b"0\0" + b"7"
_EXTENDED = (b"x", b"X", b"g", b"L", b"K")
_WITHOUT_DATA = b"123456"
_DOUBLE = frozenset({"url.txt", "syn.json", "paug.json", "pth.gz"})
_PACKED = frozenset({"gz", "zst", "bz2", "xz"})
_WORD = re.compile(r"[A-Za-z_\-]+")
_LINK = "is a link or device, not a file; pack the tar again with --dereference"
_SPARSE = "is stored as a sparse file; pack the tar again without --sparse"


class TarError(DataError):
    """A truncated or damaged archive; the members before the damage are good.

    Attributes:
        after_end: whether an end-of-archive mark precedes the damage.
        within: the name of the damaged member, or empty.
    """

    after_end = False
    within = ""

    def spares(self, key: str) -> bool:
        """Return whether a sample of this key, which precedes the damage, is complete."""
        return self.after_end or (self.within != "" and split_name(self.within)[0] != key)


@dataclass(slots=True, frozen=True)
class Member:
    """One file of an archive."""

    name: str
    begin: int
    """Offset of its first header, which may be an extended one."""
    end: int
    """Offset of the next member."""
    size: int
    data: bytes = b""
    """Its bytes; empty if they were not requested or cannot be read."""
    fault: str = ""
    """Why its data cannot be read; empty if it can."""


def members(
    stream: BinaryIO,
    name: str,
    *,
    load: bool | Callable[[str], bool] = True,
    end: int | None = None,
) -> Iterator[Member]:
    """Yield the files, not the folders, of the archive at the current position of `stream`.

    Concatenated archives are read like one.

    Args:
        stream: positioned at a header; a stream that cannot seek is read forwards.
        name: the archive's name in error messages.
        load: whether to read the members' bytes, or a function that decides by name.
        end: offset to stop at; None for the end of the file.

    Raises:
        TarError: the archive is empty, truncated or damaged; the members yielded before are good.
    """
    source = _Source(stream, name)
    begin, about = source.offset, _About()
    while end is None or source.offset < end:
        header = source.read(BLOCK)
        if not header.strip(b"\0"):
            if len(header) < BLOCK and source.zeros < 2:
                raise source.error(source.cut())
            if len(header) < BLOCK:
                return
            source.skip_zeros()
            begin, about = source.offset, _About()
            continue
        if len(header) < BLOCK:
            raise source.error(source.cut())
        title, size, kind = source.parse(header)
        source.zeros = 0
        if kind in _EXTENDED:
            about = about.extended(kind, source.extended(size), source)
            continue
        title = title if about.path is None else about.path
        size = size if about.size is None else about.size
        if kind in _WITHOUT_DATA or (kind == b"\0" and title.endswith("/")):
            size = 0
        fault, source.within = _fault(kind, size, about), title
        if kind == b"S":
            source.skip_map(header)
        loads = load if isinstance(load, bool) else load(title)
        data = source.take(size) if loads and not fault else b""
        if not data:
            source.skip(padded(size))
        source.within = ""
        if kind != b"5" and not title.endswith("/"):
            yield Member(title, begin, source.offset, size, data, fault)
        begin, about = source.offset, _About()


def _fault(kind: bytes, size: int, about: _About) -> str:
    if kind in b"12346":
        return _LINK
    if kind == b"S" or about.sparse:
        return _SPARSE
    if kind not in _FILES and kind != b"5":
        return f"is of the type {kind!r}, not a plain file"
    if size > MAX_MEMBER:
        return f"has {size:,} bytes, more than the limit of {MAX_MEMBER:,}"
    return ""


def read_number(digits: bytes) -> int:
    """Return the number in a header's field: octal, or base 256 if its first bit is set.

    Raises:
        ValueError: the field is not a number, or it is negative or at least 2^62.
    """
    if digits[0] & 0x80:
        value = int.from_bytes(digits, "big") - (0x80 << 8 * (len(digits) - 1))
        if digits[0] & 0x40:
            raise ValueError("a negative number")
    else:
        text = digits.split(b"\0", 1)[0].strip(b" ")
        if text.strip(b"01234567"):  # `int` also takes signs and underscores
            raise ValueError("not an octal number")
        value = int(text or b"0", 8)
    if value >= _LARGEST_SIZE:
        raise ValueError("a number larger than any file")
    return value


def parse_plain_header(header: bytes) -> tuple[str, int] | None:
    """Return name and size of a header of the simplest kind, else None; it is not verified.

    Simple is what shards are made of: a ustar header of a plain file, whose name has no prefix.
    """
    if header[257:262] != b"ustar" or header[156] not in b"0\0" or header[345]:
        return None
    try:
        size = read_number(header[124:136])
        return header[:100].split(b"\0", 1)[0].decode("utf-8"), size
    except ValueError:
        return None


def _read_decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20 or int(digits) >= _LARGEST_SIZE:
        raise ValueError("not the size of a file")
    return int(digits)


class _About:
    """The fields of the next member that extended headers override."""

    def __init__(
        self, path: str | None = None, size: int | None = None, *, sparse: bool = False
    ) -> None:
        self.path, self.size, self.sparse = path, size, sparse

    def extended(self, kind: bytes, data: bytes, source: _Source) -> _About:
        """Return these fields, updated by one more extended header."""
        if kind == b"L":
            path = data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            return _About(path, self.size, sparse=self.sparse)
        if kind not in b"xX":
            return self
        try:
            path_, size, sparse = self.path, self.size, self.sparse
            for key, value in _records(data):
                if key in (b"path", b"GNU.sparse.name"):
                    path_ = value.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
                elif key == b"size":
                    size = _read_decimal(value)
                sparse = sparse or key.startswith(b"GNU.sparse.")
        except ValueError as error:
            raise source.error("damaged extended header") from error
        return _About(path_, size, sparse=sparse)


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield key and value of each record `LENGTH KEY=VALUE` of an extended header."""
    offset = 0
    while offset < len(data) and data[offset : offset + 1] != b"\0":
        space = data.find(b" ", offset, offset + 12)
        if space < 0:
            raise ValueError("a record without a length")
        length = _read_decimal(data[offset:space])
        if length <= space - offset or offset + length > len(data):
            raise ValueError("a record longer than its header")
        key, _, value = data[space + 1 : offset + length - 1].partition(b"=")
        yield key, value
        offset += length


class _Source:
    """The bytes of an archive and the offset in it; raises TarError where they end too early."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.stream, self.name = stream, name
        self.offset, self.size = 0, -1
        self.seekable = stream.seekable()
        if self.seekable:
            self.offset = stream.tell()
            self.size = stream.seek(0, io.SEEK_END)
            stream.seek(self.offset)
        self.first = self.offset
        self.within = ""
        self.extended_before = False
        self.zeros = 0
        """Number of zero blocks directly before this offset."""
        self._ahead = b""  # read ahead, not consumed yet

    def error(self, reason: str) -> TarError:
        error = TarError(f"{self.name}: {reason}")
        error.after_end, error.within = self.zeros > 0, self.within
        return error

    def cut(self) -> str:
        if self.offset == 0:
            return "the tar is empty (0 bytes)"
        return f"the tar is truncated at byte {self.offset:,}"

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer at the end of the stream."""
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        if len(data) < size:
            try:
                data = data + self.stream.read(size - len(data)) if data else self.stream.read(size)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise self.error(f"the tar is truncated or damaged: {error}") from error
        self.offset += len(data)
        return data

    def take(self, size: int) -> bytes:
        """Return the bytes of a member and skip its padding."""
        self._check(size)
        data = self.read(size)
        if len(data) < size:
            raise self.error(self.cut())
        self.skip(padded(size) - size)
        return data

    def skip(self, size: int) -> None:
        self._check(size)
        if self.seekable and not self._ahead:
            self.offset += size
            if size:
                self.stream.seek(self.offset)
            return
        while size > 0:
            data = self.read(min(size, _SKIP))
            if not data:
                raise self.error(self.cut())
            size -= len(data)

    def _check(self, size: int) -> None:
        if self.seekable and self.offset + size > self.size:
            self.offset = self.size
            raise self.error(self.cut())

    def skip_zeros(self) -> None:
        """Skip the zero blocks that follow the one just read."""
        self.zeros += 1
        while True:
            data = self.read(_SKIP if self.zeros > 1 else BLOCK)
            blank = len(data) - len(data.lstrip(b"\0"))
            whole = (blank if blank < len(data) else len(data)) // BLOCK
            self.zeros += whole
            excess = data[whole * BLOCK :]
            self.offset -= len(excess)
            self._ahead = excess + self._ahead
            if excess or not data:
                return

    def parse(self, header: bytes) -> tuple[str, int, bytes]:
        """Return name, size and type of a header that was just read."""
        try:
            checksum = read_number(header[148:156])
            body = header[:148] + header[156:]
            signed = sum(body) - 256 * sum(byte > 127 for byte in body)  # as old programs add up
            if checksum not in (sum(body) + 8 * 32, signed + 8 * 32):
                raise ValueError("a wrong checksum")
            title = header[:100].split(b"\0", 1)[0]
            if header[257:263] == b"ustar\0":  # GNU's format uses the prefix for other fields
                prefix = header[345:500].split(b"\0", 1)[0]
                title = prefix + b"/" + title if prefix else title
            name, kind = title.decode("utf-8", "surrogateescape"), header[156:157]
            if kind not in _EXTENDED and not self.extended_before:
                self.within = name
            size = read_number(header[124:136])
        except ValueError as error:
            begin = self.offset - BLOCK
            if begin == self.first == 0 and header[:2] == b"\x1f\x8b":
                raise self.error("the tar is gzipped; unpack it first (gunzip)") from error
            what = f"damaged at byte {begin:,}" if begin else "not a tar archive"
            raise self.error(f"{what}: there is no valid header") from error
        self.within = ""
        self.extended_before = kind in _EXTENDED
        return name, size, kind

    def extended(self, size: int) -> bytes:
        """Return the contents of an extended header."""
        if size > MAX_EXTENDED:
            raise self.error(
                f"damaged extended header: {size:,} bytes exceed the limit of {MAX_EXTENDED:,}"
            )
        return self.take(size)

    def skip_map(self, header: bytes) -> None:
        """Skip the blocks that continue a sparse file's map."""
        more = header[482]
        while more:
            block = self.read(BLOCK)
            if len(block) < BLOCK:
                raise self.error(self.cut())
            more = block[504]


def padded(size: int) -> int:
    """Return `size` rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def split_name(name: str, known: frozenset[str] = frozenset()) -> tuple[str, str]:
    """Return the key and suffix of a member's name; both are empty if it belongs to no sample.

    The key is the path up to the last dot, the suffix the text after it in lower case. Suffixes
    that contain a dot themselves are those of shards (`syn.json`, `pth.gz`, ...), of compressed
    files (`npy.gz`) and those in `known`. Hidden files, and files that macOS and tar programs add,
    belong to no sample.
    """
    folder, _, base = name.rpartition("/")
    if folder:
        if folder.startswith(("PaxHeader", "__MACOSX")):
            return "", ""
        if folder.startswith(("/", ".")) or "//" in folder or "/." in folder:
            folder = "/".join(part for part in folder.split("/") if part not in ("", "."))
    if "." not in base or base.startswith("."):
        return "", ""
    deepest = max([2, *(suffix.count(".") + 1 for suffix in known)])
    parts = base.rsplit(".", deepest)
    stem, suffix = base.rpartition(".")[::2]
    for count in range(len(parts) - 1, 1, -1):
        longer = ".".join(parts[-count:]).lower()
        packed = count == 2 and parts[-1].lower() in _PACKED
        if longer in _DOUBLE or longer in known or packed:
            stem, suffix = base[: -len(longer) - 1], longer
            break
    if not stem:
        return "", ""
    return (f"{folder}/{stem}" if folder else stem), suffix.lower()


def keyed(
    files: Iterable[Member], known: frozenset[str] = frozenset()
) -> Iterator[tuple[str, str, Member]]:
    """Yield (key, suffix, member) for each member that belongs to a sample, see `split_name`.

    A single file `0001.mask.png` next to others with the key `0001` belongs to that sample, with
    the suffix `mask.png`. Two files with the key `0001.mask` are a sample of their own.

    Raises:
        TarError: as `members`.
    """
    current = ""
    pending: tuple[str, str, Member] | None = None
    try:
        for member in files:
            key, suffix = split_name(member.name, known)
            if not key:
                continue
            if pending is not None:
                yield _assigned(pending, current, key)
                current, pending = _assigned(pending, current, key)[0], None
            if key != current and "." in key.rpartition("/")[2]:
                pending = key, suffix, member  # the next member decides
                continue
            current = key
            yield key, suffix, member
    except TarError as error:
        if pending is not None and error.spares(pending[0]):
            yield _assigned(pending, current, split_name(error.within, known)[0])
        raise
    if pending is not None:
        yield _assigned(pending, current, "")


def _assigned(pending: tuple[str, str, Member], before: str, after: str) -> tuple[str, str, Member]:
    """Return `pending`, with the key of the sample before or after if it belongs to that one."""
    key, suffix, member = pending
    if key == after:
        return pending
    for other in (before, after):
        middle = key[len(other) + 1 :]
        if other and key.startswith(f"{other}.") and _WORD.fullmatch(middle):
            return other, f"{middle}.{suffix}".lower(), member
    return pending


def uid_of_key(key: str) -> str:
    """Return the uid for a sample's key: uids have neither dots nor slashes."""
    return key.replace("/", "_").replace(".", "_")
