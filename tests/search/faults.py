"""Drives the real command line through faults: kills, full disks, drives that come and go.

    with Servers() as servers:
        place = Place(tmp_path, bundle, servers)
        place.run("index", place.photos)

Commands run in processes forked from one that has loaded what takes long, so that a hundred of
them cost little. Every photograph that goes through an image tower is counted, also in processes
that are killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketclip.search.store.location import locate

LONGEST = 300
"""Seconds until a process that does not end counts as hanging."""
BATCH = 64
"""The most photographs whose encoding one SIGKILL may lose."""

SERVER = """
import atexit, contextlib, ctypes, json, os, resource, sys, threading, time, traceback

import numpy, onnxruntime, PIL.Image
from pocketclip.cli.main import build, main
from pocketclip.infer import encoder
from pocketclip.infer.backends import BundleBackend
from pocketclip import images, preprocess
import pocketclip.search.library

# What these commands load when they run.
for verb in ("index", "search"):
    build(verb)
import email.utils
import pocketclip.cli._index_output, pocketclip.cli._inputs, pocketclip.cli._search_output
import pocketclip.cli._upkeep
with contextlib.suppress(ImportError):
    import typer._adapters  # of some versions, which load Pydantic
with contextlib.suppress(ImportError):
    import pydantic.type_adapter
PIL.Image.preinit()
image = BundleBackend.image


def counting(self, pixels):
    time.sleep(pause)
    embeddings = image(self, pixels)
    os.write(counted, b"." * len(embeddings))
    return embeddings


BundleBackend.image = counting
counted = pause = 0
for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if pid == 0:
        # Its own group: Ctrl-C of a test reaches it alone.
        os.setpgid(0, 0)
        told = os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        errors = os.open(order["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(told, 1)
        os.dup2(errors, 2)
        os.chdir(order["folder"])
        os.environ["POCKETCLIP_DATA"] = os.path.join(order["folder"], "data")
        counted = os.open(order["counter"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        pause = order["pause"]
        if order["file_limit"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"],) * 2)
        if order["plain_user"]:  # the superuser without his rights over files of others
            libc = ctypes.CDLL(None, use_errno=True)
            header = (ctypes.c_uint32 * 2)(0x20080522, 0)
            assert libc.capset(header, (ctypes.c_uint32 * 6)()) == 0
        if order["clock_ns"]:
            now, now_ns = time.time, time.time_ns
            time.time = lambda: now() + order["clock_ns"] / 1e9
            time.time_ns = lambda: now_ns() + order["clock_ns"]
        sys.argv = ["pocketclip", *(os.fsdecode(bytes.fromhex(word)) for word in order["words"])]
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
            code = 1
        # As an interpreter ends, but for the destructors of C: those of ONNX Runtime may wait for
        # threads that the process had before the fork.
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
    print(pid, flush=True)
    waited, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """A process that ended: its exit code, or the negative number of the signal; what it said."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Return standard output as JSON."""
        return json.loads(self.out)


class Process:
    """A running `pocketclip` command."""

    def __init__(self, server: subprocess.Popen[str], order: dict[str, Any]) -> None:
        self._server = server
        self._order = order
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        self.pid = int(server.stdout.readline())
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        if self._code is None and select.select([self._server.stdout], [], [], 0)[0]:
            assert self._server.stdout is not None
            self._code = int(self._server.stdout.readline())
        return self._code

    def send(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def said(self) -> str:
        """Return what it has written so far."""
        return Path(self._order["out"]).read_text("utf-8", "surrogateescape") + Path(
            self._order["err"]
        ).read_text("utf-8", "surrogateescape")

    def wait(self) -> Ended:
        """Wait until it ends."""
        deadline = time.monotonic() + LONGEST
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError("it hangs: " + self.said())
            time.sleep(0.003)
        out, err = (
            Path(self._order[name]).read_bytes().decode("utf-8", "surrogateescape")
            for name in ("out", "err")
        )
        assert "Traceback" not in err, err
        return Ended(code, out, err)


class Servers:
    """Processes that have loaded what takes long; each runs one command at a time."""

    def __init__(self) -> None:
        self._running = contextlib.ExitStack()
        self._free: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_error: object) -> None:
        self._running.close()

    def take(self) -> subprocess.Popen[str]:
        """Return a server that runs nothing now."""
        if self._free:
            return self._free.pop()
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

        def end() -> None:
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.close()
            server.wait(LONGEST)
            server.stdout.close()

        self._running.callback(end)
        return server

    def give_back(self, server: subprocess.Popen[str]) -> None:
        """Let another command run on a server whose command has ended."""
        self._free.append(server)


class Place:
    """A folder of photographs and a library in `folder`, and the commands on them.

    Args:
        folder: an empty folder.
        bundle: the model.
        servers: what runs the commands.
    """

    def __init__(self, folder: Path, bundle: Path, servers: Servers) -> None:
        self.folder = folder
        self.bundle = bundle
        self.photos = folder / "photos"
        self.file = folder / "library" / "photos.sqlite"
        self.counter = folder / "encodings"
        self._orders = 0
        self._servers = servers

    def start(
        self,
        verb: str,
        *words: str | bytes | Path | int,
        library: Path | None = None,
        file_limit: int = 0,
        plain_user: bool = False,
        clock_ns: int = 0,
        pause: float = 0,
    ) -> Process:
        """Start a command on the library.

        Args:
            verb: the command; `index` gets the model.
            words: its arguments.
            library: another library than this place's.
            file_limit: bytes that a file of the process may grow to; 0 for no limit.
            plain_user: without the superuser's rights over files.
            clock_ns: what is added to the clock of the process.
            pause: seconds that every call of an image tower takes longer.
        """
        # An absolute path of a folder of ours: `--library` before what may look like an option.
        told = ["--library", str(library or self.file)]
        if verb == "index" and not any(str(word).startswith("--") for word in words):
            told += ["--model", str(self.bundle), "--backend", "onnxruntime"]
        given = [word if isinstance(word, bytes) else os.fsencode(str(word)) for word in words]
        self._orders += 1
        return Process(
            self._servers.take(),
            {
                "folder": str(self.folder),
                "counter": str(self.counter),
                "words": [word.hex() for word in [verb.encode(), *map(os.fsencode, told), *given]],
                "out": str(self.folder / f"out{self._orders}"),
                "err": str(self.folder / f"err{self._orders}"),
                "file_limit": file_limit,
                "plain_user": plain_user,
                "clock_ns": clock_ns,
                "pause": pause,
            },
        )

    def wait(self, process: Process) -> Ended:
        """Wait for a process, and use its server again."""
        ended = process.wait()
        self._servers.give_back(process._server)
        return ended

    def run(self, verb: str, *words: Any, codes: tuple[int, ...] = (0,), **options: Any) -> Ended:
        """Run a command to its end."""
        ended = self.wait(self.start(verb, *words, **options))
        assert ended.code in codes, (
            f"{verb} {words}: exit code {ended.code}\n{ended.out}{ended.err}"
        )
        return ended

    def encodings(self) -> int:
        """Return how many photographs went through the image tower so far."""
        return self.counter.stat().st_size if self.counter.exists() else 0

    @contextlib.contextmanager
    def encodes(self, expected: int) -> Iterator[None]:
        """Check how many photographs the block encodes."""
        before = self.encodings()
        yield
        assert self.encodings() - before == expected

    def rows(self, query: str, library: Path | None = None) -> list[tuple[Any, ...]]:
        """Return rows of the library's database."""
        file = library or self.file
        if not file.exists():
            return []
        with contextlib.closing(
            sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=30)
        ) as connection:
            try:
                return connection.execute(query).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):  # the first process was killed before
                    return []
                raise

    def vectors(self) -> int:
        """Return the number of vectors that are committed."""
        rows = self.rows("SELECT COUNT(*) FROM contents WHERE vector IS NOT NULL")
        return int(rows[0][0]) if rows else 0

    def state(self, library: Path | None = None) -> list[tuple[Any, ...]]:
        """Return what is known of all files that are there, without the ids and times of a run."""
        return self.rows(
            "SELECT roots.path, files.path, files.size, files.error, contents.digest, "
            "contents.error, contents.vector, width, height, format, orientation, taken, "
            "taken_offset, camera, latitude, longitude, perceptual_hash FROM files "
            "JOIN roots ON roots.id = files.root LEFT JOIN contents ON contents.id = files.content "
            "WHERE absent = 0 ORDER BY roots.path, files.path",
            library,
        )

    def sound(self) -> None:
        """Check the file as SQLite does, and that a second look finds nothing to do."""
        assert self.rows("PRAGMA integrity_check") == [("ok",)]
        assert self.rows("PRAGMA foreign_key_check") == []

    def found(self, query: str = "a circle", **options: Any) -> list[str]:
        """Return all paths that a search finds, the best first, copies and similar ones too."""
        result = self.run(
            "search", query, "--top", 10_000, "--min-score", -1, "--json", codes=(0, 1), **options
        ).json()
        return [
            path
            for hit in result["hits"]
            for near in [hit, *hit.get("similar", [])]
            for path in [near["path"], *near.get("copies", [])]
        ]

    def derived(self) -> list[Path]:
        """Return the files that are made from the library."""
        folder = locate(self.file).derived
        return [
            path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size
        ]


def until(condition: Callable[[], bool], process: Process, longest: float = LONGEST) -> bool:
    """Wait for a condition; return False if the process ends before."""
    deadline = time.monotonic() + longest
    while not condition():
        if process.poll() is not None:
            return condition()
        assert time.monotonic() < deadline, "it hangs: " + process.said()
        time.sleep(0.002)
    return True
