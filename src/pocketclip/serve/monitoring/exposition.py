"""All figures of a server as a text, in the format of Prometheus.

Labels have fixed values: ports, route templates, methods, statuses, towers, reasons. Nothing that a
request contains becomes one, so the number of series is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from pocketclip._version import __version__
from pocketclip.serve.monitoring.metrics import counter
from pocketclip.serve.services import Services

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


def metrics_text(services: Services) -> bytes:
    """Return all figures as they are now, in the format that `CONTENT_TYPE` names."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected([*services.metrics.collect(), *_of_services(services)]))
    ProcessCollector(registry=registry)  # memory and processor time; on Linux only
    return generate_latest(registry)


def _of_services(services: Services) -> Iterator[Metric]:
    stats = services.engine.stats()
    towers = {("text",): stats.texts, ("image",): stats.images}
    waiting = GaugeMetricFamily(
        "pocketclip_waiting_items", "Inputs that wait for a tower.", labels=("tower",)
    )
    for tower, about in towers.items():
        waiting.add_metric(tower, about.waiting)
    yield waiting
    for name, text, values in (
        ("encoded_items", "Inputs that a tower encoded.", [t.encoded for t in towers.values()]),
        ("encode_seconds", "Time that a tower computed.", [t.seconds for t in towers.values()]),
        (
            "dropped_items",
            "Inputs that were not encoded, since their request was given up.",
            [t.dropped for t in towers.values()],
        ),
    ):
        yield counter(
            f"pocketclip_{name}", text, ("tower",), dict(zip(towers, values, strict=True))
        )
    cache = stats.cache
    yield CounterMetricFamily(
        "pocketclip_text_cache_hits", "Texts whose embedding was there already.", cache.hits
    )
    yield CounterMetricFamily(
        "pocketclip_text_cache_misses", "Texts that had to be encoded.", cache.misses
    )
    gauges = {
        "text_cache_bytes": ("Memory of the cached embeddings of texts.", cache.bytes),
        "text_cache_entries": ("Texts whose embedding is cached.", cache.entries),
        "held_bytes": (
            "Bytes of bodies of requests that are received, wait or run.", services.held_bytes
        ),
        "ready": ("1 if requests are answered, else 0.", int(services.can_answer)),
        "draining": ("1 while the server ends, else 0.", int(services.is_draining)),
    }  # fmt: skip
    for name, (text, value) in gauges.items():
        yield GaugeMetricFamily(f"pocketclip_{name}", text, value)
    build = GaugeMetricFamily("pocketclip_build_info", "Always 1.", labels=("version",))
    build.add_metric((__version__,), 1)
    yield build


class _Collected(Collector):
    """Metrics that were gathered already."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Any:
        """Return the metrics."""
        return self._metrics
