"""What became of each request, for the metrics and the log: counts and times, never contents.

    app.add_middleware(Observation, services=services, port="main", templates=templates)

The outermost middleware.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders
from starlette.routing import compile_path

from pocketclip.serve.monitoring.exchange import CLIENT_GONE, KEY, METHODS, OTHER, Exchange

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from pocketclip.serve.services import Services


class Observation:
    """Measures every request, and hands it to `services.metrics` and to `services.on_exchange`.

    Args:
        app: what answers.
        services: of the server.
        port: `main` or `immich`.
        templates: the paths that the app has, as its routes write them.
    """

    def __init__(
        self, app: ASGIApp, *, services: Services, port: str, templates: Iterable[str]
    ) -> None:
        self._app, self._services, self._port = app, services, port
        templates = list(templates)
        self._plain = {template for template in templates if "{" not in template}
        self._patterns: list[tuple[re.Pattern[str], str]] = [
            (compile_path(template)[0], template) for template in templates if "{" in template
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and measure."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(
            request_id=secrets.token_hex(8), port=self._port, route=self._template(scope["path"]),
            method=scope["method"] if scope["method"] in METHODS else OTHER,
        )  # fmt: skip
        scope[KEY] = exchange
        begun = time.perf_counter()

        async def receive_counted() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                exchange.received_bytes += len(message.get("body", b""))
            return message

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = exchange.request_id
            await send(message)
            if message["type"] == "http.response.body" and message.get("body"):
                exchange.sent_bytes += len(message["body"])
                # Not at the end: after some refusals, what the client still sends is awaited.
                exchange.seconds = time.perf_counter() - begun

        with self._measured(exchange, begun):
            await self._app(scope, receive_counted, send_counted)

    @contextmanager
    def _measured(self, exchange: Exchange, begun: float) -> Iterator[None]:
        metrics = self._services.metrics
        metrics.in_flight += 1
        try:
            yield
        except Exception:
            exchange.status = exchange.status or 500  # which Starlette answers now
            raise
        finally:
            metrics.in_flight -= 1
            exchange.seconds = exchange.seconds or time.perf_counter() - begun
            if exchange.status is None:  # cancelled, or given up
                exchange.status = CLIENT_GONE
                exchange.dropped = exchange.dropped or "client_gone"
            metrics.observe(exchange)
            for receiver in self._services.on_exchange:
                receiver(exchange)

    def _template(self, path: str) -> str:
        if path in self._plain:
            return path
        return next((name for pattern, name in self._patterns if pattern.match(path)), OTHER)
