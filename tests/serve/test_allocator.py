"""The allocator of a server: large blocks are given back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

_SCRIPT = """
from pathlib import Path
from pocketclip.serve.process.allocator import MIB, give_back_large_blocks

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // MIB

assert give_back_large_blocks()
for _ in range(3):
    bytes(31 * MIB)  # from now on, glibc alone would take blocks of that size from the heap
before = resident()
blocks = []
for _ in range(10):
    blocks += [bytearray(12 * MIB), bytearray(3000)]
    for block in blocks[::2]:
        block[::4096] = b"x" * len(block[::4096])
del blocks[::2], block  # small ones stay between the holes
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its allocator is what is set")
def test_freed_blocks_are_given_back() -> None:
    environ = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True, env=environ
    )
    assert int(done.stdout) < 12
