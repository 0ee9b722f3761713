"""What a connection of uvicorn lacks: time-outs and limits.

uvicorn waits for ever for the rest of a header, and for a client to take its answer. Here:

- A header that is not complete within `Limits.header_timeout` is answered with 408, also the one of
  a connection's second or later request. A connection without any byte is closed without a word.
- A header above `MAX_HEADER` bytes is answered with 431.
- A client that takes its answer slower than `LEAST_RATE` is cut off after `Limits.idle_timeout`.
- A connection beyond `Limits.connections` gets 503; far beyond it is closed at once.
- After an answer that did not wait for the request's body, the rest of the body is read and thrown
  away for a while before the connection is closed: closing at once would make the system send a
  reset, and the client could lose the answer.
- What is not HTTP is answered with 400, and never within another answer.
"""

from __future__ import annotations

import asyncio
import http
import logging
from typing import TYPE_CHECKING, Any

from pocketclip.serve.errors import RequestError, ending
from pocketclip.serve.middleware.answers import encode_error, error_headers, send_error
from pocketclip.serve.settings import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

log = logging.getLogger(__name__)

MAX_HEADER = 32 << 10
"""Bytes of the first line and the header of a request."""
LEAST_RATE = 1024
"""Bytes of an answer that a client takes per second, over `Limits.idle_timeout`."""
_GRACE = 0.05
"""Seconds from a time-out to its effect: after a pause of the whole process, what came in the
meantime is read first."""
_LINGER = 5.0  # seconds in which the rest of a body is thrown away
_LAST_LINGER = 0.5  # the same, of a server that ends
_SPARE = 64  # connections beyond the limit that still get an answer
_GARBAGE = "This is not an HTTP/1.1 request"


def error_answer(error: RequestError, default_headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return an error as the whole answer of a connection, which ends with it."""
    body = encode_error(error)
    headers = [*default_headers, *error_headers(error, body, close=True)]
    phrase = http.HTTPStatus(error.status).phrase.encode()
    lines = [b"HTTP/1.1 %d %s" % (error.status, phrase), *(b"%s: %s" % one for one in headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def header_too_large() -> RequestError:
    """Return the error of a request whose header is above `MAX_HEADER`."""
    return RequestError(431, f"The header is above {MAX_HEADER:,} bytes: send a shorter one")


async def _too_many(_scope: MutableMapping[str, Any], _receive: Any, send: Any) -> None:
    error = RequestError(
        503, "The server has too many connections: try again in a moment",
        code="too_many_connections", retry_after=1,
    )  # fmt: skip
    await send_error(send, error)


class _Transport:
    """A connection's transport; what is written is counted, and `close` is up to the protocol."""

    def __init__(self, inner: asyncio.Transport, close: Callable[[], None]) -> None:
        self.inner, self.close, self.written = inner, close, 0
        self.is_closing = inner.is_closing

    def write(self, data: bytes) -> None:
        self.written += len(data)
        self.inner.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Guard:
    """What both kinds of connections have beside uvicorn's; it comes before uvicorn's class.

    The attributes without a value here are uvicorn's.
    """

    limits: Limits
    loop: asyncio.AbstractEventLoop
    transport: Any
    flow: Any
    app: Any
    cycle: Any
    connections: set[Any]
    server_state: Any
    timeout_keep_alive_task: asyncio.TimerHandle | None

    def __init__(self, limits: Limits, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limits = limits
        self._header_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._write_timer: asyncio.TimerHandle | None = None
        self._taken = 0  # bytes that the client had taken when the write timer was set
        self._is_deaf = False
        """Whether what comes is thrown away."""

    # What differs between the parsers.

    def _awaits_header(self) -> bool:
        """Return whether the next byte belongs to a header, not to a body."""
        raise NotImplementedError

    def _has_begun_header(self) -> bool:
        """Return whether a part of a header is there."""
        raise NotImplementedError

    # The connection.

    def connection_made(self, transport: Any) -> None:
        """Begin; a connection too many is answered, or closed."""
        super().connection_made(_Transport(transport, self._close))  # type: ignore[misc]
        beyond = len(self.connections) - self.limits.connections
        if beyond > 0:
            self.app = _too_many
        if beyond > _SPARE:
            transport.abort()
        self._set_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        super().connection_lost(exc)  # type: ignore[misc]
        self._cancel_timers()

    def data_received(self, data: bytes) -> None:
        """Read a part of one or more requests."""
        if self._is_deaf:
            return
        awaited, cycle = self._awaits_header(), self.cycle
        super().data_received(data)  # type: ignore[misc]
        if self._is_deaf or self.transport.is_closing():
            return
        if self.cycle is not cycle:  # a header was completed
            self._header_bytes = 0
            self._cancel_header_timer()
        elif awaited:
            self._header_bytes += len(data)
            if self._awaits_header() and self._header_bytes > MAX_HEADER:
                self._refuse(header_too_large())
                return
        self._set_header_timer()

    def on_response_complete(self) -> None:
        """Await the next request, or throw away the rest of this one."""
        super().on_response_complete()  # type: ignore[misc]
        if self.transport.is_closing() or self._is_deaf:
            return
        if not self._awaits_header() and not self._is_busy():
            self._linger()
        else:
            self._set_header_timer()

    def pause_writing(self) -> None:
        """Watch a client that does not take its answer as fast as it is written."""
        super().pause_writing()  # type: ignore[misc]
        self._watch_writing()

    def send_400_response(self, _message: str) -> None:
        """Answer what is not HTTP."""
        self._refuse(RequestError(400, _GARBAGE))

    def shutdown(self) -> None:
        """Close the connection when what runs is answered; called when the server ends."""
        if self._is_busy():
            super().shutdown()  # type: ignore[misc]
        elif self._has_begun_header() and not self._is_deaf:
            self._refuse(ending())
        elif not self._is_deaf:
            self._close()
        if self._is_deaf:
            self._linger(_LAST_LINGER)

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # Closing.

    def _close(self) -> None:
        if self._is_deaf or self.transport.is_closing():
            self.transport.inner.close()
            self._watch_writing()
        elif self.cycle is not None and not self._awaits_header():
            self._linger()
        else:
            self.transport.inner.close()
            self._watch_writing()

    def _refuse(self, error: RequestError) -> None:
        """Answer what is no request; within another answer, stop to listen instead."""
        if self._is_busy():
            self.cycle.keep_alive = False  # it is the last one
            if self._awaits_header() or self.cycle.response_started:
                self._is_deaf = True
                self._cancel_header_timer()
                return
            # Its own body is damaged: the app is told that the client is gone.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(error_answer(error, self.server_state.default_headers))
        self._linger()

    def _linger(self, seconds: float = _LINGER) -> None:
        """Close after the rest of what the client sends, or a while."""
        self._cancel_header_timer()
        self._header_timer = self.loop.call_later(seconds, self.transport.inner.close)
        if self._is_deaf:
            return
        self._is_deaf = True
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._watch_writing()

    # Time-outs.

    def _set_header_timer(self) -> None:
        """Set the timer while a header is awaited, unless uvicorn's keep-alive timer is set."""
        idle = not self._is_busy() and self.timeout_keep_alive_task is None
        if self._awaits_header() and (self._has_begun_header() or idle):
            if self._header_timer is None:
                self._header_timer = self.loop.call_later(
                    self.limits.header_timeout, self._on_header_timeout
                )
        else:
            self._cancel_header_timer()

    def _on_header_timeout(self) -> None:
        self._header_timer = self.loop.call_later(_GRACE, self._end_header)

    def _end_header(self) -> None:
        self._header_timer = None
        if self.transport.is_closing():
            return
        if self._is_busy():  # the answer before it comes first
            self._set_header_timer()
        elif self._has_begun_header():
            seconds = f"{self.limits.header_timeout:g} seconds"
            self._refuse(RequestError(408, f"The header did not come within {seconds}"))
        else:
            self._close()

    def _watch_writing(self) -> None:
        if self._write_timer is None and self.transport.get_write_buffer_size():
            self._taken = self.transport.written - self.transport.get_write_buffer_size()
            self._write_timer = self.loop.call_later(
                self.limits.idle_timeout, self._on_write_timeout
            )

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that was idle for long."""
        close = super().timeout_keep_alive_handler  # type: ignore[misc]
        self.timeout_keep_alive_task = self.loop.call_later(_GRACE, close)

    def _on_write_timeout(self) -> None:
        self._write_timer = self.loop.call_later(_GRACE, self._check_writing)

    def _check_writing(self) -> None:
        self._write_timer = None
        left = self.transport.get_write_buffer_size()
        taken = self.transport.written - left - self._taken
        if left and taken < LEAST_RATE * self.limits.idle_timeout:
            log.info("a client that did not take its answer was cut off")
            self.transport.abort()
        else:
            self._watch_writing()

    def _cancel_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _cancel_timers(self) -> None:
        self._cancel_header_timer()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
