"""What requests and answers are made of, for FastAPI and for the OpenAPI document.

class Ping(Schema):
text: str
\"\"\"What comes back.\"\"\"

@router.post("/ping", response_model=Ping, responses=errors(400))
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

ANY_TYPE = ["string", "number", "boolean", "array", "object", "null"]
"""Of a field that is ignored."""
EXAMPLE_IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mM4YaQBAALoASP4Tv"
    "HeAAAAAElFTkSuQmCC"
)
"""One red pixel, for examples that work as they stand."""
Responses = dict[int | str, dict[str, Any]]
"""What FastAPI takes as `responses`."""


class Schema(BaseModel):
    """A body; the text below a field is its description. Unknown fields are ignored."""

    model_config = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())


def example(*values: dict[str, Any]) -> ConfigDict:
    """Return the configuration of a `Schema` with examples for the documentation.

    class Ping(Schema):
        model_config = example({"text": "hello"})
    """
    return ConfigDict(json_schema_extra={"examples": list(values)})


class StrictSchema(Schema):
    """A body of a request of our own, in which an unknown field is an error."""

    model_config = ConfigDict(extra="forbid")


class ErrorFacts(Schema):
    """What is wrong with a request, in OpenAI's form."""

    message: str
    """One sentence for people: what is wrong, and what to do."""
    type: str
    """The kind of error."""
    param: str | None
    """The field of the request that is at fault, if it is one."""
    code: str | None
    """A word for programs."""


class ErrorAnswer(Schema):
    """The body of every answer with a status of 400 or above."""

    error: ErrorFacts


class ImmichErrorAnswer(Schema):
    """The body of an error on immich's port."""

    detail: str
    """What is wrong."""


MEANINGS = {
    400: "The request is wrong: the message says what.",
    401: "No key was sent, or another one than the server has.",
    403: "The key does not allow it, or the page that asks is of another origin.",
    404: "There is no such thing.",
    405: "The path has no such method.",
    406: "The answer would not be in a form that the client accepts.",
    408: "The body came too slowly.",
    409: "The thing has changed since it was recorded.",
    410: "The thing is not there any more.",
    413: "The body is larger than the server accepts.",
    415: "The body is of a type that is not understood.",
    421: "The header `Host` names a host that this server is not.",
    422: "The request has the wrong form: a field is missing, unknown or of the wrong type.",
    429: "Too much is waiting: try again after the seconds in `Retry-After`.",
    500: "The server has a fault; its log says which, under the answer's `X-Request-Id`.",
    501: "The server does not do this.",
    503: "The server cannot answer now: it starts or ends, or the request took too long. Try again "
    "after the seconds in `Retry-After`.",
}
"""What each status means, wherever it is answered."""


def errors(*statuses: int, model: type[Schema] = ErrorAnswer, **meanings: str) -> Responses:
    """Return the documentation of errors that a route answers itself.

    What every route may answer, such as a missing key, is added by `pocketclip.serve.openapi`.

    Args:
        statuses: of HTTP, 400 or above.
        model: the body.
        meanings: what one means on this route, as `s404="There is no such photograph."`; the
            default stands in `MEANINGS`.
    """
    more = {int(name[1:]): text for name, text in meanings.items()}
    return {
        status: {"model": model, "description": text}
        for status, text in ({one: MEANINGS[one] for one in statuses} | more).items()
    }


def binary(*types: str, description: str) -> Responses:
    """Return the documentation of an answer of bytes.

    Args:
        types: of media.
        description: of the answer.
    """
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in types}
    return {200: {"description": description, "content": content}}


def inline_schema(model: type[Schema]) -> dict[str, Any]:
    """Return the JSON schema of a body without references, for `openapi_extra`.

    Args:
        model: no model within it may hold itself.
    """
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def inlined(value: Any) -> Any:
        if isinstance(value, list):
            return [inlined(one) for one in value]
        if not isinstance(value, dict):
            return value
        name = str(value.get("$ref", "")).removeprefix("#/$defs/")
        if name in parts:
            value = {**parts[name], **value}
            del value["$ref"]
        return {key: inlined(one) for key, one in value.items()}

    made: dict[str, Any] = inlined(schema)
    return made
