"""The log: lines of JSON, or short ones on a terminal, and never the contents of a request."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
import warnings
from typing import Any

import pytest

from pocketclip.serve.monitoring.exchange import Exchange
from pocketclip.serve.monitoring.logs import hide_folders, log_event, log_exchange, logging_to

SECRET = "a text of a request"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def exchange(**changes: Any) -> Exchange:
    about = {"request_id": "1f", "port": "main", "method": "POST", "route": "/photos/{id}",
             "status": 200, "seconds": 0.0123, "received_bytes": 7, "sent_bytes": 9}  # fmt: skip
    return Exchange(**(about | changes))


def fail() -> None:
    raise ValueError(SECRET)


def log_everything() -> None:
    log_exchange(exchange())
    log_exchange(exchange(status=503, dropped="deadline"))
    for route in ("/livez", "/readyz", "/metrics", "/ping"):
        log_exchange(exchange(route=route))
    log_event("reload_failed", "/srv/models/phone: x.onnx is damaged", level=logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("something odd", stacklevel=1)
    try:
        fail()
    except ValueError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")
    logging.getLogger("httpx").info("GET https://example.org/?q=%s", SECRET)
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()


def test_lines_are_json_without_contents() -> None:
    stream = io.StringIO()
    with logging_to(stream):
        log_everything()
    assert SECRET not in stream.getvalue()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    times = [line.pop("time") for line in lines]
    assert times == sorted(times)
    assert lines[0] == {
        "level": "info", "event": "request", "id": "1f", "port": "main", "method": "POST",
        "route": "/photos/{id}", "status": 200, "ms": 12.3, "bytes_in": 7, "bytes_out": 9,
    }  # fmt: skip
    assert (lines[1]["status"], lines[1]["dropped"]) == (503, "deadline")
    assert lines[2] == {
        "level": "error", "event": "reload_failed",
        "message": ".../phone: x.onnx is damaged",
    }  # fmt: skip
    assert lines[3]["message"] == "something odd"
    for line in lines[4:]:
        assert line["exception"]["types"] == ["ValueError"]
        assert line["exception"]["places"][-1].endswith("in fail")
    assert len(lines) == 6


def test_lines_on_a_terminal_are_for_people() -> None:
    stream = Terminal()
    with logging_to(stream):
        log_everything()
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith(" POST /photos/{id} 200 12 ms")
    assert lines[2].endswith(" error: .../phone: x.onnx is damaged")
    assert SECRET not in stream.getvalue()


def test_a_reader_that_is_stuck_does_not_stop_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketclip.serve.monitoring.logs._PATIENCE", 0.05)
    monkeypatch.setattr("pocketclip.serve.monitoring.logs._WAITING", 100)
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        with logging_to(stream):
            for _ in range(3000):
                log_event("much", "x" * 100)
        os.set_blocking(reader, False)
        drained = threading.Event()

        def drain() -> None:
            while not drained.wait(0.005):
                try:
                    os.read(reader, 1 << 20)
                except BlockingIOError:
                    continue

        draining = threading.Thread(target=drain)
        draining.start()
        [one.join() for one in threading.enumerate() if one.name == "log"]
    drained.set()
    draining.join()
    os.close(reader)


def test_what_was_set_before_is_set_again_afterwards() -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level, warnings.showwarning, threading.excepthook
    with logging_to(io.StringIO()):
        assert root.handlers != before[0]
    assert (root.handlers, root.level, warnings.showwarning, threading.excepthook) == before


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("/srv/models/phone: damaged", ".../phone: damaged"),
        ("cannot read '/home/me/key.txt'", "cannot read '.../key.txt'"),
        ("models/phone and http://host/v1/x stay", "models/phone and http://host/v1/x stay"),
        ("1/2 of and/or", "1/2 of and/or"),
    ],
)
def test_folders_are_hidden(text: str, hidden: str) -> None:
    assert hide_folders(text) == hidden
