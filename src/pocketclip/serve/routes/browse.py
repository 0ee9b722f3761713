"""A library as a whole: its state, its photographs by time, what they are, its duplicates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic_core import to_json

from pocketclip.formats.escaping import dump_json
from pocketclip.search.filters import Filters
from pocketclip.search.library import Library
from pocketclip.search.similar import DuplicateLimits
from pocketclip.serve.errors import RequestError
from pocketclip.serve.inputs.bodies import JsonRoute
from pocketclip.serve.photos.duplicates_schema import DuplicatesAnswer, DuplicatesRequest
from pocketclip.serve.photos.library_answer import (
    choice_facts,
    described_photos,
    duplicate_facts,
    library_facts,
    unreadable_facts,
)
from pocketclip.serve.photos.library_schema import (
    MOST_PHOTOS,
    BrowseAnswer,
    BrowseRequest,
    ChoicesAnswer,
    FactsAnswer,
    FactsRequest,
    LibraryAnswer,
    UnreadableAnswer,
)
from pocketclip.serve.photos.photo_library import PhotoLibrary
from pocketclip.serve.routes.library import Photos, filters_of
from pocketclip.serve.schema import errors

router = APIRouter(tags=["search"], route_class=JsonRoute)
_NONE = "The server has no library."
_PATIENCE = 1.0  # seconds: what is found by then needs no second question


@router.get(
    "/library", operation_id="get_library", summary="What the library has, and what indexing does",
    response_model=LibraryAnswer, response_description="Its state.",
    responses=errors(429, s404=_NONE),
)  # fmt: skip
async def get_library(photos: Photos) -> Response:
    """Return counts, and the progress of the run of `pocketclip index` that goes on, if one does.

    It may be another process that indexes. Ask every few seconds.
    """
    return await _read(photos, library_facts, photos.overviews)


@router.get(
    "/library/unreadable", operation_id="list_unreadable",
    summary="The files that could not be read", response_model=UnreadableAnswer,
    response_description="The files.", responses=errors(429, s404=_NONE),
)  # fmt: skip
async def list_unreadable(photos: Photos) -> Response:
    """Return the files that the last run could not read or decode, with the reason.

    `pocketclip index --retry` tries them again.
    """
    return await _read(photos, unreadable_facts)


@router.get(
    "/library/choices", operation_id="list_choices", summary="What the filters may be",
    response_model=ChoicesAnswer, response_description="Folders, cameras and years.",
    responses=errors(429, s404=_NONE),
)  # fmt: skip
async def list_choices(photos: Photos) -> Response:
    """Return the folders, cameras and years of the photographs that are there."""
    return await _read(photos, choice_facts)


@router.post(
    "/browse", operation_id="browse_photos", summary="All photographs, the newest first",
    response_model=BrowseAnswer, response_description="The ids.",
    responses=errors(400, 422, 429, s404=_NONE),
)  # fmt: skip
async def browse(asked: BrowseRequest, photos: Photos) -> Response:
    """Return the ids of all photographs that the filters leave, the newest first.

    The list is whole: it stays as it is for who shows it while the library changes. The time is
    that of the camera's clock, without it that of the file.
    """
    filters = filters_of(asked.filters)

    def read(library: Library, filters: Filters) -> bytes:
        ids = photos.newest(library.database, filters)
        return to_json({"ids": ids[:MOST_PHOTOS].tolist(), "total": len(ids)})

    return Response(await photos.read(read, filters), media_type="application/json")


@router.post(
    "/photo-facts", operation_id="describe_photos", summary="What is known of photographs",
    response_model=FactsAnswer, response_description="The photographs.",
    responses=errors(400, 422, 429, s404=_NONE),
)  # fmt: skip
async def describe_photos(asked: FactsRequest, photos: Photos) -> Response:
    """Return name, time, camera and size of photographs by their ids.

    A photograph whose file is not there now, or that was forgotten, is left out.
    """
    return await _read(photos, described_photos, asked.ids)


@router.post(
    "/duplicates", operation_id="list_duplicates", summary="Groups of duplicates",
    response_model=DuplicatesAnswer, response_description="The groups, or how far the search is.",
    responses=errors(
        400, 422, 429, s404=_NONE, s410="`report` is not kept any more: ask without it."
    ),
)  # fmt: skip
async def duplicates(asked: DuplicatesRequest, photos: Photos) -> Response:
    """Return equal files, the same shots at other sizes or qualities, or bursts.

    The first request begins to look; while `state` is `running`, ask again. What was found is kept,
    so that further requests page through the same groups. Nothing is changed or deleted.
    """
    if asked.report is None:
        limits = DuplicateLimits(**asked.limits.model_dump())
        job = photos.duplicates.ask(limits, again=asked.again)
    else:
        found = photos.duplicates.find(asked.report)
        if found is None:
            raise RequestError(
                410, "these groups are not kept any more: ask for them again, without report",
                param="report", code="unknown_report",
            )  # fmt: skip
        job = found
    await job.wait(_PATIENCE)
    return await _read(photos, duplicate_facts, job, asked.kind, asked.offset, asked.top)


async def _read(photos: PhotoLibrary, function: Callable[..., Any], *args: Any) -> Response:
    """Answer with what a function reads from the library; names are escaped."""

    def read(library: Library) -> bytes:
        return dump_json(function(library, *args)).encode()

    return Response(await photos.read(read), media_type="application/json")
