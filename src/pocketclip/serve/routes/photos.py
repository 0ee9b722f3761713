"""Photographs and thumbnails of a library, by id."""

from __future__ import annotations

import re

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pocketclip.errors import ImageError
from pocketclip.search.photo_file import ChangedPhotoError, UnknownPhotoError
from pocketclip.serve.errors import RequestError
from pocketclip.serve.photos.photo_answer import (
    MEDIA_TYPES,
    OTHER_TYPE,
    photo_answer,
    thumbnail_answer,
)
from pocketclip.serve.photos.photo_library import PhotoLibrary
from pocketclip.serve.routes.library import Photos
from pocketclip.serve.schema import Responses, binary, errors

router = APIRouter(tags=["search"])
_ID = re.compile(r"[0-9]{1,19}")
_TYPES = [*dict.fromkeys(MEDIA_TYPES.values()), OTHER_TYPE]
_ERRORS = errors(
    429, s404="The server has no library, no photograph has this id, or its file is not there now.",
    s409="The file changed since it was indexed, so it is not handed out.",
    s412="The photograph is not the one that `If-Match` names.",
)  # fmt: skip
_NOT_MODIFIED: Responses = {304: {"description": "The client has it: `If-None-Match` names it."}}
_ID_PARAMETER = {
    "parameters": [
        {
            "name": "id", "in": "path", "required": True,
            "description": "Of a hit of a search.",
            "schema": {"type": "integer", "minimum": 1, "format": "int64"},
        }
    ]
}  # fmt: skip


_PHOTO: Responses = {
    **binary(*_TYPES, description="The file, as it was indexed, with everything that is in it."),
    206: binary(*_TYPES, description="The range that is asked for.")[200],
    **errors(s416="The file has no such range."), **_NOT_MODIFIED, **_ERRORS,
}  # fmt: skip
_THUMBNAIL: Responses = {
    **binary("image/jpeg", description="A JPEG of at most 320 pixels per side."),
    **_NOT_MODIFIED, **_ERRORS,
}  # fmt: skip


@router.head(
    "/photos/{id}", operation_id="head_photo", summary="The size and type of a photograph",
    response_class=Response, responses=_PHOTO, openapi_extra=_ID_PARAMETER,
    description="As GET, without the file.",
)  # fmt: skip
@router.get(
    "/photos/{id}", operation_id="get_photo", summary="A photograph", response_class=Response,
    responses=_PHOTO, openapi_extra=_ID_PARAMETER,
)  # fmt: skip
async def get_photo(request: Request, photos: Photos) -> Response:
    """Return the original file of a photograph, or one range of it.

    Its `ETag` stands for the bytes. A file that changed since it was indexed is refused, and no
    link is followed to it.
    """
    content = _id(request)
    try:
        photo = await photos.open(content)
    except (UnknownPhotoError, ChangedPhotoError) as error:
        raise _refusal(error) from None
    return photo_answer(request, photo, photos.files)


@router.head(
    "/thumbnails/{id}", operation_id="head_thumbnail", summary="Whether there is a thumbnail",
    response_class=Response, responses=_THUMBNAIL, openapi_extra=_ID_PARAMETER,
    description="As GET, without the thumbnail.",
)  # fmt: skip
@router.get(
    "/thumbnails/{id}", operation_id="get_thumbnail", summary="A thumbnail of a photograph",
    response_class=Response, responses=_THUMBNAIL, openapi_extra=_ID_PARAMETER,
)  # fmt: skip
async def get_thumbnail(request: Request, photos: Photos) -> Response:
    """Return a small JPEG, upright, without the photograph's metadata (EXIF, place, comments).

    It was made while indexing, or is made now.
    """
    data, digest = await _thumbnail(_id(request), photos)
    return thumbnail_answer(request, data, digest)


async def _thumbnail(content: int, photos: PhotoLibrary) -> tuple[bytes, bytes]:
    try:
        return await photos.thumbnail(content)
    except (UnknownPhotoError, ChangedPhotoError) as error:
        raise _refusal(error) from None
    except ImageError:
        raise RequestError(
            404, "there is no thumbnail of this photograph: it cannot be decoded here",
            code="no_thumbnail",
        ) from None  # fmt: skip


def _refusal(error: UnknownPhotoError | ChangedPhotoError) -> RequestError:
    if isinstance(error, ChangedPhotoError):
        return RequestError(409, str(error), code="changed_photo", param="id")
    return RequestError(404, str(error), code="unknown_photo", param="id")


def _id(request: Request) -> int:
    """Return the id of a path; what is no number is the id of nothing."""
    text = request.path_params["id"]
    if not _ID.fullmatch(text):
        raise RequestError(
            404, "an id is a number, such as a search returns", code="unknown_photo", param="id"
        )
    return int(text)
