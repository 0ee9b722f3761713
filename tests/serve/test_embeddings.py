"""OpenAI's embeddings: with its own client, with images, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pocketclip.infer.encoder import Encoder
from pocketclip.serve.errors import RequestError
from pocketclip.serve.inputs import bodies
from pocketclip.tokenizer import PAD, Tokenizer
from tests.search.conftest import draw_photo
from tests.serve.conftest import Client, Server

openai = pytest.importorskip("openai")

TEXTS = ["a photo of a dog", "ein Hühnchen 🐔", "a photo of a dog", "x" * 20]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("photos")
    names = ["a.jpg", "b.png", "c.webp", "d.jpg", "e.jpg"]
    return [draw_photo(folder / name, seed).read_bytes() for seed, name in enumerate(names)]


def uri(data: bytes, kind: str = "image/jpeg") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def rows_of(answer: Any) -> np.ndarray[Any, Any]:
    """Return the embeddings of an answer, of either encoding."""
    rows = []
    for item in answer["data"]:
        row = item["embedding"]
        rows.append(np.frombuffer(base64.b64decode(row), "<f4") if isinstance(row, str)
                    else np.array(row, np.float32))  # fmt: skip
    assert [item["index"] for item in answer["data"]] == list(range(len(rows)))
    return np.stack(rows)


def ask(client: Client, **body: Any) -> Any:
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client: Client, status: int = 400, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


@pytest.fixture(scope="module")
def make_openai(server: Server) -> Callable[..., Any]:
    def make(kind: Any = openai.OpenAI, **options: Any) -> Any:
        return kind(base_url=f"{server.url}/v1", api_key="any", **options)

    return make


def test_openai_client(
    make_openai: Callable[..., Any], encoder: Encoder, photos: list[bytes]
) -> None:
    with make_openai() as client:
        expected = encoder.encode_text(TEXTS)
        for encoding in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
            answer = client.embeddings.create(input=TEXTS, model="ada-002", **encoding)
            rows = [item.embedding for item in answer.data]
            if encoding.get("encoding_format") == "base64":
                rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
            assert np.allclose(np.array(rows, np.float32), expected, atol=1e-6)
            assert answer.model == encoder.config.name
        images = client.embeddings.create(
            input=[uri(data) for data in photos], model="any", extra_body={"modality": "image"}
        )
        assert np.array_equal(
            np.array([item.embedding for item in images.data], np.float32),
            encoder.encode_image(photos),
        )
        [model] = client.models.list().data
        assert model.id == encoder.config.name
        assert client.models.retrieve("apple/any name").id == model.id
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(input="", model="any")
        assert caught.value.param == "input"
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="any", messages=[])


def test_openai_client_async(make_openai: Callable[..., Any], encoder: Encoder) -> None:
    async def embed() -> Any:
        async with make_openai(openai.AsyncOpenAI) as client:
            calls = [client.embeddings.create(input=text, model="any") for text in TEXTS]
            return await asyncio.gather(*calls)

    rows = [answer.data[0].embedding for answer in asyncio.run(embed())]
    assert np.allclose(np.array(rows, np.float32), encoder.encode_text(TEXTS), atol=1e-6)


def test_openai_client_tries_again_when_the_server_is_full(
    server: Server, make_openai: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, calls = server.services.engine, []
    real = engine.embed_texts

    async def full(texts: Any, **options: Any) -> Any:
        calls.append(time.monotonic())
        if len(calls) < 2:
            raise RequestError(429, "too many texts wait", code="queue_full", retry_after=1)
        return await real(texts, **options)

    monkeypatch.setattr(engine, "embed_texts", full)
    with make_openai(max_retries=1) as client:
        assert client.embeddings.create(input="a", model="any").data
    assert len(calls) == 2
    assert calls[1] - calls[0] >= 1  # what Retry-After said
    calls.clear()
    with make_openai(max_retries=0) as client, pytest.raises(openai.RateLimitError) as caught:
        client.embeddings.create(input="a", model="any")
    assert caught.value.code == "queue_full"
    assert caught.value.response.headers["retry-after"] == "1"


def test_openai_client_maps_errors(make_openai: Callable[..., Any]) -> None:
    with make_openai(max_retries=0) as client:
        for kind, status, options in [
            (openai.BadRequestError, 400, {"input": [], "model": "any"}),
            (openai.BadRequestError, 400, {"input": "a", "model": "any", "dimensions": 3}),
            (openai.UnprocessableEntityError, 422, {"input": "a", "model": 3}),
        ]:
            with pytest.raises(kind) as caught:
                client.embeddings.create(**options)
            assert caught.value.status_code == status
            assert caught.value.type == "invalid_request_error"


def test_images_and_texts_may_be_mixed(
    client: Client, encoder: Encoder, photos: list[bytes]
) -> None:
    plain = base64.b64encode(photos[1]).decode()
    answer = ask(
        client,
        input=[
            {"text": "a dog"}, {"image": uri(photos[0])}, "a cat", {"image": plain, "text": None},
            {"text": "a dog"}, {"image": uri(photos[2], "image/webp")},
        ],
    )  # fmt: skip
    rows = rows_of(answer)
    assert np.array_equal(rows[[1, 3, 5]], encoder.encode_image(photos[:3]))
    assert np.allclose(rows[[0, 2, 4]], encoder.encode_text(["a dog", "a cat", "a dog"]), atol=1e-6)
    mixed = ask(client, input=[uri(photos[0]), {"text": "a dog"}], modality="image")
    assert np.allclose(rows_of(mixed), rows[[1, 0]], atol=1e-6)
    assert np.array_equal(rows_of(ask(client, input={"image": plain})), rows[[3]])
    one = ask(client, input=plain, modality="image", encoding_format="base64")
    assert np.array_equal(rows_of(one), rows[[3]])


def test_answers_are_whole(client: Client, encoder: Encoder, photos: list[bytes]) -> None:
    answer = ask(
        client, input=["a dog", "a cat"], model="", dimensions=0, user="u", encoding_format=None,
        modality=None, embedding_type="float", normalized=True, task="text-matching", other=[1],
    )  # fmt: skip
    assert answer["object"] == "list"
    assert answer["model"] == encoder.config.name
    assert answer["space_id"] == encoder.space_id
    assert answer["id"] != ask(client, input="a")["id"]
    assert abs(answer["created"] - time.time()) < 60
    ids = Tokenizer()(["a dog", "a cat"], encoder.config.text.context_length)
    tokens = int((ids != PAD).sum())
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    again = ask(client, input=["a dog", "a cat"])  # from the cache
    assert again["usage"] == answer["usage"]
    of_image = ask(client, input=uri(photos[0]), modality="image", dimensions=encoder.embed_dim)
    assert of_image["usage"] == {"prompt_tokens": 0, "total_tokens": 0}
    as_jina = ask(client, input=["a dog", "a cat"], embedding_type="base64")
    assert np.array_equal(rows_of(as_jina), rows_of(answer))


def test_numbers_are_exact(client: Client, encoder: Encoder) -> None:
    texts = [f"text {n}" for n in range(300)]
    numbers, packed = ask(client, input=texts), ask(client, input=texts, encoding_format="base64")
    rows = rows_of(numbers)
    assert np.array_equal(rows, rows_of(packed))
    assert np.allclose(rows, encoder.encode_text(texts), atol=1e-6)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    hard = np.array([1e-38, 1.4e-45, 3.4028235e38, -0.0, 0.1, 1 / 3, 16777217], np.float32)
    data = bodies.to_json(hard.tolist())
    assert np.array_equal(np.array(json.loads(data), np.float32), hard)


def test_models_and_clock(client: Client, encoder: Encoder) -> None:
    for prefix in ("", "/v1"):
        [model] = client.get(f"{prefix}/models").json()["data"]
        assert model["id"] == encoder.config.name
        assert model["space_id"] == encoder.space_id
        assert model["capabilities"] == ["embed", "image_embed"]
        for name in ("text-embedding-3-small", "BAAI/bge-m3", "a%2Fb"):
            assert client.get(f"{prefix}/models/{name}").json() == model
    assert abs(client.get("/health").json()["unix"] - time.time()) < 60


def test_faults_are_named(client: Client, photos: list[bytes]) -> None:
    image = uri(photos[0])
    plain = base64.b64encode(photos[0]).decode()
    for about, param, body in [
        ("input is an empty list", "input", {"input": []}),
        ("input is an empty text", "input", {"input": ""}),
        ("input[1] is an empty text", "input[1]", {"input": ["a", ""]}),
        ("neither a text nor an object", "input", {"input": None}),
        ("neither a text nor an object", "input[0]", {"input": [True]}),
        ("neither a text nor an object", "input[0]", {"input": [1.5]}),
        ("token ids", "input[0]", {"input": [1, 2, 3]}),
        ("token ids", "input[0]", {"input": [[1, 2, 3]]}),
        ('either "text" or "image"', "input[0]", {"input": [{"text": "a", "image": image}]}),
        ('either "text" or "image"', "input[0]", {"input": [{"url": "a"}]}),
        ("input[0] is not a text", "input[0]", {"input": [{"text": 3}]}),
        ("not a text that holds an image", "input[0]", {"input": [{"image": [1]}]}),
        ("input is an image", "input", {"input": image}),
        ("input[1] is an image", "input[1]", {"input": ["a", image.replace("data", "Data")]}),
        ("input[0] is an image", "input[0]", {"input": [plain]}),
        ("modality must be", "modality", {"input": "a", "modality": "audio"}),
        ("modality must be", "modality", {"input": "a", "modality": ["text"]}),
        ("must be float or base64", "encoding_format", {"input": "a", "encoding_format": "int8"}),
        ("must be float or base64", "embedding_type", {"input": "a", "embedding_type": "binary"}),
        ("must be float or base64", "embedding_type", {"input": "a", "embedding_type": ["float"]}),
        ("cannot be shortened", "dimensions", {"input": "a", "dimensions": 3}),
        ("cannot be shortened", "dimensions", {"input": "a", "dimensions": "512"}),
        ("cannot be shortened", "dimensions", {"input": "a", "dimensions": False}),
        ("unit length", "normalized", {"input": "a", "normalized": False}),
        ("input[1]: not an image", "input[1]",
         {"input": [image, "bm8gaW1hZ2U="], "modality": "image"}),
        ("input[2]: not an image", "input[2]",
         {"input": ["a", {"image": image}, {"image": "bm8gaW1hZ2U="}]}),
        ("2,049 texts in one request; the limit is 2,048", "input", {"input": ["a"] * 2049}),
        ("65 images in one request; the limit is 64", "input",
         {"input": [plain] * 65, "modality": "image"}),
        ("the limits are 2,048 texts and 64 images", "input", {"input": ["a"] * 9999}),
        ("122,881 characters; the limit is 122,880", "input", {"input": "a" * 122_881}),
    ]:  # fmt: skip
        error = refused(client, **body)
        assert about in error["message"], error
        assert error["param"] == param
        assert image[30:60] not in error["message"]
    assert refused(client, 422, model="any")["param"] == "input"
    assert ask(client, input="https://example.org/a.jpg")["data"]  # a text, if nobody says other
    assert ask(client, input="data: a text about data:image/png;base64,")["data"]


def test_damaged_json_is_refused(client: Client) -> None:
    for about, content in [
        ("is not JSON", b'{"input": '),
        ("is not UTF-8", b'{"input": "\xff"}'),
        ("half of a surrogate pair", b'{"input": "\\ud800"}'),
        ("occurs twice", b'{"input": "a", "input": "b"}'),
        ("nested more than", b'{"input": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
        ("not a JSON number", b'{"input": "a", "dimensions": NaN}'),
        ("too many values", b'{"input": [' + b"[]," * 300_000 + b"[]]}"),
        ("too many texts", b'{"input": [' + b'"a",' * 100_000 + b'"a"]}'),
        ("is missing", b""),
    ]:
        answer = client.post(
            "/v1/embeddings", content=content, headers={"content-type": "application/json"}
        )
        assert answer.status_code == (400 if content else 422), content[:40]
        assert about in answer.json()["error"]["message"]
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = client.post(
            "/v1/embeddings", content=b'{"input": "a"}', headers={"content-type": kind}
        )
        assert answer.status_code == 415
        assert "Content-Type" in answer.json()["error"]["message"]
