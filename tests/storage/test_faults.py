"""Stores that fail for a moment: every request is repeated, and what came is whole."""

from __future__ import annotations

import os

import pytest

from pocketclip import storage
from pocketclip.errors import StorageError
from pocketclip.storage import retries, stores
from pocketclip.storage.stores import NotThereError

MOMENT = 4
"""Attempts that fail: botocore makes each of ours twice."""


def at_first(fault, method, part=""):
    """Return what lets the first attempts of a request meet a fault."""

    def choose(asked, path, before):
        return fault if asked == method and part in path and before < MOMENT else None

    return choose


CALLS = {
    "GET /bucket/a": (lambda: storage.read_bytes("s3://bucket/a"), b"abc"),
    "HEAD /bucket/a": (lambda: storage.size("s3://bucket/a"), 3),
    "HEAD /bucket/b": (lambda: storage.exists("s3://bucket/b"), False),
    "HEAD /bucket ": (lambda: storage.exists("s3://bucket"), True),
    "GET /bucket?": (lambda: storage.list_files("s3://bucket"), ["s3://bucket/a"]),
    "PUT /bucket/a": (lambda: storage.write_bytes("s3://bucket/a", b"abc"), None),
}


@pytest.mark.parametrize(("request_", "fault"), list(zip(CALLS, ("500", "503") * 3, strict=True)))
def test_a_request_that_fails_for_a_moment_is_repeated(s3, faulty, request_, fault):
    s3.put("bucket/a", b"abc")
    method, part = request_.split(" ", 1)
    call, expected = CALLS[request_]
    with faulty(choose=at_first(fault, method, part)) as proxy:
        assert call() == expected
    assert proxy.injected[fault] == MOMENT
    assert s3.get("bucket/a") == b"abc"


@pytest.mark.parametrize("fault", ["cut", "reset", "lost"])
def test_a_body_that_is_cut_is_fetched_again(s3, faulty, fault):
    data = os.urandom(1 << 16)
    s3.put("bucket/a", data)
    with (
        faulty(choose=at_first(fault, "GET", "bytes=")) as proxy,
        storage.open_read("s3://bucket/a") as stream,
    ):
        assert stream.read() == data
    assert proxy.injected[fault] == MOMENT


def test_an_upload_whose_completion_is_not_answered_is_whole(s3, faulty, monkeypatch):
    monkeypatch.setattr(stores, "PART_BYTES", 5 << 20)
    data = os.urandom(1 << 20) * 11

    def choose(method, path, before):
        return "lost" if method == "POST" and "uploadId=" in path and before == 0 else None

    with faulty(choose=choose) as proxy:
        storage.write_bytes("s3://bucket/a", data)
    assert proxy.injected["lost"] >= 1
    assert s3.get("bucket/a") == data
    assert s3.unfinished("bucket") == 0


def test_a_store_that_stays_away_is_reported_after_a_few_attempts(s3, faulty, monkeypatch):
    monkeypatch.setattr(retries, "ATTEMPTS", 2)
    s3.put("bucket/a", b"abc")
    with faulty(choose=lambda *_: "503") as proxy:
        for call in (storage.read_bytes, storage.exists, storage.list_files):
            with pytest.raises(StorageError, match=r"s3://bucket/a: cannot .*nava") as caught:
                call("s3://bucket/a")
            assert not isinstance(caught.value, NotThereError)
    assert proxy.requests == 3 * 4  # botocore makes each attempt twice


def test_a_web_server_that_fails_for_a_moment_is_asked_again(s3, faulty, monkeypatch):
    s3.put("bucket/a", b"abc")
    s3.publish("bucket/a")
    with faulty(choose=lambda _method, _path, before: "503" if before < 3 else None) as proxy:
        path = f"{proxy.url}/bucket/a"
        assert storage.read_bytes(path) == b"abc"
        assert storage.exists(path)
        with storage.open_read(path) as stream:
            assert stream.read() == b"abc"
    monkeypatch.setattr(retries, "ATTEMPTS", 2)
    with faulty(choose=lambda *_: "503") as proxy:
        path = f"{proxy.url}/bucket/a"
        for call in (storage.read_bytes, storage.exists, storage.size):
            with pytest.raises(StorageError, match=r"503|cannot be reached") as caught:
                call(path)
            assert not isinstance(caught.value, NotThereError)


@pytest.mark.parametrize("fault", ["cut", "reset", "lost"])
def test_what_a_web_server_sent_in_part_is_fetched_again(s3, faulty, fault):
    data = os.urandom(1 << 16)
    s3.put("bucket/a", data)
    s3.publish("bucket/a")
    with faulty(
        choose=lambda method, _, before: fault if method == "GET" and before < 2 else None
    ) as proxy:
        path = f"{proxy.url}/bucket/a"
        assert storage.read_bytes(path) == data
        with storage.open_read(path) as stream:
            assert stream.read() == data
    assert proxy.injected[fault] >= 2


def test_what_ends_before_its_size_is_no_end_of_the_file(monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    class Short:
        size = 10

        def __init__(self):
            self.at = 0

        def read(self, count):
            data = b"abcd"[self.at : self.at + count]
            self.at += len(data)
            return data

        def tell(self):
            return self.at

        def seekable(self):
            return True

        def close(self):
            pass

    monkeypatch.setattr(MemoryFileSystem, "open", lambda *_, **__: Short())
    monkeypatch.setattr(retries, "ATTEMPTS", 2)
    with storage.open_read("memory://a") as stream:
        assert stream.read(4) == b"abcd"
        with pytest.raises(StorageError, match="received 4 of 10 bytes"):
            stream.read()
