"""A transport for httpx that connects to public addresses only.

    client = httpx.AsyncClient(transport=make_transport(allow_private=False, connections=32))

A URL in a third-party table may point at a cloud's metadata service, a router or a database. So a
host is resolved once, its addresses are checked, and the connection uses a checked address: a name
that resolves differently the next time has no effect. The Host header and TLS still use the name.
Every request is checked, including redirects. A proxy resolves names itself; then only hosts
written as private addresses are refused.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import typing
from collections.abc import AsyncIterator, Mapping
from urllib.request import getproxies

import httpcore
import httpx

_V4 = ipaddress.IPv4Address
_V6 = ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")


class PrivateAddressError(Exception):
    """A host that is private, or has only private addresses."""


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public internet.

    Private, loopback, link-local, shared (100.64.0.0/10), reserved, multicast and documentation
    addresses do not, nor do IPv6 addresses that embed such an IPv4 address (mapped, NAT64, 6to4).
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, _V6):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if parsed in _NAT64:
            inner = _V4(int(parsed) & 0xFFFFFFFF)
        if inner is None:
            return parsed in _GLOBAL_V6 and parsed.is_global
        parsed = inner
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved


def literal_address(host: str) -> str | None:
    """Return the IP address that `host` spells, even as `2130706433` or `0x7f.1`, or None."""
    host = host.strip("[]").rstrip(".")
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        pass
    if not re.fullmatch(r"[0-9a-fx]+(\.[0-9a-fx]+){0,3}", host.lower()):
        return None
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return None


def make_transport(
    *, allow_private: bool, connections: int, use_proxies: bool = True
) -> httpx.AsyncBaseTransport:
    """Return a transport that connects directly, or through the proxies of the environment.

    Args:
        allow_private: whether to connect to private addresses too.
        connections: maximum number of connections, for each proxy and for direct ones.
        use_proxies: False: always connect directly.

    Raises:
        ValueError, ImportError, OSError: the proxy variables or SSL_CERT_FILE are invalid.
    """
    return _Routed(allow_private, connections, getproxies() if use_proxies else {})


class _Routed(httpx.AsyncBaseTransport):
    """Sends each request directly or through a proxy, as the environment says."""

    def __init__(self, allow_private: bool, connections: int, proxies: Mapping[str, str]) -> None:
        self._allow_private = allow_private
        self._unproxied = [host.strip() for host in proxies.get("no", "").split(",")]
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._proxied: dict[str, httpx.AsyncBaseTransport] = {}
        for scheme in ("http", "https", "all"):
            address = proxies.get(scheme)
            if address and "*" not in self._unproxied:
                address = address if "://" in address else f"http://{address}"
                self._proxied[scheme] = httpx.AsyncHTTPTransport(proxy=address, limits=limits)
        self._direct = _Direct(allow_private, connections)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.raw_host.decode("ascii", "replace").lower()
        proxy = self._proxied.get(request.url.scheme, self._proxied.get("all"))
        if not self._allow_private:
            refuse_literal(host)
        if proxy is None or self._bypassed(host, request.url.port):
            return await self._direct.handle_async_request(request)
        return await proxy.handle_async_request(request)

    async def aclose(self) -> None:
        for transport in (*self._proxied.values(), self._direct):
            await transport.aclose()

    def _bypassed(self, host: str, port: int | None) -> bool:
        """Return whether NO_PROXY lists the host, its domain, or the host with its port."""
        for entry in filter(None, self._unproxied):
            name = entry.rpartition("://")[2].strip("[]").lstrip("*.").lower()
            with_port = f"{host}:{port}" if port is not None else host
            if name in (host, with_port) or host.endswith(f".{name}"):
                return True
        return False


class _Direct(httpx.AsyncBaseTransport):
    """Like httpx's own transport, but with our network backend."""

    def __init__(self, allow_private: bool, connections: int) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=5.0,
            network_backend=None if allow_private else _PublicBackend(),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        answer = await self._pool.handle_async_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(
                    scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
                ),
                headers=request.headers.raw,
                extensions=request.extensions,
            )
        )
        return httpx.Response(
            status_code=answer.status,
            headers=answer.headers,
            stream=_Stream(typing.cast("typing.AsyncIterable[bytes]", answer.stream)),
            extensions=dict(answer.extensions),
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Stream(httpx.AsyncByteStream):
    def __init__(self, inner: typing.AsyncIterable[bytes]) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()  # type: ignore[attr-defined]


class _PublicBackend(httpcore.AnyIOBackend):
    """Resolves a host and connects to its public addresses only."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: typing.Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await _resolved(host, port, timeout)
        public = [address for address in addresses if is_public(address)]
        if addresses and not public:
            raise _refusal(host, addresses[0])
        failed: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in public:
            try:
                return await super().connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed


async def _resolved(host: str, port: int, timeout: float | None) -> list[str]:
    """Return the addresses of `host`, IPv4 first, as IPv6 is the one that is often broken."""
    loop = asyncio.get_running_loop()
    lookup = loop.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    try:
        infos = await asyncio.wait_for(lookup, timeout)
    except asyncio.TimeoutError:
        raise httpcore.ConnectTimeout(f"{host} was not resolved in time") from None
    except OSError as error:
        raise httpcore.ConnectError(f"{host}: {error.strerror or error}") from error
    infos.sort(key=lambda info: info[0] != socket.AF_INET)
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


def refuse_literal(host: str) -> None:
    """Refuse a host that is written as a private address or named localhost.

    Raises:
        PrivateAddressError: the host is one.
    """
    name = host.rstrip(".").lower()
    address = literal_address(name)
    if name == "localhost" or name.endswith(".localhost"):
        address = "127.0.0.1"
    if address is not None and not is_public(address):
        raise _refusal(host, address)


def _refusal(host: str, address: str) -> PrivateAddressError:
    shown = f" ({address})" if address != host.strip("[]") else ""
    return PrivateAddressError(
        f"{host}{shown} is not a public address; pass --allow-private to allow it"
    )
