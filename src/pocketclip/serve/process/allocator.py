"""The memory allocator of a server: what a large request took is given back.

glibc maps large blocks into memory one by one, and gives them back when they are freed. What is
large rises with every such block, up to 32 MiB: after one body of that size, bodies and decoded
photographs come from the heap, which they leave full of holes. A fixed limit keeps that from
happening. The towers' own blocks are smaller than the limit, so that they cost no page faults.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # as malloc.h numbers them
MIB = 1 << 20


def give_back_large_blocks() -> bool:
    """Set the limits of glibc's allocator for the whole process, before threads are started.

    Returns:
        Whether that was done: on Linux with glibc, unless variables `MALLOC_...` of the environment
        tell the allocator what to do.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    options = {_MMAP_THRESHOLD: 8 * MIB, _TRIM_THRESHOLD: 16 * MIB, _ARENA_MAX: 2}
    done = [mallopt(option, value) == 1 for option, value in options.items()]
    return all(done)
