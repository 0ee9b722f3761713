"""Photographs and thumbnails over HTTP: by id, as they were indexed, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
import threading
import time
from pathlib import Path
from urllib.parse import unquote

import httpx
import pytest
from PIL import Image

from pocketclip.search import thumbnails
from pocketclip.search.library import Library
from pocketclip.search.photo_file import PhotoFile
from pocketclip.search.thumbnail_store import ThumbnailStore
from pocketclip.serve import file_answer
from pocketclip.serve.photos.photo_answer import disposition
from pocketclip.serve.photos.workers import Workers
from tests.search.conftest import draw_photo
from tests.search.test_thumbnails import assert_stripped, hostile_photo
from tests.serve.libraries import HOSTILE, ids_of, make_library


@pytest.fixture
def client(make_client, library):
    return make_client(library=library)


@pytest.fixture
def own(tmp_path, encoder):
    """A library that a test may harm, without thumbnails."""
    with make_library(tmp_path, encoder, thumbnails=False) as opened:
        yield opened


def count_open(below):
    """Return how many files and folders below a folder this process has open."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(entry.readlink()).startswith(str(below))
    return count


def test_a_photograph_is_the_file(client, folder, ids):
    for name, kind in (("a.jpg", "jpeg"), ("c.png", "png"), ("d.webp", "webp"), (HOSTILE, "jpeg")):
        answer = client.get(f"/photos/{ids[name]}")
        assert answer.status_code == 200
        assert answer.content == (folder / "Pictures" / name).read_bytes()
        assert answer.headers["content-type"] == f"image/{kind}"
        assert answer.headers["content-length"] == str(len(answer.content))
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"].startswith("private")
        assert str(folder) not in str(answer.headers)


def test_names_in_headers(client, ids):
    plain = client.get(f"/photos/{ids['a.jpg']}").headers["content-disposition"]
    assert plain == "inline; filename=\"a.jpg\"; filename*=UTF-8''a.jpg"
    header = client.get(f"/photos/{ids[HOSTILE]}").headers["content-disposition"]
    assert header.isascii()
    assert header.isprintable()
    assert header.count('"') == 2
    for harmful in ("<", ">", "/", "\\", "trip"):
        assert harmful not in header
    assert unquote(header.partition("UTF-8''")[2]).endswith("_0d.jpg")
    assert disposition("Été.jpg".encode(), inline=False) == (
        "attachment; filename=\"Ete.jpg\"; filename*=UTF-8''%C3%89t%C3%A9.jpg"
    )
    for name in (b"", b"..", b"\xe6\x97\xa5", b"x" * 255, b'a";b=c.jpg', b"\0\r\nX: y"):
        made = disposition(name, inline=True)
        assert made.isascii()
        assert made.isprintable()
        assert 'filename="' in made
        assert len(made) < 1000


def test_what_is_no_raster_format_is_saved(client, library, ids):
    with library.database.writing(), library.database.transaction() as connection:
        connection.execute("UPDATE contents SET format = 'SVG' WHERE id = ?", (ids["b.jpg"],))
    answer = client.get(f"/photos/{ids['b.jpg']}")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")


def test_head_and_conditions(client, ids):
    for path in (f"/photos/{ids['a.jpg']}", f"/thumbnails/{ids['a.jpg']}"):
        whole = client.get(path)
        etag = whole.headers["etag"]
        head = client.request("HEAD", path)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("content-length", "content-type", "etag"):
            assert head.headers[name] == whole.headers[name]
        for condition in (etag, f"W/{etag}", f'"x", {etag}', "*"):
            answer = client.get(path, headers={"if-none-match": condition})
            assert (answer.status_code, answer.content) == (304, b"")
            assert answer.headers["etag"] == etag
        assert client.get(path, headers={"if-none-match": '"x"'}).status_code == 200
        assert client.get(path, headers={"if-match": etag}).status_code == 200
        assert client.get(path, headers={"if-match": '"x"'}).status_code == 412
    other = client.get(f"/photos/{ids['b.jpg']}").headers["etag"]
    assert other != etag


@pytest.mark.parametrize(
    ("asked", "first", "end"),
    [
        ("bytes=0-0", 0, 1), ("bytes=10-19", 10, 20), ("bytes=100-", 100, None),
        ("bytes=-5", -5, None), ("bytes=0-99999999", 0, None), ("bytes=-99999999", 0, None),
    ],
)  # fmt: skip
def test_one_range(client, folder, ids, asked, first, end):
    data = (folder / "Pictures" / "a.jpg").read_bytes()
    answer = client.get(f"/photos/{ids['a.jpg']}", headers={"range": asked})
    assert answer.status_code == 206
    assert answer.content == data[first:end]
    begin = len(data) + first if first < 0 else first
    span = f"bytes {begin}-{begin + len(answer.content) - 1}/{len(data)}"
    assert answer.headers["content-range"] == span


def test_other_ranges(client, folder, ids):
    path, size = f"/photos/{ids['a.jpg']}", (folder / "Pictures" / "a.jpg").stat().st_size
    for asked in (f"bytes={size}-", "bytes=99999999-", "bytes=-0"):
        answer = client.get(path, headers={"range": asked})
        assert answer.status_code == 416
        assert answer.headers["content-range"] == f"bytes */{size}"
    for asked in ("bytes=0-1,3-4", "bytes=5-2", "bytes=-", "pages=1-2", "bytes=a-b", "x" * 5000):
        answer = client.get(path, headers={"range": asked})
        assert (answer.status_code, len(answer.content)) == (200, size)
    etag = client.get(path).headers["etag"]
    for validator, status in ((etag, 206), ('"x"', 200), ("Sat, 28 Nov 2026 20:00:00 GMT", 200)):
        headers = {"range": "bytes=0-1", "if-range": validator}
        assert client.get(path, headers=headers).status_code == status


@pytest.mark.parametrize(
    "name",
    ["0", "-1", "999999", "9" * 19, "9" * 400, "abc", "1.0", "1e3", "%2e%2e", "%00", "1%2f..", " 1",
     "..%2f..%2fetc%2fpasswd", "\u0661"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["photos", "thumbnails"])
def test_other_ids(client, folder, kind, name):
    answer = client.get(f"/{kind}/{name}")
    assert answer.status_code == 404
    assert str(folder) not in answer.text


def test_thumbnails_are_small_and_without_metadata(make_client, tmp_path, encoder):
    """Made while indexing, and made when first asked for: nothing of the photograph's is in it."""
    for thumbnails_too in (True, False):
        root = tmp_path / f"{thumbnails_too}"
        file = hostile_photo(root / "Pictures" / "a.jpg")
        with Library.open(root / "l.sqlite", create=True) as library:
            library.index([root / "Pictures"], encoder=encoder, thumbnails=thumbnails_too)
            client = make_client(library=library)
            [content] = ids_of(library).values()
            answer = client.get(f"/thumbnails/{content}")
            assert answer.headers["content-type"] == "image/jpeg"
            assert answer.headers["cache-control"].startswith("private")
            assert_stripped(answer.content)
            assert Image.open(io.BytesIO(answer.content)).size == (213, 320)
            # It is kept, and asked for again.
            before = thumbnails._make_from
            thumbnails._make_from = pytest.fail
            try:
                assert client.get(f"/thumbnails/{content}").content == answer.content
            finally:
                thumbnails._make_from = before
            assert b"SECRET-GPS" in client.get(f"/photos/{content}").content
            assert file.exists()


def test_what_changed_since_is_refused(make_client, own, tmp_path):
    client, ids = make_client(library=own), ids_of(own)
    root, secret = tmp_path / "Pictures", tmp_path / "private" / "e.jpg"
    secret.parent.mkdir()
    secret.write_bytes(b"the secret of somebody else")

    def statuses(name):
        return [client.get(f"/{kind}/{ids[name]}").status_code for kind in ("photos", "thumbnails")]

    assert statuses("a.jpg") == [200, 200]
    draw_photo(root / "a.jpg", 77)
    assert statuses("a.jpg") == [409, 409]  # also its thumbnail, though it is kept
    (root / "b.jpg").unlink()
    assert statuses("b.jpg") == [404, 404]
    (root / "b.jpg").symlink_to(secret)
    assert statuses("b.jpg") == [409, 409]
    (root / "c.png").unlink()
    os.mkfifo(root / "c.png")
    assert statuses("c.png") == [409, 409]
    (root / "trip").rename(tmp_path / "trip")
    (root / "trip").symlink_to(secret.parent)
    assert statuses("trip/e.jpg") == [404, 404]
    for name in ids:
        for kind in ("photos", "thumbnails"):
            answer = client.get(f"/{kind}/{ids[name]}")
            assert b"secret of" not in answer.content
            assert str(tmp_path) not in answer.text
    root.rename(tmp_path / "away")
    assert statuses("d.webp") == [404, 404]
    assert count_open(root) == count_open(tmp_path / "private") == 0


def test_a_key_or_a_session_opens_them(make_client, library, ids):
    """An image in a page cannot send a key, so it comes with the cookie of a session."""
    key = "0123456789abcdef0123456789abcdef"
    client = make_client(library=library, api_key=key)
    for path in (f"/photos/{ids['a.jpg']}", f"/thumbnails/{ids['a.jpg']}"):
        for method in ("GET", "HEAD"):
            assert client.request(method, path).status_code == 401
            known = client.request(method, path, headers={"authorization": f"Bearer {key}"})
            assert known.status_code == 200
    for answer in (
        client.post("/search", json={"query": "a"}),
        client.post("/knn-service", json={"text": "a"}),
        client.get("/indices-list"),
    ):  # fmt: skip
        assert answer.status_code == 401
    token = client.services.sessions.new_token()
    assert client.post("/session", json={"token": token}).status_code in (200, 201, 204)
    assert client.get(path).status_code == 200
    assert client.get(path, headers={"sec-fetch-site": "cross-site"}).status_code == 403


def test_one_that_cannot_be_decoded(make_client, own, monkeypatch):
    client, ids = make_client(library=own), ids_of(own)
    monkeypatch.setattr(client.services.photos, "_max_pixels", 10)
    answer = client.get(f"/thumbnails/{ids['a.jpg']}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_thumbnail")


def test_thumbnails_to_be_made_never_queue_up(make_client, own, monkeypatch, on_loop):
    """Two are made at a time; beyond 64 more they are refused, and everything else is answered."""
    client, ids = make_client(library=own), ids_of(own)
    go, running, most = threading.Event(), [], []
    make = thumbnails._make_from

    def slow(*given):
        running.append(1)
        most.append(len(running))
        assert go.wait(20)
        running.pop()
        return make(*given)

    monkeypatch.setattr(thumbnails, "_make_from", slow)

    async def ask():
        path = f"/thumbnails/{ids['a.jpg']}"
        asked = [asyncio.ensure_future(client._client.get(path)) for _ in range(80)]
        while sum(one.done() for one in asked) < 14:
            await asyncio.sleep(0.01)
        refused = [one.result() for one in asked if one.done()]
        assert {one.status_code for one in refused} == {429}
        assert {one.headers["retry-after"] for one in refused} == {"1"}
        assert len(refused) == 14
        begun = time.monotonic()
        assert (await client._client.get(f"/photos/{ids['b.jpg']}")).status_code == 200
        assert (await client._client.post("/search", json={"query": "a"})).status_code == 200
        assert time.monotonic() - begun < 5
        go.set()
        return [one.status_code for one in await asyncio.gather(*asked)]

    assert sorted(on_loop(ask())) == [200] * 66 + [429] * 14
    assert max(most) == 2


def test_forgetting_takes_it_away(make_client, own, tmp_path):
    client, ids = make_client(library=own), ids_of(own)
    path = f"/thumbnails/{ids['a.jpg']}"
    assert client.get(path).status_code == 200
    assert list(ThumbnailStore(own.location).folder.rglob("*.jpg"))
    with Library.open(own.location.file) as other:
        other.forget([tmp_path / "Pictures" / "a.jpg"])
    assert client.get(path).status_code == 404
    assert client.get(f"/photos/{ids['a.jpg']}").status_code == 404
    assert not list(ThumbnailStore(own.location).folder.rglob("*.jpg"))


@pytest.fixture
def large(tmp_path, encoder):
    """A library with one photograph of several pieces."""
    file = draw_photo(tmp_path / "Pictures" / "a.png", 1)
    size = 8 * file_answer.CHUNK + 5
    file.write_bytes(file.read_bytes() + os.urandom(size - file.stat().st_size))
    os.utime(file, (1.6e9, 1.6e9))
    with Library.open(tmp_path / "l.sqlite", create=True) as library:
        library.index([file.parent], encoder=encoder)
        yield library, file


def test_a_real_server_sends_it_in_pieces(running_server, large):
    library, file = large
    server = running_server(library=library)
    answer = httpx.get(f"{server.url}/photos/1")
    assert answer.content == file.read_bytes()
    part = httpx.get(f"{server.url}/photos/1", headers={"range": "bytes=300000-900000"})
    assert part.content == file.read_bytes()[300_000:900_001]


@pytest.mark.parametrize("harm", ["shorter", "other bytes"])
def test_one_that_changes_while_it_is_sent(running_server, large, monkeypatch, caplog, harm):
    """The client is told by the connection's end that something is missing."""
    library, file = large
    server = running_server(library=library)
    read, times = PhotoFile.read, []

    def cut(photo, offset, count):
        times.append(offset)
        if len(times) == 3 and harm == "shorter":
            os.truncate(file, offset)
        elif len(times) == 3:
            with file.open("r+b") as stream:
                stream.seek(offset)
                stream.write(b"x")
        return read(photo, offset, count)

    monkeypatch.setattr(PhotoFile, "read", cut)
    with httpx.Client() as client, pytest.raises(httpx.RemoteProtocolError):
        client.get(f"{server.url}/photos/1")
    assert "was changed while it was sent" in caplog.text
    assert httpx.get(f"{server.url}/photos/1").status_code == 409
    assert wait_for(lambda: not count_open(file))


def test_a_client_that_goes_away(running_server, large, monkeypatch):
    """The file is closed, but not while a thread still reads it."""
    library, file = large
    server, go, reading = running_server(library=library), threading.Event(), []
    read = PhotoFile.read

    def slow(photo, offset, count):
        if offset:
            reading.append(photo)
            assert go.wait(20)
        return read(photo, offset, count)

    monkeypatch.setattr(PhotoFile, "read", slow)
    host, port = server.url.removeprefix("http://").split(":")
    for number in range(1, 4):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"GET /photos/1 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert wait_for(lambda: len(reading) == number)  # noqa: B023
    time.sleep(0.2)
    assert count_open(file) == 3
    go.set()
    assert wait_for(lambda: not count_open(file))


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_a_result_that_nobody_waits_for_is_closed(on_loop):
    workers, go, closed = Workers(1, waiting=4, name="test"), threading.Event(), []

    async def run():
        first = asyncio.ensure_future(workers.run(go.wait, 10, discard=closed.append))
        second = asyncio.ensure_future(workers.run(closed.append, "ran"))
        await asyncio.sleep(0.05)
        first.cancel()
        second.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        go.set()
        while not closed:
            await asyncio.sleep(0.01)

    on_loop(run())
    workers.close()
    assert closed == [True]
