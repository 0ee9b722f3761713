"""Images by URL: from listed hosts, by https, at checked public addresses, within limits."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketclip.infer.encoder import Encoder
from pocketclip.serve.errors import RequestError
from pocketclip.serve.inputs import fetching
from pocketclip.serve.settings import Limits
from tests.image_server import ImageServer
from tests.network_stand_ins import Names, certificate, only_one_is_public
from tests.search.conftest import draw_photo
from tests.serve.conftest import Client, Loop, Server

httpx = pytest.importorskip("httpx")
pytest.importorskip("cryptography")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("tls"), "outer.test")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return draw_photo(tmp_path_factory.mktemp("photos") / "a.jpg", 1).read_bytes()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Names of the network; 127.0.0.1 counts as its only public address."""
    only_one_is_public(monkeypatch)
    return Names(
        monkeypatch, outer=["127.0.0.1"], inner=["127.0.0.2"], mapped=["::ffff:127.0.0.2"],
        turning=["127.0.0.1", "127.0.0.2"],
    )  # fmt: skip


@pytest.fixture
def web(
    pair: Path, photo: bytes, names: Names, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ImageServer]:
    """`https://outer.test:PORT`, and a proxy in the environment that leads nowhere."""
    assert names.asked == 0
    monkeypatch.setenv("SSL_CERT_FILE", str(pair))
    for name in ("https_proxy", "all_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with ImageServer(pair) as server:
        server.files["/a.jpg"] = photo
        yield server


def at(web: ImageServer, path: str, host: str = "outer.test") -> str:
    return f"https://{host}:{web.port}/{path}"


@pytest.fixture
def client(web: ImageServer, make_client: Callable[..., Client]) -> Client:
    hosts = ("outer", "inner", "mapped", "turning")
    return make_client(fetch_from=tuple(f"{host}.test:{web.port}" for host in hosts))


def embed(client: Client, *urls: str) -> Any:
    return client.post("/v1/embeddings", json={"input": list(urls), "modality": "image"})


def refused(client: Client, *urls: str) -> str:
    answer = embed(client, *urls)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"].startswith("input[")
    for secret in ("127.0.0", "10.", "::", "/a.jpg", "private"):
        assert secret not in error["message"]
    return str(error["message"])


def test_images_of_listed_hosts_are_fetched(
    client: Client, web: ImageServer, names: Names, photo: bytes, encoder: Encoder
) -> None:
    url = at(web, "a.jpg")
    expected = encoder.encode_image(photo)[0]
    answer = embed(client, url, at(web, "redirect/a.jpg"), at(web, "send/outer.test:{}/a.jpg").format(web.port))  # fmt: skip  # noqa: E501
    rows = [item["embedding"] for item in answer.json()["data"]]
    assert np.array_equal(np.array(rows, np.float32), np.stack([expected] * 3))
    assert names.asked == 5  # once for each connection
    mixed = {"input": [{"text": "a"}, {"image": url}, {"image": base64.b64encode(photo).decode()}]}
    rows = [item["embedding"] for item in client.post("/embeddings", json=mixed).json()["data"]]
    assert np.array_equal(np.array(rows[1:], np.float32), encoder.encode_image([photo, photo]))
    labels = ["a", "b"]
    [expected_labels] = encoder.classify(photo, labels)
    [result] = client.post("/classify", json={"image": url, "labels": labels}).json()["results"]
    assert [one["label"] for one in result["labels"]] == list(expected_labels)
    body = {"inputs": url, "parameters": {"candidate_labels": labels}}
    assert client.post("/hf/zero-shot", json=body).status_code == 200


def test_other_urls_are_refused_by_their_text_alone(
    client: Client, web: ImageServer, names: Names
) -> None:
    port = web.port
    elsewhere = {
        refused(client, url)
        for url in (
            f"https://other.test:{port}/a.jpg", "https://outer.test/a.jpg",
            f"https://outer.test.evil.test:{port}/a.jpg", f"https://127.0.0.1:{port}/a.jpg",
            f"https://2130706433:{port}/a.jpg", f"https://0x7f.1:{port}/a.jpg",
            f"https://[::ffff:127.0.0.1]:{port}/a.jpg", f"https://[::1]:{port}/a.jpg",
            f"https://localhost:{port}/a.jpg", "https://169.254.169.254/latest/meta-data/",
            "https://nowhere.invalid/a.jpg", f"https://other.test:{port}/\\@outer.test:{port}/",
        )
    }  # fmt: skip
    assert len(elsewhere) == 1  # whether a host exists makes no difference
    assert "fetches no images from that host" in elsewhere.pop()
    for about, url in [
        ("by https only", f"http://outer.test:{port}/a.jpg"),
        ("by https only", "file:///etc/hostname"),
        ("by https only", "ftp://outer.test/a.jpg"),
        ("by https only", "gopher:a"),
        ("a user or password", f"https://me:secret@outer.test:{port}/a.jpg"),
        ("a user or password", f"https://outer.test:{port}@inner.test/a.jpg"),
        ("not a valid URL", f"https://outer.test:{port}x/a.jpg"),
        ("not a valid URL", "https://[::1/"),
        ("a URL of over 8,192", at(web, "a" * 9000)),
    ]:
        assert about in refused(client, url)
    assert names.asked == 0
    assert not web.asked


def test_addresses_are_checked_and_dialled_as_checked(
    client: Client, web: ImageServer, names: Names
) -> None:
    for host in ("inner.test", "mapped.test"):
        message = refused(client, at(web, "a.jpg", host))
        assert message == "input[0]: the image could not be fetched"
    assert not web.asked
    names.asked = 0
    # Its certificate is of another name: but it was reached, at the address that was checked.
    assert "could not be fetched" in refused(client, at(web, "a.jpg", "turning.test"))
    assert names.asked == 1
    names.names["outer"] = ["127.0.0.1", "127.0.0.2"]
    names.asked = 0
    assert embed(client, at(web, "a.jpg")).status_code == 200
    assert names.asked == 1


def test_redirects_are_checked(client: Client, web: ImageServer) -> None:
    port = web.port
    web.files["/secret"] = b"secret"
    for target in (
        f"127.0.0.1:{port}", f"127.0.0.2:{port}", f"[::1]:{port}", f"other.test:{port}",
        f"localhost:{port}", "outer.test", f"me:secret@outer.test:{port}",
    ):  # fmt: skip
        message = refused(client, at(web, f"send/{target}/secret"))
        assert message.endswith("it leads to a host that is not allowed here")
    assert refused(client, at(web, f"send/inner.test:{port}/secret")).endswith("be fetched")
    assert "without https" in refused(client, at(web, "leave"))
    assert "too many redirects" in refused(client, at(web, "loop"))
    assert web.asked["/secret"] == 0


def test_bad_answers_are_refused(
    make_client: Callable[..., Client], web: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "SECONDS", 1.0)
    limits = Limits(image_bytes=1 << 20)
    client = make_client(fetch_from=(f"outer.test:{web.port}",), limits=limits)
    web.files["/text"] = b"this is no image, whatever it is called"
    for path, about in [
        ("status/404", "status 404"),
        ("status/503", "status 503"),
        ("announce/9000000", "larger than 1,048,576 bytes"),
        ("endless", "larger than 1,048,576 bytes"),
        ("bomb", "larger than 1,048,576 bytes"),
        ("drip", "not finished within 1 s"),
        ("slow/5", "within 1 s"),
        ("page", "not an image"),
        ("empty", "empty"),
        ("text", "not an image"),
        ("reset", "could not be fetched"),
        ("garbage", "could not be fetched"),
    ]:
        assert about in refused(client, at(web, path)), path


def test_nothing_is_fetched_for_a_request_that_is_refused(
    client: Client, web: ImageServer, names: Names
) -> None:
    url = at(web, "a.jpg")
    for path, body in [
        ("/v1/embeddings", {"input": [url, "not base64!"], "modality": "image"}),
        ("/v1/embeddings", {"input": [url, "https://other.test/"], "modality": "image"}),
        ("/v1/embeddings", {"input": [url], "modality": "image", "dimensions": 3}),
        ("/v1/embeddings", {"input": [{"image": url}, {"text": ""}]}),
        ("/v1/embeddings", {"input": [url] * 65, "modality": "image"}),
        ("/classify", {"image": url, "labels": ["a", "a"]}),
        ("/classify", {"image": url, "label_set": "none"}),
        ("/hf/zero-shot", {"inputs": url, "parameters": {"candidate_labels": []}}),
    ]:
        assert client.post(path, json=body).status_code in (400, 404), body
    assert client.post("/v1/embeddings", json={"input": url}).status_code == 200  # a text
    assert names.asked == 0
    assert not web.asked


def test_images_of_a_request_are_bounded_together(
    make_client: Callable[..., Client], web: ImageServer, photo: bytes
) -> None:
    limits = Limits(body_bytes=3 * len(photo) - 1)
    client = make_client(fetch_from=(f"outer.test:{web.port}",), limits=limits)
    url = at(web, "a.jpg")
    assert embed(client, url, url).status_code == 200
    assert embed(client, url, url, url).status_code == 413


def test_images_that_were_fetched_count_as_held(
    make_client: Callable[..., Client], web: ImageServer, photo: bytes
) -> None:
    limits = Limits(body_bytes=2 * len(photo), held_bytes=2 * len(photo))
    client = make_client(fetch_from=(f"outer.test:{web.port}",), limits=limits)
    room = client.services.room
    answer = embed(client, at(web, "a.jpg"), at(web, "a.jpg"))  # beside the body itself
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "held_bytes"
    assert room.held == 0
    assert embed(client, at(web, "a.jpg")).status_code == 200
    assert room.held == 0


def test_a_fetch_ends_when_its_client_is_gone(
    web: ImageServer, running_server: Callable[..., Server]
) -> None:
    server = running_server(fetch_from=(f"outer.test:{web.port}",))
    body = {"input": at(web, "drip"), "modality": "image"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=1, trust_env=False)
    assert web.asked["/drip"] == 1
    end = time.monotonic() + 5
    while web.at_once and time.monotonic() < end:
        time.sleep(0.01)
    assert web.at_once == 0


def test_urls_are_refused_unless_hosts_are_listed(make_client: Callable[..., Client]) -> None:
    client = make_client()
    answer = client.post(
        "/v1/embeddings", json={"input": "https://outer.test/a.jpg", "modality": "image"}
    )
    assert answer.status_code == 400
    assert "--fetch-from" in answer.json()["error"]["message"]


def test_fetches_are_bounded_and_end_with_their_request(
    web: ImageServer, on_loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("REQUESTS", 2), ("AHEAD", 2), ("WAITING", 1)):
        monkeypatch.setattr(fetching, name, value)

    async def ask() -> None:
        fetcher = fetching.ImageFetcher([f"outer.test:{web.port}"], Limits())
        try:
            urls = {str(n): at(web, "drip") for n in range(5)}
            tasks = [asyncio.ensure_future(fetcher.fetch(urls)) for _ in range(3)]
            while web.at_once < 4:
                await asyncio.sleep(0.01)
            with pytest.raises(RequestError, match="too many requests wait") as caught:
                await fetcher.fetch(urls)
            assert (caught.value.status, caught.value.retry_after) == (429, 10)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            end = time.monotonic() + 20
            while web.at_once and time.monotonic() < end:  # the server sees that it is alone
                await asyncio.sleep(0.01)
            good = await fetcher.fetch({"a": at(web, "a.jpg")})
            assert good == [web.files["/a.jpg"]]
        finally:
            await asyncio.to_thread(fetcher.close)

    on_loop(ask())
    assert web.at_once == 0
    assert web.most_at_once == 4
