"""Which hosts may be asked for images, as the operator of a server lists them.

hosts = AllowedHosts(["images.example.org", "*.example.net", "example.com:8443"])
hosts.allows(httpx.URL("https://images.example.org/a.jpg"))
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pocketclip.errors import ConfigError, MissingDependencyError, how_to_install

if TYPE_CHECKING:
    import httpx

_RULE = re.compile(
    r"(?P<below>\*\.)?(?P<host>[^\s/?#@:*\[\]\\]+|\[[0-9a-fA-F:.]+\])(:(?P<port>[0-9]+))?"
)
_PORTS = {"https": 443, "http": 80}


class AllowedHosts:
    """A list of hosts.

    `HOST` allows that name on the default port, `HOST:PORT` on another one, and `*.HOST` all names
    below it, but not itself. That a name is allowed does not mean that its address is: see
    `pocketclip.storage.network`.

    Args:
        rules: the hosts; names outside ASCII are understood.

    Raises:
        ConfigError: one is not a host.
        MissingDependencyError: httpx is not installed.
    """

    def __init__(self, rules: Iterable[str]) -> None:
        self._exact: set[tuple[str, int | None]] = set()
        self._below: set[tuple[str, int | None]] = set()
        for rule in rules:
            match = _RULE.fullmatch(rule)
            if match is None:
                raise ConfigError(f"{rule!r} is not a host: write example.org, or *.example.org")
            port = None if match["port"] is None else int(match["port"][:6])
            if port is not None and not 0 < port < 1 << 16:
                raise ConfigError(f"{rule!r} has no valid port")
            host = _ascii_host(rule, match["host"])
            if match["below"] and "." not in host:
                raise ConfigError(f"{rule!r} allows too many hosts: write *.example.org")
            (self._below if match["below"] else self._exact).add((host, _unless_default(port)))

    def allows(self, url: httpx.URL) -> bool:
        """Return whether a URL's host and port are listed; a URL with a password never is."""
        if url.userinfo:
            return False
        host = url.raw_host.decode("ascii", "replace").lower().rstrip(".")
        port = url.port if url.port != _PORTS.get(url.scheme) else None
        if (host, port) in self._exact:
            return True
        parts = host.split(".")
        return any((".".join(parts[n:]), port) in self._below for n in range(1, len(parts)))


def _unless_default(port: int | None) -> int | None:
    return None if port == _PORTS["https"] else port


def _ascii_host(rule: str, host: str) -> str:
    """Return a host as httpx writes it, so that both are compared in the same form."""
    try:
        import httpx
    except ImportError:
        raise MissingDependencyError(
            f"images are fetched with httpx: {how_to_install('serve')}"
        ) from None
    try:
        url = httpx.URL(f"https://{host}/")
    except httpx.InvalidURL as error:
        raise ConfigError(f"{rule!r} is not a host: {error}") from None
    return url.raw_host.decode("ascii").lower().rstrip(".")
