"""What the routes about a whole library take and answer: its state, its order, its duplicates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from pocketclip.search.duplicates.records import Kind
from pocketclip.search.similar import MOST_BITS
from pocketclip.serve.photos.search_schema import (
    IndexedPhoto,
    PhotoId,
    PhotoName,
    SearchFilters,
)
from pocketclip.serve.schema import Schema, StrictSchema, example

MOST_FACTS = 200
"""Photographs of one request for facts."""
MOST_GROUPS = 100
"""Groups of duplicates of one answer."""
MOST_OF_GROUP = 100
"""Photographs of a group that are listed."""
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
                    "id": 17,
                    "name": "Italy/Rome/IMG_2041.jpg",
                    "root": "Pictures",
                    "time": "2024-05-01T10:30:00",
                    "time_from": "camera",
                    "time_offset_minutes": 120,
                    "camera": "Apple iPhone 13",
                    "width": 3024,
                    "height": 4032,
                    "format": "JPEG",
                    "bytes": 2417511,
                    "changed": False,
                    "copies": 1,
                    "photo": "/photos/17",
                    "thumbnail": "/thumbnails/17",
                    "other_files": [{"name": "backup/IMG_2041.jpg", "root": "Pictures"}],
                }
            ]
        }
    )

    photos: list[DescribedPhoto]
    """In the order of the request; those whose file is not there now are left out."""


class Limits(StrictSchema):
    """What counts as a near duplicate, and as a burst."""

    near_distance: Annotated[int, Field(ge=0, le=MOST_BITS)] = 8
    """Near duplicates: the most bits in which the perceptual hashes differ, of 63."""
    near_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.9
    """And the least cosine similarity of the embeddings."""
    near_pixels: Annotated[float, Field(ge=-1, le=1)] = 0.97
    """And the least correlation of the pixels, of one picture with the other or a part of it; -1:
    they are not compared."""
    burst_seconds: Annotated[float, Field(ge=0, le=3600)] = 3.0
    """Bursts: the most seconds from one photograph to the next."""
    burst_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.85
    """And the least cosine similarity of each to the best one."""


class DuplicatesRequest(StrictSchema):
    """Which duplicates to list."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{}, {"kind": "near", "limits": {"near_distance": 4}}]},
    )

    kind: Kind = "exact"
    """The kind of the groups: the same bytes, the same shot, or a burst."""
    limits: Limits = Field(default_factory=Limits)
    """What counts."""
    offset: Annotated[int, Field(ge=0, le=1 << 31, strict=True)] = 0
    """How many groups to pass over."""
    top: Annotated[int, Field(ge=1, le=MOST_GROUPS, strict=True)] = 20
    """The number of groups."""
    report: Annotated[str, Field(max_length=64)] | None = None
    """Of an earlier answer: to page through the same groups. Then `limits` and `again` do not
    matter."""
    again: bool = False
    """Look again, though the groups with these limits are known: the library has changed."""


class DuplicatePhoto(PhotoName):
    """A photograph of a group."""

    bytes: int
    """Of the file."""
    width: int | None
    """Pixels of the upright image."""
    height: int | None
    """Pixels of the upright image."""
    time: str | None
    """What the camera's clock showed."""
    distance: int | None
    """Bits in which its perceptual hash differs from the best one's."""
    similarity: float | None
    """Cosine similarity to the best one."""
    pixels: float | None
    """Correlation of its pixels with the best one's; null where they were not compared."""
    copies: int
    """How many other files have the same bytes; of exact duplicates, they are listed."""
    linked: bool
    """Whether it is another name of a file that is listed before it: it takes no room of its own.
    """


class DuplicateGroupFacts(Schema):
    """Photographs that are duplicates of the first one, or a burst with it."""

    kind: Kind
    """Of the group."""
    room: int
    """The bytes of all but the best one."""
    photos: list[DuplicatePhoto]
    """The best one first; at most 100."""
    total: int
    """How many there are."""


class KindCounts(Schema):
    """How many groups there are of each kind."""

    exact: int
    """The same bytes."""
    near: int
    """The same shot, saved at another size or quality."""
    burst: int
    """Shots within seconds that look alike."""


class DuplicatesAnswer(Schema):
    """Groups of duplicates. Nothing was changed, and nothing is ever deleted."""

    model_config = example(
        {
            "report": "q8f2Zc1h0aXk",
            "state": "ready",
            "stage": "comparing pixels",
            "done": 12,
            "total": 12,
            "outdated": False,
            "limits": {
                "near_distance": 8,
                "near_similarity": 0.9,
                "near_pixels": 0.97,
                "burst_seconds": 3.0,
                "burst_similarity": 0.85,
            },
            "searched": 20431,
            "blank": 3,
            "untimed": 512,
            "remarks": [],
            "counts": {"exact": 1, "near": 0, "burst": 0},
            "groups": [
                {
                    "kind": "exact",
                    "room": 2417511,
                    "total": 2,
                    "photos": [
                        {
                            "id": 17,
                            "name": name,
                            "root": "Pictures",
                            "bytes": 2417511,
                            "width": 3024,
                            "height": 4032,
                            "time": "2024-05-01T10:30:00",
                            "distance": None,
                            "similarity": None,
                            "pixels": None,
                            "copies": 0,
                            "linked": False,
                        }
                        for name in ("Italy/Rome/IMG_2041.jpg", "backup/IMG_2041.jpg")
                    ],
                }
            ],
        }
    )

    report: str
    """Names the groups for later requests; it is kept for some time."""
    state: Literal["running", "ready"]
    """Whether the photographs are still being compared: ask again after a second. A search that is
    not asked about is given up."""
    stage: str
    """What is done, for people."""
    done: int
    """Of the stage."""
    total: int
    """Of the stage; 0: not known."""
    outdated: bool
    """Whether the library has changed since; `again` looks again."""
    limits: Limits
    """What counted; `near_distance` is smaller than was asked for if `remarks` say so."""
    searched: int
    """The number of different photographs that were compared."""
    blank: int
    """Those without a perceptual hash, which cannot be near duplicates."""
    untimed: int
    """Those whose camera or its time is unknown, which cannot be in a burst."""
    remarks: list[str]
    """What people must know."""
    counts: KindCounts | None
    """How many groups there are; null while it runs."""
    groups: list[DuplicateGroupFacts]
    """Of the kind that was asked for: the one that takes most room first; bursts by time."""
