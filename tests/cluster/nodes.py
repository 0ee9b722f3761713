"""Ray clusters of several nodes on this machine, and nodes that vanish and join."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="ray is not installed")


class Nodes:
    """A head without room for actors, and nodes with room for one each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        small = {"object_store_memory": 80_000_000}
        self._arguments = small
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "_system_config": {  # the death of a node is noticed in seconds
                    "health_check_period_ms": 1000,
                    "health_check_failure_threshold": 4,
                },
                **small,
            },
        )
        self.nodes: list[Any] = []

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self) -> None:
        self.nodes.append(self._cluster.add_node(num_cpus=1, **self._arguments))

    def kill(self, number: int) -> None:
        """End a node at once, as a machine that loses its power."""
        self._cluster.remove_node(self.nodes.pop(number), allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()


@contextlib.contextmanager
def cluster_of(count: int) -> Iterator[Nodes]:
    """Yield a cluster of a head and `count` nodes; the session is connected to it."""
    nodes = Nodes()
    try:
        for _ in range(count):
            nodes.add()
        ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR)
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()
