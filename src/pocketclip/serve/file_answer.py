"""Answers that are files, read piece by piece, so that their size costs no memory; and conditions.

return await file_answer(request, path, size, headers)
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pocketclip.errors import PocketclipError
from pocketclip.serve.errors import RequestError

CHUNK = 1 << 18
"""Bytes that are read at a time."""
FOR_EVER = "max-age=31536000, immutable"
"""For addresses that change with their content."""
_ETAG = re.compile(r'(?:W/)?"([^"]*)"')
_THREADS = 4
log = logging.getLogger(__name__)


class Readable(Protocol):
    """An opened file."""

    def read(self, first: int, count: int, /) -> bytes:
        """Return bytes from a position on; none at the end."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


Submit = Callable[[Callable[[int, int], bytes], int, int], "Future[bytes]"]
"""Calls a function in a thread."""


def client_has(request: Request, etag: str) -> bool:
    """Return whether the client has the bytes already (RFC 9110, section 13).

    Raises:
        RequestError: 412, it wants others.
    """
    match, none = request.headers.get("if-match"), request.headers.get("if-none-match")
    if match is not None and match.strip() != "*" and etag not in match.replace(" ", "").split(","):
        raise RequestError(412, "the file is not the one that If-Match names")
    known = etag.removeprefix("W/").strip('"')
    return none is not None and (none.strip() == "*" or known in _ETAG.findall(none))


def bytes_answer(
    request: Request, content: bytes, etag: str, headers: Mapping[str, str]
) -> Response:
    """Return an answer from memory, or that the client has it (304)."""
    headers = {**headers, "ETag": etag}
    if client_has(request, etag):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers)


async def file_answer(
    request: Request,
    path: Path,
    etag: str,
    headers: Mapping[str, str],
    is_it: Callable[[os.stat_result], bool] = lambda _: True,
) -> Response:
    """Return a whole file as an answer, or that the client has it (304).

    Args:
        request: GET or HEAD, with its conditions.
        path: the file.
        etag: of its content.
        headers: of the answer, with its type.
        is_it: whether an opened file is the one that is meant.

    Raises:
        RequestError: 409, it is not, or cannot be opened; 412, `If-Match` names another one.
    """
    headers = {**headers, "ETag": etag}
    if client_has(request, etag):
        return Response(status_code=304, headers=headers)
    opened = await asyncio.wrap_future(_threads().submit(_open, path, is_it))
    headers["Content-Length"] = str(opened.size)
    return PieceAnswer(opened, _threads().submit, 0, opened.size, 200, headers)


class PieceAnswer(Response):
    """A part of an opened file, which is closed at the end, whatever comes.

    Args:
        file: opened.
        submit: reads it in a thread.
        first: the first byte.
        end: the one after the last.
        status: of HTTP.
        headers: with type and length.
        what: it is, for the log.
    """

    def __init__(
        self, file: Readable, submit: Submit, first: int, end: int, status: int,
        headers: Mapping[str, str], *, what: str = "a file",
    ) -> None:  # fmt: skip
        super().__init__(status_code=status, headers=dict(headers))
        self._file, self._submit, self._at, self._end = file, submit, first, end
        self._what = what

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Send the answer, piece by piece."""
        reading: Future[bytes] | None = None
        start = {
            "type": "http.response.start", "status": self.status_code, "headers": self.raw_headers
        }  # fmt: skip
        try:
            await send(start)
            while scope["method"] != "HEAD" and self._at < self._end:
                reading = self._submit(self._file.read, self._at, min(CHUNK, self._end - self._at))
                data = await self._read(reading)
                if not data:
                    return  # the server closes the connection, so the client knows that it is cut
                self._at += len(data)
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            # Not while a thread reads: another file may get the descriptor's number.
            if reading is None:
                self._file.close()
            else:
                reading.add_done_callback(lambda _: self._file.close())

    async def _read(self, reading: Future[bytes]) -> bytes:
        try:
            return await asyncio.wrap_future(reading)
        except OSError as error:
            log.warning("%s was cut off: %s", self._what, error.strerror)
            return b""
        except PocketclipError:
            log.warning("%s was cut off: its file was changed while it was sent", self._what)
            return b""


class _OpenFile:
    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self.size = descriptor, size

    def read(self, first: int, count: int, /) -> bytes:
        return os.pread(self._descriptor, count, first)

    def close(self) -> None:
        os.close(self._descriptor)


def _open(path: Path, is_it: Callable[[os.stat_result], bool]) -> _OpenFile:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise _changed() from None
    about = os.fstat(descriptor)
    if not is_it(about):
        os.close(descriptor)
        raise _changed()
    return _OpenFile(descriptor, about.st_size)


def _changed() -> RequestError:
    return RequestError(
        409, "the file was changed since the server read it, which has to read it again: by a new "
        "start, or by SIGHUP if it is one of a model", code="changed_file",
    )  # fmt: skip


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="files")
