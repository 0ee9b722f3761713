"""The log of a server: one JSON object per line on standard error, without contents.

    {"time": "2026-11-28T20:51:03.120Z", "level": "info", "event": "request", "id": "5f...",
     "method": "POST", "route": "/v1/embeddings", "status": 200, "ms": 12.1, ...}

No line has a text, an image, a key, a path of this machine, or the path and query of a request.
Of an unexpected exception its type and place are logged, and not its message, which may quote the
request. On a terminal the lines are short and for people.

A thread writes: a reader that is stuck does not stop the server, and loses lines instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import re
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from pocketclip.formats.escaping import dump_json, escape_controls

if TYPE_CHECKING:
    from pocketclip.serve.monitoring.exchange import Exchange

log = logging.getLogger("pocketclip.serve")

_WAITING = 10_000  # lines; further ones are lost
_PATIENCE = 1.0  # seconds to write the last lines
_FRAMES = 20  # of a traceback, the innermost ones
_FOLDERS = re.compile(r"(?<![\w.:/~-])/(?:[^/\s'\":,;()]+/)+(?=[^/\s'\":,;()])")
_PROBES = frozenset({"/livez", "/readyz", "/metrics", "/ping", "/health"})
_OWN_MESSAGES = "Exception in ASGI application"


def log_event(event: str, message: str = "", *, level: int = logging.INFO, **fields: Any) -> None:
    """Log something that happened to the server.

    Args:
        event: a word for programs.
        message: for people.
        level: of `logging`.
        fields: further members of the line, plain JSON types.
    """
    log.log(level, message, extra={"event": event, "fields": fields})


def log_exchange(exchange: Exchange) -> None:
    """Log a request that has ended; probes come every few seconds and are left out."""
    if exchange.route in _PROBES and exchange.status in (200, 503):
        return
    fields: dict[str, Any] = {
        "id": exchange.request_id, "port": exchange.port, "method": exchange.method,
        "route": exchange.route, "status": exchange.status, "ms": round(exchange.seconds * 1e3, 1),
        "bytes_in": exchange.received_bytes, "bytes_out": exchange.sent_bytes,
    }  # fmt: skip
    if exchange.dropped is not None:
        fields["dropped"] = exchange.dropped
    log_event("request", **fields)


def hide_folders(text: str) -> str:
    """Return a message with absolute paths cut to their last part."""
    return _FOLDERS.sub(".../", text)


def describe_exception(error: BaseException) -> dict[str, Any]:
    """Return the type and the place of an exception, without its message."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    kinds, one, seen = [], error, set[int]()
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        kinds.append(type(one).__name__)
        one = one.__cause__ or one.__context__  # type: ignore[assignment]
    places = [
        f"{'/'.join(frame.filename.replace(chr(92), '/').split('/')[-3:])}:{frame.lineno} "
        f"in {frame.name}"
        for frame in frames
    ]
    return {"types": kinds, "places": places}


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{now}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "log"),
            **getattr(record, "fields", {}),
        }
        message = hide_folders(record.getMessage().strip())
        if message:
            line["message"] = message
        if "event" not in record.__dict__:
            line["logger"] = record.name
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = describe_exception(record.exc_info[1])
        return dump_json(line)


class ShortLines(logging.Formatter):
    """A record as a line for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or with an exception several."""
        event, fields = getattr(record, "event", ""), getattr(record, "fields", {})
        text = hide_folders(record.getMessage().strip())
        if event == "request":
            text = f"{fields['method']} {fields['route']} {fields['status']} {fields['ms']:.0f} ms"
        elif not text:
            text = " ".join([event, *(f"{name}={value}" for name, value in fields.items())])
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        lines = [f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {level}{text}"]
        if record.exc_info and record.exc_info[1] is not None:
            about = describe_exception(record.exc_info[1])
            lines += [
                f"    {' from '.join(about['types'])}",
                *(f"    {p}" for p in about["places"]),
            ]
        return "\n".join(escape_controls(line) for line in lines)


class _Writer(logging.Handler):
    """Writes lines to a stream, in a thread of its own."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(_WAITING)
        self._lost = 0
        is_terminal = stream.isatty()
        self.setFormatter(ShortLines() if is_terminal else JsonLines())
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line of a record."""
        if record.name == "uvicorn.error" and record.msg.startswith(_OWN_MESSAGES):
            record.msg, record.args = "a request failed unexpectedly: this is a mistake of ours", ()
        try:
            line = self.format(record)
        except Exception:  # what logs must never fail
            line = dump_json({"level": "error", "event": "log", "message": "unreadable record"})
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._lost += 1

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            lost, self._lost = self._lost, 0
            with contextlib.suppress(OSError, ValueError):
                print(line, file=self._stream)
                if lost:
                    print(dump_json({"level": "warning", "event": "lost_lines", "lines": lost}),
                          file=self._stream)  # fmt: skip
                if self._lines.empty():
                    self._stream.flush()

    def close(self) -> None:
        """Write what is queued."""
        while True:
            try:
                self._lines.put_nowait(None)
                break
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._lines.get_nowait()
        self._thread.join(_PATIENCE)
        super().close()


@contextlib.contextmanager
def logging_to(stream: TextIO | None = None) -> Iterator[None]:
    """Write the log and all warnings of this process to a stream.

    Args:
        stream: None for standard error.
    """
    root, own = logging.getLogger(), logging.getLogger("pocketclip")
    before = root.handlers[:], root.level, own.level, warnings.showwarning, threading.excepthook
    writer = _Writer(stream or sys.stderr)
    root.handlers[:] = [writer]
    root.setLevel(logging.WARNING)
    own.setLevel(logging.INFO)
    # Anybody could fill the disk.
    # It and the parser of forms warn of every request that is damaged.
    for name in ("uvicorn.error", "python_multipart"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.showwarning = _log_warning
    threading.excepthook = _log_thread
    try:
        yield
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        own.setLevel(before[2])
        warnings.showwarning, threading.excepthook = before[3], before[4]
        writer.close()


def log_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what asyncio would print, without the objects that it quotes."""
    error = context.get("exception")
    log.error(
        "%s", context.get("message", "an error in the event loop"),
        exc_info=error if isinstance(error, BaseException) else None,
    )  # fmt: skip


def _log_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    log.warning("%s", message)


def _log_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        log.error("a thread ended unexpectedly", exc_info=args.exc_value)
