"""A stand-in for immich's own machine-learning service: it answers as told, and keeps what came.

with FaceService() as service:
    service.answers.append(Answer(503))  # then it answers faces again
    httpx.post(service.url + "/predict", ...)
    service.requests[0].body
"""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

ONE_FACE = (
    b'{"facial-recognition": [{"boundingBox":{"x1":1,"y1":2,"x2":30,"y2":40},'
    b'"embedding":"[0.25,-0.5]","score":0.9}], "imageHeight":72,"imageWidth":96}'
)
"""An answer with one face, spaced as no JSON library of ours would do it."""


@dataclass(frozen=True)
class Answer:
    """What to do with one request."""

    status: int = 200
    body: bytes = ONE_FACE
    headers: dict[str, str] = field(default_factory=dict)
    breaks: bool = False
    """Close the connection instead."""
    waits: bool = False
    """Answer only when the client is gone, or the service stops."""


@dataclass(frozen=True)
class Received:
    """A request that came."""

    path: str
    headers: dict[str, str]
    body: bytes


class FaceService:
    """See the module."""

    def __init__(self, port: int = 0) -> None:
        self.answers: list[Answer] = []
        self.requests: list[Received] = []
        self.gone = threading.Event()
        """Whether a client went away while its request waited."""
        self.waiting = threading.Event()
        self._stopping = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                with contextlib.suppress(OSError):
                    owner._answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

        self._http = Server(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def _answer(self, http: BaseHTTPRequestHandler) -> None:
        body = http.rfile.read(int(http.headers["Content-Length"]))
        self.requests.append(Received(http.path, dict(http.headers.items()), body))
        answer = self.answers.pop(0) if self.answers else Answer()
        if answer.waits:
            self._wait(http)
        if answer.breaks or answer.waits:
            http.close_connection = True
            return
        http.send_response(answer.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(answer.body))}
        for name, value in (headers | answer.headers).items():
            http.send_header(name, value)
        http.end_headers()
        http.wfile.write(answer.body)

    def _wait(self, http: BaseHTTPRequestHandler) -> None:
        self.waiting.set()
        http.connection.settimeout(0.02)
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                if not http.connection.recv(1):
                    self.gone.set()
                    return

    def __enter__(self) -> FaceService:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def parts_of(request: Received) -> dict[str, Any]:
    """Return the parts of a form that came: `entries` read as JSON, the others as bytes."""
    from pocketclip.serve.inputs.multipart import parse_multipart

    boundary = request.headers["Content-Type"].partition("boundary=")[2].encode()
    parts = {p.name: p.data for p in parse_multipart(request.body, boundary, max_parts=9).parts}
    return parts | {"entries": json.loads(parts["entries"])}
