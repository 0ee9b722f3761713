"""An HTTP proxy before the S3 server that injects faults, which ones a seed decides.

def test_it(s3, faulty):
    with faulty(seed=0) as proxy:
        storage.read_bytes("s3://bucket/key")
    assert proxy.injected["cut"]

Whether the n-th time a request comes it meets a fault is a pure function of the seed, the request
and n, so that threads and processes change nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import pytest

from tests.s3_server import S3Server

FAULTS = ("500", "503", "cut", "reset", "lost", "slow")
"""500 and 503: answers with an error. cut: half of the body comes, then the connection ends.
reset: the connection is reset before the request is done; lost: after it was done, before the
answer. slow: the answer comes late."""
_ANSWERS = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "503": (503, "ServiceUnavailable", "The service is temporarily unavailable."),
}
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
_UPLOAD = re.compile(r"uploadId=[^&]+")


class FaultyProxy:
    """Forwards requests to the server at `port` of this machine.

    Args:
        port: the server's.
        seed: decides which requests meet which fault.
        rate: share of the requests that meet one.
        faults: which ones.
        delay: seconds by which a slow answer is late.
        choose: decides instead: called with method, path and how often this request came before;
            returns a fault or None.
    """

    def __init__(
        self,
        port: int,
        *,
        seed: int = 0,
        rate: float = 0.1,
        faults: tuple[str, ...] = FAULTS,
        delay: float = 0.2,
        choose: Callable[[str, str, int], str | None] | None = None,
    ) -> None:
        self.requests = 0
        self.injected: Counter[str] = Counter()
        self.delay = delay
        self._seed, self._rate, self._faults = seed, rate, faults
        self._choose = choose or self._draw
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()

        class Handler(_Handler):
            proxy = self
            target = port

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fault_of(self, method: str, path: str, part: str) -> str | None:
        """Return the fault that this request meets, now that it has come once more."""
        # An upload's number is random.
        request = f"{method} {_UPLOAD.sub('uploadId', path)} {part}"
        with self._lock:
            before = self._seen[request]
            self._seen[request] += 1
            fault = self._choose(method, f"{path} {part}", before)
            self.requests += 1
            if fault is not None:
                self.injected[fault] += 1
        return fault

    def _draw(self, method: str, path: str, before: int) -> str | None:
        identity = f"{self._seed} {method} {_UPLOAD.sub('', path)} {before}".encode()
        words = struct.unpack("<2I", hashlib.sha256(identity).digest()[:8])
        if words[0] >= self._rate * 2**32:
            return None
        return self._faults[words[1] % len(self._faults)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy
    target: int

    def _handle(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        method = str(self.command)
        fault = self.proxy.fault_of(method, self.path, self.headers.get("Range", ""))
        if fault == "reset":
            return self._reset()
        if fault == "slow":
            time.sleep(self.proxy.delay)
        if fault in _ANSWERS:
            return self._refuse(*_ANSWERS[fault])
        upstream = http.client.HTTPConnection("127.0.0.1", self.target)
        with contextlib.closing(upstream):
            headers = {name: value for name, value in self.headers.items() if name != "Expect"}
            upstream.request(method, self.path, body, headers)
            answer = upstream.getresponse()
            data = answer.read()
        if fault == "lost":
            return self._reset()
        length = answer.getheader("Content-Length") if method == "HEAD" else str(len(data))
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if fault == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return None
        if method != "HEAD":
            self.wfile.write(data)
        return None

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle  # http.server's names

    def _refuse(self, status: int, code: str, message: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        data = b"" if self.command == "HEAD" else text.encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _reset(self) -> None:
        # A close with unsent data dropped at once is a reset.
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def faulty(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FaultyProxy]:
    """Return a function that makes a `FaultyProxy` and leads clients to it."""
    from pocketclip.storage.s3_file_system import PatientS3

    def begin(**options: Any) -> FaultyProxy:
        proxy = FaultyProxy(s3.port, **options)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        PatientS3.clear_instance_cache()
        return proxy

    return begin
