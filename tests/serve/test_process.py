"""A server as a process: its start, its log, other models by SIGHUP, and its end by SIGTERM.

One process is used by all tests that only need one, in the order of this file.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

SECRET = "a red car that nobody may read of"
PATIENCE = 60.0  # seconds


def start(*args: object, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pocketclip", "serve", *map(str, args)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
    )  # fmt: skip


class Process:
    """A server as a process, with what it prints."""

    def __init__(self, *args: object, **env: str) -> None:
        self.process = start(*args, "--port", 0, "--json", **env)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.log: list[dict[str, Any]] = []
        self.raw: list[str] = []
        self._events: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,))
        self._reader.start()
        self.started: dict[str, Any] = json.loads(self.process.stdout.readline() or "null")
        assert self.started, self.raw

    def _read(self, stream: Any) -> None:
        for line in stream:
            self.raw.append(line)
            with contextlib.suppress(ValueError):
                self.log.append(json.loads(line))
                self._events.put(self.log[-1]["event"])

    @property
    def url(self) -> str:
        return self.started["urls"][0]

    def await_event(self, *names: str) -> dict[str, Any]:
        """Return the next line of the log with one of these events."""
        while self._events.get(timeout=PATIENCE) not in names:
            pass
        return next(line for line in reversed(self.log) if line["event"] in names)

    def end(self) -> int:
        """Wait for the end, and return the exit code."""
        code = self.process.wait(PATIENCE)
        self._reader.join()
        assert self.process.stdout is not None
        assert self.process.stdout.read() == ""
        self.close()
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture(scope="module")
def place(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that may be replaced."""
    return Path(shutil.copytree(bundle, tmp_path_factory.mktemp("served") / "bundle"))


@pytest.fixture(scope="module")
def process(place: Path) -> Iterator[Process]:
    made = Process(place, "--immich", 0, "--threads", 1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def other_process(place: Path) -> Iterator[Process]:
    made = Process(place, "--threads", 1, "--drain", 1,
                   POCKETCLIP_API_KEY="0123456789abcdef")  # fmt: skip
    yield made
    made.close()


def jpeg(size: int = 48) -> str:
    data = io.BytesIO()
    Image.effect_noise((size, size), 90).convert("RGB").save(data, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


class Load:
    """Clients that ask one request after another, and what they got."""

    def __init__(self, url: str, clients: int = 6) -> None:
        self.url, self.seen = url, Counter[Any]()
        self.answers: list[list[float]] = []
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        image, count = jpeg(), 0
        body = {"model": "any", "input": [image] * 3, "modality": "image"}
        with httpx.Client(base_url=self.url, timeout=PATIENCE) as client:
            while not self._end.is_set():
                if number % 2:
                    body = {"model": "any", "input": [f"{SECRET} {number} {count}", "a photo"]}
                count += 1
                try:
                    answer = client.post("/v1/embeddings", json=body)
                except httpx.ConnectError:  # nothing was begun
                    self.seen["no connection"] += 1
                    return
                except httpx.HTTPError as error:
                    self.seen[repr(error)] += 1
                    return
                self.seen[answer.status_code] += 1
                if answer.status_code == 503:
                    assert answer.json()["error"]["code"] == "draining"
                    assert answer.headers["connection"] == "close"
                    assert int(answer.headers["retry-after"]) > 0
                elif answer.status_code == 200 and number % 2:
                    self.answers.append(answer.json()["data"][1]["embedding"])
                time.sleep(0.01)  # no load needs all of the processor to be one

    def await_answers(self, count: int) -> None:
        end, before = time.monotonic() + PATIENCE, self.seen[200]
        while self.seen[200] < before + count:
            assert time.monotonic() < end, self.seen
            assert any(thread.is_alive() for thread in self._threads), self.seen
            time.sleep(0.01)

    def stop(self) -> Counter[Any]:
        self._end.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        return self.seen


def test_the_start_message_names_addresses_and_model(process: Process) -> None:
    started = process.started
    assert len(started["urls"]) == len(started["immich_urls"]) == 1
    assert started["urls"] != started["immich_urls"]
    assert started["model"] == "quickstart-teacher-a" or started["model"]
    assert started["space_id"].startswith("space-")
    assert started["remarks"] == ["immich's port has no key, since immich sends none"]
    assert httpx.get(f"{process.url}/readyz").status_code == 200
    assert httpx.get(f"{started['immich_urls'][0]}/ping").text == "pong"


def test_each_port_has_its_own_routes(process: Process) -> None:
    immich = process.started["immich_urls"][0]
    assert httpx.get(f"{immich}/v1/models").status_code == 404
    assert httpx.post(f"{process.url}/predict").status_code == 404


def test_sighup_reads_the_bundle_again_while_it_works(
    process: Process, place: Path, bundle: Path, other_bundle: Path
) -> None:
    load = Load(process.url)
    load.await_answers(10)
    process.process.send_signal(signal.SIGHUP)
    line = process.await_event("reloaded", "reload_failed")
    assert (line["event"], line["changed"]) == ("reloaded", False)

    weights = place / "image.onnx"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    process.process.send_signal(signal.SIGHUP)
    line = process.await_event("reloaded", "reload_failed")
    assert line["event"] == "reload_failed"
    assert "image.onnx is not the file that was exported" in line["message"]

    shutil.rmtree(place)
    shutil.copytree(other_bundle, place)
    process.process.send_signal(signal.SIGHUP)
    line = process.await_event("reloaded", "reload_failed")
    assert line["event"] == "reload_failed"
    assert "immich keeps embeddings of" in line["message"]

    shutil.rmtree(place)
    process.process.send_signal(signal.SIGHUP)
    assert process.await_event("reloaded", "reload_failed")["event"] == "reload_failed"
    shutil.copytree(bundle, place)
    load.await_answers(10)
    assert set(load.stop()) == {200}
    first = load.answers[0]
    assert all(max(abs(a - b) for a, b in zip(one, first, strict=True)) < 1e-6
               for one in load.answers)  # fmt: skip


def test_sigterm_under_load_loses_no_answer(process: Process) -> None:
    load = Load(process.url, clients=8)
    load.await_answers(20)
    slow = socket.create_connection(("127.0.0.1", int(process.url.rpartition(":")[2])))
    body = json.dumps({"input": SECRET, "model": "x"}).encode()
    slow.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                 b"application/json\r\nContent-Length: %d\r\n\r\n" % len(body))  # fmt: skip
    slow.sendall(body[:5])
    time.sleep(0.2)
    process.process.send_signal(signal.SIGTERM)
    process.await_event("draining")
    assert httpx.get(f"{process.url}/readyz").status_code == 503
    assert httpx.get(f"{process.url}/livez").status_code == 200
    time.sleep(0.3)
    slow.sendall(body[5:])  # it was begun before: it is finished
    with slow:
        assert slow.recv(1 << 20).startswith(b"HTTP/1.1 200")
    assert process.end() == 0
    seen = load.stop()
    assert seen[200] > 20
    assert seen[503] > 0
    assert set(seen) <= {200, 503, "no connection"}


def test_the_log_has_no_contents_and_no_paths(process: Process, place: Path) -> None:
    assert len(process.log) == len(process.raw)  # every line is JSON
    text = "".join(process.raw)
    for hidden in (SECRET, "red car", "base64", str(place.parent), f"{Path.home()}/"):
        assert hidden not in text
    requests = [line for line in process.log if line["event"] == "request"]
    assert {(one["method"], one["route"]) for one in requests} >= {("POST", "/v1/embeddings")}
    one = requests[0]
    assert set(one) == {"time", "level", "event", "id", "port", "method", "route", "status", "ms",
                        "bytes_in", "bytes_out"}  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", one["time"])
    assert [line["event"] for line in process.log][-1] == "end"


def test_the_key_of_the_environment_is_needed_and_never_shown(other_process: Process) -> None:
    url, key = other_process.url, "0123456789abcdef"
    body = {"input": "x", "model": "m"}
    assert httpx.post(f"{url}/v1/embeddings", json=body).status_code == 401
    headers = {"Authorization": f"Bearer {key}"}
    assert httpx.post(f"{url}/v1/embeddings", json=body, headers=headers).status_code == 200
    assert key not in json.dumps(other_process.started) + "".join(other_process.raw)


def test_another_space_is_taken_where_nothing_depends_on_it(
    other_process: Process, place: Path, other_bundle: Path
) -> None:
    shutil.rmtree(place)
    shutil.copytree(other_bundle, place)
    other_process.process.send_signal(signal.SIGHUP)
    line = other_process.await_event("reloaded", "reload_failed")
    assert (line["event"], line["changed"]) == ("reloaded", True)
    assert line["space_id"] != other_process.started["space_id"]


def test_sigint_twice_ends_at_once_with_130(other_process: Process) -> None:
    address = ("127.0.0.1", int(other_process.url.rpartition(":")[2]))
    with socket.create_connection(address) as stuck:
        stuck.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
                      b"0123456789abcdef\r\nContent-Type: application/json\r\n"
                      b"Content-Length: 9\r\n\r\n{")  # fmt: skip
        time.sleep(0.2)
        other_process.process.send_signal(signal.SIGINT)
        assert other_process.await_event("draining")["requests"] == 1
        other_process.process.send_signal(signal.SIGINT)
        answer = stuck.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 503")
    assert other_process.end() == 130
