"""immich's machine-learning service, on a port of its own and without a key.

    POST /predict, multipart: entries={"clip": {"visual": {"modelName": "..."}}}, image=...
    -> {"clip": "[0.01,-0.04,...]", "imageHeight": 1440, "imageWidth": 1080}

`clip` is a string that holds a JSON array, which immich hands to its database as it is. immich
drops a job whose request fails, and takes the server for unhealthy. So a request waits here where
the other port refuses it. Tasks other than `clip` are passed on to the upstream service.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import PlainTextResponse, Response
from numpy.typing import NDArray
from pydantic import ConfigDict

from pocketclip.images import read_size
from pocketclip.serve.encoding.both_towers import both
from pocketclip.serve.errors import RequestError
from pocketclip.serve.inputs.immich_entries import INVALID, Remarks, Tasks, read_entries
from pocketclip.serve.inputs.multipart import Form, read_multipart
from pocketclip.serve.inputs.upstream import VIA, Upstream, merge
from pocketclip.serve.schema import ImmichErrorAnswer, Schema, errors, example
from pocketclip.serve.services import Services, services_of

router = APIRouter(tags=["immich"])
log = logging.getLogger(__name__)

_MAX_PARTS = 16

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["entries"],
                    "properties": {
                        "entries": {
                            "type": "string",
                            "description": "A JSON object: task, type, and then `modelName`, which "
                            "may be any. Task `clip` has the types `visual` and `textual`; other "
                            "tasks are passed on. `options` are ignored.",
                            "example": '{"clip":{"visual":{"modelName":"ViT-B-32__openai"}}}',
                        },
                        "image": {
                            "type": "string",
                            "format": "binary",
                            "description": "An image file; its type is found in its bytes.",
                        },
                        "text": {"type": "string", "description": "In place of an image."},
                    },
                }
            }
        },
    }
}  # fmt: skip


class Greeting(Schema):
    """What immich's service says of itself."""

    model_config = example({"message": "Immich ML"})

    message: str
    """Always the same."""


class Prediction(Schema):
    """The embedding of an image or a text, and what the upstream service answered."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {"clip": "[0.0123,-0.0456]", "imageHeight": 1440, "imageWidth": 1080},
                {"clip": "[0.0123,-0.0456]"},
            ]
        },
    )

    clip: str | None = None
    """The embedding, as a JSON array within a string; absent if it was not asked for."""
    imageHeight: int | None = None
    """Pixels, of an image."""
    imageWidth: int | None = None
    """Pixels, of an image."""


@router.get(
    "/", operation_id="get_greeting", summary="What the service is", response_model=Greeting,
    response_description="As immich's own service has it.",
)  # fmt: skip
async def get_root() -> dict[str, str]:
    """Say what immich's own service says of itself."""
    return {"message": "Immich ML"}


@router.get(
    "/ping", operation_id="ping_service", summary="Whether the service can answer",
    response_class=PlainTextResponse,
    responses={
        200: {
            "description": "It can.",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": "pong"}},
        },
        503: {
            "description": "It starts or ends.",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": "not ready"}},
        },
    },
)  # fmt: skip
async def ping(services: Annotated[Services, Depends(services_of)]) -> PlainTextResponse:
    """Answer `pong`, or 503 while the server starts or ends. immich asks at regular intervals."""
    ready = services.can_answer
    return PlainTextResponse("pong" if ready else "not ready", 200 if ready else 503)


@router.post(
    "/predict", operation_id="predict", summary="Embed an image or a text", openapi_extra=_BODY,
    response_model=Prediction, response_description="The embedding.",
    responses=errors(
        400, 415, 422, model=ImmichErrorAnswer,
    ),
)  # fmt: skip
async def predict(
    request: Request, services: Annotated[Services, Depends(services_of)]
) -> Response:
    """Embed an image or a text; tasks other than `clip` are passed on to the upstream service.

    `modelName` may be any: the server has one model. A request waits here where the server's other
    port answers 429.
    """
    form = await read_multipart(request, max_parts=_MAX_PARTS)
    entries = form.texts("entries")
    if not entries:
        raise RequestError(422, INVALID, param="entries")
    tasks = read_entries(entries[-1])
    images, texts = form.files("image"), form.texts("text")
    image, text = images[-1] if images else None, texts[-1] if texts else ""
    if image is None and not text:
        raise RequestError(400, "Either image or text must be provided")
    if tasks.clip_type is not None:
        _remarks(request).note_name(tasks.model_name, services.engine.encoder.embed_dim)
    if not tasks.others:
        return _answer(await _embed(services, tasks, image, text))
    upstream = _upstream_for(request, services)
    if tasks.clip_type is None:
        answer = await upstream.predict(await request.body(), request.headers["content-type"])
        return Response(answer, media_type="application/json")
    body, content_type = _without_clip(form, tasks)
    ours, theirs = await both(
        _embed(services, tasks, image, text), upstream.predict(body, content_type)
    )
    return _answer(merge(theirs, ours))


async def _embed(
    services: Services, tasks: Tasks, image: bytes | None, text: str
) -> dict[str, Any]:
    """Return our part of the answer."""
    answer: dict[str, Any] = {}
    if tasks.clip_type == "visual":
        if image is None:
            raise RequestError(400, "a visual embedding needs an image", param="image")
        answer["clip"] = _as_json((await services.engine.embed_images([image], wait=True))[0])
    elif tasks.clip_type == "textual":
        if not text:
            raise RequestError(400, "a textual embedding needs a text", param="text")
        limit = services.settings.limits.text_characters
        if len(text) > limit:
            raise RequestError(400, f"the text has more than {limit:,} characters", param="text")
        embeddings = (await services.engine.embed_texts([text], wait=True)).embeddings
        answer["clip"] = _as_json(embeddings[0])
    if image is not None:
        # As stored, since immich's service does not apply EXIF orientation either.
        width, height = await asyncio.to_thread(read_size, image)
        answer |= {"imageHeight": height, "imageWidth": width}
    return answer


def _as_json(embedding: NDArray[np.float32]) -> str:
    """Return an embedding (D,) as a JSON array, each number in its shortest form."""
    return "[" + ",".join([str(value) for value in embedding]) + "]"


def _answer(content: Mapping[str, Any]) -> Response:
    return Response(json.dumps(content), media_type="application/json")


def _remarks(request: Request) -> Remarks:
    remarks: Remarks = request.app.state.remarks
    return remarks


def _upstream_for(request: Request, services: Services) -> Upstream:
    """Return the service that does the other tasks.

    Raises:
        RequestError: 400, there is none, or it is this server.
    """
    upstream = services.upstream
    if upstream is None:
        _remarks(request).note_refusal()
        raise RequestError(
            400, "only clip is offered here: switch faces and OCR off in immich's settings, or "
            "start the server with --upstream URL", code="task_not_offered",
        )  # fmt: skip
    if VIA in request.headers.getlist("via"):
        log.error("the upstream URL leads back to this server")
        raise RequestError(400, "the upstream URL leads back to this server")
    return upstream


def _without_clip(form: Form, tasks: Tasks) -> tuple[bytes, str]:
    """Return a body like the one that came, but for the embedding, and its type."""
    boundary = f"pocketclip-{secrets.token_hex(16)}"
    chunks = []
    for part in form.parts:
        if part.name not in ("entries", "image", "text"):
            continue
        is_entries = part.name == "entries"
        data = json.dumps(tasks.others).encode() if is_entries else part.data
        filename = '; filename="blob"' if part.name == "image" else ""
        chunks += [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{part.name}"'.encode(),
            f"{filename}\r\n".encode(),
            b"Content-Type: application/octet-stream\r\n" if filename else b"",
            b"\r\n", data, b"\r\n",
        ]  # fmt: skip
    chunks.append(f"--{boundary}--\r\n".encode())
    return b"".join(chunks), f"multipart/form-data; boundary={boundary}"
