"""Processes that train together end together: who fails tells the others why.

    with Watchdog(world):
        ...  # steps; collectives of all ranks

A rank that fails leaves its reason in the processes' common store and waits until the others have
read it. Then it closes its connections, which wakes whoever waits in a collective, and each rank
ends with the reason. Without this, the others would wait until the collectives' timeout.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch.distributed as dist

from pocketclip.devices import resolve_device
from pocketclip.errors import PocketclipError, TrainingError, first_line
from pocketclip.train import distributed
from pocketclip.train.distributed import World

POLL = 0.25
"""Seconds between two looks into the store."""
READ = 10.0
"""Seconds that a rank which failed waits at most until the others have read why."""
GRACE = 30.0
"""Seconds after which a process that knows of a failure, and still waits, is ended hard."""
_LONGEST = 2000  # characters of a reason
_entered = itertools.count()  # all ranks enter equally often: each time has a key of its own
log = logging.getLogger(__name__)


@contextlib.contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the processes that `torchrun` started, under a watchdog, and leave them at the end.

    If the caller has joined them already, they stay joined. See `distributed.start`.

    Args:
        device: `cpu`, `cuda`, or `auto`.
    """
    joined_before = distributed.world_size() > 1
    world = distributed.start(str(resolve_device(device)) if device == "auto" else device)
    try:
        with Watchdog(world, ends=not joined_before):
            yield world
    finally:
        if not joined_before:
            distributed.stop()


class Watchdog:
    """A context manager around what ranks do together; in a world of one it does nothing.

    Args:
        world: of which this process is a part.
        ends: whether a process whose main thread is stuck, after another one failed, may be ended
            with exit code 2. False where the process group is the caller's.

    Raises:
        TrainingError: another process failed, or is gone; the message says why.
    """

    def __init__(self, world: World, *, ends: bool = True) -> None:
        self.world, self.ends = world, ends
        self._told: str | None = None
        self._left = threading.Event()

    def __enter__(self) -> Watchdog:
        self._key = f"pocketclip/failed/{next(_entered)}"
        if self.world.size > 1:
            # A connection of its own: the group's is locked while somebody waits in it.
            store: Any = dist.distributed_c10d._get_default_store()
            self._store = store.clone() if hasattr(store, "clone") else store
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.world.size == 1:
            return
        self._left.set()
        self._thread.join()
        if error is None:
            return
        told = self._told or self._read()
        if told is not None:
            if isinstance(error, (PocketclipError, KeyboardInterrupt)):
                return  # a reason of its own
            raise TrainingError(told) from error
        lost = _is_lost_connection(error)
        reason = "lost the connection to another process" if lost else _described(error)
        self._tell(f"process {self.world.rank} of the training failed: {reason}")
        if lost:
            raise TrainingError(
                "another process of the training is gone (killed, or out of memory): see its own "
                f"output; the same command goes on ({first_line(error)})"
            ) from error

    def _tell(self, reason: str) -> None:
        """Leave the reason for the others, and wait until they have read it."""
        reason = reason[:_LONGEST]
        try:
            first = self._store.compare_set(self._key, "", reason).decode("utf-8", "replace")
            if first != reason:  # two failed at once
                self._store.add(f"{self._key}/read", 1)
                return
            end = time.monotonic() + READ
            while time.monotonic() < end and self._readers() < self.world.size - 1:
                time.sleep(POLL / 5)
        except RuntimeError as error:  # the process that held the store is gone
            log.warning("the other processes could not be told of the failure: %s", error)

    def _readers(self) -> int:
        return int(self._store.add(f"{self._key}/read", 0))

    def _read(self) -> str | None:
        try:
            if not self._store.check([self._key]):
                return None
            reason: str = self._store.get(self._key).decode("utf-8", "replace")
            self._store.add(f"{self._key}/read", 1)
        except RuntimeError:
            return "the process that started first (rank 0) is gone; see its own output"
        return reason

    def _watch(self) -> None:
        while not self._left.wait(POLL):
            self._told = self._read()
            if self._told is not None:
                break
        if self._left.wait(GRACE) or not self.ends:
            return
        print(f"error: {self._told}", file=sys.stderr, flush=True)
        os._exit(2)


def _described(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    text = first_line(error)
    return text if isinstance(error, PocketclipError) else f"{type(error).__name__}: {text}"


def _is_lost_connection(error: BaseException) -> bool:
    """Return whether a collective failed because another process is gone."""
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("gloo" in text or "NCCL" in text)
