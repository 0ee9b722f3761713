"""immich's machine-learning service: what its client sends, and what it reads."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from pocketclip.checkpoint.resolve import resolve_model
from pocketclip.errors import ConfigError
from pocketclip.infer.encoder import Encoder
from pocketclip.serve.app import create_immich_app
from pocketclip.serve.inputs.immich_entries import width_of
from pocketclip.serve.process.opening import load_replacement
from pocketclip.serve.services import Services
from pocketclip.serve.settings import Limits
from tests.search.conftest import draw_photo
from tests.serve.conftest import Client, Loop
from tests.serve.immich_requests import (
    FACES,
    OCR,
    PHOTO,
    TEXTUAL,
    VISUAL,
    make_form,
    predict,
    vector,
)


@pytest.fixture
def immich(make_client: Callable[..., Client]) -> Client:
    return make_client(app=create_immich_app)


def test_state(make_client: Callable[..., Client]) -> None:
    client = make_client(app=create_immich_app)
    assert client.get("/").json() == {"message": "Immich ML"}
    answer = client.get("/ping")
    assert (answer.status_code, answer.text) == (200, "pong")
    assert answer.headers["content-type"].startswith("text/plain")
    client.services.is_draining = True
    assert client.get("/ping").status_code == 503
    assert make_client(app=create_immich_app, is_ready=False).get("/ping").status_code == 503


def test_nothing_else_is_offered(immich: Client) -> None:
    for path in ("/livez", "/docs", "/openapi.json", "/v1/models", "/search", "/ping/", "/metrics"):
        answer = immich.get(path)
        assert answer.status_code == 404, path
        assert list(answer.json()) == ["detail"]
    assert immich.get("/predict").status_code == 405


def test_image(immich: Client, encoder: Encoder) -> None:
    answer = predict(immich, VISUAL, image=PHOTO)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert set(body) == {"clip", "imageHeight", "imageWidth"}
    assert (body["imageWidth"], body["imageHeight"]) == (451, 300)
    np.testing.assert_array_equal(vector(body), encoder.encode_image([PHOTO])[0])


@pytest.mark.parametrize("suffix", ["png", "webp", "gif", "tiff"])
def test_any_type_of_image(immich: Client, tmp_path: Path, suffix: str, encoder: Encoder) -> None:
    data = draw_photo(tmp_path / f"a.{suffix}", 5).read_bytes()
    body = predict(immich, VISUAL, image=data).json()
    np.testing.assert_array_equal(vector(body), encoder.encode_image([data])[0])


def test_size_is_that_of_the_file_and_the_embedding_that_of_the_upright_image(
    immich: Client, tmp_path: Path, encoder: Encoder
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = draw_photo(tmp_path / "a.jpg", 7, exif=exif).read_bytes()
    body = predict(immich, VISUAL, image=turned).json()
    assert (body["imageWidth"], body["imageHeight"]) == (96, 72)
    np.testing.assert_array_equal(vector(body), encoder.encode_image([turned])[0])


@pytest.mark.parametrize("text", ["ein Hund", "a\r\nb", "écran ☕ 犬"])
def test_text(immich: Client, text: str, encoder: Encoder) -> None:
    body = predict(immich, TEXTUAL, text=text).json()
    assert set(body) == {"clip"}
    expected = encoder.encode_text(text.replace("\r\n", "\n"))[0]
    np.testing.assert_allclose(vector(body), expected, atol=1e-6)


@pytest.mark.parametrize(
    "entries",
    [
        "", "{", "null", "[]", json.dumps({"a": {"b": "c" * 70_000}}),
        '"clip"', "3", "[" * 10_000, '{"a":' * 10_000,
        {"clip": None}, {"clip": []}, {"clip": {"visual": None}}, {"clip": {"visual": {}}},
        {"clip": {"visual": {"modelName": 3}}}, {"clip": {"visual": {"modelName": None}}},
        {"clip": {"else": {"modelName": "a"}}}, {"clip": {"visual": "a"}},
        {"clip": VISUAL["clip"] | TEXTUAL["clip"]}, {"facial-recognition": "a"},
    ],
)  # fmt: skip
def test_bad_entries(immich: Client, entries: Any) -> None:
    answer = predict(immich, entries, image=PHOTO)
    assert (answer.status_code, answer.json()) == (422, {"detail": "Invalid request format."})


def test_no_entries(immich: Client) -> None:
    answer = immich.post("/predict", files=[("text", (None, "a"))])
    assert (answer.status_code, answer.json()) == (422, {"detail": "Invalid request format."})


@pytest.mark.parametrize("parts", [{}, {"text": ""}, {"other": "a"}])
def test_neither_image_nor_text(immich: Client, parts: dict[str, str]) -> None:
    answer = predict(immich, VISUAL, **parts)
    assert answer.status_code == 400
    assert answer.json() == {"detail": "Either image or text must be provided"}


def test_the_other_input_is_not_taken(immich: Client, encoder: Encoder) -> None:
    for entries, parts, word in (
        (VISUAL, {"text": "a"}, "needs an image"), (TEXTUAL, {"image": PHOTO}, "needs a text")
    ):  # fmt: skip
        answer = predict(immich, entries, **parts)
        assert answer.status_code == 400
        assert word in answer.json()["detail"]
    both = predict(immich, TEXTUAL, image=PHOTO, text="a dog").json()
    np.testing.assert_allclose(vector(both), encoder.encode_text("a dog")[0], atol=1e-6)


def test_images_that_cannot_be_read(immich: Client) -> None:
    for data in (b"", b"no image", PHOTO[: len(PHOTO) // 2], PHOTO[:40]):
        answer = predict(immich, VISUAL, image=data)
        assert answer.status_code == 400, (data[:9], answer.text)
        assert list(answer.json()) == ["detail"]


def test_limits(make_client: Callable[..., Client]) -> None:
    few = make_client(app=create_immich_app, limits=Limits(image_pixels=451 * 300 - 1))
    answer = predict(few, VISUAL, image=PHOTO)
    assert (answer.status_code, list(answer.json())) == (400, ["detail"])
    small = make_client(app=create_immich_app, limits=Limits(image_bytes=len(PHOTO) - 1))
    assert predict(small, VISUAL, image=PHOTO).status_code == 413
    short = make_client(app=create_immich_app, limits=Limits(text_characters=9))
    assert predict(short, TEXTUAL, text="a" * 9).status_code == 200
    answer = predict(short, TEXTUAL, text="a" * 10)
    assert (answer.status_code, "9 characters" in answer.text) == (400, True)


def test_full_queues_are_waited_for(
    make_services: Callable[..., Services], on_loop: Loop, encoder: Encoder
) -> None:
    limits = Limits(waiting_images=1, waiting_texts=1, body_bytes=10**5, held_bytes=10**5)
    app = create_immich_app(make_services(limits=limits))

    async def ask_all() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            forms = [make_form(VISUAL, image=PHOTO)] * 12
            forms += [make_form(TEXTUAL, text=f"text {number}") for number in range(12)]
            sent = [client.post("/predict", content=c, headers=h) for c, h in forms]
            return await asyncio.gather(*sent)

    answers = on_loop(ask_all())
    assert [answer.status_code for answer in answers] == [200] * 24
    assert encoder.embed_dim == len(vector(answers[-1].json()))


def test_a_request_without_tasks(immich: Client) -> None:
    assert predict(immich, {}, text="a").json() == {}
    assert predict(immich, {}, image=PHOTO).json() == {"imageHeight": 300, "imageWidth": 451}


def test_other_bodies(immich: Client) -> None:
    assert immich.post("/predict", json={"entries": "{}"}).status_code == 415
    cut = b'--a\r\nContent-Disposition: form-data; name="entries"\r\n\r\n{}'
    headers = {"Content-Type": "multipart/form-data; boundary=a"}
    assert immich.post("/predict", content=cut, headers=headers).status_code == 400


def test_options_and_names_are_ignored_and_not_kept(
    immich: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pocketclip")
    vectors = set()
    for number in range(60):
        options = {"language": f"de-{number}", "mode": [number], "": None}
        entry = {"modelName": f"model-{number}\n\x1b[2J{'x' * 5000}", "options": options}
        answer = predict(immich, {"clip": {"textual": entry}}, text="a dog")
        vectors.add(answer.json()["clip"])
    assert len(vectors) == 1
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 16
    assert all(len(line) < 200 and line.isprintable() for line in said)
    assert sum(map(len, immich.app.state.remarks.names)) < 16 * 81


def test_a_name_of_another_width_is_warned_of_once(
    immich: Client, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    assert encoder.embed_dim not in (512, 768)
    for _ in range(3):
        assert predict(immich, TEXTUAL, text="a").status_code == 200
    (record,) = [one for one in caplog.records if one.levelno == logging.WARNING]
    message = record.getMessage()
    assert "512" in message
    assert str(encoder.embed_dim) in message


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("ViT-B-32__openai", 512), ("immich-app/ViT-B-32::laion2b_e16", 512),
        ("ViT-B-32__laion2b-s34b-b79k", 512), ("XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k", 512),
        ("XLM-Roberta-Large-Vit-B-32", 512), ("RN101__yfcc15m", 512),
        ("ViT-B-16-plus-240__laion400m_e32", 640), ("XLM-Roberta-Large-Vit-B-16Plus", 640),
        ("ViT-L-14__openai", 768), ("ViT-L-14-336__openai", 768), ("LABSE-Vit-L-14", 768),
        ("ViT-B-16-SigLIP-i18n-256__webli", 768), ("ViT-B-32-SigLIP2-256__webli", 768),
        ("nllb-clip-base-siglip__mrl", 768), ("RN50x16__openai", 768), ("RN50__openai", 1024),
        ("ViT-H-14-378-quickgelu__dfn5b", 1024), ("ViT-L-16-SigLIP2-512__webli", 1024),
        ("ViT-g-14__laion2b-s12b-b42k", 1024), ("ViT-SO400M-16-SigLIP2-384__webli", 1152),
        ("nllb-clip-large-siglip__v1", 1152), ("ViT-gopt-16-SigLIP2-256__webli", 1536),
        ("of tomorrow", None), ("", None),
    ],
)  # fmt: skip
def test_widths(name: str, width: int | None) -> None:
    assert width_of(name) == width


def test_what_is_not_offered_is_refused(immich: Client, caplog: pytest.LogCaptureFixture) -> None:
    for entries in (FACES, VISUAL | FACES, OCR):
        answer = predict(immich, entries, image=PHOTO)
        assert answer.status_code == 400
        assert "--upstream" in answer.json()["detail"]
    warnings = [one.getMessage() for one in caplog.records if "refused" in one.getMessage()]
    assert len(warnings) == 1


def test_another_space_is_not_switched_to(
    make_services: Callable[..., Services], bundle: Path, other_bundle: Path
) -> None:
    services = make_services(immich=("127.0.0.1", 0))
    assert load_replacement(resolve_model(bundle), services).space_id
    with pytest.raises(ConfigError, match="immich keeps embeddings of space-"):
        load_replacement(resolve_model(other_bundle), services)
    assert load_replacement(resolve_model(other_bundle), make_services()).space_id
