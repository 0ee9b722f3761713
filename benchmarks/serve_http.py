"""A small HTTP client on sockets, which can also do what a decent client does not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.1"
_LONGEST_IDLE = 15.0  # seconds
_BOUNDARY = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered; status 0: the connection ended before a whole answer was there."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body's value."""
        return json.loads(self.body)


def request(
    method: str, path: str, body: bytes = b"", kind: str | None = None, *, length: int | None = None
) -> bytes:
    """Return a whole request; `length`: another Content-Length than that of the body."""
    head = f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n"
    if method != "GET":
        head += f"Content-Length: {len(body) if length is None else length}\r\n"
    if kind is not None:
        head += f"Content-Type: {kind}\r\n"
    return head.encode() + b"\r\n" + body


def post_json(path: str, value: Any) -> bytes:
    """Return a POST of a JSON value."""
    return request("POST", path, json.dumps(value).encode(), "application/json")


def post_form(path: str, parts: Sequence[tuple[str, str | bytes]]) -> bytes:
    """Return a POST of a form: texts as fields, bytes as files."""
    chunks: list[str | bytes] = []
    for name, value in parts:
        file = '; filename="blob"' if isinstance(value, bytes) else ""
        kind = "Content-Type: application/octet-stream\r\n" if file else ""
        chunks.append(
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n{kind}\r\n'
        )
        chunks.append(value)
        chunks.append("\r\n")
    chunks.append(f"--{_BOUNDARY}--\r\n")
    body = b"".join(one if isinstance(one, bytes) else one.encode() for one in chunks)
    return request("POST", path, body, f"multipart/form-data; boundary={_BOUNDARY}")


class Client:
    """A connection that is kept alive; one request at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._last = 0.0  # when it was used
        self._used = 0  # requests
        self.is_refused = False
        """Whether nobody listened at the last attempt to connect."""

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the connection's ends; it is opened if it is not there."""
        # One that was idle for long may be closed at any moment, as any client has to know.
        is_old = time.monotonic() - self._last > _LONGEST_IDLE
        if self._reader is None or self._writer is None or self._reader.at_eof() or is_old:
            self.close()
            self._reader, self._writer = await asyncio.open_connection(
                HOST, self._port, limit=1 << 26
            )
            self._last, self._used = time.monotonic(), 0
        return self._reader, self._writer

    async def ask(self, raw: bytes, timeout: float = 60) -> Answer:
        """Send a request and return the answer.

        Raises:
            TimeoutError: there is none after `timeout` seconds.
        """
        self.is_refused = False
        try:
            reader, writer = await self.connect()
        except ConnectionRefusedError:
            self.is_refused = True
            return Answer(0, {}, b"")
        except OSError:
            return Answer(0, {}, b"")
        # A server that refuses a body answers before it has read it, and closes the connection.
        with contextlib.suppress(ConnectionError):
            writer.write(raw)
            await asyncio.wait_for(writer.drain(), timeout)
        try:
            answer = await asyncio.wait_for(read_answer(reader), timeout)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            answer = Answer(0, {"error": repr(error), "used": str(self._used)}, b"")
        except asyncio.TimeoutError:
            self.close()
            raise TimeoutError(f"no answer after {timeout} seconds") from None
        self._last = time.monotonic()
        self._used += 1
        if not answer.status or answer.headers.get("connection") == "close":
            self.close()
        return answer

    def close(self) -> None:
        """Close the connection, whatever is on its way."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Return the next answer of a connection.

    Raises:
        asyncio.IncompleteReadError: the connection ended before.
    """
    status, headers = 0, dict[str, str]()
    while status < 200:  # 100 Continue may come before
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split()[1])
        pairs = (line.partition(":") for line in head[1:] if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    elif status in (204, 304):
        body = b""
    else:
        body = await reader.readexactly(int(headers["content-length"]))
    return Answer(status, headers, body)
