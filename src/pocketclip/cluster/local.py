"""The same work without a cluster: one worker in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pocketclip.cluster.worker import OnProgress, Task, Worker


@dataclass(frozen=True, slots=True)
class LocalDriver:
    """Does tasks one after the other, as `Driver` lets actors do them."""

    worker: Worker
    on_progress: OnProgress

    def wait_ready(self, count: int) -> dict[str, Any]:  # noqa: ARG002
        """Load what the tasks need, and return the facts."""
        return self.worker.load()

    def run_tasks(self, tasks: Sequence[Task]) -> Iterator[Any]:
        """Yield the result of each task when it is finished."""
        for task in tasks:
            yield self.worker.work(task, self.on_progress)
