"""Images of requests that are fetched by their URL, from the hosts that the operator allowed.

    fetcher = ImageFetcher(["images.example.org"], Limits())
    await fetcher.fetch({"input[0]": "https://images.example.org/a.jpg"})  # [b"..."]

A server that fetches what strangers ask for can be made to ask its own network. So only https is
spoken, only with listed hosts, at addresses of the public internet that are resolved once and
dialled as they were checked, without the proxies of the environment; the same holds for every
redirect. Refusals are decided from the URL's text, and tell nothing about names or addresses.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import httpx

from pocketclip._version import __version__
from pocketclip.serve.errors import RequestError
from pocketclip.serve.settings import Limits
from pocketclip.storage.allowed_hosts import AllowedHosts
from pocketclip.storage.http import Fetcher, FetchFailure, FetchOptions

SECONDS = 10.0
"""For one image, redirects included."""
REQUESTS = 4
"""Requests whose images are fetched at a time; the others wait."""
WAITING = 64
"""Requests that wait for that."""
AHEAD = 4
"""Images of one request that are fetched at a time."""
_MAX_URL = 8192


class ImageFetcher:
    """Fetches images for requests; its methods belong to one event loop.

    All images of a request together may have as many bytes as its body.

    Args:
        hosts: what may be asked, see `pocketclip.storage.allowed_hosts`.
        limits: the sizes that are accepted.

    Raises:
        ConfigError: one is not a host.
        StorageError: the TLS settings of the environment are invalid.
    """

    def __init__(self, hosts: Sequence[str], limits: Limits) -> None:
        self._limits = limits
        self._hosts = AllowedHosts(hosts)
        self._fetcher = Fetcher(
            FetchOptions(
                concurrency=REQUESTS * AHEAD,
                timeout=SECONDS,
                total_timeout=SECONDS,
                retries=0,
                max_bytes=limits.image_bytes,
                user_agent=f"pocketclip/{__version__} (image embeddings)",
                hosts=self._hosts,
                https_only=True,
                use_proxies=False,
            )
        )
        self._room = asyncio.Semaphore(REQUESTS)
        self._waiting = 0

    def check(self, url: str, name: str) -> None:
        """Refuse a URL that is not fetched from, by its text alone.

        Args:
            url: as the request has it.
            name: of the field, for the message.

        Raises:
            RequestError: 400.
        """
        if len(url) > _MAX_URL:
            raise RequestError(400, f"{name} is a URL of over {_MAX_URL:,} characters", param=name)
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, ValueError):
            raise RequestError(400, f"{name} is not a valid URL", param=name) from None
        if parsed.scheme != "https":
            raise RequestError(400, f"{name}: images are fetched by https only", param=name)
        if parsed.userinfo:
            raise RequestError(400, f"{name}: a URL must not hold a user or password", param=name)
        if not self._hosts.allows(parsed):
            raise RequestError(
                400, f"{name}: this server fetches no images from that host; send the image itself",
                param=name,
            )  # fmt: skip

    async def fetch(
        self, urls: Mapping[str, str], hold: Callable[[int], None] = lambda _: None
    ) -> list[bytes]:
        """Return the images at URLs.

        Args:
            urls: by the names of their fields; all have passed `check`.
            hold: called with the size of each image that was fetched; may raise.

        Raises:
            RequestError: 400, one cannot be fetched, or is too large; 413, all together are; 429,
                too many requests wait; or what `hold` raises.
        """
        if self._waiting >= WAITING:
            raise RequestError(
                429, "too many requests wait for images to be fetched; try again later",
                code="queue_full", retry_after=round(SECONDS),
            )  # fmt: skip
        self._waiting += 1
        try:
            await self._room.acquire()
        finally:
            self._waiting -= 1
        try:
            return await self._fetch(urls, hold)
        finally:
            self._room.release()

    async def _fetch(self, urls: Mapping[str, str], hold: Callable[[int], None]) -> list[bytes]:
        images, size = list[bytes](), 0
        waiting = deque(urls.items())
        running: deque[tuple[str, asyncio.Future[bytes | str]]] = deque()
        try:
            while waiting or running:
                while waiting and len(running) < AHEAD:
                    name, url = waiting.popleft()
                    running.append((name, asyncio.wrap_future(self._fetcher.submit(url))))
                name, future = running[0]
                result = await future
                running.popleft()
                if isinstance(result, str):
                    raise _explained(name, result)
                hold(len(result))
                images.append(result)
                size += len(result)
                if size > self._limits.body_bytes:
                    raise RequestError(
                        413, "the images of this request have more than "
                        f"{self._limits.body_bytes:,} bytes together: send fewer at a time",
                        param=name,
                    )  # fmt: skip
        finally:
            for _, future in running:
                future.cancel()
        return images

    def close(self) -> None:
        """Stop all fetches."""
        self._fetcher.close()


def _explained(name: str, failure: str) -> RequestError:
    answer = failure.answer if isinstance(failure, FetchFailure) else None
    reason = f": {answer}" if answer else ""
    return RequestError(400, f"{name}: the image could not be fetched{reason}", param=name)
