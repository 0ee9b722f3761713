"""Servers and the load generator as processes, for the benchmarks of `pocketclip serve`."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORDS = [
    "a photo of", "the", "red", "green", "small", "old", "wooden", "new", "bright", "car", "dog",
    "cat", "house", "tree", "river", "apple", "bottle", "milk", "bread", "street", "child", "bird",
    "boat", "under", "near", "behind", "snow", "rain", "night", "morning", "market",
]  # fmt: skip


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(slots=True)
class Server:
    """A server that runs as a process of its own."""

    process: subprocess.Popen[bytes]
    port: int

    def get(self, path: str, timeout: float = 5) -> tuple[int, bytes]:
        """Return status and body of a GET; status 0 where nobody answers."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}{path}", timeout=timeout
            ) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    def post(self, path: str, body: Any, timeout: float = 120) -> Any:
        """Return the JSON that answers a JSON body."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.load(answer)

    def processor_seconds(self) -> float:
        """Return what the process has used of all cores."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def megabytes(self) -> float:
        """Return the memory that the process has now."""
        resident = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return resident * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextlib.contextmanager
def running(
    command: Sequence[str | Path], port: int, ready: str, log: Path, seconds: float = 120
) -> Iterator[Server]:
    """Start a server, wait until it is ready, and end it afterwards.

    Args:
        command: that starts it.
        port: where it listens.
        ready: a path that is answered with 200 when it is.
        log: a file for what it prints.
        seconds: how long its start may take.
    """
    environ = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [str(word) for word in command], stdout=stream, stderr=stream, env=environ
        )
    server = Server(process, port)
    try:
        end = time.monotonic() + seconds
        while server.get(ready)[0] != 200:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{command} did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


def ours(model: Path, port: int, *more: str | Path) -> list[str | Path]:
    """Return the command that serves a model."""
    return [sys.executable, "-m", "pocketclip", "serve", model, "--port", str(port), *more]


@dataclass(slots=True)
class Load:
    """The load generator, for one server."""

    port: int
    folder: Path
    process: subprocess.Popen[str] = field(init=False)
    _written: int = 0

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", HERE / "serve_load.py", str(self.port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def write(self, bodies: Sequence[dict[str, Any]]) -> list[str]:
        """Write requests to `/v1/embeddings` into files; return their paths."""
        paths = []
        for body in bodies:
            data = json.dumps(body).encode()
            head = (
                f"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
            )
            self._written += 1
            paths.append(str(self.folder / f"{self.port}-{self._written}"))
            Path(paths[-1]).write_bytes(head.encode() + data)
        return paths

    def run(self, **plan: Any) -> dict[str, Any]:
        """Carry out a plan of `serve_load.py`; every request must be answered with 200."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(plan) + "\n")
        self.process.stdin.flush()
        result: dict[str, Any] = json.loads(self.process.stdout.readline())
        if set(result["statuses"]) != {"200"}:
            raise SystemExit(f"not all requests were answered with 200: {result['statuses']}")
        return result

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def image_body(data: bytes) -> dict[str, Any]:
    """Return the request for the embedding of an image file."""
    uri = "data:image/jpeg;base64," + base64.b64encode(data).decode()
    return {"model": "peer", "input": [uri], "modality": "image", "encoding_format": "base64"}


def text_body(text: str) -> dict[str, Any]:
    """Return the request for the embedding of a text."""
    return {"model": "peer", "input": [text], "modality": "text", "encoding_format": "base64"}


def texts(count: int, seed: int) -> list[str]:
    """Return different texts of five to twelve words: none is in a cache."""
    chance = random.Random(seed)
    return [
        f"{number} {' '.join(chance.choices(WORDS, k=chance.randint(5, 12)))} {seed}"
        for number in range(count)
    ]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that is at least as large as `share` of all."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
