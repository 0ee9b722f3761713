"""The requests of `serve_soak.py`, each with the answer that the library gives."""

from __future__ import annotations

import base64
import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.infer.encoder import Encoder
from pocketclip.label_set import LabelSet
from pocketclip.search import Library
from pocketclip.search.photo_file import open_photo
from pocketclip.search.thumbnail_store import ThumbnailStore
from serve_http import Answer, post_form, post_json, request
from serve_process import texts

LABELS = ["apple", "milk", "a bottle of juice", "bread"]
TEMPLATES = ["a photo of {}.", "{} on a shelf"]
TOLERANCE = 1e-6  # of texts, which are encoded together with those of other requests
Rows = NDArray[np.float32]


class WrongAnswerError(Exception):
    """An answer that is not what the library call returns."""


@dataclass(frozen=True, slots=True)
class Case:
    """A request, and what has to come back."""

    name: str
    raw: bytes
    check: Callable[[Answer], None] | None = None
    status: int = 200
    immich: bool = False
    """Whether it goes to immich's port."""


@dataclass(frozen=True, slots=True)
class World:
    """What the server has, opened here too."""

    encoder: Encoder
    library: Library
    label_set: LabelSet
    photos: list[bytes]
    """Some of those of the library."""


def same(found: Any, known: Any, tolerance: float, what: str) -> None:
    """Compare numbers."""
    one, other = np.asarray(found, np.float32), np.asarray(known, np.float32)
    if one.shape != other.shape or not np.abs(one - other).max(initial=0.0) <= tolerance:
        raise WrongAnswerError(f"{what}: not what the library returns")


def decoded(item: dict[str, Any]) -> Rows:
    """Return the embedding of one item of OpenAI's answer."""
    embedding = item["embedding"]
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), "<f4")
    return np.asarray(embedding, np.float32)


def uri(data: bytes) -> str:
    """Return a data URI of an image file."""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def embedding_check(
    known: Rows, tolerances: Sequence[float], what: str
) -> Callable[[Answer], None]:
    """Return a check of embeddings (B, D)."""

    def check(answer: Answer) -> None:
        data = answer.json()["data"]
        if [item["index"] for item in data] != list(range(len(known))):
            raise WrongAnswerError(f"{what}: other positions than asked for")
        for item, row, tolerance in zip(data, known, tolerances, strict=True):
            same(decoded(item), row, tolerance, what)

    return check


def scores_check(
    known: dict[str, float], found: Callable[[Any], dict[str, float]], what: str
) -> Callable[[Answer], None]:
    """Return a check of labels with probabilities, the most probable first."""

    def check(answer: Answer) -> None:
        scores = found(answer.json())
        # Labels that are equally probable may change places within the tolerance.
        if set(scores) != set(known):
            raise WrongAnswerError(f"{what}: other labels")
        same([scores[label] for label in known], list(known.values()), TOLERANCE, what)
        values = list(scores.values())
        if any(a < b for a, b in itertools.pairwise(values)):
            raise WrongAnswerError(f"{what}: not the most probable first")

    return check


def body_check(known: bytes, what: str) -> Callable[[Answer], None]:
    """Return a check of a whole body."""

    def check(answer: Answer) -> None:
        if answer.body != known:
            raise WrongAnswerError(f"{what}: other bytes")

    return check


def embeddings(world: World, chance: random.Random, number: int) -> Case:
    """Return a request to `/v1/embeddings` for texts, images or both."""
    kind = chance.choice(["images", "images", "texts", "texts", "mixed"])
    form = chance.choice(["float", "base64"])
    path = chance.choice(["/v1/embeddings", "/embeddings"])
    encoder = world.encoder
    images = chance.sample(world.photos, chance.choice([1, 1, 1, 2, 5]))
    words = texts(chance.choice([1, 1, 3, 12]), number)
    value: dict[str, Any] = {"model": "soak", "encoding_format": form}
    if kind == "images":
        value |= {"input": [uri(one) for one in images], "modality": "image"}
        check = embedding_check(encoder.encode_image(images), [0.0] * len(images), kind)
    elif kind == "texts":
        value |= {"input": words[0] if len(words) == 1 else words}
        check = embedding_check(encoder.encode_text(words), [TOLERANCE] * len(words), kind)
    else:
        value |= {"input": [{"image": uri(one)} for one in images] + [{"text": t} for t in words]}
        known = np.concatenate([encoder.encode_image(images), encoder.encode_text(words)])
        check = embedding_check(known, [0.0] * len(images) + [TOLERANCE] * len(words), kind)
    return Case(f"embeddings of {kind}", post_json(path, value), check)


def classification(world: World, chance: random.Random, _number: int) -> Case:
    """Return a classification: Hugging Face's, or ours by labels or a label set."""
    image = chance.choice(world.photos)
    kind = chance.choice(["hf", "json", "form", "label set"])
    name = f"classification, {kind}"
    if kind == "hf":
        known = world.encoder.classify(image, LABELS, "a photo of {}.")[0]
        value = {
            "inputs": base64.b64encode(image).decode(),
            "parameters": {"candidate_labels": LABELS, "hypothesis_template": "a photo of {}."},
        }
        check = scores_check(known, lambda found: {x["label"]: x["score"] for x in found}, name)
        return Case(name, post_json("/hf/zero-shot", value), check)

    def ours(found: Any) -> dict[str, float]:
        return {x["label"]: x["probability"] for x in found["results"][0]["labels"]}

    if kind == "label set":
        known = world.encoder.classify(image, world.label_set)[0]
        raw = post_form("/classify", [("image", image), ("label_set", "soak")])
        return Case(name, raw, scores_check(known, ours, name))
    known = world.encoder.classify(image, LABELS, TEMPLATES)[0]
    if kind == "json":
        value = {"image": uri(image), "labels": LABELS, "templates": TEMPLATES}
        return Case(name, post_json("/classify", value), scores_check(known, ours, name))
    parts: list[tuple[str, str | bytes]] = [("image", image)]
    parts += [("labels", one) for one in LABELS] + [("templates", one) for one in TEMPLATES]
    return Case(name, post_form("/classify", parts), scores_check(known, ours, name))


def immich(world: World, chance: random.Random, number: int) -> Case:
    """Return a request of immich."""
    kind = chance.choice(["visual", "textual", "ping"])
    name = f"immich, {kind}"
    if kind == "ping":
        return Case(name, request("GET", "/ping"), body_check(b"pong", name), immich=True)
    options = {"modelName": "ViT-B-32__openai", "options": {"language": f"de-{number}"}}
    parts: list[tuple[str, str | bytes]] = [("entries", json.dumps({"clip": {kind: options}}))]
    if kind == "visual":
        image = chance.choice(world.photos)
        parts.append(("image", image))
        known, tolerance = world.encoder.encode_image([image])[0], 0.0
    else:
        [text] = texts(1, number)
        parts.append(("text", text))
        known, tolerance = world.encoder.encode_text([text])[0], TOLERANCE

    def check(answer: Answer) -> None:
        same(json.loads(answer.json()["clip"]), known, tolerance, name)

    return Case(name, post_form("/predict", parts), check, immich=True)


def search(world: World, chance: random.Random, number: int) -> Case:
    """Return a search, of ours or in clip-retrieval's form."""
    kind = chance.choice(["text", "image", "knn"])
    name = f"search, {kind}"
    if kind == "image":
        image = chance.choice(world.photos)
        result = world.library.search(image=image, top=5, encoder=world.encoder)
        raw = post_form("/search", [("image", image), ("top", "5")])
    else:
        [text] = texts(1, number)
        result = world.library.search(text, literal=True, top=5, encoder=world.encoder)
        if kind == "knn":
            value = {"text": text, "num_images": 5, "indice_name": "soak", "deduplicate": True}
            return Case(name, post_json("/knn-service", value), _hits_check(result, name, "knn"))
        raw = post_json("/search", {"query": text, "literal": True, "top": 5})
    return Case(name, raw, _hits_check(result, name, "hits"))


def _hits_check(result: Any, name: str, form: str) -> Callable[[Answer], None]:
    def check(answer: Answer) -> None:
        found = answer.json()
        hits = found["hits"] if form == "hits" else found
        score = "score" if form == "hits" else "similarity"
        # A text's embedding may differ in the last bits, and so may the order of equal scores.
        same([hit[score] for hit in hits], [hit.score for hit in result.hits], 2e-6, name)
        if form == "hits" and ({hit["id"] for hit in hits} != {hit.content for hit in result.hits}):
            raise WrongAnswerError(f"{name}: other photographs")

    return check


def files(world: World, chance: random.Random, number: int) -> Case:
    """Return a request for a photograph or a thumbnail."""
    result = world.library.search(image=chance.choice(world.photos), top=1, encoder=world.encoder)
    content = result.hits[0].content
    with open_photo(world.library.database, content) as photo:
        data, digest = photo.read(0, photo.size), photo.digest
    if number % 2:
        return Case("photograph", request("GET", f"/photos/{content}"), body_check(data, "photo"))
    thumbnail = ThumbnailStore(world.library.location).read(digest)
    check = None if thumbnail is None else body_check(thumbnail, "thumbnail")
    return Case("thumbnail", request("GET", f"/thumbnails/{content}"), check)


def state(_world: World, chance: random.Random, _number: int) -> Case:
    """Return a question for the server's state."""
    path = chance.choice(
        ["/livez", "/readyz", "/info", "/metrics", "/v1/models", "/health", "/label-sets",
         "/indices-list", "/openapi.json"]
    )  # fmt: skip
    return Case(path, request("GET", path))


GOOD: dict[str, tuple[Callable[[World, random.Random, int], Case], int]] = {
    "embeddings": (embeddings, 40), "classification": (classification, 15),
    "immich": (immich, 15), "search": (search, 15), "files": (files, 8), "state": (state, 7),
}  # fmt: skip
"""Kinds of requests, and how often each comes."""
