from __future__ import annotations

import asyncio
import gc
import socket
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from pocketclip.errors import ConfigError, MissingDependencyError, StorageError
from pocketclip.storage.http import Fetcher, FetchOptions, fetch_many
from tests.image_server import ImageServer


def hasty(**changes: Any) -> FetchOptions:
    limits = {"timeout": 5.0, "total_timeout": 9.0, "backoff": 0.01, "max_bytes": 100_000}
    return FetchOptions(**{**limits, "allow_private": True, **changes})


def one(web: ImageServer, path: str, **changes: Any) -> bytes | str:
    """Fetch one path, in bounded time; a reason is checked, and its address taken off."""
    url = path if "://" in path else web.url + path
    started = time.monotonic()
    [(key, result)] = fetch_many([("key", url)], hasty(**changes))
    assert time.monotonic() - started < 20  # a limit for the hung, not a measurement
    assert key == "key"
    if isinstance(result, str):
        assert "\n" not in result
        return result.replace(web.url, "")
    return result


def test_in_order_and_at_the_same_time(web: ImageServer) -> None:
    paths = ["/slow/0.2", "/a.jpg", "/status/404", "/b.jpg", "/slow/0.1"] * 3
    web.files |= {"/a.jpg": b"a", "/b.jpg": b"b"}
    urls = [(f"{i}", web.url + path) for i, path in enumerate(paths)]
    results = list(fetch_many(iter(urls), hasty(concurrency=6)))
    assert [key for key, _ in results] == [key for key, _ in urls]
    good = [b"slow", b"a", None, b"b", b"slow"] * 3
    assert [r if isinstance(r, bytes) else None for _, r in results] == good
    assert 3 <= web.most_at_once <= 6


def test_urls_are_consumed_only_as_fast_as_fetched(web: ImageServer) -> None:
    web.files["/a"] = b"a"
    taken = []

    def urls() -> Iterator[tuple[str, str]]:
        for i in range(100):
            taken.append(i)
            yield str(i), web.url + "/a"

    results = fetch_many(urls(), hasty(concurrency=5))
    next(results)
    assert len(taken) == 5
    next(results)
    assert len(taken) == 6
    results.close()
    assert not [t for t in threading.enumerate() if t.daemon and "run_forever" in t.name]


def test_leaving_early_does_not_wait(web: ImageServer) -> None:
    web.files["/a"] = b"a"
    urls = [("0", web.url + "/a"), *((str(i), web.url + "/drip") for i in range(1, 9))]
    results = fetch_many(urls, FetchOptions(concurrency=4, allow_private=True))
    assert next(results) == ("0", b"a")
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 5  # the time limit of a drip is 60 s


def test_leaving_while_it_connects() -> None:
    """Stop after each of 12 rounds of the event loop: in one of them a connection begins."""
    for rounds in range(12):
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            url = f"http://127.0.0.1:{server.getsockname()[1]}/a"
            fetcher = Fetcher(hasty(retries=0))
            stopping = asyncio.run_coroutine_threadsafe(
                _start_and_stop(fetcher, url, rounds), fetcher._loop
            )
            tasks = stopping.result(20)
            fetcher.close()
        assert all(task.cancelled() for task in tasks), rounds
    gc.collect()  # a coroutine that nobody awaited warns when it is collected


async def _start_and_stop(
    fetcher: Fetcher, url: str, rounds: int
) -> list[asyncio.Task[bytes | str]]:
    tasks = [asyncio.ensure_future(fetcher._fetch(url)) for _ in range(3)]
    for _ in range(rounds + 1):
        await asyncio.sleep(0)
    await fetcher._stop()
    return tasks


@pytest.mark.parametrize(
    ("path", "reason", "attempts"),
    [
        ("/status/404", "status 404", 1),
        ("/status/410", "status 410", 1),
        ("/status/204", "status 204", 1),
        ("/status/503", "status 503 (3 attempts)", 3),
        ("/slow/9", "no answer within 0.4 s (3 attempts)", 3),
        ("/drip", "not finished within 0.8 s (3 attempts)", 3),
        ("/dripheader", "not finished within 0.8 s (3 attempts)", 3),
        ("/endless", "larger than 100,000 bytes", 1),
        ("/announce/1000000000000", "larger than 100,000 bytes", 1),
        ("/bomb", "larger than 100,000 bytes", 1),
        ("/page", "a web page or XML, not an image", 1),
        ("/empty", "empty (0 bytes)", 1),
        ("/loop", "too many redirects", 6),
        ("/short", None, 3),
        ("/reset", None, 3),
        ("/hangup", None, 3),
        ("/garbage", None, 3),
        ("/nogzip", None, 1),
        ("/coded/zstd", "compressed by zstd, which was not requested", 1),
        ("/coded/br", "compressed by br, which was not requested", 1),
        ("/coded/gzip,gzip", "compressed by gzip, gzip, which was not requested", 1),
        ("/leave", None, 1),
    ],
)
def test_bad_servers(web: ImageServer, path: str, reason: str | None, attempts: int) -> None:
    never = path.startswith(("/slow", "/drip"))
    result = one(web, path, **({"timeout": 0.4, "total_timeout": 0.8} if never else {}))
    assert isinstance(result, str)
    assert result.startswith(f"cannot fetch {path}: ")
    if reason is not None:
        assert result == f"cannot fetch {path}: {reason}"
    assert web.asked[path] == attempts


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("/status/503/2", b"at last"),
        ("/redirect/mistyped", b"\xff\xd8\xff a photograph"),
        ("/redirect/redirect/redirect/cookie", b"none"),
        ("/long", b"promised"),
        ("/coded/gzip", b"a photograph"),
        ("/coded/deflate", b"a photograph"),
        ("/coded/utf-8", b"a photograph"),
        ("/bombredirect/cookie", b"none"),
    ],
)
def test_what_is_good_in_the_end(web: ImageServer, path: str, data: bytes) -> None:
    assert one(web, path) == data


def test_the_pause_that_a_server_asks_for(web: ImageServer) -> None:
    # The test's own limit of time would be broken by the pause that we would make ourselves.
    assert one(web, "/status/429/1/0", backoff=100) == b"at last"


def test_the_limit_itself_is_allowed(web: ImageServer) -> None:
    web.files["/a"] = bytes(100_000)
    assert one(web, "/a") == bytes(100_000)
    assert one(web, "/a", max_bytes=99_999) == "cannot fetch /a: larger than 99,999 bytes"


def test_compressed_answers_are_limited(web: ImageServer) -> None:
    # 8 MB of zeros in 36 kB, which come at once
    tracemalloc.start()
    try:
        assert one(web, "/bomb") == "cannot fetch /bomb: larger than 100,000 bytes"
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_cookies_are_not_kept(web: ImageServer) -> None:
    urls = [(str(i), web.url + "/cookie") for i in range(3)]
    assert [result for _, result in fetch_many(urls, hasty(concurrency=1))] == [b"none"] * 3


@pytest.mark.parametrize(
    "url",
    [
        "http://nowhere.invalid/a.jpg",
        "http://127.0.0.1:9/a.jpg",
        "http://[::1/a.jpg",
        "http://",
        "http://host:port/",
        "http://xn--/a.jpg",
        "http://a" + "b" * 300 + ".invalid/",
        "ftp://host/a.jpg",
        "file:///etc/hostname",
        "a.jpg",
        "",
        "http://127.0.0.1/\x00",
        "https://\nevil",
    ],
)
@pytest.mark.usefixtures("web")
def test_bad_addresses(url: str) -> None:
    [(_, result)] = fetch_many([("key", url)], hasty(retries=0))
    assert isinstance(result, str)
    assert result.startswith("cannot fetch ")
    assert "\n" not in result


def test_passwords_are_not_shown() -> None:
    [(_, result)] = fetch_many([("key", "http://me:secret@127.0.0.1:9/a")], hasty(retries=0))
    assert isinstance(result, str)
    assert "127.0.0.1:9/a" in result
    assert "secret" not in result


@pytest.mark.parametrize(
    "change", [{"concurrency": 0}, {"timeout": 0}, {"retries": -1}, {"max_bytes": 0}]
)
def test_invalid_options(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        FetchOptions(**change)


def test_a_bad_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "what://host")
    monkeypatch.setenv("http_proxy", "what://host")
    with pytest.raises(StorageError, match="HTTP_PROXY"):
        list(fetch_many([("key", "http://127.0.0.1:9/")]))


def test_without_httpx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(MissingDependencyError, match=r"pocketclip\[reinforce\]"):
        list(fetch_many([("key", "http://127.0.0.1:9/")]))
