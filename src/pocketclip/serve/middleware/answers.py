"""Answers that are given before, or instead of, the app's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope, Send

from pocketclip.serve.errors import RequestError, as_request_error
from pocketclip.serve.monitoring.exchange import note_drop, route_of

ErrorForm = Callable[[RequestError], Any]
"""Makes the JSON body of an error."""

Headers = Sequence[tuple[bytes, bytes]]


def openai_form(error: RequestError) -> Any:
    """Return the body of an error as OpenAI's clients read it."""
    return error.body()


def detail_form(error: RequestError) -> Any:
    """Return the body of an error as immich's service writes it."""
    return {"detail": str(error)}


def header_values(headers: Headers, name: bytes) -> list[bytes]:
    """Return every value of a header; names in a scope are in lower case."""
    return [value.strip() for key, value in headers if key == name]


def may_have_body(headers: Headers) -> bool:
    """Return whether a body may follow a request's header."""
    lengths = header_values(headers, b"content-length")
    return bool(header_values(headers, b"transfer-encoding")) or any(v != b"0" for v in lengths)


async def answer_error(request: Request, error: Exception) -> Response:
    """Return the answer to an error; an exception handler of an app.

    The app's `state.error_form` says in which form; `state.missing_page` returns the page for
    people who asked for an address with nothing behind it.
    """
    mapped = as_request_error(error)
    if mapped.status == 404 and isinstance(error, HTTPException):  # no route
        page = request.app.state.missing_page(request)
        if page is not None:
            return page
    if mapped.code == "queue_full":
        note_drop(request.scope, "queue_full")
    headers = mapped.headers
    methods: dict[str | None, str] = request.app.state.methods
    if mapped.status == 405 and (route := route_of(request.scope)) in methods:
        headers["Allow"] = methods[route]  # Starlette names those of one route of several
    body = encode_error(mapped, request.app.state.error_form)
    return Response(body, mapped.status, headers, "application/json")


async def refuse(
    scope: Scope, send: Send, error: RequestError, form: ErrorForm = openai_form, *,
    is_read: bool = False,
) -> None:  # fmt: skip
    """Answer with an error.

    The connection is closed if the body was not read: what is left of it would be taken for the
    next request. `connection_guard` sees to it that the client gets the answer all the same.

    Args:
        scope: of the request.
        send: of the request.
        error: the answer.
        form: of the answer.
        is_read: whether the body was read after all.
    """
    unread = may_have_body(scope["headers"]) and not is_read
    await send_error(send, error, form, close=unread)


async def send_error(
    send: Send, error: RequestError, form: ErrorForm = openai_form, *, close: bool = True
) -> None:
    """Answer with an error, from wherever a request is.

    Args:
        send: of the request.
        error: the answer.
        form: of the answer.
        close: whether the connection ends with it, though the error does not say so.
    """
    body = encode_error(error, form)
    headers = error_headers(error, body, close=close)
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def encode_error(error: RequestError, form: ErrorForm = openai_form) -> bytes:
    """Return the body of an error as JSON, in ASCII: a message may hold any text."""
    return json.dumps(form(error)).encode()


def error_headers(error: RequestError, body: bytes, *, close: bool) -> list[tuple[bytes, bytes]]:
    """Return the headers of an error with this body; `close` as for `send_error`."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((name.lower().encode(), value.encode()) for name, value in error.headers.items()),
    ]
    if close and not any(name == b"connection" for name, _ in headers):
        headers.append((b"connection", b"close"))
    return headers
