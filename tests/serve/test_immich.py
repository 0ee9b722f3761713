"""immich's machine-learning service: what its client sends, and what it reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pocketclip.infer.encoder import Encoder
from pocketclip.serve.app import create_immich_app
from tests.search.conftest import draw_photo
from tests.serve.conftest import Client

VISUAL = {"clip": {"visual": {"modelName": "ViT-B-32__openai"}}}
TEXTUAL = {"clip": {"textual": {"modelName": "ViT-B-32__openai", "options": {"language": "de"}}}}
FACES = {
    "facial-recognition": {
        "detection": {"modelName": "buffalo_l", "options": {"minScore": 0.7}},
        "recognition": {"modelName": "buffalo_l"},
    }
}


@pytest.fixture
def immich(make_client: Callable[..., Client]) -> Client:
    return make_client(app=create_immich_app)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return draw_photo(tmp_path_factory.mktemp("photo") / "a.jpg", 3).read_bytes()


def predict(client: Client, entries: Any, **parts: Any) -> Any:
    data = {"entries": entries if isinstance(entries, str) else json.dumps(entries)}
    if "text" in parts:
        data["text"] = parts["text"]
    files = {"image": ("blob", parts["image"])} if "image" in parts else {"": (None, b"")}
    return client.post("/predict", data=data, files=files)


def test_image(immich: Client, photo: bytes, encoder: Encoder) -> None:
    answer = predict(immich, VISUAL, image=photo)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert set(body) == {"clip", "imageHeight", "imageWidth"}
    assert (body["imageWidth"], body["imageHeight"]) == (96, 72)
    assert isinstance(body["clip"], str)
    np.testing.assert_array_equal(
        np.array(json.loads(body["clip"]), np.float32), encoder.encode_image([photo])[0]
    )


def test_text(immich: Client, encoder: Encoder) -> None:
    body = predict(immich, TEXTUAL, text="ein Hund").json()
    assert set(body) == {"clip"}
    np.testing.assert_allclose(
        np.array(json.loads(body["clip"]), np.float32), encoder.encode_text("ein Hund")[0],
        atol=1e-6,
    )  # fmt: skip
