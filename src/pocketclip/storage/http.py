"""Fetches images from the web: concurrently, in order, with limits of time and size.

    for key, result in fetch_many([("00000000", "https://host/a.jpg")], FetchOptions()):
        ...  # bytes, or a str with the reason of failure

A server may be slow, send wrong headers, or never stop, so each URL has a time limit and a size
limit. Private addresses are refused unless the options allow them, see
`pocketclip.storage.network`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import math
import random
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pocketclip.errors import (
    ConfigError,
    MissingDependencyError,
    StorageError,
    how_to_install,
    one_line,
)
from pocketclip.storage.retries import RETRY_STATUS

if TYPE_CHECKING:
    import httpx

    from pocketclip.storage.allowed_hosts import AllowedHosts

_MAX_PAUSE = 8.0
_MAX_CONCURRENCY = 4096
_UNSUPPORTED = {"br", "compress", "x-compress", "zstd"}
_CODINGS = {"gzip", "x-gzip", "deflate", *_UNSUPPORTED}
_WEB_PAGE = (b"<!doctype html", b"<html", b"<head", b"<?xml version")


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """How images are fetched.

    At most `concurrency` times `max_bytes` are held in memory.
    """

    concurrency: int = 32
    """Number of URLs being fetched, or fetched but not consumed yet."""
    timeout: float = 10.0
    """Seconds to connect, and seconds without data after which an attempt fails."""
    total_timeout: float = 60.0
    """Seconds for a whole attempt, as a server may send single bytes for hours."""
    retries: int = 2
    """Further attempts after timeouts, broken connections and status 5xx."""
    backoff: float = 0.5
    """Approximate seconds before the second attempt; doubles each time, up to 8."""
    max_bytes: int = 50_000_000
    """Limit on the bytes of an image."""
    max_redirects: int = 5
    user_agent: str = "pocketclip (image-text dataset reader)"
    allow_private: bool = False
    """Also connect to private addresses: loopback, link-local, internal networks."""
    hosts: AllowedHosts | None = None
    """The only hosts that are asked, after redirects too; None: all."""
    https_only: bool = False
    """Refuse http, after redirects too."""
    use_proxies: bool = True
    """Use the proxies of the environment. They resolve names themselves."""

    def __post_init__(self) -> None:
        for name in ("concurrency", "timeout", "total_timeout", "max_bytes"):
            value = getattr(self, name)
            if not value > 0 or not math.isfinite(value):
                raise ConfigError(f"fetch: {name} is {value}; it must be positive and finite")
        for name in ("retries", "backoff", "max_redirects"):
            value = getattr(self, name)
            if not value >= 0 or not math.isfinite(value):
                raise ConfigError(f"fetch: {name} is {value}; the minimum is 0")
        if self.concurrency > _MAX_CONCURRENCY:
            raise ConfigError(
                f"fetch: concurrency is {self.concurrency}; the maximum is {_MAX_CONCURRENCY:,}"
            )


class FetchFailure(str):
    """Why a URL could not be fetched."""

    answer: str | None = None
    """The part that says only what the host answered, or that it took too long; None if the reason
    is another one, which may tell how the names and addresses of this network are."""


class _FailedError(Exception):
    """A failed attempt, and whether to retry."""

    def __init__(
        self, reason: str, *, retry: bool = False, pause: float | None = None,
        is_answer: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(reason)
        self.retry = retry
        self.pause = pause
        self.is_answer = is_answer


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that can close all open connections.

    anyio loses a connection that completes while its task is cancelled.
    """

    def __init__(self) -> None:
        super().__init__()
        self._connected: set[asyncio.Transport] = set()

    async def create_connection(self, *args: Any, **options: Any) -> Any:
        transport, protocol = await super().create_connection(*args, **options)
        self._connected = {each for each in self._connected if not each.is_closing()}
        self._connected.add(transport)
        return transport, protocol

    async def disconnect(self) -> None:
        for transport in self._connected:
            transport.abort()
        await asyncio.sleep(0)  # lets the transports close


class Fetcher:
    """An HTTP client in a thread of its own; `submit` returns futures of bytes or a reason.

    It belongs to the process that created it. Leaving its context stops all fetches.

    Raises:
        MissingDependencyError: httpx is not installed.
        StorageError: the proxy variables of the environment are invalid.
    """

    def __init__(self, options: FetchOptions) -> None:
        self._options = options
        self._client = _client(options)
        self._loop = _Loop()
        self._free = asyncio.Semaphore(options.concurrency)
        self._running: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def submit(self, url: str) -> concurrent.futures.Future[bytes | str]:
        """Start to fetch `url`; the future raises only if the fetcher is closed first.

        A reason is a `FetchFailure`. Cancelling the future stops the fetch.
        """
        return asyncio.run_coroutine_threadsafe(self._fetch(url), self._loop)

    def close(self) -> None:
        """Stop all fetches."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(concurrent.futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    async def _stop(self) -> None:
        # Cancels only our own tasks. anyio ends its own connecting tasks; cancelling one of them
        # before its first step would leave a coroutine that was never awaited.
        while running := set(self._running):
            for task in running:
                task.cancel()
            # Repeated after a second, as a timeout at this moment may hide a cancellation.
            await asyncio.wait(running, timeout=1)
        await self._client.aclose()
        await self._loop.disconnect()

    async def _fetch(self, url: str) -> bytes | str:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            return await self._fetch_with_retries(url)
        finally:
            self._running.discard(task)

    async def _fetch_with_retries(self, url: str) -> bytes | str:
        options = self._options
        async with self._free:
            for attempt in range(options.retries + 1):
                try:
                    return await asyncio.wait_for(self._attempt(url), options.total_timeout)
                except asyncio.TimeoutError:
                    failed = _FailedError(
                        f"not finished within {options.total_timeout:g} s", retry=True,
                        is_answer=True,
                    )  # fmt: skip
                except _FailedError as error:
                    failed = error
                if not failed.retry or attempt == options.retries:
                    break
                pause = failed.pause
                if pause is None:
                    # With jitter, so that requests do not reach a struggling server all at once.
                    pause = options.backoff * 2**attempt * random.uniform(0.5, 1.5)
                await asyncio.sleep(min(pause, _MAX_PAUSE))
        tries = f" ({attempt + 1} attempts)" if attempt else ""
        failure = FetchFailure(f"cannot fetch {_shown(url)}: {failed}{tries}")
        failure.answer = str(failed) if failed.is_answer else None
        return failure

    async def _attempt(self, url: str) -> bytes:
        import httpcore
        import httpx

        from pocketclip.storage.network import PrivateAddressError

        timeout = f"no answer within {self._options.timeout:g} s"
        try:
            return await self._follow(self._client.build_request("GET", url))
        except PrivateAddressError as error:
            raise _FailedError(one_line(error)) from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError) as error:
            raise _FailedError(f"not a valid URL: {one_line(error)}") from error
        except (httpx.TimeoutException, httpcore.TimeoutException) as error:
            raise _FailedError(timeout, retry=True, is_answer=True) from error
        except httpcore.UnsupportedProtocol as error:
            raise _FailedError(f"not a valid URL: {one_line(error)}") from error
        except (httpx.HTTPError, httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise _FailedError(one_line(error), retry=True) from error
        except (OSError, RuntimeError) as error:
            # Raised by sockets, TLS and asyncio, and not wrapped by httpx.
            raise _FailedError(f"{type(error).__name__}: {one_line(error)}", retry=True) from error

    async def _follow(self, request: httpx.Request) -> bytes:
        # Not by httpx, which reads and decompresses the bodies of redirects.
        for _ in range(self._options.max_redirects + 1):
            self._check(request.url)
            answer = await self._client.send(request, stream=True)
            try:
                if answer.next_request is None:
                    return await self._read(answer)
                request = answer.next_request
            finally:
                await answer.aclose()
        raise _FailedError("too many redirects", is_answer=True)

    def _check(self, url: httpx.URL) -> None:
        """Refuse a URL that the options exclude."""
        options = self._options
        if options.https_only and url.scheme != "https":
            raise _FailedError("it leads to a URL without https", is_answer=True)
        if options.hosts is not None and not options.hosts.allows(url):
            # Not named: where a host redirects to may be nobody's business.
            raise _FailedError("it leads to a host that is not allowed here", is_answer=True)

    async def _read(self, answer: httpx.Response) -> bytes:
        limit = self._options.max_bytes
        if answer.status_code != 200:
            retry = answer.status_code in RETRY_STATUS
            raise _FailedError(
                f"status {answer.status_code}",
                retry=retry,
                pause=_retry_after(answer),
                is_answer=True,
            )
        too_large = f"larger than {limit:,} bytes"
        announced = answer.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise _FailedError(too_large, is_answer=True)
        data = bytearray()
        unpack = _unpacker(answer)
        async for chunk in answer.aiter_raw():
            data += unpack(chunk, limit + 1)
            if len(data) > limit:
                raise _FailedError(too_large, is_answer=True)
        if not data:
            raise _FailedError("empty (0 bytes)", is_answer=True)
        # Content types are wrong too often, so the bytes are checked.
        if bytes(data[:64]).lstrip().lower().startswith(_WEB_PAGE):
            raise _FailedError("a web page or XML, not an image", is_answer=True)
        return bytes(data)


def fetch_many(
    urls: Iterable[tuple[str, str]], options: FetchOptions | None = None
) -> Iterator[tuple[str, bytes | str]]:
    """Fetch (key, URL) pairs and yield (key, result) in the same order.

    A result is the bytes (at least one) or a str with the reason of failure: no error of a server
    raises. Up to `options.concurrency` URLs are fetched ahead while the caller works.

    Raises:
        MissingDependencyError: httpx is not installed.
        StorageError: the proxy variables of the environment are invalid.
    """
    options = options or FetchOptions()
    waiting: deque[tuple[str, concurrent.futures.Future[bytes | str]]] = deque()
    with Fetcher(options) as fetcher:
        for key, url in urls:
            waiting.append((key, fetcher.submit(url)))
            if len(waiting) >= options.concurrency:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()


def _client(options: FetchOptions) -> httpx.AsyncClient:
    try:
        import httpx

        from pocketclip.storage.network import make_transport
    except ImportError:
        raise MissingDependencyError(
            f"URLs are fetched with httpx: {how_to_install('reinforce')}"
        ) from None
    try:
        return httpx.AsyncClient(
            # Needs no pool timeout: a semaphore of the same size guards the pool.
            timeout=httpx.Timeout(options.timeout, pool=None),
            transport=make_transport(
                allow_private=options.allow_private,
                connections=options.concurrency,
                use_proxies=options.use_proxies,
            ),
            follow_redirects=False,
            cookies=_no_cookies(),
            headers={"User-Agent": options.user_agent, "Accept-Encoding": "identity"},
        )
    except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:
        raise StorageError(
            f"cannot set up the HTTP client: {one_line(error)}; check HTTP_PROXY, HTTPS_PROXY, "
            "ALL_PROXY and SSL_CERT_FILE"
        ) from error


def _no_cookies() -> Any:
    # Cookies of millions of hosts would fill the memory.
    from http.cookiejar import CookieJar, DefaultCookiePolicy

    return CookieJar(DefaultCookiePolicy(allowed_domains=()))


def _unpacker(answer: httpx.Response) -> Callable[[bytes, int], bytes]:
    """Return a function that decompresses a chunk, up to a number of bytes.

    httpx would decompress a small chunk to gigabytes. Some servers compress without being asked.
    """
    header = answer.headers.get("content-encoding", "").lower()
    codings = [coding for coding in header.replace(",", " ").split() if coding in _CODINGS]
    if not codings:  # `identity`, or an invalid value
        return lambda chunk, _: chunk
    if len(codings) > 1 or codings[0] in _UNSUPPORTED:
        raise _FailedError(f"compressed by {', '.join(codings)[:40]}, which was not requested")
    stream = zlib.decompressobj(47)  # gzip or zlib, by its header

    def unpack(chunk: bytes, limit: int) -> bytes:
        try:
            return stream.decompress(chunk, limit)
        except zlib.error as error:
            raise _FailedError(f"broken compression: {one_line(error)}") from error

    return unpack


def _retry_after(answer: httpx.Response) -> float | None:
    seconds = answer.headers.get("retry-after", "")
    return float(seconds) if seconds.isdecimal() and len(seconds) < 9 else None


def _shown(url: str) -> str:
    # Tables may hold anything; messages are one line and show no password.
    head, at, tail = url.partition("://")
    if at and "@" in tail.partition("/")[0]:
        tail = tail.partition("@")[2]
    text = " ".join((head + at + tail).split())
    return text if len(text) <= 200 else text[:200] + "..."
