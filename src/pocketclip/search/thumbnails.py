"""Small pictures of what is shown: made while photographs are indexed, or when first needed.

They are kept as `thumbnail_store` says, without the photograph's metadata. One that was made while
indexing comes from the pixels that were decoded for the model, so its bytes may differ from those
of one that is made later. A damaged one is made again, and a folder that cannot be written to only
costs time.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from pocketclip.errors import ImageError
from pocketclip.search.photo_file import ChangedPhotoError, PhotoFile, open_photo
from pocketclip.search.records import Hit
from pocketclip.search.store.location import Location
from pocketclip.search.thumbnail_image import SIDE, colour_profile, encode_thumbnail
from pocketclip.search.thumbnail_store import ThumbnailStore

if TYPE_CHECKING:
    from pocketclip.search.store.database import Database

_THREADS = 4


def thumbnails(location: Location, hits: Sequence[Hit]) -> list[bytes | None]:
    """Return the thumbnails of hits as JPEGs, upright, at most `SIDE` pixels wide and high.

    None stands for a photograph that cannot be read, or that changed since it was indexed.
    """

    def of(hit: Hit) -> bytes | None:
        return thumbnail(location, hit.path, hit.digest, current=hit.current)

    with ThreadPoolExecutor(min(_THREADS, len(hits) or 1)) as pool:
        return list(pool.map(of, hits))


def thumbnail(
    location: Location, path: Path, digest: bytes, *, current: bool = True
) -> bytes | None:
    """Return the thumbnail of a photograph; see `thumbnails`.

    Args:
        location: of the library, where it is kept.
        path: a file with these bytes.
        digest: the hash of its bytes.
        current: whether its size and time are those of the index; otherwise it is read and hashed.
    """
    store = ThumbnailStore(location)
    kept = store.read(digest) if current else None
    if kept is not None:
        return kept
    data = _make(path, digest)
    if data is not None:
        store.keep({digest: data})
    return data


def photo_thumbnail(
    database: Database, store: ThumbnailStore, content: int, *, max_pixels: int | None = None
) -> tuple[bytes, bytes]:
    """Return the thumbnail of a content for somebody else, and the hash of its photograph.

    Args:
        database: the library.
        store: of the library.
        content: the id, see `Hit.content`. Its file must be there, as it was indexed, even if the
            thumbnail is kept; see `photo_file.open_photo`.
        max_pixels: limit on the pixels of a photograph whose thumbnail has to be made; None for
            that of `open_image`.

    Raises:
        PhotoError: see `photo_file.open_photo`.
        ImageError: it has no thumbnail yet, and cannot be decoded.
        LibraryError: the library cannot be read.
    """
    from pocketclip.images import MAX_PIXELS
    from pocketclip.search.indexing.reading import content_digest

    with open_photo(database, content) as photo:
        data = store.read(photo.digest)
        if data is not None:
            return data, photo.digest
        whole = _read_whole(photo)
    if content_digest(whole) != photo.digest:
        raise ChangedPhotoError("the photograph changes just now: try again")
    data = _make_from(whole, max_pixels or MAX_PIXELS)
    if store.keep({photo.digest: data}) and not _is_known(database, photo.digest):
        store.remove(photo.digest)  # forgotten meanwhile
    return data, photo.digest


def _read_whole(photo: PhotoFile) -> bytes:
    from pocketclip.images import MAX_FILE

    if photo.size > MAX_FILE:
        raise ImageError(f"the file has {photo.size:,} bytes, more than {MAX_FILE:,}")
    try:
        return photo.read(0, photo.size)
    except OSError as error:
        raise ImageError(f"the file cannot be read: {error.strerror}") from error


def _is_known(database: Database, digest: bytes) -> bool:
    with database.reading() as connection:
        sql = "SELECT 1 FROM contents WHERE digest = ?"
        return connection.execute(sql, (digest,)).fetchone() is not None


def _make(path: Path, digest: bytes) -> bytes | None:
    from pocketclip.images import MAX_FILE, MAX_PIXELS
    from pocketclip.search.indexing.reading import content_digest

    try:
        if path.stat().st_size > MAX_FILE or not path.is_file():
            return None
        data = path.read_bytes()
        return _make_from(data, MAX_PIXELS) if content_digest(data) == digest else None
    except (OSError, ImageError):
        return None


def _make_from(data: bytes, max_pixels: int) -> bytes:
    from pocketclip.images import open_image

    profiles: list[bytes | None] = []
    # Of a large JPEG only a fraction is decoded.
    image = open_image(
        data, least_side=SIDE, max_pixels=max_pixels,
        on_header=lambda header: profiles.append(colour_profile(header)),
    )  # fmt: skip
    return encode_thumbnail(image, profiles[0])
