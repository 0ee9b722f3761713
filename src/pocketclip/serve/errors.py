"""Errors as answers: a status, and a body in OpenAI's form.

    {"error": {"message": "...", "type": "invalid_request_error", "param": null, "code": null}}

No message shows a path of this machine: what the library says of a request's own input is passed
on, everything else goes to the log.
"""

from __future__ import annotations

from typing import Any

from pocketclip.errors import PocketclipError

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
          429: "rate_limit_error"}  # fmt: skip


class RequestError(PocketclipError):
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        message: for the client; without a path of this machine.
        param: the field of the request that is wrong.
        code: a word for programs.
        retry_after: seconds after which to try again.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        retry_after: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    def body(self) -> dict[str, Any]:
        """Return the body of the answer, in OpenAI's form."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": str(self), "type": _TYPES.get(self.status, kind), "param": self.param,
                "code": self.code,
            }
        }  # fmt: skip
