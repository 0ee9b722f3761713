"""Work on a Ray cluster: tasks in, one result each, from actors that may die at any time.

    with open_driver(MyWorker, (settings,), Cluster(max_actors=8), on_progress) as driver:
        facts = driver.wait_ready(1)
        for result in driver.run_tasks(tasks):
            ...

| module | holds |
|---|---|
| `worker` | what an actor is: it loads something once, then does one task at a time |
| `driver` | keeps actors busy: starts them, replaces dead ones, retries tasks, counts progress |
| `local` | the same work without a cluster |
| `session` | the connection to a cluster; the only module that imports ray |

Nothing here knows what a task is, and nothing imports torch. A task writes its file whole or not at
all, so it may be started again after its actor died.
"""

from __future__ import annotations

from pocketclip.cluster.driver import Cluster, Driver
from pocketclip.cluster.session import open_driver
from pocketclip.cluster.worker import ActorUnusableError, Result, Task, Worker

__all__ = [
    "ActorUnusableError",
    "Cluster",
    "Driver",
    "Result",
    "Task",
    "Worker",
    "open_driver",
]
