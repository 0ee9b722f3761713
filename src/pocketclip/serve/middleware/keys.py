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

_TRUST = 24 * 3600.0  # seconds after the right key in which an address has no limit
_OWN = "loopback"
_MAX_ADDRESSES = 4096
_MAX_WRONG = 1024


def _network(address: str | None) -> str:
    """Return the address of a client, or the /64 of an IPv6 address: all of it is one client's.

    The addresses of this machine are all one.
    """
    try:
        parsed = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    if parsed.is_loopback:
        return _OWN
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
    return str(parsed)


class KeyCheck:
    """Compares keys with that of the server, in a time that says nothing about it.

    An address that tries many different keys has to wait, also with the right one: otherwise the
    wait would tell which one is right. A client that repeats the same wrong key is just refused; it
    locks out nobody behind the same address.

    Nobody waits on this machine's own addresses, nor on one from which the right key came within a
    day: a proxy stands there, and a stranger behind it would lock out all others. A random key
    needs no limit; the limit is for those that people make up.

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
        self._trusted: OrderedDict[str, float] = OrderedDict()  # when the right key came last

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
        if left < 1 and not self._is_trusted(network):
            raise RequestError(
                429, "too many different keys came from this address; try again later",
                code="too_many_keys", retry_after=math.ceil((1 - left) * SECONDS_PER_GUESS),
            )  # fmt: skip
        if hmac.compare_digest(digest, self._right):
            self._remember(self._trusted, network, self._clock(), _MAX_ADDRESSES)
            return True
        self._remember(self._wrong, digest, None, _MAX_WRONG)
        self._remember(self._guesses, network, (max(left - 1, 0.0), self._clock()), _MAX_ADDRESSES)
        return False

    def _left(self, network: str) -> float:
        """Return how many guesses a network has left; they grow back."""
        left, then = self._guesses.get(network, (float(GUESSES), 0.0))
        return min(GUESSES, left + (self._clock() - then) / SECONDS_PER_GUESS)

    def _is_trusted(self, network: str) -> bool:
        then = self._trusted.get(network)
        return network == _OWN or (then is not None and self._clock() - then < _TRUST)

    def _digest(self, key: bytes) -> bytes:
        return hashlib.blake2b(key, key=self._salt, digest_size=32).digest()

    @staticmethod
    def _remember(table: OrderedDict, key: object, value: object, most: int) -> None:  # type: ignore[type-arg]
        table[key] = value
        table.move_to_end(key)
        if len(table) > most:
            table.popitem(last=False)
