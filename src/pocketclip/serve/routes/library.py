"""Search in the photographs of a library.

There is no GET: a query in an address would be in the logs of proxies and in a browser's history.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel

from pocketclip.formats.escaping import dump_json
from pocketclip.search.filters import Filters
from pocketclip.search.query import Part, parse_query, text_part
from pocketclip.search.records import SearchResult
from pocketclip.serve.errors import RequestError
from pocketclip.serve.inputs.bodies import check_is_json, read_json, validated
from pocketclip.serve.inputs.image_inputs import check_count, read_images
from pocketclip.serve.inputs.multipart import Form, is_multipart, read_multipart
from pocketclip.serve.photos.photo_library import (
    MAX_PARTS,
    PhotoLibrary,
    embedding_part,
    refusals,
)  # fmt: skip
from pocketclip.serve.photos.search_answer import search_facts
from pocketclip.serve.photos.search_schema import (
    MAX_FOLLOWING,
    MAX_TOP,
    SearchAnswer,
    SearchFilters,
    SearchRequest,
)  # fmt: skip
from pocketclip.serve.schema import errors, inline_schema
from pocketclip.serve.services import Services, services_of
from pocketclip.serve.settings import Limits

router = APIRouter(tags=["search"])
M = TypeVar("M", bound=BaseModel)
With = Annotated[Services, Depends(services_of)]
_ONE = ("query", "literal", "since", "until", "camera", "top", "min_score", "following")
_NUMBERS = ("top", "following")
_MANY = ("image", "in", "like", "unlike")
_ID = re.compile(r"[0-9]{1,19}")


async def photos_of(services: With) -> PhotoLibrary:
    """Return the library of a server; a FastAPI dependency.

    Raises:
        RequestError: 404, it has none.
    """
    if services.photos is None:
        raise RequestError(
            404, "this server has no library of photographs: start it with --library NAME",
            code="no_library",
        )  # fmt: skip
    return services.photos


Photos = Annotated[PhotoLibrary, Depends(photos_of)]
_FORM: dict[str, Any] = {
    "type": "object",
    "description": "The fields of the JSON form, with the filters beside them. `image`, `in`, "
    "`like` and `unlike` may be repeated.",
    "properties": {
        name: {**kind, "description": about}
        for name, kind, about in (
            ("query", {"type": "string", "example": "beach - people"}, "As in JSON."),
            ("literal", {"type": "boolean"}, "As in JSON."),
            (
                "image", {"type": "array", "items": {"type": "string", "format": "binary"}},
                "Image files that photographs should be like.",
            ),
            ("like", {"type": "array", "items": {"type": "integer"}}, "As in JSON."),
            ("unlike", {"type": "array", "items": {"type": "integer"}}, "As in JSON."),
            ("in", {"type": "array", "items": {"type": "string"}}, "As `filters.in`."),
            ("since", {"type": "string"}, "As `filters.since`."),
            ("until", {"type": "string"}, "As `filters.until`."),
            ("camera", {"type": "string"}, "As `filters.camera`."),
            ("top", {"type": "integer", "minimum": 1, "maximum": MAX_TOP}, "As in JSON."),
            ("min_score", {"type": "number"}, "As in JSON."),
            (
                "following", {"type": "integer", "minimum": 0, "maximum": MAX_FOLLOWING},
                "As in JSON.",
            ),
        )
    },
    "additionalProperties": False,
}  # fmt: skip


@router.post(
    "/search", operation_id="search_photos", summary="Search in the photographs of the library",
    response_model=SearchAnswer, response_description="What was found.",
    responses=errors(
        400, 415, 422, 429, s404="The server has no library, or `like` names no photograph of it.",
        s409="`vectors` are of another embedding space than the server's.",
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": inline_schema(SearchRequest)},
                "multipart/form-data": {"schema": _FORM},
            },
        }
    },
)  # fmt: skip
async def search(request: Request, services: With, photos: Photos) -> Response:
    """Return the photographs that fit a query best: by texts, images, and photographs they know.

    The same query gives the same hits in the same order, as `pocketclip search` does on the same
    library. A hit is known by its `id`.
    """
    images: list[bytes] | None = None
    if is_multipart(request):
        most = services.settings.limits.images + MAX_PARTS + len(_ONE)
        form = await read_multipart(request, max_parts=most)
        asked, images = validated(SearchRequest, form_values(form)), form.files("image")
        check_count(len(images), services.settings.limits)
    else:
        check_is_json(request)
        asked = validated(SearchRequest, await read_json(request))
    parts = await parts_of(asked, images, services, photos)

    def convert(result: SearchResult) -> bytes:
        return dump_json(search_facts(photos.library, result)).encode()

    answer = await photos.search(
        parts, convert, top=asked.top, min_score=asked.min_score, following=asked.following,
        filters=filters_of(asked.filters),
    )  # fmt: skip
    return Response(answer, media_type="application/json")


def filters_of(asked: SearchFilters) -> Filters:
    """Return the filters of a request."""
    return Filters(
        folder_names=asked.in_, since=asked.since, until=asked.until, camera=asked.camera
    )


async def parts_of(
    asked: SearchRequest, uploads: Sequence[bytes] | None, services: Services, photos: PhotoLibrary
) -> list[Part]:
    """Return the parts of a query, each text and image of the request.

    Args:
        asked: the fields.
        uploads: the images of a multipart request.
        services: with the limits.
        photos: what `like` is of.

    Raises:
        RequestError: 400, a part cannot be understood; 404, an id is not known; 409, a vector is of
            another embedding space.
    """
    check_length("query", asked.query or "", services.settings.limits)
    for at, more in enumerate(asked.texts):
        check_length(f"texts[{at}].text", more.text, services.settings.limits)
    given: dict[str, str] = {} if asked.image is None else {"image": asked.image}
    weights = [1.0] * len(given)
    for at, one in enumerate(asked.images):
        given[f"images[{at}]"] = one if isinstance(one, str) else one.image
        weights.append(1.0 if isinstance(one, str) else one.weight)
    count = len(asked.texts) + len(given) + len(uploads or ()) + len(asked.like + asked.unlike)
    count += len(asked.vectors)
    if count > MAX_PARTS:
        raise RequestError(400, f"the query has over {MAX_PARTS} parts: leave some out")
    parts = list[Part]()
    with refusals():
        # An empty field of a form, beside others.
        if asked.query is not None and (asked.query.strip() or not count):
            whole = asked.query
            parts += [text_part(whole)] if asked.literal else parse_query(whole, files=False)
        parts += [replace_weight(text_part(one.text), one.weight) for one in asked.texts]
    images = [*(uploads or ()), *(await read_images(given, services) if given else ())]
    weights = [1.0] * len(uploads or ()) + weights
    parts += [Part(weight, photo=one) for weight, one in zip(weights, images, strict=True)]
    parts += _vector_parts(asked, services)
    parts += await photos.like(1.0, asked.like, "like")
    parts += await photos.like(-1.0, asked.unlike, "unlike")
    return parts


def _vector_parts(asked: SearchRequest, services: Services) -> list[Part]:
    encoder = services.engine.encoder
    if asked.vectors and asked.space_id is None:
        raise RequestError(
            400, "vectors need space_id: the embedding space that they are of", param="space_id"
        )
    if asked.vectors and asked.space_id != encoder.space_id:
        raise RequestError(
            409, "the vectors are of another model than the server has now: embed the images again",
            param="space_id", code="other_space",
        )  # fmt: skip
    return [
        replace(embedding_part(one.vector, encoder, f"vectors[{at}].vector"), weight=one.weight)
        for at, one in enumerate(asked.vectors)
    ]


def check_length(name: str, text: str, limits: Limits) -> None:
    """Refuse a text that is too long.

    Raises:
        RequestError: 400.
    """
    most = limits.text_characters
    if len(text) > most:
        raise RequestError(
            400, f"{name} has {len(text):,} characters; the limit is {most:,}", param=name
        )


def replace_weight(part: Part, weight: float) -> Part:
    """Return a part of a text with another weight."""
    return Part(weight, text=part.text)


def form_values(form: Form) -> dict[str, Any]:
    """Return the fields of a multipart request as those of a JSON one, but for the images.

    Raises:
        RequestError: 400, a field has another name, is not UTF-8, or is there twice.
    """
    form.check_names(*_ONE, *_MANY)
    values: dict[str, Any] = {}
    for name in _ONE:
        found = form.texts(name)
        if len(found) > 1:
            raise RequestError(400, f"{name} is there {len(found)} times", param=name)
        if found and (found[0] or name == "query"):
            values[name] = _number(found[0]) if name in _NUMBERS else found[0]
    for name in ("like", "unlike"):
        values[name] = [_number(text) for text in form.texts(name) if text]
    filters = {name: values.pop(name) for name in ("since", "until", "camera") if name in values}
    return {**values, "filters": {**filters, "in": [name for name in form.texts("in") if name]}}


def _number(text: str) -> int | str:
    """Return a number of a form; what is none stays, and the schema refuses it."""
    return int(text) if _ID.fullmatch(text) else text
