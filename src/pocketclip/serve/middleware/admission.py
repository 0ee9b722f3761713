"""Limits, time-outs and deadlines of requests, as a pure ASGI middleware.

It reads the body of a request before the app sees it, runs the app as a task, and watches the
client meanwhile. So routes may read bodies as they like, and are cancelled where an answer would
come too late or to nobody; what they wait for in `engine` is then dropped from its queue.

| what | answer |
|---|---|
| the server is ending | 503, connection closed |
| body too large, by its header or as it comes | 413 |
| body pauses, or takes too long | 408 |
| no room for more bodies | 429, or the request waits |
| no answer before the deadline | 503 |
| the client is gone | none, the app is cancelled |

An answer that has begun is never cut here: whether its client still reads it is seen where bytes
are written, in `protocol`.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocketclip.serve.errors import RequestError, as_request_error, ending
from pocketclip.serve.middleware.answers import ErrorForm, header_values, openai_form, refuse
from pocketclip.serve.monitoring.exchange import DropReason, note_drop
from pocketclip.serve.services import Services

ALWAYS_ANSWERED = frozenset({"/livez", "/readyz", "/metrics"})
"""Paths that are answered while the server ends, and whatever it holds."""

_RETRY = 1
_PIECE = 256 * 1024
_STOPPED = 0.5  # seconds late: this process was stopped, as in a virtual machine that was paused
_DIGITS = re.compile(rb"[0-9]{1,4000}")  # Python reads up to 4,300 digits


class Admission:
    """Admits requests to an app, within the limits of the settings.

    Args:
        app: what answers.
        services: with the limits, and the room for bodies.
        waits: whether a request waits for room for its body, up to its deadline, instead of being
            told to try again.
        deadline: seconds for an answer; None for those of the settings.
        form: of the errors.
    """

    def __init__(
        self, app: ASGIApp, services: Services, *, waits: bool = False,
        deadline: float | None = None, form: ErrorForm = openai_form,
    ) -> None:  # fmt: skip
        self.app = app
        self.services = services
        self.waits = waits
        self.deadline = services.settings.limits.deadline if deadline is None else deadline
        self.ending: set[asyncio.Future[None]] = set()
        """Tasks that were cancelled and have not ended yet."""
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = _Request(self, scope, receive, send)
        try:
            await request.admit()
            await request.run()
        except RequestError as error:
            await request.stop()
            if not request.started:
                await refuse(scope, send, error, self._form, is_read=request.is_whole)
        except asyncio.CancelledError:  # the time that running requests have at the end is over
            await request.stop()
            if not request.started:
                await refuse(scope, send, ending(), self._form, is_read=request.is_whole)
        finally:
            request.leave()


class _Request:
    """One request on its way through."""

    def __init__(self, owner: Admission, scope: Scope, receive: Receive, send: Send) -> None:
        self.started = self.is_whole = False
        """Whether an answer has begun; whether the whole body was received."""
        self._owner, self._scope, self._receive, self._send = owner, scope, receive, send
        self._limits = owner.services.settings.limits
        self._room = owner.services.room
        self._always = scope["path"] in ALWAYS_ANSWERED
        self._most = (
            min(self._limits.body_bytes, _PIECE) if self._always else self._limits.body_bytes
        )
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + owner.deadline
        self._last_byte = self._loop.time()
        self._held = self._received = 0
        self._pieces: deque[bytes] = deque()
        self._is_read: asyncio.Future[None] = self._loop.create_future()
        self._error: RequestError | None = None
        self._is_given = self._complete = self._cut = False
        self._reader: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def admit(self) -> None:
        """Read the body.

        Raises:
            RequestError: the request is refused.
        """
        if self._owner.services.is_draining and not self._always:
            raise self._refused("draining", ending())
        length = _declared_length(self._scope)
        if length is not None and length > self._most:
            raise self._too_large()
        if length != 0:
            await self._find_room(length)
        self._reader = asyncio.create_task(self._read())
        self._last_byte = self._loop.time()
        end = self._last_byte + self._limits.body_timeout
        while not self._is_read.done():
            left = min(self._last_byte + self._limits.idle_timeout, end) - self._loop.time()
            if left <= 0:
                raise RequestError(
                    408, "the body did not arrive in time; send it faster, or in smaller requests",
                    code="body_timeout", close=True,
                )  # fmt: skip
            due = self._loop.time() + left
            await asyncio.wait({self._is_read}, timeout=left)
            now = self._loop.time()
            if now - due > _STOPPED:  # a client on the same machine was stopped as well
                self._last_byte, end = now, max(end, now + self._limits.idle_timeout)
        if self._error is not None:
            raise self._error

    async def run(self) -> None:
        """Run the app, until it has answered, the client is gone, or it is too late.

        Raises:
            RequestError: there is no answer.
        """
        assert self._reader is not None
        if not self.is_whole:
            note_drop(self._scope, "client_gone")
            return
        app = self._owner.app(self._scope, self._give, self._pass)
        self._task = task = asyncio.ensure_future(app)
        while not task.done():
            watched = {task} if self._reader.done() else {task, self._reader}
            left = None if self.started else max(0.0, self._deadline - self._loop.time())
            done, _ = await asyncio.wait(watched, timeout=left, return_when="FIRST_COMPLETED")
            if self._reader in done and not self._complete and not task.done():
                note_drop(self._scope, "client_gone")
                await self.stop()
                return
            if not done and not self.started:
                raise self._late()
        if task.cancelled():
            raise ending()
        error = task.exception()
        if error is not None:
            raise as_request_error(error)

    async def stop(self) -> None:
        """Cancel what runs; what the app still sends goes nowhere."""
        self._cut = True
        if self._task is not None:
            self._task.cancel()
        if self._reader is not None and not self._reader.done():
            self._reader.cancel()
            await asyncio.wait({self._reader})

    def leave(self) -> None:
        """Give its room back, once nothing of it runs any more: threads end late."""
        if self._reader is not None:
            self._reader.cancel()
        if self._task is None or self._task.done():
            self._give_back()
        else:
            self._owner.ending.add(self._task)
            self._task.add_done_callback(self._end_late)

    def _end_late(self, task: asyncio.Future[None]) -> None:
        self._owner.ending.discard(task)
        self._give_back()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            as_request_error(error)  # for the log

    def _give_back(self) -> None:
        self._pieces.clear()
        self._room.release(self._held)
        self._held = 0

    # The body

    async def _find_room(self, length: int | None) -> None:
        limit = self._limits.held_bytes
        if self._always:
            return
        if self._owner.waits:
            # All of it at once: requests that each wait for room for the rest could wait forever.
            size = self._limits.body_bytes if length is None else length
            left = self._deadline - self._loop.time()
            try:
                await asyncio.wait_for(self._room.wait_to_hold(size, limit), left)
            except asyncio.TimeoutError:
                raise self._late() from None
            self._held = size
        elif self._room.held + (length or 0) > limit:
            raise self._no_room()

    async def _read(self) -> None:
        """Receive the body; then wait until the client is gone or has its answer."""
        piece = bytearray()
        try:
            while (message := await self._receive())["type"] == "http.request":
                if self.is_whole:
                    continue
                piece += (body := message.get("body", b""))
                self._take(len(body))
                is_last = not message.get("more_body", False)
                if len(piece) >= _PIECE or (is_last and piece):
                    self._pieces.append(bytes(piece))
                    piece.clear()
                if is_last:
                    self._give_surplus_back()
                    self.is_whole = True
                    self._is_read.set_result(None)
        except RequestError as error:
            self._error = error
        finally:
            if not self._is_read.done():
                self._is_read.set_result(None)

    def _take(self, size: int) -> None:
        self._last_byte = self._loop.time()
        self._received += size
        if self._received > self._most:
            raise self._too_large()
        if self._owner.waits or self._always:
            return
        if not self._room.hold(size, self._limits.held_bytes):
            raise self._no_room()
        self._held += size

    def _give_surplus_back(self) -> None:
        surplus = self._held - self._received
        if surplus > 0:
            self._held -= surplus
            self._room.release(surplus)

    # What the app calls

    async def _give(self) -> Message:
        if self._pieces:
            self._is_given = True
            piece = self._pieces.popleft()
            return {"type": "http.request", "body": piece, "more_body": bool(self._pieces)}
        if not self._is_given:
            self._is_given = True
            return {"type": "http.request", "body": b"", "more_body": False}
        assert self._reader is not None
        await asyncio.wait({self._reader})
        return {"type": "http.disconnect"}

    async def _pass(self, message: Message) -> None:
        if self._cut:
            return
        self.started = True
        body = message.get("body", b"")
        if len(body) <= _PIECE:
            await self._send(message)
        else:
            await self._send_large(message, body)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._complete = True

    async def _send_large(self, message: Message, body: bytes) -> None:
        """Send a large answer as its client takes it; what is left counts as held meanwhile.

        In one piece it would wait in the connection, where nothing counts it: with many clients
        that are slow, or do not mean to read, that is all memory.
        """
        more = message.get("more_body", False)
        self._room.hold_anyway(len(body))
        try:
            for start in range(0, len(body), _PIECE):
                end = start + _PIECE
                piece = {"body": body[start:end], "more_body": more or end < len(body)}
                await self._send({**message, **piece})
        finally:
            self._room.release(len(body))

    # Refusals

    def _refused(self, reason: DropReason, error: RequestError) -> RequestError:
        note_drop(self._scope, reason)
        return error

    def _late(self) -> RequestError:
        return self._refused("deadline", RequestError(
            503, "the answer was not ready in time; try again later, or send less at a time",
            code="deadline_exceeded", retry_after=_RETRY,
        ))  # fmt: skip

    def _no_room(self) -> RequestError:
        return self._refused("held_bytes", RequestError(
            429, "the server is receiving as much as it can hold; try again later",
            code="held_bytes", retry_after=_RETRY,
        ))  # fmt: skip

    def _too_large(self) -> RequestError:
        return RequestError(
            413, f"the body is larger than {self._most:,} bytes; send less at a time",
            code="body_too_large",
        )  # fmt: skip


def _declared_length(scope: Scope) -> int | None:
    """Return how long the body is; None if it comes in chunks.

    Raises:
        RequestError: the header is not plain about it, or the body is compressed.
    """
    headers = scope["headers"]
    lengths = header_values(headers, b"content-length")
    chunked = header_values(headers, b"transfer-encoding")
    if (lengths and chunked) or len(lengths) > 1 or not all(map(_DIGITS.fullmatch, lengths)):
        raise RequestError(
            400, "Content-Length must be one number, and not beside Transfer-Encoding", close=True
        )
    encodings = header_values(headers, b"content-encoding")
    if any(one.lower() not in (b"", b"identity") for one in encodings):
        raise RequestError(
            415, "compressed bodies are not read; send the body without Content-Encoding"
        )
    if chunked:
        return None
    return int(lengths[0]) if lengths else 0
