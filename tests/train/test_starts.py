from __future__ import annotations

import datetime
import threading

import pytest
import torch.distributed as dist

from pocketclip.train.starts import own_store

LIMIT = datetime.timedelta(seconds=60)


def start(store, size):
    """Start processes (threads here) on a store; return the view that each of them has."""
    views = {}

    def join(rank):
        views[rank] = own_store(store, rank, size, LIMIT)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in reversed(range(size))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [views[rank] for rank in range(size)]


def test_no_start_reads_what_an_earlier_one_left():
    store = dist.HashStore()
    for size in (3, 3, 2, 4):  # restarted, and with fewer and with more processes
        views = start(store, size)
        assert not any(view.check(["failed"]) for view in views)
        views[1].set("failed", "rank 1 died")
        assert {view.get("failed") for view in views} == {b"rank 1 died"}
        # One that died while it waited to be let in asks for ever.
        dist.PrefixStore("pocketclip", store).set("asks/1", "of the dead")


def test_processes_that_do_not_come_are_counted():
    with pytest.raises(RuntimeError, match=r"1 of 2 processes came within 0:00:00\.2"):
        own_store(dist.HashStore(), 0, 2, datetime.timedelta(seconds=0.2))
