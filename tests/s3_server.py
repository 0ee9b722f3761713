"""An S3 server on 127.0.0.1 (moto's), and a wire to it that can be cut.

def test_it(s3):
    s3.put("bucket/key", b"...")
    storage.read_bytes("s3://bucket/key")
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import pytest

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    # A developer's own configuration must not leak in.
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}


class S3Server:
    """moto's server in a thread of this process; `environ` is what leads a client to it."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from moto.server import ThreadedMotoServer
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)

    @property
    def port(self) -> int:
        return int(self._server.get_host_and_port()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environ(self) -> dict[str, str]:
        return {**ENVIRONMENT, "AWS_ENDPOINT_URL": self.url}

    def __enter__(self) -> S3Server:
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._server.stop()

    @property
    def _backend(self) -> Any:
        # Past HTTP: what the tests expect is not to depend on the client that they test.
        from moto.core import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends

        return s3_backends[DEFAULT_ACCOUNT_ID]["aws"]

    @property
    def _backend_accounts(self) -> Any:
        from moto.s3.models import s3_backends

        return s3_backends.bucket_accounts

    def make_bucket(self, name: str) -> None:
        if name not in self._backend.buckets:
            self._backend.create_bucket(name, "us-east-1")

    def empty(self, name: str) -> None:
        """Make a bucket anew."""
        self._backend.buckets.pop(name, None)
        self._backend_accounts.pop(name, None)
        self.make_bucket(name)

    def put(self, path: str, data: bytes) -> None:
        bucket, _, key = path.partition("/")
        self._backend.put_object(bucket, key, data)

    def get(self, path: str) -> bytes | None:
        """Return the object's bytes; None where there is none."""
        bucket, _, key = path.partition("/")
        found = self._backend.get_object(bucket, key)
        return None if found is None else bytes(found.value)

    def publish(self, path: str) -> None:
        """Let anybody read an object, by plain HTTP."""
        from moto.s3.models import get_canned_acl

        bucket, _, key = path.partition("/")
        self._backend.get_object(bucket, key).set_acl(get_canned_acl("public-read"))

    def keys(self, bucket: str) -> list[str]:
        return sorted(self._backend.buckets[bucket].keys)

    def unfinished(self, bucket: str) -> int:
        """Return how many multipart uploads were begun and not completed or aborted."""
        return len(self._backend.buckets[bucket].multiparts)


class Wire:
    """Forwards TCP connections to `port`, and stalls once `limit` bytes went up in all."""

    def __init__(self, port: int, limit: int | None = None) -> None:
        self.limit = limit
        self.sent = 0
        self.stalled = threading.Event()
        self._cut = threading.Event()
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _start(self, run: Any, *args: Any) -> None:
        thread = threading.Thread(target=run, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def __enter__(self) -> Wire:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._cut.set()
        for thread in self._threads:
            thread.join(5)
        for end in [self._listener, *self._ends]:
            end.close()

    def _accept(self) -> None:
        self._listener.settimeout(0.02)
        while not self._cut.is_set():
            with contextlib.suppress(OSError):
                near, _ = self._listener.accept()
                near.setblocking(True)
                far = socket.create_connection(("127.0.0.1", self._target))
                self._ends += [near, far]
                self._start(self._pump, near, far)

    def _pump(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), selectors.DefaultSelector() as selector:
            selector.register(near, selectors.EVENT_READ, far)
            selector.register(far, selectors.EVENT_READ, near)
            while not self._cut.is_set():
                for key, _ in selector.select(0.02):
                    source = near if key.data is far else far
                    data = source.recv(1 << 16)
                    if not data:
                        near.close()
                        far.close()
                        return
                    if source is near:
                        self.sent += len(data)
                        if self.limit is not None and self.sent > self.limit:
                            self.stalled.set()
                            selector.unregister(near)
                            continue
                    key.data.sendall(data)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """The server alone, without the environment that leads to it: see `s3`."""
    with S3Server() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """Moto's S3 server with an empty bucket `bucket`; the environment leads clients to it."""
    from pocketclip.storage.s3_file_system import PatientS3

    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    # Clients are cached by their arguments, and look at the environment only once.
    PatientS3.clear_instance_cache()
    s3_server.empty("bucket")
    yield s3_server
    PatientS3.clear_instance_cache()
