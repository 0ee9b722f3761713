"""OpenAI's embeddings, with images as infinity and Jina add them, and the models they can ask for.

    OpenAI(base_url="http://127.0.0.1:8080/v1").embeddings.create(input="a dog", model="any")

Every model name is accepted, and the server's own model answers: clients have the names of others
in their settings. Paths are there with `/v1`, as OpenAI has them, and without, as infinity does.
"""

from __future__ import annotations

import base64
import time
import uuid
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Path, Response
from pydantic import WithJsonSchema

from pocketclip.serve.encoding.both_towers import embed_both
from pocketclip.serve.errors import RequestError
from pocketclip.serve.inputs.bodies import JsonRoute, json_answer
from pocketclip.serve.inputs.embedding_inputs import Inputs, read_inputs
from pocketclip.serve.inputs.image_inputs import read_images
from pocketclip.serve.schema import ANY_TYPE, EXAMPLE_IMAGE, Schema, errors, example
from pocketclip.serve.services import Services, services_of
from pocketclip.types import Embeddings

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder

router = APIRouter(tags=["openai"], route_class=JsonRoute)

With = Annotated[Services, Depends(services_of)]

_STARTED = int(time.time())
_TEXT = {"type": "string", "minLength": 1}
_JINA = {
    "oneOf": [
        {
            "type": "object",
            "properties": {name: {"type": "string", "minLength": 1, "description": about}},
            "required": [name],
        }
        for name, about in (("text", "A text."), ("image", "A data URI, base64, or https URL."))
    ]
}
_INPUT = {
    "oneOf": [
        {**_TEXT, "title": "One text, or one image by its data URI, base64 or https URL"},
        {"type": "array", "minItems": 1, "maxItems": 2048, "items": {"anyOf": [_TEXT, _JINA]}},
        _JINA,
    ]
}  # fmt: skip


class EmbeddingRequest(Schema):
    """Texts or images to embed. Unknown fields are ignored."""

    model_config = example(
        {"model": "mobileclip2-s0", "input": ["a photo of a dog", "a red bicycle"]},
        {
            "model": "mobileclip2-s0",
            "input": EXAMPLE_IMAGE,
            "modality": "image",
            "encoding_format": "base64",
        },
        {"input": [{"text": "a photo of a dog"}, {"image": EXAMPLE_IMAGE}]},
    )

    input: Annotated[Any, WithJsonSchema(_INPUT)]
    """One input or a list. Strings are what `modality` says; `{"text": ...}` and `{"image": ...}`
    may be mixed. Token ids are refused. Of a text the model reads the first 75 tokens or so."""
    model: str | None = None
    """Any name: the server's model answers."""
    modality: Annotated[
        Any, WithJsonSchema({"enum": ["text", "image", None], "default": "text"})
    ] = None
    """What strings in `input` are: `text`, or `image` for data URIs, base64 and https URLs."""
    encoding_format: Annotated[
        Any, WithJsonSchema({"enum": ["float", "base64", None], "default": "float"})
    ] = None
    """`float`: lists of numbers. `base64`: of little-endian float32, a third of the size."""
    dimensions: Annotated[Any, WithJsonSchema({"type": ["integer", "null"], "minimum": 0})] = None
    """Left out, 0, or the width of the embeddings: they cannot be shortened."""
    user: Annotated[Any, WithJsonSchema({"type": ANY_TYPE})] = None
    """Ignored."""
    embedding_type: Annotated[Any, WithJsonSchema({"enum": ["float", "base64", None]})] = None
    """Jina's name of `encoding_format`."""
    normalized: Annotated[Any, WithJsonSchema({"enum": [True, None]})] = None
    """As Jina has it; embeddings are always of unit length."""


class EmbeddingItem(Schema):
    """The embedding of one input."""

    object: Literal["embedding"]
    """What this is."""
    index: int
    """The position of the input."""
    embedding: list[float] | str
    """Of unit length: numbers, or base64 of little-endian float32."""


class Usage(Schema):
    """How much the model read."""

    prompt_tokens: int
    """Of all texts together, with the two that mark the start and the end of each; images have
    none."""
    total_tokens: int
    """The same number."""


class EmbeddingAnswer(Schema):
    """The embeddings, in the order of the inputs."""

    model_config = example(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.6, 0.0, -0.8]}],
            "model": "mobileclip2-s0",
            "space_id": "space-1f0c0a6c0d7f2b34",
            "usage": {"prompt_tokens": 6, "total_tokens": 6},
            "id": "embd-3f1c6d0b5b0f4a6e9a1d2c3b4a596877",
            "created": 1790000000,
        }
    )

    object: Literal["list"]
    """What this is."""
    data: list[EmbeddingItem]
    """One per input."""
    model: str
    """The server's model, whatever was asked for."""
    space_id: str
    """Its embedding space: only embeddings of one space may be compared."""
    usage: Usage
    """How much was read."""
    id: str
    """Of this answer."""
    created: int
    """When, in seconds since 1970."""


_MODEL = {
    "id": "mobileclip2-s0",
    "object": "model",
    "created": 1790000000,
    "owned_by": "pocketclip",
    "backend": "onnxruntime",
    "capabilities": ["embed", "image_embed"],
    "embed_dim": 512,
    "space_id": "space-1f0c0a6c0d7f2b34",
}


class Model(Schema):
    """A model that can be asked for."""

    model_config = example(_MODEL)

    id: str
    """Its name."""
    object: Literal["model"]
    """What this is."""
    created: int
    """When the server started, in seconds since 1970."""
    owned_by: Literal["pocketclip"]
    """Who serves it."""
    backend: str
    """The runtime of the model."""
    capabilities: list[Literal["embed", "image_embed"]]
    """What it can do, in infinity's words."""
    embed_dim: int
    """The width of its embeddings."""
    space_id: str
    """Its embedding space: only embeddings of one space may be compared."""


class Models(Schema):
    """The models that can be asked for: one."""

    model_config = example({"object": "list", "data": [_MODEL]})

    object: Literal["list"]
    """What this is."""
    data: list[Model]
    """The server's model."""


class Clock(Schema):
    """What infinity answers when it lives."""

    model_config = example({"unix": 1790000000.5})

    unix: float
    """The time, in seconds since 1970."""


async def create_embeddings(body: EmbeddingRequest, services: With) -> Response:
    """Return the embeddings of texts and images, all in one space.

    Limits are those of `/info`. Equal inputs have equal embeddings, as `pocketclip embed` writes
    them.
    """
    is_base64 = _wants_base64(body)
    encoder = services.engine.encoder
    if body.dimensions not in (None, 0, encoder.embed_dim) or isinstance(body.dimensions, bool):
        raise RequestError(
            400, f"the embeddings of this model have {encoder.embed_dim} dimensions and cannot be "
            "shortened: leave `dimensions` out", param="dimensions",
        )  # fmt: skip
    if body.normalized not in (None, True):
        raise RequestError(
            400, "embeddings are always of unit length here: leave `normalized` out",
            param="normalized",
        )  # fmt: skip
    inputs = read_inputs(body.input, body.modality, services.settings.limits)
    rows, tokens = await _embed(inputs, services, encoder)

    fields = {
        "object": "list",
        "model": encoder.config.name,
        "space_id": encoder.space_id,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "id": f"embd-{uuid.uuid4().hex}",
        "created": int(time.time()),
    }
    write = _base64 if is_base64 else np.ndarray.tolist
    items = (
        {"object": "embedding", "index": index, "embedding": write(row)}
        for index, row in enumerate(rows)
    )
    # A base64 text takes the time of a number or two.
    return await json_answer(fields, "data", items, values=len(rows) if is_base64 else rows.size)


def _wants_base64(body: EmbeddingRequest) -> bool:
    name = "encoding_format" if body.encoding_format is not None else "embedding_type"
    value = getattr(body, name)
    if value not in (None, "float", "base64"):
        raise RequestError(400, f"{name} must be float or base64", param=name)
    return value == "base64"


def _base64(row: Embeddings) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode("ascii")


async def _embed(inputs: Inputs, services: Services, encoder: Encoder) -> tuple[Embeddings, int]:
    """Return embeddings (B, D) in the order of the inputs, and the tokens of the texts."""
    images = dict(zip(inputs.images, await read_images(inputs.images, services), strict=True))
    of_texts, of_images = await embed_both(
        list(inputs.texts.values()), images, services.engine, encoder
    )
    at = {name: position for position, name in enumerate(inputs.order)}
    rows = np.empty((len(at), encoder.embed_dim), np.float32)
    rows[[at[name] for name in inputs.texts]] = of_texts.embeddings
    rows[[at[name] for name in images]] = of_images
    return rows, of_texts.tokens


def _model(services: Services) -> dict[str, Any]:
    encoder = services.engine.encoder
    return {
        "id": encoder.config.name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "pocketclip",
        "backend": encoder.backend.name,
        "capabilities": ["embed", "image_embed"],
        "embed_dim": encoder.embed_dim,
        "space_id": encoder.space_id,
    }


async def list_models(services: With) -> dict[str, Any]:
    """Return the server's model, the only one."""
    return {"object": "list", "data": [_model(services)]}


async def get_model(
    services: With,
    model_id: Annotated[str, Path(description="Any name.")],  # noqa: ARG001
) -> dict[str, Any]:
    """Return the server's model, whatever name was asked for: it answers for every name."""
    return _model(services)


@router.get(
    "/health", response_model=Clock, operation_id="get_clock",
    summary="Say whether it lives, as infinity", response_description="The time.",
)  # fmt: skip
async def get_clock() -> dict[str, float]:
    """Return the time, as infinity's clients expect; see `/livez` and `/readyz`."""
    return {"unix": time.time()}


for _prefix, _suffix, _whose in (("/v1", "", "OpenAI"), ("", "_plain", "infinity")):
    router.post(
        f"{_prefix}/embeddings", response_model=EmbeddingAnswer, responses=errors(400, 429),
        operation_id=f"create_embeddings{_suffix}", summary=f"Embed texts and images, as {_whose}",
        response_description="One embedding per input, in order.",
    )(create_embeddings)  # fmt: skip
    router.get(
        f"{_prefix}/models", response_model=Models, operation_id=f"list_models{_suffix}",
        summary=f"List the models, as {_whose}", response_description="One model.",
    )(list_models)  # fmt: skip
    router.get(
        f"{_prefix}/models/{{model_id:path}}", response_model=Model,
        operation_id=f"get_model{_suffix}", summary=f"Describe a model, as {_whose}",
        response_description="The server's model.",
    )(get_model)  # fmt: skip
