"""Errors as answers: a status, and a body in OpenAI's form.

    {"error": {"message": "...", "type": "invalid_request_error", "param": null, "code": null}}

No message shows a path of this machine: what the library says of a request's own input is passed
on, everything else goes to the log. A message about a field never repeats what the field held.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
import traceback
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from pocketclip.errors import (
    DataError,
    EmbeddingError,
    ImageError,
    PocketclipError,
    QueryError,
    TokenizerError,
    one_line,
)  # fmt: skip
from pocketclip.formats.escaping import escape_controls

log = logging.getLogger(__name__)

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
          429: "rate_limit_error"}  # fmt: skip
_OF_INPUT = (DataError, EmbeddingError, ImageError, QueryError, TokenizerError)
_OF_SERVER = (PocketclipError, OSError, sqlite3.Error, MemoryError, asyncio.TimeoutError)
_HTTP = {
    404: "there is nothing at this path; /openapi.json lists what there is",
    405: "this path does not take this method; /openapi.json lists what there is",
}
_UNREADABLE = "There was an error parsing the body"  # FastAPI's own words
_ABSOLUTE = re.compile(r"(?<![\w/.:~<])(?:[A-Za-z]:[\\/]|\\\\|file:/*|/(?=[^\s/]))[^:'\"\n]*")
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


class RequestError(PocketclipError):
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        message: for the client; without a path of this machine.
        param: the field of the request that is wrong.
        code: a word for programs.
        retry_after: seconds after which to try again.
        close: whether the connection is closed.
        headers: more of them, for the answer.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        retry_after: int | None = None, close: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.retry_after, self.close = retry_after, close
        self._headers = dict(headers or {})

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer."""
        headers = dict(self._headers)
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.close:
            headers["Connection"] = "close"
        return headers

    def body(self) -> dict[str, Any]:
        """Return the body of the answer, in OpenAI's form."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": str(self), "type": _TYPES.get(self.status, kind), "param": self.param,
                "code": self.code,
            }
        }  # fmt: skip


def ending() -> RequestError:
    """Return the answer to what a server that ends does not begin, or no longer finishes."""
    return RequestError(
        503, "the server is ending: try again later", code="draining", retry_after=5, close=True
    )


def as_request_error(error: BaseException) -> RequestError:
    """Return the answer to any error of a request; what the answer does not say is logged."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        message = _HTTP.get(error.status_code, str(error.detail))
        if error.status_code == 400 and message == _UNREADABLE:
            message = "the body is not valid: it is neither UTF-8 JSON nor a form"
        return RequestError(error.status_code, message, headers=error.headers)
    if isinstance(error, _OF_INPUT):
        message = one_line(error, 300)
        if _ABSOLUTE.search(message):
            log.error("%s: %s", type(error).__name__, without_paths(message))
            message = "this input cannot be used; the server's log says why"
        return RequestError(400, message)
    if isinstance(error, _OF_SERVER):
        log.error("%s: %s (%s)", type(error).__name__, without_paths(str(error)), _places(error))
        return RequestError(
            503, "the server cannot do this at the moment; its log says why", code="unavailable",
            retry_after=5,
        )  # fmt: skip
    log.error("a bug: %s (%s)", type(error).__name__, _places(error))
    return RequestError(500, "the server failed; its log says where", code="bug")


def without_paths(text: str) -> str:
    """Return a message in one line, with absolute paths cut out."""
    return escape_controls(_ABSOLUTE.sub("\u2026", one_line(text)))


def _places(error: BaseException) -> str:
    """Return where an error came from, without what it was about."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    return " < ".join(
        f"{re.split(r'[/]', frame.filename)[-1]}:{frame.lineno} {frame.name}"
        for frame in reversed(frames)
    )


def _invalid(error: RequestValidationError) -> RequestError:
    """Return the answer to a body, a query or a path whose fields are not as documented."""
    first = error.errors()[0]
    kind, place = first["type"], _place(first["loc"])
    message = str(first["msg"])
    if kind == "json_invalid":
        return RequestError(422, "the body is not valid JSON", code="json_invalid")
    if kind == "union_tag_invalid":  # its message repeats the input
        message = f"must be one of {first['ctx']['expected_tags']}"
    elif kind == "missing":
        message = "is missing" if place else "the body is missing"
    elif kind == "extra_forbidden":
        message = "there is no such field; /openapi.json lists what there is"
    message = one_line(f"{place}: {message}" if place else message, 300)
    param = None if place and "\u2026" in place else place
    return RequestError(422, message, param=param, code=kind)


def _place(location: tuple[int | str, ...]) -> str | None:
    """Return the name of a field, such as `input[3]`, without keys that the client chose."""
    place = ""
    for part in location[1:]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif _FIELD.fullmatch(part):
            place += f".{part}" if place else part
        else:
            place += "\u2026"
    return place or None
