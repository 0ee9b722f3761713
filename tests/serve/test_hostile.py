"""Requests that mean no good, over real sockets: each is answered, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from urllib.parse import urlsplit

import pytest

from pocketclip.serve.settings import Limits

KEY = "a-key-of-16-letters"
LIMITS = Limits(body_bytes=100_000, held_bytes=150_000, idle_timeout=0.5, body_timeout=1.0,
                header_timeout=5)  # fmt: skip


class Line:
    """A connection, and what comes back on it."""

    def __init__(self, url):
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=10)

    def send(self, *parts):
        data = b"".join(part if isinstance(part, bytes) else part.encode() for part in parts)
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def rest(self):
        """Return everything until the server closes."""
        data = b""
        with self.socket, contextlib.suppress(ConnectionResetError):  # it closed while we sent
            while piece := self.socket.recv(65536):
                data += piece
        return data

    def answer(self):
        """Return status, headers and body of one answer, and what follows it."""
        data = self.rest()
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        length = int(headers["content-length"])
        return int(first.split()[1]), headers, body[:length], body[length:]


def post(*headers, path="/v1/embeddings", host="127.0.0.1", key=KEY):
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {key}",
             "Content-Type: application/json", *headers, "", ""]  # fmt: skip
    return "\r\n".join(lines)


REFUSED = {
    "too large": (post("Content-Length: 5000000"), b"x" * 5_000_000, 413),
    "too large in chunks": (post("Transfer-Encoding: chunked"),
                            b"8000\r\n" + b"x" * 0x8000 + b"\r\n", 413),
    "no key": (post("Content-Length: 5000000", key="another-key-of-16"), b"x" * 5_000_000, 401),
    "another host": (post("Content-Length: 90000", host="evil.example"), b"x" * 90_000, 421),
    "another origin": (post("Content-Length: 90000", "Origin: http://evil.example", key="x" * 16),
                       b"x" * 90_000, 403),
    "absurd length": (post("Content-Length: 99999999999999999999999"), b"", 400),
    "negative length": (post("Content-Length: -1"), b"", 400),
    "two lengths": (post("Content-Length: 5", "Content-Length: 6"), b"hello!", 400),
    "length and chunks": (post("Content-Length: 5", "Transfer-Encoding: chunked"),
                          b"0\r\n\r\n", 400),
    "compressed": (post("Content-Length: 5", "Content-Encoding: gzip"), b"hello", 415),
    "a body that stops": (post("Content-Length: 50"), b'{"input"', 408),
    "chunks that stop": (post("Transfer-Encoding: chunked"), b"5\r\nhello\r\n", 408),
    "expected and too large": (post("Content-Length: 5000000", "Expect: 100-continue"), b"", 413),
    "expected without a key": (post("Content-Length: 5", "Expect: 100-continue", key="y" * 16),
                               b"", 401),
}  # fmt: skip


@pytest.fixture
def server(running_server):
    return running_server(api_key=KEY, limits=LIMITS)


def test_refused_requests_are_answered_and_their_rest_is_never_taken_for_a_request(server):
    smuggled = "GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    for name, (head, body, status) in REFUSED.items():
        line = Line(server.url)
        line.send(head)
        pieces = [body] if len(body) < 1_000_000 else [body[:65536]] * (len(body) // 65536)
        if name == "too large in chunks":
            pieces *= 40
        for piece in pieces:
            if not line.send(piece):
                break
        if status != 408:
            line.send(smuggled)
        got, headers, content, more = line.answer()
        assert got == status, name
        assert headers["connection"] == "close", name
        assert more == b"", name
        error = json.loads(content)["error"]
        assert error["message"], name
        assert KEY not in content.decode(), name
    assert server.services.held_bytes == 0
    probe = Line(server.url)
    probe.send("GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    assert probe.answer()[0] == 200


def test_a_client_that_asks_first_is_told_to_go_on(server):
    body = json.dumps({"input": "a cat"})
    line = Line(server.url)
    line.send(post(f"Content-Length: {len(body)}", "Expect: 100-continue", "Connection: close"))
    assert line.socket.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    line.send(body)
    status, _, content, _ = line.answer()
    assert status == 200
    assert json.loads(content)["data"]


def test_clients_that_leave_free_what_they_held(server):
    lines = []
    for _ in range(20):
        lines.append(Line(server.url))
        lines[-1].send(post("Content-Length: 90000"), b"x" * 5_000)
    _until(lambda: server.services.held_bytes > 0)
    for line in lines:
        line.socket.close()
    _until(lambda: server.services.held_bytes == 0)


def test_bodies_of_many_clients_together_are_bounded(server):
    lines = []
    for _ in range(10):
        lines.append(Line(server.url))
        lines[-1].send(post("Content-Length: 90000"), b"x" * 60_000)
    most = 0
    end = time.monotonic() + 0.4
    while time.monotonic() < end:
        most = max(most, server.services.held_bytes)
        time.sleep(0.01)
    assert 0 < most <= LIMITS.held_bytes
    statuses = [line.answer()[0] for line in lines]
    assert set(statuses) == {408, 429}
    assert statuses.count(408) <= LIMITS.held_bytes // 60_000
    _until(lambda: server.services.held_bytes == 0)


def test_the_metrics_tell_what_was_refused(server):
    line = Line(server.url)
    line.send(post("Content-Length: 90000"), b"x" * 5_000)
    line.socket.close()
    _until(lambda: 'reason="client_gone"} 1' in _metrics(server))
    assert KEY not in _metrics(server)


def _metrics(server):
    line = Line(server.url)
    line.send("GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer ", KEY,
              "\r\nConnection: close\r\n\r\n")  # fmt: skip
    text = line.rest().decode()
    return re.sub(r"\.0$", "", text, flags=re.MULTILINE)


def _until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
