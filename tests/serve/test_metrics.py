"""`/metrics` counts what happens, under labels that no request can add to."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi")

from prometheus_client.parser import text_string_to_metric_families

from pocketclip._version import __version__
from pocketclip.serve.encoding.engine_stats import CacheStats, EngineStats, TowerStats
from pocketclip.serve.middleware.room import Room
from pocketclip.serve.monitoring.exchange import Exchange, note_drop
from pocketclip.serve.monitoring.exposition import metrics_text
from pocketclip.serve.monitoring.metrics import Metrics
from pocketclip.serve.monitoring.observation import Observation
from pocketclip.serve.services import Services

STATS = EngineStats(
    texts=TowerStats(waiting=3, encoded=10, seconds=0.5, dropped=2),
    images=TowerStats(waiting=1, encoded=4, seconds=2.0),
    cache=CacheStats(hits=7, misses=10, bytes=4096, entries=10),
)


@pytest.fixture
def services():
    return Services(engine=SimpleNamespace(stats=lambda: STATS), room=Room(held=12), is_ready=True)


def read(services):
    """Return a function that gives the figure of a name and labels."""
    families = text_string_to_metric_families(metrics_text(services).decode())
    found = {
        (one.name, *sorted(one.labels.items())): one.value
        for family in families
        for one in family.samples
    }

    def figure(name, **labels):
        return found[(f"pocketclip_{name}", *sorted(labels.items()))]

    return figure


def ask(services, app, path="/photos/7", method="GET", *, body=b"", leave=False):
    """Send one request through `Observation`; return the messages of the answer."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "method": method, "headers": []}
    observed = Observation(app, services=services, port="main", templates=["/a", "/photos/{id}"])

    async def run():
        task = asyncio.ensure_future(observed(scope, receive, send))
        if leave:
            await asyncio.sleep(0.01)
            task.cancel()
        await task

    asyncio.run(run())
    return sent


def answering(status=200, body=b"abc"):
    async def app(_scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return app


def test_a_request_is_counted_under_its_template(services):
    seen = []
    services.on_exchange.append(seen.append)
    sent = ask(services, answering(), body=b"12345")
    route = {"port": "main", "route": "/photos/{id}"}
    figures = read(services)
    labels = {"method": "GET", **route, "status": "200"}
    assert figures("requests_total", **labels) == 1
    assert figures("received_bytes_total", **route) == 5
    assert figures("sent_bytes_total", **route) == 3
    assert figures("request_seconds_count", **route) == 1
    assert figures("request_seconds_bucket", le="60.0", **route) == 1
    assert figures("requests_in_flight") == 0
    [exchange] = seen
    assert dict(sent[0]["headers"])[b"x-request-id"].decode() == exchange.request_id
    assert (exchange.status, exchange.dropped, exchange.seconds > 0) == (200, None, True)


def test_requests_add_no_labels_of_their_own(services):
    for i in range(50):
        ask(services, answering(404), path=f"/secret-{i}", method=f"M{i}")
        ask(services, answering(), path=f"/photos/{i}")
    text = metrics_text(services).decode()
    assert "secret" not in text
    lines = [line for line in text.splitlines() if line.startswith("pocketclip_requests_total")]
    assert sorted(line.removeprefix("pocketclip_requests_total") for line in lines) == [
        '{method="GET",port="main",route="/photos/{id}",status="200"} 50.0',
        '{method="other",port="main",route="other",status="404"} 50.0',
    ]


def test_a_request_whose_client_left_is_counted_as_dropped(services):
    async def app(_scope, _receive, _send):
        await asyncio.sleep(60)

    with pytest.raises(asyncio.CancelledError):
        ask(services, app, "/a", leave=True)
    figures = read(services)
    labels = {"method": "GET", "port": "main", "route": "/a"}
    assert figures("requests_total", status="499", **labels) == 1
    assert figures("requests_dropped_total", reason="client_gone") == 1
    assert figures("requests_dropped_total", reason="deadline") == 0
    assert figures("requests_in_flight") == 0


def test_the_reason_for_dropping_is_the_first_that_was_noted(services):
    async def app(scope, receive, send):
        note_drop(scope, "deadline")
        note_drop(scope, "client_gone")
        await answering(503)(scope, receive, send)

    ask(services, app, "/a")
    figures = read(services)
    assert figures("requests_dropped_total", reason="deadline") == 1
    assert figures("requests_dropped_total", reason="client_gone") == 0


def test_an_app_that_fails_is_counted_as_500(services):
    async def app(_scope, _receive, _send):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask(services, app, "/a")
    labels = {"method": "GET", "port": "main", "route": "/a", "status": "500"}
    assert read(services)("requests_total", **labels) == 1


def test_the_engine_and_the_process_are_shown(services):
    figures = read(services)
    assert figures("waiting_items", tower="text") == 3
    assert figures("waiting_items", tower="image") == 1
    assert figures("encoded_items_total", tower="image") == 4
    assert figures("encode_seconds_total", tower="image") == 2
    assert figures("dropped_items_total", tower="text") == 2
    assert figures("text_cache_hits_total") == 7
    assert figures("text_cache_misses_total") == 10
    assert figures("text_cache_bytes") == 4096
    assert figures("text_cache_entries") == 10
    assert figures("held_bytes") == 12
    assert figures("ready") == 1
    assert figures("draining") == 0
    services.is_draining = True
    assert read(services)("ready") == 0
    assert figures("build_info", version=__version__) == 1
    assert b"process_resident_memory_bytes " in metrics_text(services)


def test_latencies_fall_into_their_buckets():
    metrics = Metrics()
    route = {"port": "main", "route": "/a", "method": "GET", "status": 200}
    for seconds in (0.004, 0.005, 0.2, 100.0):
        metrics.observe(Exchange(request_id="1", seconds=seconds, **route))
    [latency] = [one for one in metrics.collect() if one.name == "pocketclip_request_seconds"]
    buckets = {
        one.labels["le"]: one.value for one in latency.samples if one.name.endswith("_bucket")
    }
    assert buckets["0.005"] == 2
    assert buckets["0.1"] == 2
    assert buckets["0.25"] == 3
    assert buckets["60.0"] == 3
    assert buckets["+Inf"] == 4
