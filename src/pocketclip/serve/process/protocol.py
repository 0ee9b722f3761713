"""HTTP/1.1 of a connection: uvicorn's, with the time-outs and limits of `connection_guard`."""

from __future__ import annotations

from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pocketclip.devices import is_installed
from pocketclip.serve.process.connection_guard import Guard


class GuardedH11(Guard, H11Protocol):
    """A connection on h11."""

    conn: h11.Connection

    def _awaits_header(self) -> bool:
        # Within another request only its own body can be found wrong: h11 reads no further.
        return self.conn.their_state not in (h11.SEND_BODY, h11.ERROR)

    def _has_begun_header(self) -> bool:
        return self._awaits_header() and bool(self.conn.trailing_data[0])


def protocol_class(name: str = "auto") -> Any:
    """Return the class of connections: on httptools, which is faster, or on h11.

    Args:
        name: `httptools`, `h11`, or `auto` for the first if it is installed.
    """
    if name == "h11" or (name == "auto" and not is_installed("httptools")):
        return GuardedH11
    from pocketclip.serve.process.protocol_httptools import GuardedHttpTools

    return GuardedHttpTools
