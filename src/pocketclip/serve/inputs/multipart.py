"""Uploads: the parts of a `multipart/form-data` body, kept in memory.

    form = await read_multipart(request, max_parts=65)
    form.files("image")  # [b"...", ...]
    form.texts("labels")  # ["a cat", ...]

Starlette's own parser writes parts over 1 MB to a file. Here the size of the body, which
`admission` has checked, is the only limit on bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from pocketclip.serve.errors import RequestError

MAX_HEADERS = 16
"""Per part."""
MAX_HEADER_BYTES = 8192
"""Of all headers of a part."""
_INLINE = 1 << 18  # a larger body is parsed in a thread: it takes more than a millisecond
_BROKEN = "the multipart body is damaged: send it as the client library makes it"


class Part(NamedTuple):
    """One part of an upload."""

    name: str
    data: bytes
    filename: str | None
    """As the client calls it: not to be used as the name of a file."""
    content_type: str
    """In lower case and without parameters; "" if the part has none."""


@dataclass(frozen=True, slots=True)
class Form:
    """The parts of an upload, in order."""

    parts: Sequence[Part]

    def files(self, name: str) -> list[bytes]:
        """Return the contents of all parts of a name, with a file name or without."""
        return [part.data for part in self.parts if part.name == name]

    def texts(self, name: str) -> list[str]:
        """Return the contents of all parts of a name as texts.

        Raises:
            RequestError: 400, a part is not UTF-8.
        """
        try:
            return [data.decode("utf-8") for data in self.files(name)]
        except UnicodeDecodeError:
            raise RequestError(400, f"the part {name!r} is not UTF-8 text", param=name) from None

    def check_names(self, *names: str) -> None:
        """Refuse parts of other names, which are most probably misspelt.

        Raises:
            RequestError: 400, there is one.
        """
        for part in self.parts:
            if part.name not in names:
                raise RequestError(
                    400, f"a part has an unknown name; the names here are {', '.join(names)}"
                )


def is_multipart(request: Request) -> bool:
    """Return whether the body of a request is `multipart/form-data`."""
    return parse_options_header(request.headers.get("content-type"))[0] == b"multipart/form-data"


async def read_multipart(request: Request, *, max_parts: int) -> Form:
    """Return the parts of a `multipart/form-data` body.

    `await request.body()` still returns the body afterwards, to be passed on.

    Args:
        request: its body has been limited, see `admission`.
        max_parts: more are refused.

    Raises:
        RequestError: 415, the body is of another type; 400, it is damaged, cut off, or has too many
            parts.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise RequestError(415, "the body must be multipart/form-data")
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise RequestError(400, "the Content-Type of a multipart body needs a boundary")
    body = await request.body()
    if len(body) < _INLINE:
        return parse_multipart(body, boundary, max_parts=max_parts)
    return await asyncio.to_thread(parse_multipart, body, boundary, max_parts=max_parts)


def parse_multipart(body: bytes, boundary: bytes, *, max_parts: int) -> Form:
    """Return the parts of a body; see `read_multipart`.

    Args:
        body: all of it.
        boundary: from the Content-Type.
        max_parts: more are refused.

    Raises:
        RequestError: 400, it is damaged, cut off, or has too many parts.
    """
    collector = _Collector(max_parts)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": collector.begin,
                "on_header_field": collector.header_name,
                "on_header_value": collector.header_value,
                "on_header_end": collector.end_header,
                "on_part_data": collector.add,
                "on_part_end": collector.end,
                "on_end": collector.finish,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise RequestError(400, _BROKEN) from None
    if not collector.is_whole:
        raise RequestError(400, "the multipart body is cut off: its last boundary is missing")
    return Form(tuple(collector.parts))


class _Collector:
    """Receives what the parser finds."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[Part] = []
        self.is_whole = False
        self._max_parts = max_parts
        self._headers: dict[bytes, bytes] = {}
        self._name, self._value = bytearray(), bytearray()
        self._header_count = self._header_bytes = 0
        self._chunks: list[bytes] = []

    def begin(self) -> None:
        if len(self.parts) == self._max_parts:
            raise RequestError(400, f"the body has more than {self._max_parts} parts")
        self._headers, self._chunks = {}, []
        self._header_count = self._header_bytes = 0

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._value += data[start:end]

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES or self._header_count >= MAX_HEADERS:
            raise RequestError(400, "a part of the multipart body has too many headers")

    def end_header(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()
        self._header_count += 1

    def add(self, data: bytes, start: int, end: int) -> None:
        self._chunks.append(data[start:end])

    def end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        if b"name" not in options:
            raise RequestError(400, "a part of the multipart body has no name")
        kind, _ = parse_options_header(self._headers.get(b"content-type"))
        filename = options.get(b"filename")
        self.parts.append(
            Part(
                name=options[b"name"].decode("utf-8", "replace"),
                data=b"".join(self._chunks),
                filename=None if filename is None else filename.decode("utf-8", "replace"),
                content_type=kind.decode("latin-1"),
            )
        )
        self._chunks = []

    def finish(self) -> None:
        self.is_whole = True
