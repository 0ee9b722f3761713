"""Room for the bodies of requests, for all ports of a server together."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class Room:
    """Counts the bytes that requests hold; it belongs to one event loop."""

    held: int = 0
    """Bytes of the bodies of requests that are being received or answered, and of large answers."""
    _waiting: deque[tuple[int, int, asyncio.Future[None]]] = field(default_factory=deque)

    def hold(self, size: int, limit: int) -> bool:
        """Count bytes as held, if there is room for them."""
        if self.held + size > limit:
            return False
        self.held += size
        return True

    def hold_anyway(self, size: int) -> None:
        """Count bytes as held that are there already; what comes next finds less room."""
        self.held += size

    async def wait_to_hold(self, size: int, limit: int) -> None:
        """Count bytes as held, once there is room for them; whoever asks first is served first."""
        if not self._waiting and self.hold(size, limit):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (size, limit, turn)
        self._waiting.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(size)  # it was our turn, just now
            else:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(entry)
                self._serve_next()
            raise

    def release(self, size: int) -> None:
        """Give bytes back."""
        self.held -= size
        self._serve_next()

    def _serve_next(self) -> None:
        while self._waiting:
            size, limit, turn = self._waiting[0]
            if not turn.done():
                if not self.hold(size, limit):
                    return
                turn.set_result(None)
            self._waiting.popleft()
