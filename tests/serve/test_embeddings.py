"""OpenAI's embeddings: with its own client, with images, and what is refused."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pocketclip.infer.encoder import Encoder
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
