"""The key of a server, and a limit to guessing it."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

from pocketclip.serve.errors import RequestError

GUESSES = 20
"""Different wrong keys that an address may try at once."""
SECONDS_PER_GUESS = 5.0
"""For each further one."""

_MAX_ADDRESSES = 4096
_MAX_WRONG = 1024


class KeyCheck:
    """Compares keys with that of the server, in a time that says nothing about it.

    An address that tries many different keys has to wait, also with the right one: otherwise the
    wait would tell which one is right. A client that repeats the same wrong key is just refused; it
    locks out nobody behind the same address.

    Args:
        key: of the server; None if it has none.
        clock: in seconds.
    """

    def __init__(self, key: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._salt = secrets.token_bytes(32)
        self._right = None if key is None else self._digest(key.encode())
        self._clock = clock
        self._wrong: OrderedDict[bytes, None] = OrderedDict()
        self._guesses: OrderedDict[str, tuple[float, float]] = OrderedDict()

    @property
    def is_required(self) -> bool:
        """Whether the server has a key."""
        return self._right is not None

    def accepts(self, given: bytes, address: str | None) -> bool:
        """Return whether a key is the server's.

        Args:
            given: the key, as UTF-8.
            address: of the client.

        Raises:
            RequestError: the address has tried too many keys (429).
        """
        if self._right is None:
            return False
        digest = self._digest(given)
        if digest in self._wrong:
            self._wrong.move_to_end(digest)
            return False
        network = _network(address)
        left = self._left(network)
        if left < 1:
            raise RequestError(
                429, "too many different keys came from this address; try again later",
                code="too_many_keys", retry_after=math.ceil((1 - left) * SECONDS_PER_GUESS),
            )  # fmt: skip
        if hmac.compare_digest(digest, self._right):
            return True
        self._remember(self._wrong, digest, None, _MAX_WRONG)
        self._remember(self._guesses, network, (left - 1, self._clock()), _MAX_ADDRESSES)
        return False

    def _left(self, network: str) -> float:
        """Return how many guesses a network has left; they grow back."""
        left, then = self._guesses.get(network, (float(GUESSES), 0.0))
        return min(GUESSES, left + (self._clock() - then) / SECONDS_PER_GUESS)

    def _digest(self, key: bytes) -> bytes:
        return hashlib.blake2b(key, key=self._salt, digest_size=32).digest()

    @staticmethod
    def _remember(table: OrderedDict, key: object, value: object, most: int) -> None:  # type: ignore[type-arg]
        table[key] = value
        table.move_to_end(key)
        if len(table) > most:
            table.popitem(last=False)


def _network(address: str | None) -> str:
    """Return the address of a client, or the /64 of an IPv6 address: all of it is one client's."""
    try:
        parsed = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
    return str(parsed)
