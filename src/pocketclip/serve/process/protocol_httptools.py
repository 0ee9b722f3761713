"""A connection on httptools, which need not be installed; see `connection_guard`."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pocketclip.serve.process.connection_guard import Guard


class GuardedHttpTools(Guard, HttpToolsProtocol):
    """A connection on httptools."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._has_begun = self._has_header = False
        self._running: Any = None  # the request that is answered; `cycle` is the last one

    def _awaits_header(self) -> bool:
        return not self._has_header

    def _has_begun_header(self) -> bool:
        return self._has_begun and not self._has_header

    def on_message_begin(self) -> None:
        """Note the first byte of a request."""
        self._has_begun, self._has_header = True, False
        super().on_message_begin()

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
