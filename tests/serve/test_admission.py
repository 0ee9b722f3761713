"""Limits, time-outs and deadlines of requests, with an app that says what it is told to."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from pocketclip.errors import ConfigError
from pocketclip.serve.middleware.admission import Admission
from pocketclip.serve.middleware.answers import detail_form
from pocketclip.serve.monitoring.exchange import KEY
from pocketclip.serve.monitoring.exchange import Exchange as Record
from pocketclip.serve.services import Services
from pocketclip.serve.settings import Limits, ServerSettings

SHORT = 0.15


def services_with(**limits):
    return Services(engine=None, settings=ServerSettings(limits=Limits(**limits)))


class Exchange:
    """One request to an app, whose body comes in the given pieces."""

    def __init__(self, pieces=(b"",), *, headers=(), path="/echo", method="POST"):
        self.scope = {
            "type": "http", "method": method, "path": path, "query_string": b"",
            "headers": [(b"host", b"127.0.0.1"), *headers], "state": {}, "scheme": "http",
        }  # fmt: skip
        self.messages = asyncio.Queue()
        for position, piece in enumerate(pieces):
            more = position < len(pieces) - 1
            self.messages.put_nowait({"type": "http.request", "body": piece, "more_body": more})
        self.sent, self.received = [], 0
        self.record = self.scope[KEY] = Record(
            request_id="", port="main", method=method, route=path
        )

    def leave(self):
        self.messages.put_nowait({"type": "http.disconnect"})

    async def receive(self):
        message = await self.messages.get()
        self.received += len(message.get("body", b""))
        return message

    async def send(self, message):
        self.sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.leave()

    @property
    def status(self):
        return self.sent[0]["status"] if self.sent else None

    @property
    def headers(self):
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def error(self):
        return json.loads(self.body)["error"]


async def read_all(receive):
    pieces = []
    while True:
        message = await receive()
        assert message["type"] == "http.request"
        pieces.append(message["body"])
        if not message["more_body"]:
            return b"".join(pieces)


async def answer(send, body=b"ok", status=200):
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


async def echo(_scope, receive, send):
    await answer(send, await read_all(receive))


async def ask(app, services, *args, waits=False, **options):
    exchange = Exchange(*args, **options)
    await Admission(app, services, waits=waits)(exchange.scope, exchange.receive, exchange.send)
    await asyncio.sleep(0)  # a task that was cancelled ends
    await asyncio.sleep(0)
    assert services.room.held == 0
    return exchange


def test_an_app_reads_the_body_in_the_pieces_that_are_left():
    async def main():
        pieces = [bytes([65 + i % 26]) * 1000 for i in range(1000)]
        exchange = await ask(echo, services_with(), pieces)
        assert exchange.status == 200
        assert exchange.body == b"".join(pieces)

    asyncio.run(main())


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_app_reads_an_empty_body(method):
    exchange = asyncio.run(ask(echo, services_with(), method=method))
    assert (exchange.status, exchange.body) == (200, b"")
    assert "connection" not in exchange.headers


@pytest.mark.parametrize(
    ("lengths", "status"),
    [
        ([b"101"], 413), ([b"9" * 30], 413), ([b"9" * 3000], 413), ([b"-1"], 400), ([b"+5"], 400),
        ([b"0x10"], 400), ([b""], 400), ([b"5,5"], 400), ([b"5", b"5"], 400), ([b"5", b"6"], 400),
        (["٣".encode()], 400), ([b"9" * 5000], 400), ([b"1e2"], 400), ([b"5 5"], 400),
    ],
)  # fmt: skip
def test_a_length_that_is_too_large_or_not_plain_is_refused_before_the_body(lengths, status):
    headers = [(b"content-length", length) for length in lengths] + [(b"expect", b"100-continue")]
    services = services_with(body_bytes=100)
    exchange = asyncio.run(ask(echo, services, [b"x"], headers=headers))
    assert exchange.status == status
    assert exchange.received == 0  # reading would ask for the body
    assert exchange.headers["connection"] == "close"
    assert exchange.error["type"] == "invalid_request_error"


def test_a_body_of_just_the_limit_is_accepted():
    headers = [(b"content-length", b"100")]
    exchange = asyncio.run(ask(echo, services_with(body_bytes=100), [b"x" * 100], headers=headers))
    assert exchange.status == 200


def test_a_length_beside_chunks_is_refused():
    headers = [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")]
    assert asyncio.run(ask(echo, services_with(), [b"hello"], headers=headers)).status == 400


def test_a_compressed_body_is_refused():
    headers = [(b"content-length", b"5"), (b"content-encoding", b"gzip")]
    assert asyncio.run(ask(echo, services_with(), [b"hello"], headers=headers)).status == 415


def test_chunks_beyond_the_limit_are_not_kept_and_the_answer_comes_before_the_rest():
    headers = [(b"transfer-encoding", b"chunked")]

    async def main():
        services = services_with(body_bytes=100)
        exchange = await ask(echo, services, [b"x" * 60] * 5, headers=headers)
        assert exchange.status == 413
        assert exchange.error["code"] == "body_too_large"
        assert exchange.headers["connection"] == "close"
        assert exchange.received == 120

    asyncio.run(main())


def test_a_body_that_pauses_is_not_waited_for():
    async def main():
        exchange = Exchange([b"x", b"y"], headers=[(b"content-length", b"2")])
        exchange.messages._queue.pop()  # the rest never comes
        services = services_with(idle_timeout=SHORT)
        await Admission(echo, services)(exchange.scope, exchange.receive, exchange.send)
        assert exchange.status == 408
        assert exchange.headers["connection"] == "close"
        assert services.room.held == 0

    asyncio.run(main())


def test_the_time_in_which_the_process_was_stopped_does_not_count():
    async def main():
        exchange = Exchange([b"x", b"y"], headers=[(b"content-length", b"2")])
        rest = exchange.messages._queue.pop()
        services = services_with(idle_timeout=SHORT, body_timeout=SHORT)
        answering = asyncio.ensure_future(
            Admission(echo, services)(exchange.scope, exchange.receive, exchange.send)
        )
        await asyncio.sleep(SHORT / 3)
        time.sleep(1)  # the loop stands still
        await asyncio.sleep(SHORT / 3)
        exchange.messages.put_nowait(rest)
        await answering
        assert exchange.status == 200

    asyncio.run(main())


def test_a_body_that_comes_steadily_but_too_slowly_is_not_waited_for():
    async def main():
        exchange = Exchange([], headers=[(b"transfer-encoding", b"chunked")])

        async def drip():
            while True:
                exchange.messages.put_nowait(
                    {"type": "http.request", "body": b"x", "more_body": True}
                )
                await asyncio.sleep(SHORT / 10)

        dripping = asyncio.ensure_future(drip())
        services = services_with(idle_timeout=10, body_timeout=SHORT)
        await Admission(echo, services)(exchange.scope, exchange.receive, exchange.send)
        dripping.cancel()
        assert exchange.status == 408

    asyncio.run(main())


def test_bodies_together_are_bounded_and_a_request_is_told_to_try_again():
    async def main():
        services = services_with(body_bytes=100, held_bytes=150)
        release = asyncio.Event()

        async def slow(_scope, receive, send):
            await read_all(receive)
            await release.wait()
            await answer(send)

        app = Admission(slow, services)
        length = [(b"content-length", b"100")]
        first = Exchange([b"x" * 100], headers=length)
        running = asyncio.ensure_future(app(first.scope, first.receive, first.send))
        await asyncio.sleep(0.01)
        assert services.room.held == 100
        for headers in (length, [(b"transfer-encoding", b"chunked")]):
            second = Exchange([b"x" * 30, b"x" * 30], headers=headers)
            await app(second.scope, second.receive, second.send)
            assert second.status == 429
            assert second.headers["retry-after"] == "1"
            assert second.error["type"] == "rate_limit_error"
        assert second.record.dropped == "held_bytes"
        release.set()
        await running
        assert first.status == 200
        third = Exchange([b"x" * 100], headers=length)
        await app(third.scope, third.receive, third.send)
        assert third.status == 200
        assert services.room.held == 0

    asyncio.run(main())


def test_where_requests_wait_for_room_each_is_answered_in_turn():
    async def main():
        services = services_with(body_bytes=100, held_bytes=250)
        order, most = [], 0

        async def slow(_scope, receive, send):
            nonlocal most
            body = await read_all(receive)
            order.append(body[0])
            most = max(most, services.room.held)
            await asyncio.sleep(0.01)
            await answer(send)

        app = Admission(slow, services, waits=True)
        exchanges = []
        for i in range(9):
            chunked = [(b"transfer-encoding", b"chunked")]
            headers = chunked if i % 3 == 0 else [(b"content-length", b"90")]
            exchanges.append(Exchange([bytes([i]) * 45] * 2, headers=headers))
        await asyncio.gather(*(app(one.scope, one.receive, one.send) for one in exchanges))
        assert [one.status for one in exchanges] == [200] * 9
        assert order == list(range(9))
        assert most <= 250
        assert services.room.held == 0

    asyncio.run(main())


def test_waiting_for_room_ends_with_the_deadline_and_leaves_no_trace():
    async def main():
        services = services_with(body_bytes=100, held_bytes=100, deadline=SHORT)
        assert services.room.hold(80, 100)
        exchange = Exchange([b"x" * 50], headers=[(b"content-length", b"50")])
        app = Admission(echo, services, waits=True, form=detail_form)
        await app(exchange.scope, exchange.receive, exchange.send)
        assert exchange.status == 503
        assert json.loads(exchange.body)["detail"].startswith("the answer was not ready in time")
        assert services.room.held == 80
        services.room.release(80)
        assert (await ask(echo, services, [b"x" * 50], waits=True)).status == 200

    asyncio.run(main())


def test_limits_that_admit_nothing_are_refused():
    with pytest.raises(ConfigError, match="held_bytes is 10; it must hold one request"):
        Limits(body_bytes=11, held_bytes=10)


def test_an_answer_that_comes_too_late_is_a_503_and_the_app_is_cancelled():
    seen = []

    async def stuck(_scope, _receive, send):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            await answer(send, b"too late")  # goes nowhere
            raise

    services = services_with(deadline=SHORT)
    exchange = asyncio.run(ask(stuck, services, [b"x"], headers=[(b"content-length", b"1")]))
    assert exchange.status == 503
    assert exchange.error["code"] == "deadline_exceeded"
    assert exchange.error["type"] == "server_error"
    assert exchange.headers["retry-after"] == "1"
    assert "connection" not in exchange.headers  # the body was read
    assert seen == ["cancelled"]
    assert len(exchange.sent) == 2
    assert exchange.record.dropped == "deadline"


def test_an_answer_that_has_begun_is_not_cut_by_the_deadline():
    async def streaming(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(6):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await asyncio.sleep(SHORT / 4)
        await send({"type": "http.response.body", "body": b"end"})

    exchange = asyncio.run(ask(streaming, services_with(deadline=SHORT)))
    assert exchange.body == b"xxxxxxend"


def test_an_app_whose_client_is_gone_is_cancelled_at_once():
    async def main():
        cancelled = asyncio.Event()

        async def stuck(_scope, _receive, _send):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        services, exchange = services_with(), Exchange()
        running = asyncio.ensure_future(
            Admission(stuck, services)(exchange.scope, exchange.receive, exchange.send)
        )
        await asyncio.sleep(0.01)
        exchange.leave()
        await asyncio.wait_for(running, 5)
        await asyncio.wait_for(cancelled.wait(), 5)
        assert exchange.sent == []
        assert exchange.record.dropped == "client_gone"

    asyncio.run(main())


def test_an_app_that_waits_for_the_client_to_go_is_told():
    async def main():
        told = []

        async def listening(_scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            told.append(await receive())  # the body
            told.append(await receive())
            await asyncio.sleep(60)

        services, exchange = services_with(), Exchange()
        running = asyncio.ensure_future(
            Admission(listening, services)(exchange.scope, exchange.receive, exchange.send)
        )
        await asyncio.sleep(0.01)
        exchange.leave()
        await asyncio.wait_for(running, 5)
        assert told[0]["type"] == "http.request"
        assert exchange.record.dropped == "client_gone"

    asyncio.run(main())


def test_a_client_that_goes_while_it_sends_is_dropped_before_the_app():
    called = []

    async def app(_scope, _receive, _send):
        called.append(1)

    async def main():
        exchange = Exchange([b"x", b"y"], headers=[(b"content-length", b"2")])
        exchange.messages._queue.pop()
        exchange.leave()
        services = services_with()
        await Admission(app, services)(exchange.scope, exchange.receive, exchange.send)
        assert exchange.sent == called == []
        assert exchange.record.dropped == "client_gone"
        assert services.room.held == 0

    asyncio.run(main())


def test_what_runs_after_the_answer_is_finished():
    done = []

    async def app(_scope, _receive, send):
        await answer(send)
        await asyncio.sleep(0.02)
        done.append(1)

    exchange = asyncio.run(ask(app, services_with()))
    assert exchange.status == 200
    assert done == [1]
    assert exchange.record.dropped is None


def test_a_request_counts_until_what_runs_for_it_has_ended():
    async def main():
        end = asyncio.Event()

        async def stubborn(_scope, _receive, _send):
            try:
                await asyncio.sleep(60)
            finally:
                await end.wait()  # as a thread that cannot be cancelled

        services = services_with(deadline=SHORT)
        app = Admission(stubborn, services)
        exchange = Exchange([b"x" * 9], headers=[(b"content-length", b"9")])
        await app(exchange.scope, exchange.receive, exchange.send)
        assert exchange.status == 503
        assert (len(app.ending), services.room.held) == (1, 9)
        end.set()
        await asyncio.wait(app.ending)
        await asyncio.sleep(0)
        assert (len(app.ending), services.room.held) == (0, 0)

    asyncio.run(main())


def test_a_server_that_ends_finishes_what_runs_and_begins_nothing():
    async def main():
        services = services_with()
        release = asyncio.Event()

        async def slow(_scope, _receive, send):
            await release.wait()
            await answer(send)

        app = Admission(slow, services)
        first = Exchange()
        running = asyncio.ensure_future(app(first.scope, first.receive, first.send))
        await asyncio.sleep(0.01)
        services.is_draining = True
        second = Exchange()
        await app(second.scope, second.receive, second.send)
        assert second.status == 503
        assert second.headers["connection"] == "close"
        assert second.headers["retry-after"] == "5"
        assert second.error["code"] == second.record.dropped == "draining"
        release.set()
        await running
        assert first.status == 200

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
def test_probes_are_answered_whatever_else_happens(path):
    services = services_with(body_bytes=10, held_bytes=10)
    services.is_draining = True
    services.room.held = 10

    async def main():
        exchange = Exchange(path=path, method="GET")
        await Admission(echo, services)(exchange.scope, exchange.receive, exchange.send)
        assert exchange.status == 200
        large = Exchange([b"x" * 11], path=path, headers=[(b"transfer-encoding", b"chunked")])
        await Admission(echo, services)(large.scope, large.receive, large.send)
        assert large.status == 413

    asyncio.run(main())


def test_a_request_that_is_cut_off_at_the_end_gets_a_503():
    async def main():
        async def stuck(_scope, _receive, _send):
            await asyncio.sleep(60)

        services, exchange = services_with(), Exchange()
        running = asyncio.ensure_future(
            Admission(stuck, services)(exchange.scope, exchange.receive, exchange.send)
        )
        await asyncio.sleep(0.01)
        running.cancel()
        await running
        assert exchange.status == 503
        assert exchange.error["code"] == "draining"
        await asyncio.sleep(0)

    asyncio.run(main())


def test_a_bug_is_answered_and_logged_without_what_the_request_held(caplog):
    async def broken(_scope, receive, _send):
        raise KeyError(await read_all(receive))

    exchange = asyncio.run(ask(broken, services_with(), [b"a secret"]))
    assert exchange.status == 500
    assert exchange.error["type"] == "server_error"
    assert b"secret" not in exchange.body
    assert len(caplog.records) == 1
    assert "a bug: KeyError (test_admission.py:" in caplog.text
    assert "secret" not in caplog.text
    assert "/" not in caplog.messages[0]


def test_a_bug_in_the_middle_of_an_answer_ends_it_unfinished(caplog):
    async def broken(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ValueError

    exchange = asyncio.run(ask(broken, services_with()))
    assert exchange.status == 200
    assert len(exchange.sent) == 2  # the server closes the connection then
    assert "a bug: ValueError" in caplog.text


def test_a_large_answer_is_sent_as_it_is_taken_and_counts_meanwhile():
    async def main():
        services = services_with(held_bytes=1 << 20, body_bytes=1 << 20)
        body = bytes(range(256)) * 4000
        exchange, taken = Exchange(), asyncio.Semaphore(0)

        async def large(_scope, _receive, send):
            await answer(send, body)

        async def send_slowly(message):
            await taken.acquire()
            await exchange.send(message)

        admission = Admission(large, services)
        running = asyncio.ensure_future(admission(exchange.scope, exchange.receive, send_slowly))
        for _ in range(2):
            taken.release()
            await asyncio.sleep(0.01)
        assert len(exchange.sent[1]["body"]) < len(body) / 3
        assert services.room.held == len(body)
        late = Exchange([b"x" * 100_000])
        await Admission(echo, services)(late.scope, late.receive, late.send)
        assert late.status == 429
        for _ in range(9):
            taken.release()
        await running
        assert exchange.body == body
        assert services.room.held == 0

    asyncio.run(main())
