"""Requests as immich sends them, and what it reads in the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.serve.conftest import Client

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
PHOTO = (PHOTOS / "chelsea.jpg").read_bytes()
"""451 x 300 pixels."""

MODEL = "ViT-B-32__openai"
VISUAL: dict[str, Any] = {"clip": {"visual": {"modelName": MODEL}}}
TEXTUAL: dict[str, Any] = {"clip": {"textual": {"modelName": MODEL, "options": {"language": "de"}}}}
FACES: dict[str, Any] = {
    "facial-recognition": {
        "detection": {"modelName": "buffalo_l", "options": {"minScore": 0.7}},
        "recognition": {"modelName": "buffalo_l"},
    }
}
OCR: dict[str, Any] = {
    "ocr": {
        "detection": {
            "modelName": "PP-OCRv5_mobile", "options": {"minScore": 0.5, "maxResolution": 736}
        },
        "recognition": {"modelName": "PP-OCRv5_mobile", "options": {"minScore": 0.8}},
    }
}  # fmt: skip


def make_form(entries: Any, **parts: str | bytes) -> tuple[bytes, dict[str, str]]:
    """Return a body and its headers.

    Args:
        entries: as text, or what becomes JSON.
        parts: more of them; bytes become a file.
    """
    texts = {"entries": entries if isinstance(entries, str) else json.dumps(entries)}
    texts |= {name: part for name, part in parts.items() if isinstance(part, str)}
    files: list[Any] = [(name, (None, text.encode())) for name, text in texts.items()]
    files += [(name, ("blob", data)) for name, data in parts.items() if isinstance(data, bytes)]
    request = httpx.Request("POST", "http://host", files=files)
    return request.read(), {"Content-Type": request.headers["Content-Type"]}


def predict(client: Client, entries: Any, **parts: str | bytes) -> httpx.Response:
    """Return the answer to a form, see `make_form`."""
    content, headers = make_form(entries, **parts)
    return client.post("/predict", content=content, headers=headers)


def vector(body: dict[str, Any]) -> Any:
    """Return the embedding of an answer, read from its text as a database does."""
    text = body["clip"]
    assert isinstance(text, str)
    assert (text[0], text[-1]) == ("[", "]")
    return np.array([np.float32(number) for number in text[1:-1].split(",")])
