"""The connection to a Ray cluster. This is the only file that imports ray.

It uses Ray core actors, not Ray Data: a pipeline of two steps does not repay Ray Data's start-up
time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from pocketclip.cluster.driver import Cluster, Driver
from pocketclip.cluster.worker import OnProgress, Worker
from pocketclip.errors import (
    ConfigError,
    MissingDependencyError,
    PocketclipError,
    first_line,
    how_to_install,
)

_HOST = re.compile(r"(?:ray://)?\[?([^/\[\]]+?)\]?:(\d+)")
_CONNECT_WITHIN = 10.0


@contextlib.contextmanager
def open_driver(
    worker: type[Worker], arguments: Sequence[Any], cluster: Cluster, on_progress: OnProgress
) -> Iterator[Driver]:
    """Connect to a cluster; all actors are stopped after the block.

    Args:
        worker: the class of the actors; every machine must be able to import it.
        arguments: the arguments of its constructor; they are pickled.
        cluster: where to run, and with how many actors.
        on_progress: called with the progress in samples; negative after an actor died.

    Raises:
        ConfigError: no actor of this size fits on this machine, which is the whole cluster.
        MissingDependencyError: ray is not installed.
        PocketclipError: the cluster cannot be reached.
    """
    with _session(cluster) as ray:
        # Two calls at a time: `run`, and the driver's `progress` during it.
        remote = ray.remote(
            num_cpus=cluster.cpus,
            num_gpus=cluster.gpus,
            max_concurrency=2,
            max_restarts=0,
            runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},  # as in the command line
        )(worker)
        driver = Driver(ray, lambda: remote.remote(*arguments), cluster, on_progress)
        try:
            yield driver
        finally:
            driver.stop_actors()


@contextlib.contextmanager
def _session(cluster: Cluster) -> Iterator[Any]:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"running on a cluster needs ray: {how_to_install('ray')}"
        ) from error
    if ray.is_initialized():
        yield ray
        return
    address = cluster.address
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use
    try:
        _check_reachable(os.environ.get("RAY_ADDRESS", "") if address == "auto" else address or "")
        ray.init(
            address=address or "local",
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # Ray raises plain ones too, such as for a node that starts slowly
        reason = first_line(error)
        raise PocketclipError(
            f"no Ray cluster at {address or 'this machine'} ({reason}): start one with "
            "`ray start --head`, or pass no address"
        ) from error
    try:
        if address is None:
            _check_fits(cluster, ray)
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Connect to `HOST:PORT` once: Ray itself retries for many minutes.

    Raises:
        OSError: nobody answers there.
    """
    found = _HOST.fullmatch(address)
    if found is not None:
        socket.create_connection((found[1], int(found[2])), _CONNECT_WITHIN).close()


def _check_fits(cluster: Cluster, ray: Any) -> None:
    """Refuse actors that this machine can never hold: no other one will join."""
    resources = ray.cluster_resources()
    for option, needed, key, what in (
        ("--cpus-per-actor", cluster.cpus, "CPU", "cores"),
        ("--gpus-per-actor", cluster.gpus, "GPU", "GPUs"),
    ):
        if needed > resources.get(key, 0):
            raise ConfigError(
                f"{option} {needed:g}: this machine has {resources.get(key, 0):g} {what}; reserve "
                "fewer, or give the address of a cluster with --ray ADDRESS"
            )
