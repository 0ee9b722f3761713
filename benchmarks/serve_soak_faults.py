"""Requests of `serve_soak.py` that a server has to refuse."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from typing import Any

from serve_http import post_form, post_json, request
from serve_process import texts
from serve_soak_cases import Case, World, uri

MIB = 1 << 20
JSON = "application/json"
VISUAL = '{"clip":{"visual":{"modelName":"x"}}}'


def malformed(world: World, chance: random.Random, _number: int) -> Case:
    """Return a request that is refused for what is in it."""
    image = uri(chance.choice(world.photos))
    broken = "data:image/jpeg;base64," + base64.b64encode(b"\xff\xd8\xff no image").decode()
    no_labels = post_json("/hf/zero-shot", {"inputs": image, "parameters": {}})
    no_set = post_json("/classify", {"image": image, "label_set": "none"})
    no_json = request("POST", "/v1/embeddings", b'{"input": [', JSON)
    cases = [
        Case("no JSON", no_json, status=400),
        Case("no image", _embed(input=broken, modality="image"), status=400),
        Case("no input", _embed(model="x"), status=422),
        Case("no base64", _embed(input=image[:-3] + "!?", modality="image"), status=400),
        Case("no format", _embed(input="a", encoding_format="hex"), status=400),
        Case("no labels", no_labels, status=422),
        Case("no such set", no_set, status=404),
        Case("no path", request("GET", "/v1/nothing"), status=404),
        Case("no method", request("GET", "/v1/embeddings"), status=405),
        Case("no such photo", request("GET", "/photos/999999999"), status=404),
        Case("a file's name", request("GET", "/photos/..%2f..%2fetc%2fpasswd"), status=404),
        Case("no entries", _predict("{", "text", "a"), status=422, immich=True),
        Case("no part", _predict(VISUAL, "note", "a"), status=400, immich=True),
        Case("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\r\n\r\n", status=400),
    ]
    return chance.choice(cases)


def oversized(world: World, chance: random.Random, number: int) -> Case:
    """Return a request that is refused for its size."""
    image = world.photos[0]

    def claims() -> Case:
        raw = request("POST", "/v1/embeddings", bytes(4096), JSON, length=40 * MIB)
        return Case("claims 40 MiB", raw, status=413)

    def body() -> Case:
        raw = request("POST", "/classify", bytes(33 * MIB), JSON)
        return Case("33 MiB", raw, status=413)

    def images() -> Case:
        return Case("65 images", _embed(input=[uri(image)] * 65, modality="image"), status=400)

    def many() -> Case:
        return Case("2,049 texts", _embed(input=texts(2049, number)), status=400)

    def long() -> Case:
        return Case("a long text", _embed(input="a " * 70_000), status=400)

    def file() -> Case:
        raw = _predict(VISUAL, "image", image + bytes(21 * MIB))
        return Case("an image of 21 MiB", raw, status=413, immich=True)

    makers: list[Callable[[], Case]] = [claims, body, images, many, long, file]
    return chance.choice(makers)()


def _embed(**value: Any) -> bytes:
    return post_json("/v1/embeddings", value)


def _predict(entries: str, name: str, value: str | bytes) -> bytes:
    return post_form("/predict", [("entries", entries), (name, value)])
