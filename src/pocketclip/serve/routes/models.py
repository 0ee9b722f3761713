"""What pages need to run a model themselves: which there are, and their files.

Documented in docs/reference/formats.md: a static site has the same files.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from pocketclip.pages.web_files import media_type
from pocketclip.serve.errors import RequestError
from pocketclip.serve.file_answer import FOR_EVER, bytes_answer, file_answer
from pocketclip.serve.schema import Responses, errors
from pocketclip.serve.services import Services, services_of

router = APIRouter(tags=["pages"])
With = Annotated[Services, Depends(services_of)]
_JSON = {"Content-Type": "application/json", "Cache-Control": "private, no-cache"}
_EXAMPLE = {
    "format": "pocketclip label set", "version": 1, "model": "tiny",
    "space_id": "space-41b9b4b395e14bfa", "embed_dim": 2, "labels": ["apple", "pear"],
    "weights": "AACAPwAAAAAAAAAAAACAPw==", "biases": [0.0, 0.0], "temperature": 1.0, "none": None,
    "made": {},
}  # fmt: skip
_LABEL_SET: Responses = {
    200: {
        "description": "The file, as `pocketclip fit` writes it, but for `made`.",
        "content": {"application/json": {"schema": {"type": "object"}, "example": _EXAMPLE}},
    },
    304: {"description": "The client has it: `If-None-Match` names it."},
    **errors(s404="There is no label set of this name."),
}
_NAME: dict[str, Any] = {
    "parameters": [
        {
            "name": "name", "in": "path", "required": True,
            "description": "Of the label set, as `GET /label-sets` lists it.",
            "schema": {"type": "string"}, "example": "fruit",
        }
    ]
}  # fmt: skip


@router.head("/models.json", include_in_schema=False)
@router.get("/models.json", include_in_schema=False)
async def models(request: Request, services: With) -> Response:
    """Return which models pages may run."""
    offer = services.offer
    return bytes_answer(request, offer.models_json, offer.etag, _JSON)


@router.head("/model-files/{path:path}", include_in_schema=False)
@router.get("/model-files/{path:path}", include_in_schema=False)
async def model_file(request: Request, services: With) -> Response:
    """Return a file of a model; its address changes with it."""
    offer = services.offer
    file = offer.files.get(request.url.path[1:])
    if file is None:
        raise RequestError(
            404, "there is no such file of a model; /models.json names those that there are",
            code="unknown_file",
        )  # fmt: skip
    headers = {"Content-Type": media_type(file.name), "Cache-Control": f"private, {FOR_EVER}"}
    etag = f'"{file.sha256}"'
    if isinstance(file.source, bytes):
        return bytes_answer(request, file.source, etag, headers)
    is_it = functools.partial(offer.is_unchanged, file.source)
    return await file_answer(request, file.source, etag, headers, is_it)


@router.get(
    "/label-sets/{name}", operation_id="get_label_set", summary="A label set",
    response_class=Response, responses=_LABEL_SET, openapi_extra=_NAME,
)  # fmt: skip
async def label_set(request: Request, services: With) -> Response:
    """Return the labels and weights of a label set, for whoever applies it to embeddings itself."""
    file = services.offer.label_sets.get(request.path_params["name"])
    if file is None:
        raise RequestError(
            404, "there is no label set of that name: GET /label-sets lists them",
            code="unknown_label_set",
        )  # fmt: skip
    assert isinstance(file.source, bytes)
    return bytes_answer(request, file.source, f'"{file.sha256}"', _JSON)
