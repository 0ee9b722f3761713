"""Connections, by raw sockets: slow ones, many, broken ones, and clients that do not read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

from pocketclip.serve.process import connection_guard, ports
from pocketclip.serve.process.ports import Gate, Port, bind
from pocketclip.serve.process.protocol import protocol_class
from pocketclip.serve.settings import Limits

BIG = 24 << 20  # bytes: more than the system's buffers hold
QUICK = 0.3  # seconds of a time-out that is waited for
LONG = 8.0  # seconds of one that must not matter
HTTP = "HTTP/1.1\r\nHost: here\r\n"


class App:
    """Answers by path, and counts what became of its requests."""

    def __init__(self) -> None:
        self.asked = self.gone = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        path, body = scope["path"], b"fine"
        if path == "/body":
            body, more = b"", True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.gone += 1
                    return
                body += message.get("body", b"")
                more = message.get("more_body", False)
            body = b"%d" % len(body)
        elif path == "/headers":
            while (await receive())["more_body"]:
                pass
            body = b" ".join(name for name, _ in scope["headers"])
        elif path == "/slow":
            await asyncio.sleep(0.5)
        elif path == "/patient":  # until its client is gone
            while (await receive())["type"] != "http.disconnect":
                pass
            self.gone += 1
            return
        elif path == "/big":
            body = bytes(BIG)
        headers = [(b"content-length", b"%d" % len(body))]
        if path == "/refuse":
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Served:
    """An app on a port, on an event loop in a thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, **limits: Any) -> None:
        self.app, self.loop = App(), loop
        self.is_ending = False
        self.clients: list[socket.socket] = []
        self.port = Port(
            Gate(self.app, lambda: self.is_ending), bind("127.0.0.1", 0),
            Limits(**{"header_timeout": LONG, "idle_timeout": LONG, **limits}),
        )  # fmt: skip
        self.address = self.port.sockets[0].getsockname()
        self(self.port.listen())

    def __call__(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(LONG)

    def connect(self, *, buffer: int | None = None) -> socket.socket:
        one = socket.socket()
        self.clients.append(one)
        if buffer is not None:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        one.settimeout(LONG)
        one.connect(self.address)
        return one

    def connections(self) -> int:
        async def count() -> int:
            return len(self.port.state.connections)

        return self(count())


# Each waits for the same time-outs: the quick suite takes what the extra `serve` installs.
PARSERS = [
    "httptools on uvloop",
    pytest.param("httptools", marks=pytest.mark.slow),
    pytest.param("h11", marks=pytest.mark.slow),
]


@pytest.fixture(params=PARSERS)
def serve_app(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Served]]:
    """Serves `App` with limits, on each parser and event loop."""
    parser, _, on_uvloop = request.param.partition(" ")
    monkeypatch.setattr(ports, "protocol_class", lambda: protocol_class(parser))
    loop = uvloop.new_event_loop() if on_uvloop else asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    made: list[Served] = []

    def make(**limits: Any) -> Served:
        made.append(Served(loop, **limits))
        return made[-1]

    yield make
    for served in made:
        for one in served.clients:
            one.close()
        served(served.port.close(LONG))
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def read_all(one: socket.socket) -> bytes:
    """Return what comes until the server closes; a reset counts as a failure."""
    data = b""
    while chunk := one.recv(1 << 20):
        data += chunk
    return data


def read_answer(one: socket.socket) -> tuple[int, bytes]:
    """Return status and body of the next answer of a connection that stays open."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = one.recv(1)
        assert chunk, data
        data += chunk
    head = data.decode().lower()
    length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
    body = b""
    while len(body) < length:
        chunk = one.recv(length - len(body))
        assert chunk
        body += chunk
    return int(head.split()[1]), body


def error_of(data: bytes) -> tuple[int, str]:
    """Return status and message of an error that ends a connection."""
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]["message"]


def wait_until(condition: Callable[[], bool], patience: float = LONG) -> None:
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_header_that_does_not_come_gets_408_also_the_second_of_a_connection(serve_app) -> None:
    served = serve_app(header_timeout=QUICK)
    slow = [served.connect() for _ in range(3)]
    slow[0].sendall(b"GET / HTTP/1.1\r\nHost: he")
    slow[1].sendall(f"GET / {HTTP}\r\n".encode())
    assert read_answer(slow[1]) == (200, b"fine")
    slow[1].sendall(b"G")
    # Bytes that go on to come do not help: the limit is on the whole header.
    slow[2].sendall(b"GET / HTTP/1.1\r\n")
    with contextlib.suppress(OSError):
        for number in range(12):
            slow[2].sendall(b"X-%d: 1\r\n" % number)
            time.sleep(QUICK / 6)
    for one in slow:
        status, message = error_of(read_all(one))
        assert status == 408
        assert "0.3 seconds" in message
    assert served.app.asked == 1


def test_a_pause_of_the_whole_process_is_not_held_against_a_client(serve_app) -> None:
    served = serve_app(header_timeout=QUICK)
    one = served.connect()
    one.sendall(b"GET / HTTP/1.1\r\n")
    wait_until(lambda: served.connections() == 1)
    served.loop.call_soon_threadsafe(time.sleep, 2 * QUICK)
    one.sendall(b"Host: here\r\n\r\n")
    assert read_answer(one) == (200, b"fine")


def test_a_connection_without_a_byte_is_closed_without_a_word(serve_app) -> None:
    served = serve_app(header_timeout=QUICK)
    assert read_all(served.connect()) == b""
    blanks = served.connect()
    blanks.sendall(b"\r\n")
    read_all(blanks)  # closed too, with whatever answer


def test_a_connection_stays_open_between_requests_for_its_own_time(serve_app) -> None:
    served = serve_app(header_timeout=QUICK / 3, keep_alive=3 * QUICK)
    one = served.connect()
    one.sendall(f"GET / {HTTP}\r\n".encode())
    assert read_answer(one)[0] == 200
    time.sleep(QUICK)  # longer than a header may take
    one.sendall(f"POST /body {HTTP}Content-Length: 2\r\n\r\nab".encode())
    assert read_answer(one) == (200, b"2")
    begun = time.monotonic()
    assert read_all(one) == b""
    assert time.monotonic() - begun > QUICK


def test_a_header_that_is_too_long_gets_431(serve_app) -> None:
    served = serve_app()
    endless, whole = served.connect(), served.connect()
    with contextlib.suppress(OSError):
        endless.sendall(b"GET / HTTP/1.1\r\nX: ")
        for _ in range(40):
            endless.sendall(bytes(1024).replace(b"\0", b"x"))
            time.sleep(0.001)
    assert error_of(read_all(endless))[0] == 431
    whole.sendall(f"GET / {HTTP}X: {'x' * 40_000}\r\n\r\n".encode())
    assert error_of(read_all(whole))[0] == 431
    assert served.app.asked == 0


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
                                  b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"hello\r\n\r\n",
                                  b"GET / HTTP/1.1\r\nno colon\r\n\r\n"])  # fmt: skip
def test_what_is_not_http_gets_400(serve_app, data: bytes) -> None:
    served = serve_app()
    one = served.connect()
    one.sendall(data)
    assert error_of(read_all(one))[0] in (400, 505)
    assert served.app.asked == 0


def test_garbage_behind_a_request_does_not_break_into_its_answer(serve_app) -> None:
    served = serve_app()
    one = served.connect()
    one.sendall(f"GET /slow {HTTP}\r\n".encode())
    wait_until(lambda: served.app.asked == 1)
    one.sendall(b"\0\1\2 garbage \r\n\r\n")
    assert read_answer(one) == (200, b"fine")


def test_a_broken_body_gets_400_at_once_and_its_request_ends(serve_app) -> None:
    served = serve_app()
    one = served.connect()
    one.sendall(f"POST /body {HTTP}Transfer-Encoding: chunked\r\n\r\nnot a size\r\n".encode())
    assert error_of(read_all(one))[0] == 400
    wait_until(lambda: served.app.gone == 1)


def test_a_trailer_is_no_header(serve_app) -> None:
    served = serve_app()
    one = served.connect()
    one.sendall(f"POST /headers {HTTP}Transfer-Encoding: chunked\r\n\r\n"
                "3\r\nabc\r\n0\r\nHost: elsewhere\r\nCookie: a=b\r\n\r\n".encode())  # fmt: skip
    assert read_answer(one) == (200, b"host transfer-encoding")


@pytest.mark.parametrize("serve_app", PARSERS[:2], indirect=True)
def test_a_body_that_is_mostly_framing_is_refused(serve_app) -> None:
    served = serve_app()
    for begin, more in [
        ("", "1\r\nx\r\n" * 80_000),
        ("4;", "x" * 500_000),
        ("0\r\nA:", "x" * 500_000),
    ]:
        one = served.connect()
        one.sendall(f"POST /body {HTTP}Transfer-Encoding: chunked\r\n\r\n{begin}".encode())
        with contextlib.suppress(ConnectionError):
            one.sendall(more.encode())
        assert error_of(read_all(one))[0] == 400
    one = served.connect()
    one.sendall(f"POST /body {HTTP}Transfer-Encoding: chunked\r\n\r\n".encode())
    one.sendall(b"64\r\n" + b"x" * 100 + b"\r\n" + b"1\r\nx\r\n" * 900 + b"0\r\n\r\n")
    assert read_answer(one) == (200, b"1000")


def test_pipelined_requests_are_answered_in_their_order(serve_app) -> None:
    served = serve_app()
    one = served.connect()
    one.sendall(f"GET /slow {HTTP}\r\nPOST /body {HTTP}Content-Length: 3\r\n\r\nabcGET / {HTTP}\r\n"
                .encode())  # fmt: skip
    assert [read_answer(one) for _ in range(3)] == [(200, b"fine"), (200, b"3"), (200, b"fine")]


def test_a_request_hears_that_its_client_is_gone_also_with_another_behind_it(serve_app) -> None:
    served = serve_app()
    alone, before = served.connect(), served.connect()
    alone.sendall(f"GET /patient {HTTP}\r\n".encode())
    wait_until(lambda: served.app.asked == 1)
    alone.close()
    wait_until(lambda: served.app.gone == 1)
    before.sendall(f"GET /patient {HTTP}\r\nGET / {HTTP}\r\n".encode())
    wait_until(lambda: served.app.asked == 2)
    before.close()
    wait_until(lambda: served.app.gone == 2)


def test_a_client_that_does_not_read_is_cut_off_and_a_slow_one_is_not(serve_app) -> None:
    served = serve_app(idle_timeout=QUICK)
    deaf, slow = served.connect(buffer=4096), served.connect(buffer=1 << 18)
    for one in (deaf, slow):
        one.sendall(f"GET /big {HTTP}Connection: close\r\n\r\n".encode())
    taken = 0
    for _ in range(12):
        time.sleep(QUICK / 3)
        taken += len(slow.recv(1 << 18))
    wait_until(lambda: served.connections() == 1)
    while chunk := slow.recv(1 << 20):
        taken += len(chunk)
    assert taken > BIG
    with contextlib.suppress(ConnectionResetError):
        assert len(read_all(deaf)) < BIG


def test_a_client_that_never_reads_small_answers_is_cut_off(serve_app) -> None:
    served = serve_app(idle_timeout=QUICK, keep_alive=QUICK)
    one = served.connect(buffer=4096)
    one.sendall(f"GET / {HTTP}\r\n".encode() * 2000)
    wait_until(lambda: served.connections() == 0)


def test_an_early_answer_reaches_a_client_that_still_sends(serve_app) -> None:
    served = serve_app()
    one = served.connect()
    one.sendall(f"POST /refuse {HTTP}Content-Length: {BIG}\r\n\r\n".encode())
    for _ in range(BIG >> 20):
        one.sendall(bytes(1 << 20))
    assert read_answer(one) == (200, b"fine")
    assert one.recv(1) == b""


def test_a_body_that_will_be_refused_is_not_asked_for(serve_app) -> None:
    served = serve_app()
    refused, read = served.connect(), served.connect()
    refused.sendall(
        f"POST /refuse {HTTP}Expect: 100-continue\r\nContent-Length: 9\r\n\r\n".encode()
    )
    assert read_all(refused).startswith(b"HTTP/1.1 200")
    read.sendall(f"POST /body {HTTP}Expect: 100-continue\r\nContent-Length: 2\r\n\r\n".encode())
    assert read.recv(1024).startswith(b"HTTP/1.1 100")
    read.sendall(b"ab")
    assert read_answer(read) == (200, b"2")


def test_connections_beyond_the_limit_get_503_and_those_before_them_work(
    serve_app, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_guard, "_SPARE", 2)
    served = serve_app(connections=3)
    first = [served.connect() for _ in range(3)]
    wait_until(lambda: served.connections() == 3)
    beyond = [served.connect() for _ in range(2)]
    for one in beyond:
        one.sendall(f"GET / {HTTP}\r\n".encode())
        status, message = error_of(read_all(one))
        assert status == 503
        assert "too many connections" in message
    for one in first:
        one.sendall(f"GET / {HTTP}\r\n".encode())
        assert read_answer(one) == (200, b"fine")
    wait_until(lambda: served.connections() == 3)
    more = [served.connect() for _ in range(2)]
    wait_until(lambda: served.connections() == 5)
    with contextlib.suppress(ConnectionResetError):
        assert served.connect().recv(1) == b""
    assert [one.fileno() > 0 for one in more] == [True, True]


def test_two_hundred_idle_connections_do_not_slow_down_one_that_works(serve_app) -> None:
    served = serve_app()
    idle = [served.connect() for _ in range(200)]
    for one in idle[:100]:
        one.sendall(b"POST / HTTP/1.1\r\n")
    worker = served.connect()
    for _ in range(20):
        worker.sendall(f"GET / {HTTP}\r\n".encode())
        assert read_answer(worker) == (200, b"fine")
    assert served.connections() == 201
    for one in idle:
        one.close()


def test_an_upgrade_that_is_not_spoken_is_answered_as_usual(serve_app) -> None:
    served = serve_app()
    one = served.connect()
    one.sendall(
        f"GET / {HTTP}Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        "HTTP2-Settings: AAMAAABk\r\n\r\n".encode()
    )
    assert read_answer(one) == (200, b"fine")


def test_at_the_end_answers_are_completed_and_begun_headers_get_503(serve_app) -> None:
    served = serve_app()
    running, begun, idle = (served.connect() for _ in range(3))
    running.sendall(f"GET /slow {HTTP}\r\n".encode())
    begun.sendall(b"GET / HTTP/1.1\r\n")
    idle.sendall(f"GET / {HTTP}\r\n".encode())
    assert read_answer(idle)[0] == 200
    wait_until(lambda: served.app.asked == 2)
    closing = asyncio.run_coroutine_threadsafe(served.port.close(LONG), served.loop)
    assert error_of(read_all(begun))[0] == 503
    assert read_all(idle) == b""
    assert read_answer(running) == (200, b"fine")
    closing.result(LONG)
    with pytest.raises(ConnectionRefusedError):
        served.connect()
