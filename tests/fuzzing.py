"""A child process that is fed hostile inputs: its memory and its time are limited.

Run as a script it reads (kind, file) lines and answers one line each; see `Child`.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path

ROOM = 1 << 30
"""Bytes that an input may take beyond what the process has after its imports."""
SECONDS = 20
"""Of processor time, which other processes of a busy machine do not use up."""


def mutate(rng, data, other=b""):
    """Return `data` with one to three faults of the kinds that files come to have."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(max(1, len(out)))
        match rng.randrange(8):
            case 0 | 1:
                for _ in range(rng.choice([1, 1, 4, 20])):
                    if out:
                        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
            case 2:
                del out[place:]
            case 3:  # a length that lies
                width = rng.choice([1, 2, 4, 8])
                value = rng.choice([0, 1, 0x7F, 0x80, 0xFF, 2**31 - 1, 2**32 - 1, 2**63 - 1])
                value &= (1 << 8 * width) - 1
                out[place : place + width] = value.to_bytes(width, rng.choice(["big", "little"]))
            case 4:
                out[place : place + 64] = rng.choice([b"\0", b"\xff", b"-", b"7"]) * 64
            case 5:
                del out[place : place + rng.choice([1, 16, 512])]
            case 6:
                out[place:place] = out[place : place + rng.choice([1, 64, 512])]
            case 7:
                begin = rng.randrange(max(1, len(other)))
                out[place:place] = other[begin : begin + rng.choice([16, 512, 4096])]
    return bytes(out)


def put(path, made):
    """Write a file, or a folder of files by name, in the place of the last one."""
    if isinstance(made, bytes):
        path.write_bytes(made)
        return
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, data in made.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)


class Child:
    """A process that runs `function(path)` of a module of tests on one file after another.

    Before its memory is limited, `function` reads the good files `paths`, and so imports all.
    """

    def __init__(self, module, function="", paths=()):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzzing", module, function, *map(str, paths)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        assert self.process.stdout.readline() == "ready\n"

    def outcome(self, function, path):
        """Return (kind, details): ok, refused, or what must not be: crash, hang, a traceback."""
        self.process.stdin.write(json.dumps([function, str(path)]) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], 10 * SECONDS)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.process.kill()
            return ("crash" if ready else "hang"), str(self.process.wait())
        kind, details = json.loads(line)
        return kind, details

    def close(self):
        self.process.kill()
        self.process.communicate()


def _interrupted(*_):
    raise TimeoutError("longer than the limit")


def _serve(module, function, *paths):
    from pocketclip.errors import PocketclipError

    functions = importlib.import_module(module)
    getattr(functions, "warm_up", lambda: None)()
    for path in paths:
        getattr(functions, function)(path)
    used = re.search(r"VmSize:\s*(\d+)", Path("/proc/self/status").read_text("utf-8"))
    limit = int(used[1]) * 1024 + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGPROF, _interrupted)
    print("ready", flush=True)
    for line in sys.stdin:
        function, path = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            out = ["ok", getattr(functions, function)(path)]
        except PocketclipError as error:
            message = str(error)
            # Running out of memory is no answer, even where it is told in one line.
            wrong = "\n" in message or "MemoryError" in message or "Traceback" in message
            out = ["fault" if wrong else "refused", message]
        except BaseException:
            out = ["fault", traceback.format_exc()[-3000:]]
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(out), flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
