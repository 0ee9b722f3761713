"""Names of hosts and origins, as browsers write them in `Host` and `Origin`."""

from __future__ import annotations

import ipaddress
import re

_HOST = re.compile(
    r"(?P<name>\[[0-9a-f:.]+(%25?[a-z0-9._~-]+)?\]|[^\[\]:/?#@\\\s]+)(:(?P<port>[0-9]{0,5}))?"
)
_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[^/?#@\\\s]+)")
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_PORTS = {"http": "80", "https": "443"}


def host_name(host: str) -> str | None:
    """Return the name within a `Host`, in lower case, without port, brackets and a final dot.

    None if it is not written as a host.
    """
    found = _HOST.fullmatch(host.lower())
    if found is None:
        return None
    name = found["name"].strip("[]")
    return name[:-1] if name.endswith(".") else name


def allowed_name(name: str) -> str | None:
    """Return a host name as `host_name` returns it; None if it is none.

    Letters beyond ASCII become what browsers send for them.
    """
    try:
        name = name.strip().encode("idna").decode() if not name.isascii() else name.strip()
    except UnicodeError:
        return None
    found = host_name(name)
    return found if found is not None and (is_address(found) or _NAME.fullmatch(found)) else None


def is_address(name: str) -> bool:
    """Return whether a name is an IP address."""
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def is_local(name: str) -> bool:
    """Return whether a name means this machine for every browser."""
    return name == "localhost" or name.endswith(".localhost")


def normal_origin(origin: str) -> str | None:
    """Return an origin in lower case and without the port that its scheme implies.

    None if it is none; `null` is none.
    """
    found = _ORIGIN.fullmatch(origin.strip().lower())
    if found is None or host_name(found["host"]) is None:
        return None
    return f"{found['scheme']}://{_without_port(found['scheme'], found['host'])}"


def is_same_origin(origin: str, scheme: str, host: str) -> bool:
    """Return whether a normal origin is that of a request.

    A page of https at the same host is: a proxy before the server may speak TLS.

    Args:
        origin: see `normal_origin`.
        scheme: of the request, `http` or `https`.
        host: the header `Host`.
    """
    theirs = origin.partition(":")[0]
    if theirs not in _PORTS or (scheme == "https" and theirs == "http"):
        return False
    return origin == f"{theirs}://{_without_port(theirs, host.lower())}"


def _without_port(scheme: str, host: str) -> str:
    found = _HOST.fullmatch(host)
    if found is None or found["port"] in (None, "", _PORTS.get(scheme)):
        return host if found is None else found["name"]
    return host
