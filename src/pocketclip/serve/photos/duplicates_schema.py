"""What `/duplicates` takes and answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from pocketclip.search.duplicates.records import Kind
from pocketclip.search.similar import MOST_BITS
from pocketclip.serve.photos.search_schema import PhotoName
from pocketclip.serve.schema import Schema, StrictSchema, example

MOST_GROUPS = 100
"""Groups of duplicates of one answer."""
MOST_OF_GROUP = 100
"""Photographs of a group that are listed."""


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
