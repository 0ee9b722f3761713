"""Processes that train together end together: a rank that fails tells the others why.

    with Watchdog(world):
        ...  # steps; collectives of all ranks

A rank that fails writes its reason to the process group's store and waits until the others have
read it. It then closes its connections, which wakes ranks that wait in a collective, and every
rank ends with the reason. Otherwise, the others would wait until the collectives' timeout.
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
"""Seconds between two reads of the store."""
READ = 10.0
"""Most seconds that a failed rank waits for the others to read its reason."""
GRACE = 30.0
"""Seconds after which a process that knows of a failure and has not ended is killed."""
_MAX_REASON = 2000  # characters
_entries = itertools.count()  # all ranks enter equally often, so each entry has its own key
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
    """A context manager around the common work of all ranks; a single process needs none.

    Args:
        world: this process's rank and device.
        ends: whether to end this process with exit code 2 if another one failed and this one's
            main thread is stuck. False if the process group is the caller's.

    Raises:
        TrainingError: another process failed or died; the message says why.
    """

    def __init__(self, world: World, *, ends: bool = True) -> None:
        self.world, self.ends = world, ends
        self._reason: str | None = None
        self._left = threading.Event()

    def __enter__(self) -> Watchdog:
        self._key = f"pocketclip/failed/{next(_entries)}"
        if self.world.size > 1:
            # A separate connection: the group's is locked while a thread waits in it.
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
        reason = self._reason or self._read()
        if reason is not None:
            if isinstance(error, (PocketclipError, KeyboardInterrupt)):
                return  # this process has its own reason
            raise TrainingError(reason) from error
        lost = _is_lost_connection(error)
        reason = "lost the connection to another process" if lost else _describe(error)
        self._publish(f"process {self.world.rank} of the training failed: {reason}")
        if lost:
            raise TrainingError(
                "another process of the training died (killed, or out of memory); see its own "
                f"output; the same command resumes ({first_line(error)})"
            ) from error

    def _publish(self, reason: str) -> None:
        """Write the reason for the others, and wait until they have read it."""
        reason = reason[:_MAX_REASON]
        try:
            first = self._store.compare_set(self._key, "", reason).decode("utf-8", "replace")
            if first != reason:  # two failed at once
                self._store.add(f"{self._key}/read", 1)
                return
            end = time.monotonic() + READ
            while time.monotonic() < end and self._readers() < self.world.size - 1:
                time.sleep(POLL / 5)
        except RuntimeError as error:  # the process that holds the store died
            log.warning("the other processes could not be notified of the failure: %s", error)

    def _readers(self) -> int:
        return int(self._store.add(f"{self._key}/read", 0))

    def _read(self) -> str | None:
        try:
            if not self._store.check([self._key]):
                return None
            reason: str = self._store.get(self._key).decode("utf-8", "replace")
            self._store.add(f"{self._key}/read", 1)
        except RuntimeError:
            return "the main process (rank 0) died; see its own output"
        return reason

    def _watch(self) -> None:
        while not self._left.wait(POLL):
            self._reason = self._read()
            if self._reason is not None:
                break
        if self._left.wait(GRACE) or not self.ends:
            return
        print(f"error: {self._reason}", file=sys.stderr, flush=True)
        os._exit(2)


def _describe(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    text = first_line(error)
    return text if isinstance(error, PocketclipError) else f"{type(error).__name__}: {text}"


def _is_lost_connection(error: BaseException) -> bool:
    """Return whether a collective failed because another process died."""
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("gloo" in text or "NCCL" in text)
