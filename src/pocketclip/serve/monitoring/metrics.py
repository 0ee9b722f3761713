"""Counts of the requests of a server; `exposition` makes a text of them.

Labels have fixed values: ports, route templates, methods, statuses, towers, reasons. Nothing that a
request contains becomes one, so the number of series is bounded.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from pocketclip.serve.monitoring.exchange import DROP_REASONS, Exchange

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the histogram of latencies."""
_ROUTE = ("port", "route")


class Metrics:
    """Counts what the ports of one server do; its methods belong to one event loop."""

    def __init__(self) -> None:
        self.in_flight = 0
        """Requests whose answer has not ended."""
        self._requests: Counter[tuple[str, ...]] = Counter()
        self._dropped: Counter[str] = Counter(dict.fromkeys(DROP_REASONS, 0))
        self._received: Counter[tuple[str, ...]] = Counter()
        self._sent: Counter[tuple[str, ...]] = Counter()
        self._seconds: dict[tuple[str, ...], _Latencies] = {}

    def observe(self, exchange: Exchange) -> None:
        """Count a request that has ended."""
        route = (exchange.port, exchange.route)
        key = (*route, exchange.method, str(exchange.status))
        self._requests[key] += 1
        self._received[route] += exchange.received_bytes
        self._sent[route] += exchange.sent_bytes
        if route not in self._seconds:
            self._seconds[route] = _Latencies()
        self._seconds[route].add(exchange.seconds)
        if exchange.dropped is not None:
            self._dropped[exchange.dropped] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield the figures of all requests so far."""
        yield counter(
            "pocketclip_requests", "Requests that were answered or given up. Status 499: the "
            "client was gone before the answer.", (*_ROUTE, "method", "status"), self._requests,
        )  # fmt: skip
        latency = HistogramMetricFamily(
            "pocketclip_request_seconds",
            "Time from the end of a request's header to the end of its answer.",
            labels=_ROUTE,
        )
        for route, seconds in self._seconds.items():
            latency.add_metric(route, seconds.buckets(), seconds.total)
        yield latency
        yield counter(
            "pocketclip_received_bytes", "Bytes of bodies that were read.", _ROUTE, self._received
        )
        yield counter("pocketclip_sent_bytes", "Bytes of answers' bodies.", _ROUTE, self._sent)
        yield counter(
            "pocketclip_requests_dropped",
            "Requests that were given up: the client left, the time was over, the server ends, or "
            "too many bytes or inputs of others waited.",
            ("reason",),
            {(reason,): count for reason, count in self._dropped.items()},
        )
        yield GaugeMetricFamily(
            "pocketclip_requests_in_flight", "Requests that are not answered yet, this one "
            "included.", self.in_flight,
        )  # fmt: skip


def counter(
    name: str, text: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]
) -> Metric:
    """Return a counter with a value for each tuple of values of its labels."""
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


class _Latencies:
    """A histogram over `SECONDS`."""

    def __init__(self) -> None:
        self.total = 0.0
        self._counts = [0] * (len(SECONDS) + 1)

    def add(self, seconds: float) -> None:
        self.total += seconds
        self._counts[bisect_left(SECONDS, seconds)] += 1

    def buckets(self) -> list[tuple[str, float]]:
        """Return, per upper bound, how many were at most that long."""
        pairs, below = [], 0
        for bound, count in zip((*map(str, SECONDS), "+Inf"), self._counts, strict=True):
            below += count
            pairs.append((bound, float(below)))
        return pairs
