"""clip-retrieval's search service over a library: for its `ClipClient`, and what speaks like it.

Its client sends JSON without a content type, and names an index: here, the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import Field

from pocketclip.formats.escaping import dump_json
from pocketclip.search.indexing.roots import known_roots
from pocketclip.search.query import Part, text_part
from pocketclip.search.records import Hit, SearchResult
from pocketclip.serve.errors import RequestError
from pocketclip.serve.inputs.bodies import read_json, validated
from pocketclip.serve.inputs.image_inputs import read_images
from pocketclip.serve.photos.photo_library import PhotoLibrary, embedding_part, refusals
from pocketclip.serve.photos.search_answer import relative_name
from pocketclip.serve.routes.library import Photos, check_length
from pocketclip.serve.schema import Schema, errors, example, inline_schema
from pocketclip.serve.services import Services, services_of

router = APIRouter(tags=["clip-retrieval"])
MOST = 1000
"""Photographs of one answer."""
_Count = Annotated[int, Field(ge=1, le=1 << 31)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


class KnnRequest(Schema):
    """What to look for: one of `text`, `image`, `image_url` and `embedding_input`.

    Other fields of clip-retrieval, such as those about aesthetics and safety, need models that are
    not here; they are accepted and have no effect, as in its own service without these models.
    """

    model_config = example(
        {"text": "a beach at sunset", "modality": "image", "num_images": 4, "indice_name": "photos"}
    )

    text: str | None = None
    """Taken literally."""
    image: str | None = None
    """In base64."""
    image_url: str | None = None
    """Only if the server fetches images."""
    embedding_input: Annotated[list[_Number], Field(max_length=1 << 16)] | None = None
    """An embedding of the server's model; its length does not matter."""
    modality: str = "image"
    """What is searched: `image`; there are no texts in a library."""
    num_images: _Count = 40
    """How many results have `url` and `caption`."""
    num_result_ids: _Count | None = None
    """How many results there are, at most 1,000; null: as many as `num_images`."""
    indice_name: str | None = None
    """The library's name, see `/indices-list`."""
    deduplicate: bool = False
    """Leave near duplicates of a better result out."""
    use_mclip: bool = False
    """Not offered: there is no multilingual text tower."""


class KnnResult(Schema):
    """A photograph."""

    id: int
    """For `/photos/{id}` and `/thumbnails/{id}`."""
    similarity: float
    """Cosine similarity, -1 to 1."""
    url: str | None = None
    """Of the photograph."""
    thumbnail: str | None = None
    """Of its thumbnail."""
    caption: str | None = None
    """The path of its file, below the folder that the library indexes."""


_ANSWER = {
    "content": {
        "application/json": {
            "example": [
                {
                    "id": 17, "similarity": 0.271, "url": "http://127.0.0.1:8080/photos/17",
                    "thumbnail": "http://127.0.0.1:8080/thumbnails/17",
                    "caption": "Italy/Rome/IMG_2041.jpg",
                }
            ]
        }
    }
}  # fmt: skip


@router.post(
    "/knn-service", operation_id="knn_search", summary="Search as clip-retrieval does",
    response_model=list[KnnResult], response_description="What was found, best first.",
    responses={
        200: _ANSWER,
        **errors(400, 415, 422, 429, s404="The server has no library, or not of this name."),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": inline_schema(KnnRequest)}},
        }
    },
)  # fmt: skip
async def knn_service(
    request: Request, services: Annotated[Services, Depends(services_of)], photos: Photos
) -> Response:
    """Return the photographs nearest to a text, an image or an embedding.

    The content type of the body does not matter. `ClipClient` cannot send a key: use it with a
    server that has none.
    """
    asked = validated(KnnRequest, await read_json(request))
    _check(asked, photos)
    part = await _part(asked, services)
    count = min(asked.num_result_ids or asked.num_images, MOST)
    base = str(request.base_url)

    def convert(result: SearchResult) -> bytes:
        hits = list(result.hits)
        if not asked.deduplicate:
            hits += [one for hit in hits for one in hit.similar]
            hits.sort(key=lambda one: -one.score)
        return dump_json(_facts(photos, hits[:count], asked.num_images, base)).encode()

    answer = await photos.search([part], convert, top=count)
    return Response(answer, media_type="application/json")


@router.get(
    "/indices-list", operation_id="list_indices", summary="The names of what can be searched",
    response_model=list[str], response_description="The library's name.",
    responses={
        200: {"content": {"application/json": {"example": ["photos"]}}},
        **errors(s404="The server has no library."),
    },
)  # fmt: skip
async def indices_list(photos: Photos) -> list[str]:
    """Return the values of `indice_name`: the name of the library."""
    return [photos.library.location.name]


def _check(asked: KnnRequest, photos: PhotoLibrary) -> None:
    if asked.indice_name not in (None, photos.library.location.name):
        raise RequestError(
            404, "there is no index of this name: `/indices-list` has the names",
            param="indice_name", code="unknown_index",
        )  # fmt: skip
    if asked.modality != "image":
        raise RequestError(
            400, 'a library has photographs only: use "modality": "image"', param="modality"
        )
    if asked.use_mclip:
        raise RequestError(
            400, 'there is no multilingual text tower: use "use_mclip": false', param="use_mclip"
        )


async def _part(asked: KnnRequest, services: Services) -> Part:
    """Return what is asked for; the first one that is given, as clip-retrieval has it."""
    if asked.text:
        check_length("text", asked.text, services.settings.limits)
        with refusals():
            return text_part(asked.text)
    for name in ("image", "image_url"):
        value = getattr(asked, name)
        if value is not None:
            [image] = await read_images({name: value}, services)
            return Part(1.0, photo=image)
    if asked.embedding_input is not None:
        return embedding_part(asked.embedding_input, services.engine.encoder, "embedding_input")
    raise RequestError(400, "give one of text, image, image_url and embedding_input")


def _facts(
    photos: PhotoLibrary, hits: Sequence[Hit], described: int, base: str
) -> list[dict[str, Any]]:
    roots = known_roots(photos.library.database)
    out = []
    for position, hit in enumerate(hits):
        facts: dict[str, Any] = {"id": hit.content, "similarity": hit.score}
        if position < described:
            facts["url"] = f"{base}photos/{hit.content}"
            facts["thumbnail"] = f"{base}thumbnails/{hit.content}"
            facts["caption"] = relative_name(hit.path, roots)[1]
        out.append(facts)
    return out
