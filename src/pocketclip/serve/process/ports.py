"""The addresses of a server: sockets that are bound before anything is loaded, and their apps."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import functools
import socket
import struct
import sys
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.server import ServerState

from pocketclip.errors import ConfigError
from pocketclip.serve.addresses import reachable_addresses
from pocketclip.serve.errors import RequestError, ending
from pocketclip.serve.middleware.answers import send_error
from pocketclip.serve.origins import allowed_name
from pocketclip.serve.process.connection_guard import MAX_HEADER, header_too_large
from pocketclip.serve.process.protocol import protocol_class
from pocketclip.serve.process.tls import Tls
from pocketclip.serve.settings import Limits, ServerSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_BACKLOG = 2048
_SO_ATTACH_FILTER = 26  # of Linux
_UNSENT = 64 << 10  # bytes of an answer that the system holds beyond what is on its way
_TICK_AT_END = 0.02  # seconds between two looks at what is left
_TICK = 1.0  # seconds between two values of the header `Date`


def bind(host: str, port: int) -> list[socket.socket]:
    """Return sockets that are bound, and do not listen yet, to all addresses of a host.

    Args:
        host: an IP address or a name of this machine.
        port: 0 for a free one, the same for all addresses.

    Raises:
        ConfigError: the host has no address here, or the port is in use or not allowed.
    """
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except (OSError, UnicodeError):
        raise ConfigError(
            f"{host!r} is no address of this machine: give an IP address, such as 127.0.0.1"
        ) from None
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _name, address in dict.fromkeys(found):
            one = socket.socket(family, kind, protocol)
            sockets.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _keep_little_unsent(one)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            chosen = port or (sockets[0].getsockname()[1] if len(sockets) > 1 else 0)
            one.bind((address[0], chosen, *address[2:]))
            one.setblocking(False)
    except OSError as error:
        for one in sockets:
            one.close()
        raise ConfigError(why_not_bound(error, host, port)) from error
    return sockets


def _keep_little_unsent(one: socket.socket) -> None:
    """Let the system take only a little of an answer ahead of its client, on all connections.

    It would take megabytes, and say so much later that a slow client takes something at all.
    """
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if option is not None:
        with contextlib.suppress(OSError):
            one.setsockopt(socket.IPPROTO_TCP, option, _UNSENT)


def _refuse_new(one: socket.socket) -> None:
    """Let the system drop requests for new connections, where it can; those it took are accepted.

    Closing a socket resets the connections that the system took and nobody has accepted yet, with
    the requests on them. A client whose request for a connection was dropped asks again after a
    second, and is told that nobody listens.
    """
    if not sys.platform.startswith("linux"):
        return
    # Packets at this socket begin with the header of TCP: byte 13 has the flags, bit 1 is SYN.
    steps = [(0x30, 0, 0, 13), (0x45, 0, 1, 2), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFF)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    with contextlib.suppress(OSError):
        one.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER,
            struct.pack("@HP", len(steps), ctypes.addressof(code)),
        )  # fmt: skip


def why_not_bound(error: OSError, host: str, port: int) -> str:
    """Return what to say of an address that cannot be bound to."""
    where = f"port {port} of {host}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use: choose another one, or 0 for any that is free"
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"{where} is only for privileged processes: choose one from 1024 on, or put a proxy "
            "before the server"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine: give one that it has, or 127.0.0.1"
    return f"cannot listen on {where}: {error.strerror or error}"


def address_of(one: socket.socket, *, tls: bool = False) -> str:
    """Return the URL of a bound socket, without a path."""
    host, port = one.getsockname()[:2]
    return _url(host, port, tls=tls)


def _url(host: str, port: int, *, tls: bool) -> str:
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def phone_urls(sockets: Iterable[socket.socket], settings: ServerSettings) -> list[str]:
    """Return the URLs at which other machines may reach bound sockets, the likeliest first.

    A certificate that was given is for names, so those count that the server may be called by.
    """
    bound = [one.getsockname()[:2] for one in sockets]
    hosts = reachable_addresses(host for host, _port in bound)
    if hosts and settings.certificate is not None and settings.allow_hosts:
        hosts = [name for name in map(allowed_name, settings.allow_hosts) if name]
    return [_url(host, bound[0][1], tls=settings.is_encrypted) for host in hosts]


class Gate:
    """Stands before an app: bounds the header, and knows what has to be finished at the end.

    Args:
        app: any ASGI app.
        is_ending: whether requests that begin now count no more: they are refused further in.
    """

    def __init__(self, app: Any, is_ending: Callable[[], bool]) -> None:
        self._app, self._is_ending = app, is_ending
        self._running: set[asyncio.Task[Any]] = set()
        self._is_cut = False

    @property
    def running(self) -> int:
        """The number of requests that began before the end and have no answer yet."""
        return len(self._running)

    def cut(self) -> int:
        """Answer what still runs with 503; return how many that are."""
        self._is_cut = True
        for task in self._running:
            task.cancel()
        return len(self._running)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on."""
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size > MAX_HEADER:
            await send_error(send, header_too_large())
            return
        if scope["http_version"] not in ("1.0", "1.1"):
            await send_error(send, RequestError(505, "The server speaks HTTP/1.1 only"))
            return
        if self._is_ending():
            await self._app(scope, receive, send)
            return
        task, begun = asyncio.current_task(), False
        assert task is not None

        async def send_counted(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        self._running.add(task)
        try:
            await self._app(scope, receive, send_counted)
        except asyncio.CancelledError:
            if begun or not self._is_cut:
                raise
            await send_error(send, ending())
        finally:
            self._running.discard(task)


class Port:
    """An app behind one port."""

    def __init__(
        self, app: Any, sockets: list[socket.socket], limits: Limits,
        tls: Tls | None = None,
    ) -> None:  # fmt: skip
        self.sockets = sockets
        self.tls = tls
        self.state = ServerState()
        self._limits = limits
        self._config = uvicorn.Config(
            app, http="h11", lifespan="off", ws="none", log_config=None, access_log=False,
            proxy_headers=False, server_header=False,
            timeout_keep_alive=limits.keep_alive,  # type: ignore[arg-type]
            h11_max_incomplete_event_size=2 * MAX_HEADER,
        )  # fmt: skip
        self._config.load()
        self._servers: list[asyncio.AbstractServer] = []
        self._clock: asyncio.Task[None] | None = None

    @property
    def urls(self) -> list[str]:
        """Where it listens."""
        return [address_of(one, tls=self.tls is not None) for one in self.sockets]

    async def listen(self) -> None:
        """Accept connections from now on."""
        loop = asyncio.get_running_loop()
        make = functools.partial(
            protocol_class(), self._limits, config=self._config, server_state=self.state,
            app_state={}, _loop=loop,
        )  # fmt: skip
        self._set_date()
        self._clock = loop.create_task(self._keep_date())
        context = None if self.tls is None else self.tls.context
        handshake = None if self.tls is None else self._limits.header_timeout
        for one in self.sockets:
            server = await loop.create_server(
                make, sock=one, ssl=context, backlog=_BACKLOG, ssl_handshake_timeout=handshake
            )
            self._servers.append(server)

    def refuse_new(self) -> None:
        """Accept only the connections that the system took already; `close` follows."""
        for one in self.sockets:
            _refuse_new(one)

    async def close(self, timeout: float) -> None:
        """Accept no more connections, and close those that are there when they are answered.

        Args:
            timeout: seconds after which those that are still open are cut off.
        """
        for server in self._servers:
            server.close()
        for one in self.sockets:
            one.close()
        end, told = time.monotonic() + timeout, set[Any]()
        while (self.state.connections or self.state.tasks) and time.monotonic() < end:
            for connection in self.state.connections - told:  # some were only just accepted
                connection.shutdown()
                told.add(connection)
            await asyncio.sleep(_TICK_AT_END)
        for task in self.state.tasks:
            task.cancel()
        for connection in list(self.state.connections):
            connection.transport.abort()
        if self._clock is not None:
            self._clock.cancel()
        await asyncio.sleep(0)

    def _set_date(self) -> None:
        self.state.default_headers = [(b"date", formatdate(usegmt=True).encode())]

    async def _keep_date(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            self._set_date()
