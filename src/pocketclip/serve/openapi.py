"""The OpenAPI document of the server: what FastAPI makes of the routes, completed.

    document = complete(app.openapi())

Routes describe what they answer themselves. Added here is what stands before every route: keys and
sessions, limits of the body, queues and time-outs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from pocketclip.serve.middleware.access import OPEN
from pocketclip.serve.middleware.admission import ALWAYS_ANSWERED
from pocketclip.serve.schema import MEANINGS, ErrorAnswer, ImmichErrorAnswer

Json = dict[str, Any]
TAGS = {
    "openai": "Embeddings as OpenAI's API has them, with images as infinity adds them.",
    "hugging face": "Zero-shot classification for `huggingface_hub.InferenceClient`.",
    "classify": "Classification by labels in words, or by a label set of `pocketclip fit`.",
    "search": "Search in the photographs of a library. Photographs are known by the id that a "
    "search returns; no answer has a path of the server's machine.",
    "clip-retrieval": "The search service of clip-retrieval, over a library.",
    "session": "A browser's session: a one-time token is exchanged for a cookie, since `<img>` "
    "cannot send a key.",
    "status": "Whether the server lives, whether it can answer, and with what.",
    "pages": "Pages for people.",
    "immich": "The machine-learning service of immich, for its smart search.",
}
_SECURITY = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "The key that the server was started with, if it was started with one.",
    },
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": "pocketclip_session",
        "description": "A browser's session, begun by `POST /session`. The server's port stands "
        "behind the cookie's name, and under TLS `__Host-` before it.",
    },
}
_METHODS = ("get", "put", "post", "delete", "patch", "head", "options")


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    """Yield the path, the method and the description of every operation of a document."""
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                yield path, method, item[method]


def complete(document: Json, *, immich: bool = False, needs_key: bool = True) -> Json:
    """Return FastAPI's document with what stands before the routes.

    Args:
        document: is changed.
        immich: whether it is of immich's port, which needs no key and has other errors.
        needs_key: whether the server has a key.
    """
    needs_key = needs_key and not immich
    schemas: Json = document.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    model = ImmichErrorAnswer if immich else ErrorAnswer
    made = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(made.pop("$defs", {}))
    schemas[model.__name__] = made
    answer = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    for path, _, operation in operations(document):
        is_open = not needs_key or path in OPEN
        answers: Json = operation["responses"]
        if "422" in answers and "HTTPValidationError" in str(answers["422"]):
            answers["422"] = {"description": MEANINGS[422], "content": answer}
        for status in _before(path, operation, is_open=is_open, immich=immich):
            answers.setdefault(str(status), {"description": MEANINGS[status], "content": answer})
        for code, about in answers.items():
            about.setdefault("headers", {}).update(_headers(int(code)))
        operation["responses"] = dict(sorted(answers.items()))
        if is_open and needs_key:
            operation["security"] = []
    if needs_key:
        document["components"]["securitySchemes"] = _SECURITY
        document["security"] = [{name: []} for name in _SECURITY]
    used = {tag for _, _, operation in operations(document) for tag in operation.get("tags", ())}
    document["tags"] = [
        {"name": name, "description": text} for name, text in TAGS.items() if name in used
    ]
    return document


def _before(path: str, operation: Json, *, is_open: bool, immich: bool) -> Iterator[int]:
    """Yield the statuses that an operation has before its route is reached."""
    yield from (400, 403, 421)
    if not is_open:
        yield from (401, 429)  # too many wrong keys
    if "requestBody" in operation:
        yield from (408, 413, 415)
        if not immich:  # there, a request waits instead
            yield 429
    if path not in ALWAYS_ANSWERED:
        yield 503


def _headers(status: int) -> Json:
    headers = {
        "X-Request-Id": {
            "description": "The name of the request in the server's log.",
            "schema": {"type": "string"},
        }
    }
    if status in (429, 503):
        headers["Retry-After"] = {
            "description": "Seconds after which to try again.",
            "schema": {"type": "integer", "minimum": 1},
        }
    return headers


class Api(FastAPI):
    """An app whose document is completed.

    Args:
        immich: whether it is immich's port.
        needs_key: whether the server has a key.
        about: further arguments of `FastAPI`.
    """

    def __init__(self, *, immich: bool = False, needs_key: bool = True, **about: Any) -> None:
        self._completion = {"immich": immich, "needs_key": needs_key}
        # FastAPI's own pages load scripts from elsewhere, into an origin that has our cookie.
        super().__init__(docs_url=None, redoc_url=None, **about)

    def openapi(self) -> Json:
        """Return the document; made once."""
        if self.openapi_schema is None:
            self.openapi_schema = complete(super().openapi(), **self._completion)
        return self.openapi_schema
