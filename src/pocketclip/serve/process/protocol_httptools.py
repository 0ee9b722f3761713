"""A connection on httptools, which need not be installed; see `connection_guard`."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pocketclip.serve.errors import RequestError
from pocketclip.serve.process.connection_guard import MAX_HEADER, Guard

_MOST_FRAMING = 2 * MAX_HEADER
"""Bytes of a body that are not its contents: the sizes of chunks, and trailers. In addition, an
eighth of the contents."""


class GuardedHttpTools(Guard, HttpToolsProtocol):
    """A connection on httptools."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._has_begun = self._has_header = False
        self._running: Any = None  # the request that is answered; `cycle` is the last one
        self._received = self._contents = 0  # bytes of the request that comes, and of its body

    def _awaits_header(self) -> bool:
        return not self._has_header

    def _has_begun_header(self) -> bool:
        return self._has_begun and not self._has_header

    def data_received(self, data: bytes) -> None:
        """Read a part of one or more requests, of which a body may be mostly framing."""
        self._received += len(data)
        super().data_received(data)
        framing = self._received - self._contents
        if self._is_deaf or not self._has_header or self.transport.is_closing():
            return
        if framing > _MOST_FRAMING + self._contents // 8:
            self._refuse(RequestError(400, "The body comes in too small chunks: send larger ones"))

    def on_message_begin(self) -> None:
        """Note the first byte of a request."""
        self._has_begun, self._has_header = True, False
        self._received = self._contents = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the header; a trailer must not count as one, such as a second `Host`."""
        if not self._has_header:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._contents += len(body)
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """Note that the body follows."""
        self._has_header = True
        super().on_headers_complete()
        if not self.pipeline:
            self._running = self.cycle

    def on_message_complete(self) -> None:
        """Note the end of a request."""
        self._has_begun = self._has_header = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Begin the next request that waits."""
        if self.pipeline:
            self._running = self.pipeline[-1][0]
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that is answered, also where others wait behind it."""
        running = self._running
        super().connection_lost(exc)
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()

    def _unsupported_upgrade_warning(self) -> None:
        # The parser stops at an upgrade, and would lose what follows: the connection ends.
        if self.cycle is not None:
            self.cycle.keep_alive = False
