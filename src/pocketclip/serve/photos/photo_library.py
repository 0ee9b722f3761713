"""A library of photographs behind a server: searched and read in threads, by ids only.

    photos = PhotoLibrary(library, engine)
    await photos.prepare()
    found = await photos.search(parts, top=20)

The engine encodes what is searched for; a search itself runs no model and opens no file that a
request names. What the library cannot do now, such as while it is rebuilt with another model, is an
error that the server answers with 503.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pocketclip.errors import LibraryError, QueryError
from pocketclip.search.background import NEUTRAL_TEXTS, keep_neutral, stored_neutral
from pocketclip.search.filters import Filters
from pocketclip.search.newest import Newest
from pocketclip.search.overview import Overviews
from pocketclip.search.photo_file import PhotoFile, open_photo
from pocketclip.search.query import Part, make_parts
from pocketclip.search.searching import is_unencoded, known_vectors
from pocketclip.search.thumbnail_store import ThumbnailStore
from pocketclip.search.thumbnails import photo_thumbnail
from pocketclip.serve.errors import RequestError
from pocketclip.serve.photos.duplicate_jobs import DuplicateJobs
from pocketclip.serve.photos.workers import Workers

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder
    from pocketclip.search.library import Library
    from pocketclip.search.records import SearchResult
    from pocketclip.serve.encoding.engine import Engine
    from pocketclip.types import Embeddings

T = TypeVar("T")
MAX_PARTS = 64
"""Texts and photographs of one query."""


class PhotoLibrary:
    """A library, for many requests at a time; its methods belong to one event loop.

    Args:
        library: is closed by whoever opened it.
        engine: encodes what is searched for.
        max_pixels: limit on the pixels of a photograph whose thumbnail has to be made.
    """

    def __init__(self, library: Library, engine: Engine, *, max_pixels: int | None = None) -> None:
        self.library = library
        self._engine = engine
        self._max_pixels = max_pixels
        self._store = ThumbnailStore(library.location)
        self._searches = Workers(2, waiting=64, name="search")
        self._thumbnails = Workers(2, waiting=64, name="thumbnails")
        self.files = Workers(4, waiting=256, name="files")
        self._readers = Workers(1, waiting=64, name="overview")
        # To be called in the thread of `read`.
        self.newest, self.overviews = Newest(), Overviews()
        self.duplicates = DuplicateJobs(library)
        self._neutral: tuple[str, Embeddings] | None = None
        self._preparing = asyncio.Lock()
        self._identity = _identity(library)

    async def prepare(self) -> None:
        """Encode the texts that a query is judged against, and open the vectors.

        Raises:
            PocketclipError: the texts cannot be encoded. What is wrong with the library, the
                first search says.
        """
        await self._neutral_texts(self._engine.encoder)
        try:
            await self._searches.run(self.library.matrix)
        except LibraryError:
            return

    async def search(
        self,
        parts: Sequence[Part],
        convert: Callable[[SearchResult], T],
        *,
        filters: Filters | None = None,
        top: int,
        min_score: float | None = None,
        following: int = 0,
    ) -> T:
        """Search, and return what a function makes of the result, in the same thread.

        Args:
            parts: what to look for. Photographs are bytes; those with a vector, and those that
                `like` returned, are not encoded.
            convert: what to make of the result.
            filters: where to look; `folders` must not be used, see `Filters.folder_names`.
            top: the number of hits.
            min_score: the least score of a hit.
            following: the number of photographs to name after the hits.

        Raises:
            RequestError: 400, the query cannot be understood; 429, too much waits; 503, there is
                no photograph yet.
            ImageError: a photograph of the query cannot be opened.
            LibraryError: the library cannot be searched now.
        """
        encoder = self._engine.encoder
        with refusals():
            parts = make_parts(parts)
            if len(parts) > MAX_PARTS:
                raise QueryError(f"the query has over {MAX_PARTS} parts: leave some out")
        neutral = await self._neutral_texts(encoder)
        parts = await self._encoded(parts, encoder)
        return await self._searches.run(
            self._search, parts, convert, filters, top, min_score, following, encoder, neutral
        )

    def _search(
        self, parts: Sequence[Part], convert: Callable[[SearchResult], T],
        filters: Filters | None, top: int, min_score: float | None, following: int,
        encoder: Encoder, neutral: Embeddings,
    ) -> T:  # fmt: skip
        self._check_there()
        if not self.library.database.fact("vectors"):
            raise RequestError(
                503, "no photograph of the library is encoded yet: run `pocketclip index FOLDER`, "
                "or wait for the one that runs", code="empty_library", retry_after=5,
            )  # fmt: skip
        with refusals():
            result = self.library.search(
                parts, filters=filters, top=top, min_score=min_score, encoder=encoder,
                neutral=neutral, following=following,
            )  # fmt: skip
        return convert(result)

    async def like(self, weight: float, contents: Sequence[int], name: str) -> list[Part]:
        """Return the parts of a query for photographs of the library.

        Args:
            weight: of each.
            contents: their ids.
            name: of the field of the request.

        Raises:
            RequestError: 404, there is no such photograph; 503, it is not encoded yet.
        """
        if not contents:
            return []
        found = await self._searches.run(known_vectors, self.library.database, contents)
        for position, content in enumerate(contents):
            if content not in found:
                if await self._searches.run(is_unencoded, self.library.database, content):
                    raise RequestError(
                        503, f"{name}[{position}] is the id of a photograph that is not encoded "
                        "yet: run `pocketclip index`, or wait for the one that runs",
                        param=name, code="unencoded_photo", retry_after=5,
                    )  # fmt: skip
                raise RequestError(
                    404, f"{name}[{position}] is the id of no photograph of the library",
                    param=name, code="unknown_photo",
                )  # fmt: skip
        return [Part(weight, photo=b"", vector=found[content]) for content in contents]

    async def read(self, function: Callable[..., T], *args: Any) -> T:
        """Return what a function makes of the library's file, in the one thread for that.

        Args:
            function: is called with the library, and with `args`.
            args: further arguments.

        Raises:
            RequestError: 400, a filter cannot be understood; 429, too much waits.
            LibraryError: the library cannot be read.
        """
        return await self._readers.run(self._read, function, args)

    def _read(self, function: Callable[..., T], args: Sequence[Any]) -> T:
        self._check_there()
        with refusals():
            return function(self.library, *args)

    async def open(self, content: int) -> PhotoFile:
        """Open a photograph; the caller closes it.

        Raises:
            PhotoError: see `open_photo`.
            LibraryError: the library cannot be read.
        """
        return await self.files.run(self._open, content, discard=PhotoFile.close)

    def _open(self, content: int) -> PhotoFile:
        self._check_there()
        return open_photo(self.library.database, content)

    async def thumbnail(self, content: int) -> tuple[bytes, bytes]:
        """Return a thumbnail as a JPEG, and the hash of its photograph.

        Raises:
            PhotoError, ImageError: see `photo_thumbnail`.
            LibraryError: the library cannot be read.
        """
        return await self._thumbnails.run(self._thumbnail, content)

    def _thumbnail(self, content: int) -> tuple[bytes, bytes]:
        self._check_there()
        return photo_thumbnail(
            self.library.database, self._store, content, max_pixels=self._max_pixels
        )

    async def _encoded(self, parts: Sequence[Part], encoder: Encoder) -> list[Part]:
        """Return parts that all have their vectors."""
        unknown = (part.text for part in parts if part.vector is None and part.text is not None)
        distinct = list(dict.fromkeys(unknown))
        photos = [p.photo for p in parts if p.vector is None and isinstance(p.photo, bytes)]
        of_text: dict[str, Embeddings] = {}
        if distinct:
            rows = (await self._engine.embed_texts(distinct, encoder=encoder)).embeddings
            of_text = dict(zip(distinct, rows, strict=True))
        images = await self._engine.embed_images(photos, encoder=encoder) if photos else ()
        of_photo = iter(images)
        done = []
        for part in parts:
            if part.vector is None:
                vector = next(of_photo) if part.text is None else of_text[part.text]
                part = replace(part, vector=vector)
            done.append(part)
        return done

    async def _neutral_texts(self, encoder: Encoder) -> Embeddings:
        """Return the embeddings of the neutral texts, of the library or else of the engine."""
        async with self._preparing:
            if self._neutral is None or self._neutral[0] != encoder.space_id:
                database = self.library.database
                rows = await self._searches.run(stored_neutral, database, encoder)
                if rows is None:
                    texts = await self._engine.embed_texts(list(NEUTRAL_TEXTS), encoder=encoder)
                    made = texts.embeddings
                    rows = await self._searches.run(keep_neutral, database, encoder, made)
                self._neutral = encoder.space_id, rows
            return self._neutral[1]

    def _check_there(self) -> None:
        """Refuse a library whose file was replaced: what is open here is of the past."""
        if _identity(self.library) != self._identity:
            raise LibraryError(
                f"the file of the library {self.library.location.name} was removed or replaced: "
                "start the server again"
            )

    def close(self) -> None:
        """End the threads."""
        self.duplicates.close()
        for workers in (self._searches, self._thumbnails, self._readers, self.files):
            workers.close()


def _identity(library: Library) -> tuple[int, int] | None:
    try:
        state = os.stat(library.location.file)  # noqa: PTH116
    except OSError:
        return None
    return state.st_dev, state.st_ino


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Turn a `QueryError` into an answer that does not repeat the query.

    Raises:
        RequestError: 400.
    """
    try:
        yield
    except QueryError as error:
        message = error.reason.replace("use --text", 'send it with "literal": true')
        raise RequestError(400, message, code="query") from None


def embedding_part(values: Sequence[float], encoder: Encoder, name: str) -> Part:
    """Return the part of a query that is an embedding itself.

    Args:
        values: (D,), of any length but 0.
        encoder: of the library.
        name: of the field of the request.

    Raises:
        RequestError: 400, it is not of this width, not finite, or zero.
    """
    vector = np.asarray(values, np.float64)
    if vector.shape != (encoder.embed_dim,):
        raise RequestError(
            400, f"{name} must have {encoder.embed_dim} numbers, as the embeddings of this "
            "server's model", param=name,
        )  # fmt: skip
    largest = float(np.abs(vector).max())
    if not 0 < largest < math.inf:
        raise RequestError(400, f"{name} must be finite numbers, not all zero", param=name)
    vector /= largest  # the square of a large number has no float
    return Part(1.0, photo=b"", vector=(vector / np.linalg.norm(vector)).astype(np.float32))
