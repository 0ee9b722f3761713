"""What `/search` takes and answers, for FastAPI and for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from pocketclip.search.query import MAX_WEIGHT
from pocketclip.serve.schema import Schema, StrictSchema, example

MAX_TOP = 200
MAX_FOLLOWING = 100_000
PhotoId = Annotated[int, Field(ge=1, lt=1 << 63, strict=True)]
Weight = Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)]
_Names = Annotated[list[Annotated[str, Field(max_length=4096)]], Field(max_length=32)]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Moment = Annotated[str, Field(max_length=32, examples=["2024-05"])]


class WeightedText(StrictSchema):
    """A text with a weight."""

    text: str
    """Taken literally."""
    weight: Weight = 1.0
    """Below 0: to avoid. Not 0."""


class WeightedImage(StrictSchema):
    """An image with a weight."""

    image: str
    """A data URI, plain base64, or an https URL if the server fetches images."""
    weight: Weight = 1.0
    """Below 0: to avoid. Not 0."""


class WeightedVector(StrictSchema):
    """An embedding with a weight."""

    vector: Annotated[list[_Number], Field(max_length=1 << 16)]
    """Of the server's width; its length does not matter."""
    weight: Weight = 1.0
    """Below 0: to avoid. Not 0."""


class SearchFilters(StrictSchema):
    """Which photographs to search in; all that are given apply, before the ranking."""

    in_: _Names = Field(default_factory=list, alias="in", examples=[["Italy/Rome"]])
    """In one of these folders, at any depth: paths below a folder that the library indexes, or the
    name of such a folder. The server's disk is not looked at."""
    since: _Moment | None = None
    """The first moment: `2024`, `2024-05`, `2024-05-01` or `2024-05-01T14:30`."""
    until: _Moment | None = None
    """The last one, included: `2024` lasts until the end of the year."""
    camera: Annotated[str, Field(max_length=200)] | None = None
    """A part of the camera's name, in upper or lower case."""


class SearchRequest(StrictSchema):
    """What to look for: `query`, `texts`, `image`, `images`, `vectors`, `like`, or some of them."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {"query": "2:beach + sunset - people", "filters": {"since": "2024"}, "top": 50},
                {"like": [1], "texts": [{"text": "at night", "weight": 0.5}]},
            ]
        },
    )

    query: str | None = None
    """Texts with weights and signs, such as `2:beach + sunset - people`; what is in double quotes
    is one text. It names no files: send photographs in `image`, `images` and `like`."""
    literal: bool = False
    """Take `query` as one text, whatever signs are in it."""
    texts: list[WeightedText] = Field(default_factory=list)
    """More texts, each with its weight."""
    image: str | None = None
    """An image that photographs should be like: a data URI, plain base64, or an https URL if the
    server fetches images."""
    images: list[str | WeightedImage] = Field(default_factory=list)
    """More images, with or without a weight."""
    like: list[PhotoId] = Field(default_factory=list)
    """Ids of photographs of the library that others should be like."""
    unlike: list[PhotoId] = Field(default_factory=list)
    """Ids of photographs that others should not be like."""
    vectors: list[WeightedVector] = Field(default_factory=list)
    """Embeddings that photographs should be like, such as those of `/v1/embeddings`: an image that
    is searched for again and again need be sent once."""
    space_id: Annotated[str, Field(max_length=200)] | None = None
    """The embedding space of `vectors`, which must be the server's; required with them."""
    filters: SearchFilters = Field(default_factory=SearchFilters)
    """Where to look."""
    top: Annotated[int, Field(ge=1, le=MAX_TOP, strict=True)] = 20
    """The number of hits. Files with the same bytes are one hit, and so are near duplicates."""
    min_score: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None = None
    """The least score of a hit."""
    following: Annotated[int, Field(ge=0, le=MAX_FOLLOWING, strict=True)] = 0
    """How many photographs to name by their ids after the hits: a list that goes on takes them from
    here, and stays as it is while the library changes. `/photo-facts` tells what they are."""


class PhotoName(Schema):
    """A photograph, by its id, and what it is called."""

    id: int
    """Of the photograph, for `/photos/{id}` and `/thumbnails/{id}`, and for `like`. Copies with the
    same bytes have one id."""
    name: str
    """The path of its file below `root`. Bytes that are not UTF-8 are lone surrogates, escaped."""
    root: str
    """The name of the folder that the library indexes."""


class SimilarPhoto(PhotoName):
    """A near duplicate of a hit."""

    score: float
    """As of the hit."""


class IndexedPhoto(PhotoName):
    """A photograph of the library, and what is known of it."""

    time: str | None
    """What the camera's clock showed; without that, the time of the file."""
    time_from: Literal["camera", "file"] | None
    """What `time` comes from."""
    time_offset_minutes: int | None
    """Minutes that the camera's clock was ahead of UTC."""
    camera: str | None
    """The camera's name."""
    width: int | None
    """Pixels of the upright image."""
    height: int | None
    """Pixels of the upright image."""
    format: str | None
    """`JPEG`, `HEIF`, ..."""
    bytes: int
    """Of the file."""
    changed: bool
    """Whether the file is not as it was indexed; then it is not handed out."""
    copies: int
    """How many other files have the same bytes."""
    photo: str
    """The path of the photograph on this server."""
    thumbnail: str
    """The path of its thumbnail."""


class FoundPhoto(IndexedPhoto):
    """A hit."""

    score: float
    """Cosine similarity to the query, -1 to 1."""
    similar: list[SimilarPhoto]
    """Near duplicates, which are not listed themselves; the best ones, at most 50."""
    similar_photos: int
    """How many there are."""


class FollowingPhoto(Schema):
    """A photograph that comes after the hits."""

    id: int
    """For `/photo-facts`, `/thumbnails/{id}` and `/photos/{id}`."""
    score: float
    """Cosine similarity to the query, -1 to 1."""


PHOTO_EXAMPLE = {
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
    "copies": 0,
    "photo": "/photos/17",
    "thumbnail": "/thumbnails/17",
}
"""An `IndexedPhoto`."""
_EXAMPLE = {
    "fits": True,
    "reason": "the query fits its best photographs clearly better than unrelated texts fit any",
    "lead": 5.2,
    "searched": 20431,
    "removed": {},
    "gone": 0,
    "below_score": False,
    "away": 0,
    "unencoded": 0,
    "library": "photos",
    "model": "mobileclip2-s0",
    "space_id": "space-1f0c0a6c0d7f2b34",
    "hits": [
        {
            **PHOTO_EXAMPLE,
            "score": 0.271,
            "similar": [
                {"id": 18, "name": "Italy/Rome/IMG_2042.jpg", "root": "Pictures", "score": 0.269}
            ],
            "similar_photos": 1,
        }
    ],
    "following": [{"id": 4, "score": 0.218}, {"id": 21, "score": 0.193}],
}


class SearchAnswer(Schema):
    """The photographs that fit a query best."""

    model_config = example(_EXAMPLE)

    fits: bool | None
    """Whether the best hit stands out from what the query gives for any photograph; null if that
    cannot be said, as for a query with images."""
    reason: str
    """Why, in one sentence for people."""
    lead: float | None
    """Logits by which the best hits are above those of unrelated texts; null where that is not
    judged."""
    searched: int
    """How many photographs the filters left."""
    removed: dict[str, int]
    """If none are left: how many each filter removed."""
    gone: int
    """Better hits that are left out because their file is not there now."""
    below_score: bool
    """Whether `min_score` left hits out."""
    away: int
    """Folders of the library that are not there now, such as a drive that is not connected."""
    unencoded: int
    """Photographs that have no embedding yet, so are not searched."""
    library: str
    """The library's name."""
    model: str
    """The model's name."""
    space_id: str
    """Of the embedding space."""
    hits: list[FoundPhoto]
    """Best first."""
    following: list[FollowingPhoto]
    """What comes after the hits, best first; as many as the request asked for. Near duplicates are
    left out, and files looked for, among the first 2,000 or so."""
