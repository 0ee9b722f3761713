"""Sessions of browsers, and the one-time tokens that begin them.

    token = sessions.new_token()        # printed at the start, as http://host:port/#token=...
    secret = sessions.redeem(token)     # the page sends it back once, for a cookie
    assert sessions.holds(secret)

A browser cannot send a key with an image, and a key in an address would end up in histories and
logs. So a page sends a token from the part of its address that no request carries, and gets a
cookie. Everything is in memory, as hashes: it ends with the server.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

TOKEN_SECONDS = 600.0
"""A token that nobody redeemed until then is void."""
SESSION_SECONDS = 30 * 86400.0
"""A session ends so long after it began, or with the server."""
MAX_TOKENS = 100
MAX_SESSIONS = 1000
"""A further one ends that which was used least recently."""

_BYTES = 32


class Sessions:
    """The sessions of one server.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tokens = _Secrets(MAX_TOKENS, TOKEN_SECONDS)
        self._sessions = _Secrets(MAX_SESSIONS, SESSION_SECONDS)

    def new_token(self) -> str:
        """Return a token that begins one session, within the next ten minutes."""
        return self._tokens.add(self._clock())

    def redeem(self, token: str) -> str | None:
        """Begin a session with a token, which is void then.

        Returns:
            The secret of the cookie; None if there is no such token.
        """
        if not self._tokens.remove(token, self._clock()):
            return None
        return self.begin()

    def begin(self) -> str:
        """Begin a session, and return the secret of its cookie."""
        return self._sessions.add(self._clock())

    def holds(self, secret: str) -> bool:
        """Return whether a secret is that of a session."""
        return self._sessions.has(secret, self._clock())

    def end(self, secret: str) -> None:
        """End a session, if there is one with this secret."""
        self._sessions.remove(secret, self._clock())

    def __len__(self) -> int:
        """Return the number of sessions."""
        return len(self._sessions)


class _Secrets:
    """Random secrets that end after a time; only their hashes are kept."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._ends: OrderedDict[bytes, float] = OrderedDict()  # that used last is last

    def add(self, now: float) -> str:
        for digest in [one for one, end in self._ends.items() if end <= now]:
            del self._ends[digest]
        while len(self._ends) >= self._most:
            self._ends.popitem(last=False)
        secret = secrets.token_urlsafe(_BYTES)
        self._ends[_digest(secret)] = now + self._seconds
        return secret

    def has(self, secret: str, now: float) -> bool:
        digest = _digest(secret)
        if self._ends.get(digest, now) <= now:
            return False
        self._ends.move_to_end(digest)
        return True

    def remove(self, secret: str, now: float) -> bool:
        return self._ends.pop(_digest(secret), now) > now

    def __len__(self) -> int:
        return len(self._ends)


def _digest(secret: str) -> bytes:
    # Looked up by its hash, a secret is never compared byte by byte.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
