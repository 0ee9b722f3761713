"""Another machine-learning service of immich, which does the tasks that we do not: faces, OCR.

    upstream = Upstream("http://immich-machine-learning:3003")
    answer = await upstream.predict(body, content_type)  # the bytes of a JSON object

immich's own service restarts itself after some minutes without work, and immich drops a job whose
request fails. So a service that is not there, or is just starting, is asked again for a while.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import ssl
import time
from typing import Any

import httpx

from pocketclip.errors import ConfigError
from pocketclip.serve.errors import RequestError
from pocketclip.serve.settings import Limits

log = logging.getLogger(__name__)

VIA = f"1.1 pocketclip-{secrets.token_hex(6)}"
"""The header `Via` of what this process passes on; it would come back from a server that passes its
requests on to itself."""

_CONNECTIONS = 32
_BREAKS = 2  # a request that breaks the connection more often may be what the service dies of
_STARTING = {502, 503, 504}  # as a proxy answers for a service that is not there
_OF_THE_REQUEST = {400, 413, 415, 422}


class Upstream:
    """A service that requests are passed on to; its methods belong to one event loop.

    Args:
        url: of the service; `/predict` below it is called.
        limits: `upstream_patience` and `upstream_timeout`; and `body_bytes` for an answer.

    Raises:
        ConfigError: the URL is not one of http or https.
    """

    def __init__(self, url: str, limits: Limits | None = None) -> None:
        self._url = _checked(url)
        self._limits = limits or Limits()
        self._client: httpx.AsyncClient | None = None
        self._is_down = False

    async def predict(self, body: bytes, content_type: str) -> bytes:
        """Return the service's answer to a request, unchanged: a JSON object.

        Args:
            body: of the request.
            content_type: of the body, with the form's boundary.

        Raises:
            RequestError: the service refuses the request (its own status: 400, 413, 415, 422), or
                it does not answer as it should (503).
        """
        patience = time.monotonic() + self._limits.upstream_patience
        pause, breaks = 0.0, 0
        while True:
            try:
                answer = await self._ask(body, content_type)
            except _NotThereError as error:
                breaks += error.was_sent
                if time.monotonic() + pause > patience or breaks > _BREAKS:
                    raise self._failed(str(error)) from error
                # The first time, it may have closed a connection that nothing was sent on for long.
                if pause and not self._is_down:
                    self._is_down = True
                    log.warning("the upstream service %s; its requests wait", error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, 4.0) or 0.25
            else:
                if self._is_down:
                    self._is_down = False
                    log.info("the upstream service answers again")
                return answer

    async def _ask(self, body: bytes, content_type: str) -> bytes:
        headers = {
            "Content-Type": content_type, "Accept": "application/json", "Via": VIA,
            "Accept-Encoding": "identity", "User-Agent": "pocketclip",
        }  # fmt: skip
        try:
            async with self._open().stream(
                "POST", self._url, content=body, headers=headers
            ) as response:
                if response.status_code in _STARTING:
                    raise _NotThereError(f"answers {response.status_code}")
                if response.status_code in _OF_THE_REQUEST:
                    raise RequestError(
                        response.status_code,
                        f"the upstream service refuses the request ({response.status_code})",
                    )
                if response.status_code != 200:
                    raise self._failed(f"answers {response.status_code}")
                return await self._read(response)
        except (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout) as error:
            raise self._failed("takes too long") from error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _NotThereError("cannot be reached") from error
        except (httpx.TransportError, OSError) as error:
            raise _NotThereError("breaks the connection", was_sent=True) from error

    async def _read(self, response: httpx.Response) -> bytes:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise self._failed("compresses its answer, which was not asked for")
        answer = bytearray()
        async for chunk in response.aiter_raw():
            answer += chunk
            if len(answer) > self._limits.body_bytes:
                raise self._failed("answers with too many bytes")
        try:
            _read_object(bytes(answer))
        except (ValueError, RecursionError):
            raise self._failed("answers something that is not a JSON object") from None
        return bytes(answer)

    def _failed(self, what: str) -> RequestError:
        log.warning("the upstream service %s: a request for faces or OCR failed", what)
        return RequestError(503, f"the upstream service {what}")

    def _open(self) -> httpx.AsyncClient:
        # Made at the first call: it belongs to the loop that runs then.
        if self._client is None:
            limits = self._limits
            self._client = httpx.AsyncClient(
                timeout=httpx.Timeout(limits.upstream_timeout, connect=5.0),
                limits=httpx.Limits(
                    max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS
                ),
                follow_redirects=False,
                trust_env=False,  # the service is a neighbour: no proxy, no password of a .netrc
                verify=ssl.create_default_context() if self._url.scheme == "https" else False,
            )
        return self._client

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


class _NotThereError(Exception):
    """The service cannot be reached now; the text says so.

    Args:
        what: it does.
        was_sent: whether it may have begun with the request.
    """

    def __init__(self, what: str, *, was_sent: bool = False) -> None:
        super().__init__(what)
        self.was_sent = was_sent


def _checked(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
        is_good = parsed.scheme in ("http", "https") and parsed.host and not parsed.query
        if not is_good or parsed.fragment or any(c.isspace() for c in url):
            raise ValueError
        return parsed.copy_with(path=parsed.path.rstrip("/") + "/predict")
    except (httpx.InvalidURL, ValueError):
        raise ConfigError(
            "the upstream URL is not like http://immich-machine-learning:3003"
        ) from None


def _read_object(data: bytes) -> dict[str, Any]:
    value = json.loads(data, parse_constant=_refuse)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def merge(answer: bytes, ours: dict[str, Any]) -> dict[str, Any]:
    """Return one answer for a request that was split.

    Args:
        answer: of the upstream service. The size of the image in it stays, since the boxes of its
            faces refer to it.
        ours: embedding, and size of the image.
    """
    return ours | _read_object(answer) | {"clip": ours["clip"]}
