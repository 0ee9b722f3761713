"""A part of the common store for each start, so that none reads what an earlier one left.

`torchrun` keeps one store for all restarts of its processes. In it are the addresses of processes
that died, and the reason why they did. Nothing in the environment tells one start from another on
all machines: each agent counts its own restarts, and a change of members is not counted.
"""

from __future__ import annotations

import datetime
import secrets
import time
from typing import Any

import torch.distributed as dist

_POLL = 0.05  # seconds


def own_store(store: Any, rank: int, size: int, timeout: datetime.timedelta) -> Any:
    """Return a view of the store for this start; all processes of it must call this.

    The main process names the start. Each other process asks with a name of its own, under which
    no earlier answer can be.

    Args:
        store: the store of all processes.
        rank: this process's number.
        size: the number of processes.
        timeout: how long to wait for the others.

    Raises:
        RuntimeError: not all of them came in time.
    """
    common = dist.PrefixStore("pocketclip", store)  # type: ignore[attr-defined]
    if rank == 0:
        start = secrets.token_hex(8)
        _welcome(common, start, size, timeout)
    else:
        own = secrets.token_hex(8)
        common.set(f"asks/{rank}", own)
        common.wait([f"answer/{own}"], timeout)
        start = common.get(f"answer/{own}").decode("ascii")
        common.add(f"{start}/came", 1)
    return dist.PrefixStore(start, common)  # type: ignore[attr-defined]


def _welcome(common: Any, start: str, size: int, timeout: datetime.timedelta) -> None:
    """Answer the other processes until all have come. Some that ask may be of an earlier start."""
    answered: set[str] = set()
    deadline = time.monotonic() + timeout.total_seconds()
    while (came := int(common.add(f"{start}/came", 0))) < size - 1:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{came + 1} of {size} processes came within {timeout}")
        for rank in range(1, size):
            if common.check([f"asks/{rank}"]):
                asks = common.get(f"asks/{rank}").decode("ascii")
                if asks not in answered:
                    common.set(f"answer/{asks}", start)
                    answered.add(asks)
        time.sleep(_POLL)
