"""Images from the web: many at a time, in order, and never for ever.

    for key, result in fetch_many([("00000000", "https://host/a.jpg")], FetchOptions()):
        ...  # bytes, or a str that says why there are none

A server may be slow, lie about what it sends, or never stop: each URL has a time limit of its
own, whatever its server does, and a limit of bytes. Private addresses are not dialled unless
the options allow it, see `pocketclip.storage.network`.
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

from pocketclip.errors import ConfigError, MissingDependencyError, StorageError, one_line

if TYPE_CHECKING:
    import httpx

_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_PAUSE = 8.0
_MOST_AT_ONCE = 4096
_UNKNOWN = {"br", "compress", "x-compress", "zstd"}
_CODINGS = {"gzip", "x-gzip", "deflate", *_UNKNOWN}
_WEB_PAGE = (b"<!doctype html", b"<html", b"<head", b"<?xml version")


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """How images are fetched.

    At most `concurrency` times `max_bytes` are held in memory.
    """

    concurrency: int = 32
    """URLs under way, or fetched and not yet taken."""
    timeout: float = 10.0
    """Seconds to connect, and seconds of silence after which an attempt is given up."""
    total_timeout: float = 60.0
    """Seconds for one attempt as a whole: a server may send a byte now and then."""
    retries: int = 2
    """Attempts after the first, where another may help: time limits, broken connections, 5xx."""
    backoff: float = 0.5
    """Seconds before the second attempt, about; each further pause is twice as long, up to 8."""
    max_bytes: int = 50_000_000
    max_redirects: int = 5
    user_agent: str = "pocketclip (image-text dataset reader)"
    allow_private: bool = False
    """Dial private addresses too: loopback, link-local, a company's own network."""

    def __post_init__(self) -> None:
        for name in ("concurrency", "timeout", "total_timeout", "max_bytes"):
            value = getattr(self, name)
            if not value > 0 or not math.isfinite(value):
                raise ConfigError(f"fetch: {name} is {value}; it must be positive and finite")
        for name in ("retries", "backoff", "max_redirects"):
            value = getattr(self, name)
            if not value >= 0 or not math.isfinite(value):
                raise ConfigError(f"fetch: {name} is {value}; 0 is the least")
        if self.concurrency > _MOST_AT_ONCE:
            raise ConfigError(
                f"fetch: concurrency is {self.concurrency}; {_MOST_AT_ONCE:,} is the most"
            )


class _FailedError(Exception):
    """An attempt that failed, and whether another one may do better."""

    def __init__(self, reason: str, *, again: bool = False, pause: float | None = None) -> None:
        super().__init__(reason)
        self.again = again
        self.pause = pause


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that can close what is still connected.

    anyio drops a connection that is made at the moment when its task is cancelled.
    """

    def __init__(self) -> None:
        super().__init__()
        self._connected: set[asyncio.Transport] = set()

    async def create_connection(self, *args: Any, **options: Any) -> Any:
        made = await super().create_connection(*args, **options)
        self._connected = {one for one in self._connected if not one.is_closing()}
        self._connected.add(made[0])
        return made

    async def disconnect(self) -> None:
        for transport in self._connected:
            transport.abort()
        await asyncio.sleep(0)  # in which they are closed


class Fetcher:
    """A client with a thread of its own; URLs go in, futures of bytes or a reason come out.

    It belongs to the process that made it. Leaving it as a context stops what is under way.

    Raises:
        MissingDependencyError: httpx is not installed.
        StorageError: the proxy variables of the environment make no sense.
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
        """Begin to fetch `url`; the future never raises, unless this is closed before."""
        return asyncio.run_coroutine_threadsafe(self._fetch(url), self._loop)

    def close(self) -> None:
        """Stop everything under way."""
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
        # Only our own tasks. anyio begins tasks to connect, and ends them itself; one of its tasks
        # that is cancelled before its first step leaves a coroutine that was never awaited.
        while running := set(self._running):
            for task in running:
                task.cancel()
            # Again after a second: a time limit that ends just now may hide a cancellation.
            await asyncio.wait(running, timeout=1)
        await self._client.aclose()
        await self._loop.disconnect()

    async def _fetch(self, url: str) -> bytes | str:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            return await self._fetch_patiently(url)
        finally:
            self._running.discard(task)

    async def _fetch_patiently(self, url: str) -> bytes | str:
        options = self._options
        async with self._free:
            for attempt in range(options.retries + 1):
                try:
                    return await asyncio.wait_for(self._attempt(url), options.total_timeout)
                except asyncio.TimeoutError:
                    failed = _FailedError(
                        f"not done within {options.total_timeout:g} s", again=True
                    )
                except _FailedError as error:
                    failed = error
                if not failed.again or attempt == options.retries:
                    break
                pause = failed.pause
                if pause is None:
                    # Spread out, so that a server in trouble is not met by all of us at once.
                    pause = options.backoff * 2**attempt * random.uniform(0.5, 1.5)
                await asyncio.sleep(min(pause, _LONGEST_PAUSE))
        tries = f" ({attempt + 1} attempts)" if attempt else ""
        return f"cannot fetch {_shown(url)}: {failed}{tries}"

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
            raise _FailedError(f"not a usable address: {one_line(error)}") from error
        except (httpx.TimeoutException, httpcore.TimeoutException) as error:
            raise _FailedError(timeout, again=True) from error
        except httpcore.UnsupportedProtocol as error:
            raise _FailedError(f"not a usable address: {one_line(error)}") from error
        except (httpx.HTTPError, httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise _FailedError(one_line(error), again=True) from error
        except (OSError, RuntimeError) as error:
            # Of sockets and TLS, and asyncio's own, which httpx does not wrap.
            raise _FailedError(f"{type(error).__name__}: {one_line(error)}", again=True) from error

    async def _follow(self, request: httpx.Request) -> bytes:
        # Not left to httpx, which reads and unpacks whatever comes with a redirect.
        for _ in range(self._options.max_redirects + 1):
            answer = await self._client.send(request, stream=True)
            try:
                if answer.next_request is None:
                    return await self._read(answer)
                request = answer.next_request
            finally:
                await answer.aclose()
        raise _FailedError("too many redirects")

    async def _read(self, answer: httpx.Response) -> bytes:
        limit = self._options.max_bytes
        if answer.status_code != 200:
            again = answer.status_code in _AGAIN
            raise _FailedError(
                f"status {answer.status_code}", again=again, pause=_asked_pause(answer)
            )
        too_large = f"larger than {limit:,} bytes"
        announced = answer.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            raise _FailedError(too_large)
        data = bytearray()
        unpack = _unpacker(answer)
        async for chunk in answer.aiter_raw():
            data += unpack(chunk, limit + 1)
            if len(data) > limit:
                raise _FailedError(too_large)
        if not data:
            raise _FailedError("empty (0 bytes)")
        # Content types are wrong too often to be believed; the bytes are not.
        if bytes(data[:64]).lstrip().lower().startswith(_WEB_PAGE):
            raise _FailedError("a web page or XML, not an image")
        return bytes(data)


def fetch_many(
    urls: Iterable[tuple[str, str]], options: FetchOptions | None = None
) -> Iterator[tuple[str, bytes | str]]:
    """Fetch `urls`, pairs of a key and an address, and yield key and result in the same order.

    A result is the bytes as they came, at least one, or a str that says why there are none:
    nothing that a server does raises. `options.concurrency` addresses are under way at a time,
    also while the caller works on what was yielded.

    Raises:
        MissingDependencyError: httpx is not installed.
        StorageError: the proxy variables of the environment make no sense.
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
            'URLs are fetched with httpx: pip install "pocketclip[reinforce]"'
        ) from None
    try:
        return httpx.AsyncClient(
            # A connection is always free: a semaphore of the same size stands before the pool.
            timeout=httpx.Timeout(options.timeout, pool=None),
            transport=make_transport(
                allow_private=options.allow_private, connections=options.concurrency
            ),
            follow_redirects=False,
            cookies=_no_cookies(),
            headers={"User-Agent": options.user_agent, "Accept-Encoding": "identity"},
        )
    except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:
        raise StorageError(
            f"cannot fetch anything: {one_line(error)}; check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY "
            "and SSL_CERT_FILE"
        ) from error


def _no_cookies() -> Any:
    # Of millions of hosts they would fill the memory.
    from http.cookiejar import CookieJar, DefaultCookiePolicy

    return CookieJar(DefaultCookiePolicy(allowed_domains=()))


def _unpacker(answer: httpx.Response) -> Callable[[bytes, int], bytes]:
    """Return a function of a chunk and the most bytes to make of it.

    httpx unpacks a chunk of any size to gigabytes; some servers compress without being asked.
    """
    header = answer.headers.get("content-encoding", "").lower()
    codings = [coding for coding in header.replace(",", " ").split() if coding in _CODINGS]
    if not codings:  # `identity`, and whatever else is written there by mistake
        return lambda chunk, _: chunk
    if len(codings) > 1 or codings[0] in _UNKNOWN:
        raise _FailedError(f"compressed by {', '.join(codings)[:40]}, which was not asked for")
    stream = zlib.decompressobj(47)  # gzip or zlib, by its header

    def unpack(chunk: bytes, most: int) -> bytes:
        try:
            return stream.decompress(chunk, most)
        except zlib.error as error:
            raise _FailedError(f"broken compression: {one_line(error)}") from error

    return unpack


def _asked_pause(answer: httpx.Response) -> float | None:
    asked = answer.headers.get("retry-after", "")
    return float(asked) if asked.isdecimal() and len(asked) < 9 else None


def _shown(url: str) -> str:
    # A table may hold anything; messages are one line, and carry no password.
    head, at, tail = url.partition("://")
    if at and "@" in tail.partition("/")[0]:
        tail = tail.partition("@")[2]
    text = " ".join((head + at + tail).split())
    return text if len(text) <= 200 else text[:200] + "..."
