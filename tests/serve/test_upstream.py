"""What goes on to another service, what comes back, and what happens where it is not there."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pocketclip.errors import ConfigError
from pocketclip.infer.encoder import Encoder
from pocketclip.serve.app import create_immich_app
from pocketclip.serve.inputs.upstream import Upstream
from pocketclip.serve.settings import Limits
from tests.serve.conftest import Client, Loop
from tests.serve.face_service import ONE_FACE, Answer, FaceService, parts_of
from tests.serve.immich_requests import FACES, OCR, PHOTO, VISUAL, make_form, predict, vector

ADDRESS = ("127.0.0.1", 0)
LIMITS = Limits(upstream_patience=0.6, upstream_timeout=0.4)


@pytest.fixture
def service() -> Iterator[FaceService]:
    with FaceService() as one:
        yield one


@pytest.fixture
def immich(
    make_client: Callable[..., Client], on_loop: Loop, service: FaceService
) -> Iterator[Client]:
    client = make_client(app=create_immich_app, immich=ADDRESS, upstream=service.url, limits=LIMITS)
    yield client
    on_loop(client.services.upstream.close())


def test_other_tasks_are_passed_on_unchanged(immich: Client, service: FaceService) -> None:
    content, headers = make_form(FACES, image=PHOTO)
    answer = immich.post("/predict", content=content, headers=headers | {"Cookie": "a=b"})
    assert (answer.status_code, answer.content) == (200, ONE_FACE)
    assert answer.headers["content-type"] == "application/json"
    (request,) = service.requests
    assert request.path == "/predict"
    assert request.body == content
    assert request.headers["Content-Type"] == headers["Content-Type"]
    assert "Cookie" not in request.headers


def test_a_mixed_request_is_split_and_merged(
    immich: Client, service: FaceService, encoder: Encoder
) -> None:
    body = predict(immich, VISUAL | FACES | OCR, image=PHOTO).json()
    sent = parts_of(service.requests[0])
    assert sent == {"entries": FACES | OCR, "image": PHOTO}
    np.testing.assert_array_equal(vector(body), encoder.encode_image([PHOTO])[0])
    assert body["facial-recognition"] == json.loads(ONE_FACE)["facial-recognition"]
    assert (body["imageWidth"], body["imageHeight"]) == (96, 72)


def test_ours_is_the_embedding_whatever_the_service_says(
    immich: Client, service: FaceService, encoder: Encoder
) -> None:
    service.answers.append(Answer(body=b'{"clip":"[9]","imageWidth":7,"o":"\\ud800","f":NaN}'))
    assert predict(immich, VISUAL | FACES, image=PHOTO).status_code == 503  # NaN
    service.answers.append(Answer(body=b'{"clip":"[9]","imageWidth":7,"o":"\\ud800"}'))
    body = predict(immich, VISUAL | FACES, image=PHOTO).json()
    assert len(json.loads(body["clip"])) == encoder.embed_dim
    assert (body["imageWidth"], body["imageHeight"], body["o"]) == (7, 300, "\ud800")


@pytest.mark.parametrize(
    ("answers", "status", "detail"),
    [
        ([Answer(422)], 422, "refuses the request"),
        ([Answer(500)], 503, "answers 500"),
        ([Answer(404)], 503, "answers 404"),
        ([Answer(302, headers={"Location": "/elsewhere"})], 503, "answers 302"),
        ([Answer(body=b"[]")], 503, "not a JSON object"),
        ([Answer(body=b"[" * 100_000)], 503, "not a JSON object"),
        ([Answer(body=b"<html>")], 503, "not a JSON object"),
        ([Answer(headers={"Content-Encoding": "gzip"})], 503, "compresses"),
        ([Answer(waits=True)], 503, "takes too long"),
        ([Answer(breaks=True)] * 3, 503, "breaks the connection"),
        ([Answer(503)] * 9, 503, "answers 503"),
    ],
)
def test_a_service_that_fails(
    immich: Client, service: FaceService, answers: list[Answer], status: int,
    detail: str,
) -> None:  # fmt: skip
    service.answers[:] = answers
    answer = predict(immich, FACES, image=PHOTO)
    assert answer.status_code == status
    assert detail in answer.json()["detail"]
    assert all(request.path == "/predict" for request in service.requests)


def test_too_long_an_answer(
    make_client: Callable[..., Client], on_loop: Loop, service: FaceService
) -> None:
    small = replace(LIMITS, body_bytes=20_000)
    client = make_client(app=create_immich_app, immich=ADDRESS, upstream=service.url, limits=small)
    service.answers.append(Answer(body=b'{"a": "' + b"x" * 20_000 + b'"}'))
    answer = predict(client, FACES, image=PHOTO[:99])
    assert (answer.status_code, "too many bytes" in answer.text) == (503, True)
    on_loop(client.services.upstream.close())


def test_a_service_that_restarts_is_waited_for(
    immich: Client, service: FaceService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pocketclip")
    service.answers[:] = [Answer(breaks=True), Answer(502)]
    assert predict(immich, FACES, image=PHOTO).content == ONE_FACE
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "the upstream service answers 502; its requests wait",
        "the upstream service answers again",
    ]


def test_the_deadline_of_this_port_holds(
    make_client: Callable[..., Client], on_loop: Loop, service: FaceService
) -> None:
    limits = replace(LIMITS, upstream_timeout=60, immich_deadline=0.2, deadline=60)
    client = make_client(app=create_immich_app, immich=ADDRESS, upstream=service.url, limits=limits)
    service.answers.append(Answer(waits=True))
    assert predict(client, FACES, image=PHOTO).status_code == 503
    assert service.gone.wait(5), "the request goes on at the upstream service"
    on_loop(client.services.upstream.close())


def test_nobody_listens(make_client: Callable[..., Client], on_loop: Loop) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    client = make_client(app=create_immich_app, immich=ADDRESS, upstream=url, limits=LIMITS)
    begun = time.monotonic()
    answer = predict(client, FACES, image=PHOTO)
    assert answer.status_code == 503
    assert answer.json() == {"detail": "the upstream service cannot be reached"}
    assert time.monotonic() - begun > 0.2  # it was asked again
    assert predict(client, VISUAL, image=PHOTO).status_code == 200
    on_loop(client.services.upstream.close())


def test_a_url_that_leads_back(immich: Client, service: FaceService) -> None:
    predict(immich, FACES, image=PHOTO)
    came = service.requests[0]
    again = immich.post("/predict", content=came.body, headers=came.headers)
    assert again.status_code == 400
    assert "leads back" in again.json()["detail"]


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://ml:3003", "http://ml:3003/predict"),
        ("http://ml:3003/", "http://ml:3003/predict"),
        ("https://host/ml/", "https://host/ml/predict"),
    ],
)
def test_urls(url: str, path: str) -> None:
    assert str(Upstream(url)._url) == path


@pytest.mark.parametrize(
    "url", ["", "ml:3003", "ftp://ml", "http://", "http://ml?a=b", "http://a\nb"]
)
def test_urls_that_are_none(url: str, make_services: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="upstream"):
        create_immich_app(make_services(immich=ADDRESS, upstream=url))
