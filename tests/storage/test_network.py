"""Private addresses are not dialled, however they are written, named or redirected to."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest

from pocketclip.storage.http import FetchOptions, fetch_many
from pocketclip.storage.network import is_public, literal_address
from tests.image_server import ImageServer
from tests.network_stand_ins import Names, certificate, only_one_is_public


def fetched(*urls: str, **changes: Any) -> list[bytes | str]:
    limits = {"timeout": 5.0, "total_timeout": 9.0, "retries": 0}
    return [result for _, result in fetch_many(((u, u) for u in urls), FetchOptions(**{**limits, **changes}))]  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111"),
        *("::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"),
    ],
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "100.127.255.255", "192.0.0.1", "192.0.2.1"),
        *("198.18.0.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1"),
        *("255.255.255.255", "::1", "::", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
        *("::ffff:169.254.169.254", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0"),
        *("fec0::1", "ff02::1", "2001:db8::1", "2001::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
        *("64:ff9b:1::1", "2002:7f00:1::1", "2002:a00:1::", "100::1", "4000::1"),
    ],
)
def test_private_addresses(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0X7F.1", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("[fe80::1%eth0]", "fe80::1"),
        ("face.example", None),
        ("ab.cd", None),
        ("99999999999", None),
        ("localhost", None),
    ],
)
def test_addresses_as_they_are_written(host: str, address: str | None) -> None:
    assert literal_address(host) == address


WRITTEN = ["127.0.0.1", "2130706433", "0x7f.1", "0x7f000001", "127.1", "0.0.0.0"]
WRITTEN += [
    "[::ffff:127.0.0.1]",
    "[::]",
    "localhost",
    "127.0.0.1.",
    "LOCALHOST",
    "[64:ff9b::7f00:1]",
]


@pytest.mark.parametrize("proxied", [False, True])
def test_private_addresses_are_not_contacted(
    web: ImageServer, monkeypatch: pytest.MonkeyPatch, proxied: bool
) -> None:
    if proxied:
        monkeypatch.setenv("http_proxy", web.url)
    web.files["/a"] = b"secret"
    port = web.url.rpartition(":")[2]
    others = [
        "169.254.169.254",
        "100.64.1.1",
        "[fc00::1]",
        "[fe80::1]",
        "10.0.0.1",
        "[2002:7f00:1::]",
    ]
    urls = [f"http://{host}:{port}/a" for host in WRITTEN + others]
    for url, result in zip(urls, fetched(*urls), strict=True):
        assert isinstance(result, str), url
        assert "is not a public address; pass --allow-private" in result, url
    assert not web.asked


def test_private_addresses_may_be_allowed(web: ImageServer) -> None:
    web.files["/a"] = b"mine"
    port = web.url.rpartition(":")[2]
    urls = [f"http://{host}:{port}/a" for host in ("127.0.0.1", "localhost")]
    assert fetched(*urls, allow_private=True) == [b"mine", b"mine"]


def test_names_that_resolve_to_private_addresses(
    web: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(monkeypatch, inner=["127.0.0.1"])
    port = web.url.rpartition(":")[2]
    [result] = fetched(f"http://inner.test:{port}/host")
    assert "inner.test (127.0.0.1) is not a public address" in str(result)
    assert names.asked == 1
    assert not web.asked


def test_the_checked_address_is_used(web: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    only_one_is_public(monkeypatch)
    names = Names(monkeypatch, outer=["127.0.0.1", "127.0.0.2"])  # another one from then on
    port = web.url.rpartition(":")[2]
    assert fetched(f"http://outer.test:{port}/host") == [f"outer.test:{port}".encode()]
    assert names.asked == 1


def test_redirects_are_checked(web: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    only_one_is_public(monkeypatch)
    Names(monkeypatch, inner=["127.0.0.2"])
    port = web.url.rpartition(":")[2]
    hosts = ["127.0.0.2", "[::1]", "inner.test", "0.0.0.0"]
    urls = [f"{web.url}/send/{host}:{port}/host" for host in hosts]
    for result in fetched(*urls):
        assert "is not a public address" in str(result)
    assert web.asked["/host"] == 0
    assert fetched(f"{web.url}/send/127.0.0.1:{port}/host") == [f"127.0.0.1:{port}".encode()]


def test_a_proxy_resolves_names(web: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch, nowhere=["10.9.8.7"])
    monkeypatch.setenv("http_proxy", web.url)
    assert fetched("http://nowhere.test/host") == [b"nowhere.test"]
    assert names.asked == 0
    [result] = fetched("http://nowhere.test/send/127.0.0.1/host")
    assert "is not a public address" in str(result)
    for without in ("nowhere.test", ".test", "*.test", "*", "a,test"):
        monkeypatch.setenv("no_proxy", without)
        [result] = fetched("http://nowhere.test/host")
        assert "nowhere.test (10.9.8.7) is not a public address" in str(result), without
    monkeypatch.setenv("no_proxy", "where.test,nowhere.test:81")
    assert fetched("http://nowhere.test/host") == [b"nowhere.test"]


@pytest.mark.usefixtures("web")
def test_certificates_are_checked_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = certificate(tmp_path, "outer.test")
    monkeypatch.setenv("SSL_CERT_FILE", str(pair))
    only_one_is_public(monkeypatch)
    Names(monkeypatch, outer=["127.0.0.1"], other=["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    asked: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for _ in range(2):
                plain, _ = server.accept()
                try:
                    with context.wrap_socket(plain, server_side=True) as stream:
                        stream.recv(4096)
                        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsafe")
                except OSError:
                    plain.close()

        thread = threading.Thread(target=serve)
        thread.start()
        port = server.getsockname()[1]
        assert fetched(f"https://outer.test:{port}/a") == [b"safe"]
        [result] = fetched(f"https://other.test:{port}/a")
        thread.join(10)
    assert "certificate" in str(result).lower()
    assert asked == ["outer.test", "other.test"]
