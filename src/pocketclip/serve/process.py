"""The life of a server: its ports on one event loop, from the first request to the last answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pocketclip.serve.app import create_app
from pocketclip.serve.ports import Port, bind
from pocketclip.serve.services import Services


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server that answers; its methods may be called from any thread."""

    services: Services
    urls: list[str]
    """Of its own protocols, the first one for people."""
    immich_urls: list[str]
    """Of immich's, if it is offered."""
    stop: Callable[[], None]
    """Ends it, as SIGTERM does."""


async def run(services: Services, on_start: Callable[[Running], Any] | None = None) -> None:
    """Answer requests until told to end; the services are closed then.

    Args:
        services: what to answer with.
        on_start: called when the server answers.

    Raises:
        ConfigError: an address cannot be used.
    """
    settings, loop, end = services.settings, asyncio.get_running_loop(), asyncio.Event()
    ports = [Port(create_app(services), bind(settings.host, settings.port), settings)]
    for port in ports:
        await port.listen()
    services.is_ready = True
    if on_start is not None:
        on_start(
            Running(
                services=services,
                urls=ports[0].urls,
                immich_urls=[],
                stop=lambda: _call(loop, end.set),
            )
        )
    await end.wait()
    services.is_draining = True
    for port in ports:
        await port.close(settings.limits.drain)
    await services.close()


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], Any]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended
        loop.call_soon_threadsafe(function)
