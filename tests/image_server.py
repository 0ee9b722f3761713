"""A web server on 127.0.0.1 that is slow, lies and fails, as its paths say.

with ImageServer() as web:
    web.files["/a.jpg"] = b"..."
    httpx.get(web.url + "/a.jpg")
    httpx.get(web.url + "/status/503")
"""

from __future__ import annotations

import contextlib
import gzip
import socket
import ssl
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import pytest


class ImageServer:
    """What it does with each path stands in `_answer`; anything in `files` is served well.

    Args:
        certificate: speaks TLS with it; a PEM file with its key.
    """

    def __init__(self, certificate: Path | None = None) -> None:
        self._scheme = "http" if certificate is None else "https"
        self.files: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.at_once = 0
        self.most_at_once = 0
        self.stopping = threading.Event()
        self._bomb = gzip.compress(bytes(8 << 20), 1)
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.close_connection = True
                with contextlib.suppress(OSError), owner._counted(self.path):
                    owner._answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

        self._http = Server(("127.0.0.1", 0), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            # The handshake is left to the thread of each connection.
            self._http.socket = context.wrap_socket(
                self._http.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))

    @property
    def port(self) -> int:
        return int(self._http.server_port)

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def __enter__(self) -> ImageServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @contextlib.contextmanager
    def _counted(self, path: str) -> Iterator[None]:
        with self._lock:
            self.asked[path] += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield
        finally:
            with self._lock:
                self.at_once -= 1

    def _answer(self, http: BaseHTTPRequestHandler) -> None:
        path = urlsplit(http.path).path
        if path in self.files:
            _send(http, 200, self.files[path])
            return
        name, *arguments = path.strip("/").split("/")
        misbehave = getattr(self, f"_do_{name}", None)
        if misbehave is None:
            _send(http, 404, b"no such page")
        else:
            misbehave(http, *arguments)

    def _do_status(
        self, http: BaseHTTPRequestHandler, status: str, times: str = "1000", after: str = ""
    ) -> None:
        """Fail some times, then be well; ask to be left alone for `after` seconds."""
        if self.asked[http.path] <= int(times):
            _send(http, int(status), b"", {"Retry-After": after} if after else {})
        else:
            _send(http, 200, b"at last")

    def _do_slow(self, http: BaseHTTPRequestHandler, seconds: str) -> None:
        self.stopping.wait(float(seconds))
        _send(http, 200, b"slow")

    def _do_drip(self, http: BaseHTTPRequestHandler) -> None:
        """Send a byte now and then, and never an end."""
        http.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not self.stopping.wait(0.02):
            http.wfile.write(b"x")

    def _do_dripheader(self, http: BaseHTTPRequestHandler) -> None:
        http.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not self.stopping.wait(0.02):
            http.wfile.write(b"x")

    def _do_endless(self, http: BaseHTTPRequestHandler) -> None:
        http.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not self.stopping.is_set():
            http.wfile.write(bytes(1 << 16))

    def _do_short(self, http: BaseHTTPRequestHandler) -> None:
        """Promise more than there is."""
        _send(http, 200, b"half", {"Content-Length": "8"})

    def _do_long(self, http: BaseHTTPRequestHandler) -> None:
        """Send more than was promised."""
        _send(http, 200, b"promised and more", {"Content-Length": "8"})

    def _do_announce(self, http: BaseHTTPRequestHandler, size: str) -> None:
        _send(http, 200, b"", {"Content-Length": size})
        self.stopping.wait(5)

    def _do_page(self, http: BaseHTTPRequestHandler) -> None:
        """Call a web page an image."""
        _send(http, 200, b"\n<!DOCTYPE html><p>Sorry", {"Content-Type": "image/jpeg"})

    def _do_mistyped(self, http: BaseHTTPRequestHandler) -> None:
        """Call an image a web page."""
        _send(http, 200, b"\xff\xd8\xff a photograph", {"Content-Type": "text/html"})

    def _do_empty(self, http: BaseHTTPRequestHandler) -> None:
        _send(http, 200, b"")

    def _do_bomb(self, http: BaseHTTPRequestHandler) -> None:
        _send(http, 200, self._bomb, {"Content-Encoding": "gzip"})

    def _do_nogzip(self, http: BaseHTTPRequestHandler) -> None:
        _send(http, 200, b"this is not gzip", {"Content-Encoding": "gzip"})

    def _do_coded(self, http: BaseHTTPRequestHandler, coding: str) -> None:
        pack = {"gzip": gzip.compress, "deflate": zlib.compress}.get(coding, bytes)
        _send(http, 200, pack(b"a photograph"), {"Content-Encoding": coding})

    def _do_garbage(self, http: BaseHTTPRequestHandler) -> None:
        http.wfile.write(b"\x00\x01 what is this\r\n\r\n")

    def _do_reset(self, http: BaseHTTPRequestHandler) -> None:
        http.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        http.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nx")
        http.connection.close()

    def _do_hangup(self, http: BaseHTTPRequestHandler) -> None:
        http.connection.close()

    def _do_redirect(self, http: BaseHTTPRequestHandler, *target: str) -> None:
        _send(http, 302, b"", {"Location": "/" + "/".join(target)})

    def _do_bombredirect(self, http: BaseHTTPRequestHandler, target: str) -> None:
        """Send a body with the redirect, which nobody needs."""
        headers = {"Location": "/" + target, "Content-Encoding": "gzip"}
        _send(http, 302, b"this is not gzip", headers)

    def _do_loop(self, http: BaseHTTPRequestHandler) -> None:
        _send(http, 302, b"", {"Location": http.path})

    def _do_leave(self, http: BaseHTTPRequestHandler) -> None:
        _send(http, 302, b"", {"Location": "file:///etc/hostname"})

    def _do_host(self, http: BaseHTTPRequestHandler) -> None:
        """Say which host was asked for."""
        _send(http, 200, http.headers.get("Host", "none").encode())

    def _do_send(self, http: BaseHTTPRequestHandler, host: str, *target: str) -> None:
        """Redirect to another host."""
        _send(http, 302, b"", {"Location": f"{self._scheme}://{host}/" + "/".join(target)})

    def _do_cookie(self, http: BaseHTTPRequestHandler) -> None:
        body = http.headers.get("Cookie", "none").encode()
        _send(http, 200, body, {"Set-Cookie": "a=b"})


def _send(
    http: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None
) -> None:
    http.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
        http.send_header(name, value)
    http.send_header("Connection", "close")
    http.end_headers()
    http.wfile.write(body)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageServer]:
    """A web server that misbehaves where its paths say so, and no proxy before it."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with ImageServer() as server:
        yield server
