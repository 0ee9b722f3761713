"""The life of a server: its ports on one event loop, from the first request to the last answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pocketclip.errors import PocketclipError, count_of
from pocketclip.serve.app import create_app, create_immich_app
from pocketclip.serve.model_offer import make_offer
from pocketclip.serve.monitoring.logs import log, log_event, log_exchange, log_loop_error
from pocketclip.serve.process import notify
from pocketclip.serve.process.certificate import Certificate
from pocketclip.serve.process.embed_presets import embed_presets
from pocketclip.serve.process.opening import load_offer, load_replacement
from pocketclip.serve.process.ports import Gate, Port, bind, phone_urls
from pocketclip.serve.process.tls import Tls, open_tls
from pocketclip.serve.services import Services

if TYPE_CHECKING:
    import socket

    from pocketclip.checkpoint.resolve import ModelSource
    from pocketclip.serve.settings import ServerSettings

_TICK = 0.02  # seconds between two looks at what still runs
_LAST = 1.0  # seconds in which requests that are on their way are still refused in words
_CLOSING = 5.0  # seconds to write the last answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server that answers; its methods may be called from any thread."""

    services: Services
    urls: list[str]
    """Of its own protocols, the first one for people."""
    immich_urls: list[str]
    """Of immich's, if it is offered."""
    phone_urls: list[str]
    """At which other machines may reach it, the likeliest first."""
    certificate: Certificate | None
    """What it shows at its start; None without TLS."""
    stop: Callable[[], None]
    """Ends it, as SIGTERM does."""
    reload: Callable[[], None]
    """Reads the bundle at its place again, as SIGHUP does."""


class Ended(NamedTuple):
    """How a server ended."""

    signal: int | None
    """None: by `Running.stop`."""
    at_once: bool
    """Whether a second SIGINT came: what runs was not waited for."""


@dataclass(slots=True, kw_only=True)
class Sockets:
    """The bound sockets of a server."""

    main: Sequence[socket.socket]
    immich: Sequence[socket.socket] = field(default_factory=list)

    def close(self) -> None:
        """Give the addresses back."""
        for one in (*self.main, *self.immich):
            one.close()


def bind_all(settings: ServerSettings) -> Sockets:
    """Return sockets that are bound to the addresses of a server, and do not listen yet.

    Raises:
        ConfigError: an address cannot be used.
    """
    sockets = Sockets(main=bind(settings.host, settings.port))
    if settings.immich is not None:
        try:
            sockets.immich = bind(*settings.immich)
        except BaseException:
            sockets.close()
            raise
    return sockets


async def run(
    services: Services,
    on_start: Callable[[Running], Any] | None = None,
    *,
    source: ModelSource | None = None,
    sockets: Sockets | None = None,
    tls: Tls | None = None,
    handle_signals: bool = False,
) -> Ended:
    """Answer requests until told to end; the services are closed then.

    Args:
        services: what to answer with.
        on_start: called when the server answers.
        source: where the model is read again; None: it cannot be.
        sockets: what `bind_all` returned; None: it is called now.
        tls: what `open_tls` returned; None: it is called now.
        handle_signals: end by SIGTERM and SIGINT, read the model again by SIGHUP; only in the main
            thread.

    Raises:
        ConfigError: an address or the certificate cannot be used.
        PocketclipError: the model does not work.
    """
    return await _Process(services, source, tls).run(on_start, sockets, handle_signals)


class _Process:
    def __init__(
        self, services: Services, source: ModelSource | None, tls: Tls | None = None
    ) -> None:
        self._services, self._source, self._tls = services, source, tls
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        self._signal: int | None = None
        self._is_urgent = False
        self._gates: list[Gate] = []
        self._ports: list[Port] = []
        self._reloading: asyncio.Task[None] | None = None
        self._reload_again = False
        self._keeping: asyncio.Task[None] | None = None
        self._embedding: asyncio.Task[None] | None = None
        self._had_terminal = _has_terminal()

    async def run(
        self,
        on_start: Callable[[Running], Any] | None,
        sockets: Sockets | None,
        handle_signals: bool,
    ) -> Ended:
        self._loop.set_exception_handler(log_loop_error)
        self._services.on_exchange.append(log_exchange)
        handled = self._handle_signals() if handle_signals else []
        try:
            sockets = sockets or bind_all(self._services.settings)
            await self._listen(sockets)
            if await self._warm():
                self._begin_presets()
                if on_start is not None:
                    on_start(self._running())
            await self._end.wait()
            await self._drain()
        finally:
            for one in handled:
                self._loop.remove_signal_handler(one)
            for task in filter(None, (self._reloading, self._keeping, self._embedding)):
                task.cancel()
            await asyncio.gather(*(port.close(_CLOSING) for port in self._ports))
            if sockets is not None:
                sockets.close()
            await self._services.close()
        log_event("end", "ended")
        return Ended(self._signal, self._is_urgent)

    async def _listen(self, sockets: Sockets) -> None:
        settings, services = self._services.settings, self._services
        self._tls = self._tls or open_tls(settings)
        apps = [(create_app(services), sockets.main, self._tls)]
        if sockets.immich:
            apps.append((create_immich_app(services), sockets.immich, None))
        _allow_files(len(apps) * settings.limits.connections)
        for app, bound, tls in apps:
            self._gates.append(Gate(app, lambda: services.is_draining))
            self._ports.append(Port(self._gates[-1], list(bound), settings.limits, tls))
        for port in self._ports:
            await port.listen()
        if settings.tls and self._tls is not None:
            self._keeping = self._loop.create_task(self._tls.keep())

    async def _warm(self) -> bool:
        """Encode something with both towers; return False if the server is to end before."""
        warming = asyncio.ensure_future(_warm(self._services))
        ending = asyncio.ensure_future(self._end.wait())
        await asyncio.wait({warming, ending}, return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if not warming.done():
            warming.cancel()
            return False
        await warming  # raises why
        self._services.is_ready = True
        encoder = self._services.engine.encoder
        shown: dict[str, Any] = {}
        if self._tls is not None:
            shown["fingerprint"] = self._tls.certificate.fingerprint
        log_event(
            "ready", "the server answers", model=encoder.config.name, space_id=encoder.space_id,
            urls=[url for port in self._ports for url in port.urls],
            remarks=self._services.settings.remarks,
            **shown,
        )  # fmt: skip
        notify.ready()
        return True

    def _begin_presets(self) -> None:
        """Embed the presets of the pages, beside what is asked."""
        if self._embedding is not None:
            self._embedding.cancel()
        self._embedding = self._loop.create_task(_embed_presets(self._services))

    def _running(self) -> Running:
        return Running(
            services=self._services,
            urls=self._ports[0].urls,
            immich_urls=[url for port in self._ports[1:] for url in port.urls],
            phone_urls=phone_urls(self._ports[0].sockets, self._services.settings),
            certificate=None if self._tls is None else self._tls.certificate,
            stop=lambda: self._call(self._end.set),
            reload=lambda: self._call(self._begin_reload),
        )

    def _call(self, function: Callable[[], Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended
            self._loop.call_soon_threadsafe(function)

    # The end.

    def _handle_signals(self) -> list[int]:
        if threading.current_thread() is not threading.main_thread():
            return []
        handlers: dict[int, Callable[[], None]] = {
            signal.SIGTERM: lambda: self._stop(signal.SIGTERM),
            signal.SIGINT: lambda: self._stop(signal.SIGINT),
            signal.SIGHUP: self._on_hangup,
        }
        for one, handler in handlers.items():
            self._loop.add_signal_handler(one, handler)
        return list(handlers)

    def _stop(self, number: int) -> None:
        if self._end.is_set() and number == signal.SIGINT:
            self._is_urgent = True
        self._signal = self._signal or number
        self._end.set()

    def _on_hangup(self) -> None:
        # A terminal that closes sends SIGHUP too: nobody would know of the server any more.
        if self._had_terminal and not _has_terminal():
            self._stop(signal.SIGTERM)
        else:
            self._begin_reload()

    async def _drain(self) -> None:
        """Refuse what is new, and finish what runs."""
        self._services.is_draining = True
        notify.stopping()
        limit = self._services.settings.limits.drain
        left = self._count_running()
        log_event("draining", f"ending: {count_of(left, 'request')} to finish", requests=left)
        end = time.monotonic() + limit
        while self._count_running() and time.monotonic() < end and not self._is_urgent:
            await asyncio.sleep(_TICK)
        cut = sum(gate.cut() for gate in self._gates)
        if cut:
            log_event("cut", f"{count_of(cut, 'request')} did not end in time and got a 503",
                      level=logging.WARNING, requests=cut)  # fmt: skip
        for port in self._ports:
            port.refuse_new()
        # Each connection ends with its 503. One that is idle may be about to ask.
        end = time.monotonic() + _LAST
        while self._count_connections() and time.monotonic() < end and not self._is_urgent:
            await asyncio.sleep(_TICK)

    def _count_connections(self) -> int:
        return sum(len(port.state.connections) for port in self._ports)

    def _count_running(self) -> int:
        return sum(gate.running for gate in self._gates)

    # Another model.

    def _begin_reload(self) -> None:
        self._reload_again = True
        if self._reloading is None or self._reloading.done():
            self._reloading = self._loop.create_task(self._reload())

    async def _reload(self) -> None:
        while self._reload_again and not self._end.is_set():
            self._reload_again = False
            notify.reloading()
            try:
                await self._reload_once()
            except PocketclipError as error:
                log_event("reload_failed", f"the model stays as it was: {error}",
                          level=logging.ERROR)  # fmt: skip
            except Exception:
                log.exception("the model stays as it was: reading it again failed unexpectedly")
            notify.ready()

    async def _reload_once(self) -> None:
        services = self._services
        if self._tls is not None:
            self._tls.reload()
        if self._source is None:
            return
        begun, before = time.monotonic(), services.engine.encoder
        encoder = await self._loop.run_in_executor(None, load_replacement, self._source, services)
        offer = await self._loop.run_in_executor(None, load_offer, encoder, services)
        await services.engine.replace(encoder)
        services.offer = offer
        self._begin_presets()
        same = (before.space_id, before.variant) == (encoder.space_id, encoder.variant)
        log_event(
            "reloaded", f"the model was read again: it is {'the same' if same else 'another'} one",
            model=encoder.config.name, space_id=encoder.space_id, changed=not same,
            seconds=round(time.monotonic() - begun, 3),
        )  # fmt: skip


async def _warm(services: Services) -> None:
    """Encode something with both towers, and read what searches need."""
    await services.engine.warm()
    if services.photos is not None:
        await services.photos.prepare()
    # A damaged bundle of the user's cache has been made again by now: its files are others.
    services.offer = make_offer(services.engine.encoder, services.web_bundles, services.label_sets)


async def _embed_presets(services: Services) -> None:
    try:
        await embed_presets(services)
    except PocketclipError as error:
        if not services.is_draining:
            log_event("presets_failed", f"pages have to embed the presets themselves: {error}",
                      level=logging.WARNING)  # fmt: skip
    except Exception:
        log.exception("pages have to embed the presets themselves: it failed unexpectedly")


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def _allow_files(connections: int) -> None:
    """Raise this process's limit on open files to what the connections need."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + 512
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
