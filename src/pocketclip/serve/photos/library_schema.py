"""What the routes about a whole library take and answer: its state, its order, its photographs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from pocketclip.serve.photos.search_schema import (
    PHOTO_EXAMPLE,
    IndexedPhoto,
    PhotoId,
    SearchFilters,
)
from pocketclip.serve.schema import Schema, StrictSchema, example

MOST_FACTS = 200
"""Photographs of one request for facts."""
MOST_UNREADABLE = 500
"""Files that are listed as unreadable."""
MOST_PHOTOS = 1_000_000
"""Ids of one answer."""


class RootFacts(Schema):
    """A folder that the library indexes."""

    name: str
    """Its name, without where it is."""
    files: int
    """Photographs in it, copies included."""
    away: bool
    """Whether it is not there now, such as a drive that is not connected."""


class IndexRun(Schema):
    """A run of `pocketclip index`, in any process."""

    outcome: Literal["running", "done", "interrupted", "failed", "killed"]
    """Whether it goes on, or how it ended. What was encoded is kept, however it ended."""
    stage: str
    """What it does, for people."""
    done: int
    """Files of the stage that are finished."""
    total: int
    """All of its files; 0: not known yet."""
    encoded: int
    """Photographs that went through the model."""
    failed: int
    """Files that could not be read or decoded in this run."""
    rate: float | None
    """Files per second."""
    seconds_left: float | None
    """Until the stage ends, at this rate."""
    started: str
    """When the run began, in UTC."""
    updated: str
    """When this was recorded, in UTC; of a run that has ended, its end."""


class LibraryAnswer(Schema):
    """What the library has, and what indexing does."""

    model_config = example(
        {
            "name": "photos",
            "model": "mobileclip2-s0",
            "space_id": "space-1f0c0a6c0d7f2b34",
            "files": 20561,
            "photos": 20431,
            "encoded": 20431,
            "unencoded": 0,
            "unreadable": 2,
            "roots": [{"name": "Pictures", "files": 20561, "away": False}],
            "run": {
                "outcome": "running",
                "stage": "reading 5,421 files",
                "done": 1200,
                "total": 5421,
                "encoded": 1184,
                "failed": 1,
                "rate": 21.5,
                "seconds_left": 196.3,
                "started": "2026-11-28T22:10:00Z",
                "updated": "2026-11-28T22:10:56Z",
            },
        }
    )

    name: str
    """Of the library."""
    model: str | None
    """The model's name; null if nothing was indexed yet."""
    space_id: str | None
    """Of its embedding space."""
    files: int
    """Photographs that are indexed and there, copies included."""
    photos: int
    """Different ones among them."""
    encoded: int
    """Photographs that have an embedding, those whose files are not there included."""
    unencoded: int
    """Photographs that wait for an embedding."""
    unreadable: int
    """Files that could not be read or decoded; `/library/unreadable` lists them."""
    roots: list[RootFacts]
    """The folders that it indexes."""
    run: IndexRun | None
    """The run of indexing that goes on, else the last one; null if none is known."""


class UnreadableFile(Schema):
    """A file that could not be read or decoded."""

    name: str
    """The path of the file below `root`."""
    root: str
    """The name of the folder that the library indexes."""
    reason: str
    """Why, for people."""


class UnreadableAnswer(Schema):
    """The files that could not be read or decoded."""

    model_config = example(
        {
            "files": [
                {
                    "name": "Italy/IMG_2043.jpg",
                    "root": "Pictures",
                    "reason": "image file is truncated",
                }
            ],
            "total": 1,
        }
    )

    files: list[UnreadableFile]
    """By path; at most 500."""
    total: int
    """How many there are."""


class Choice(Schema):
    """A value that a filter may have."""

    name: str
    """The value."""
    files: int
    """How many photographs it leaves, about."""


class ChoicesAnswer(Schema):
    """What the filters of a search may be."""

    model_config = example(
        {
            "folders": [{"name": "Italy", "files": 812}, {"name": "Italy/Rome", "files": 301}],
            "more_folders": 0,
            "cameras": [{"name": "Apple iPhone 13", "files": 5210}],
            "years": [{"name": "2024", "files": 4100}],
        }
    )

    folders: list[Choice]
    """For `in`, by path; the fullest 500. A folder's photographs count for those above it too."""
    more_folders: int
    """How many more there are, those included whose names are not UTF-8."""
    cameras: list[Choice]
    """For `camera`, the most frequent first."""
    years: list[Choice]
    """For `since` and `until`, the last first."""


class BrowseRequest(StrictSchema):
    """Which photographs to list."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{}, {"filters": {"since": "2024"}}]},
    )

    filters: SearchFilters = Field(default_factory=SearchFilters)
    """Where to look."""


class BrowseAnswer(Schema):
    """The photographs of the library, the newest first."""

    model_config = example({"ids": [18, 17, 21], "total": 3})

    ids: list[int]
    """For `/photo-facts`, `/thumbnails/{id}` and `/photos/{id}`; at most 1,000,000."""
    total: int
    """How many there are."""


class FactsRequest(StrictSchema):
    """Which photographs to describe."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{"ids": [1, 2]}]},
    )

    ids: Annotated[list[PhotoId], Field(min_length=1, max_length=MOST_FACTS)]
    """Of photographs, each once or more."""


class OtherFile(Schema):
    """Another file with the same bytes."""

    name: str
    """Its path below `root`."""
    root: str
    """The name of the folder that the library indexes."""


class DescribedPhoto(IndexedPhoto):
    """A photograph of the library."""

    other_files: list[OtherFile]
    """Its copies, at most 20."""


class FactsAnswer(Schema):
    """What is known of photographs."""

    model_config = example(
        {
            "photos": [
                {
                    **PHOTO_EXAMPLE,
                    "copies": 1,
                    "other_files": [{"name": "backup/IMG_2041.jpg", "root": "Pictures"}],
                }
            ]
        }
    )

    photos: list[DescribedPhoto]
    """In the order of the request; those whose file is not there now are left out."""
