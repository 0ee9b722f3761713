"""Libraries of photographs for the tests of a server."""

from __future__ import annotations

import os
from pathlib import Path

from pocketclip.infer.encoder import Encoder
from pocketclip.search.library import Library
from tests.search.conftest import draw_photo

HOSTILE = os.fsdecode(b"trip/<img src=x onerror=alert(1)>\n\"\xff\xe2\x80\xae'%0d.jpg")
NAMES = ("a.jpg", "b.jpg", "c.png", "d.webp", "trip/e.jpg", HOSTILE)


def make_library(folder: Path, encoder: Encoder, *, thumbnails: bool = True) -> Library:
    """Return a library of six photographs in `folder/Pictures`, one of them with a hostile name."""
    for seed, name in enumerate(NAMES):
        draw_photo(folder / "Pictures" / name, seed)
    library = Library.open(folder / "library" / "photos.sqlite", create=True)
    library.index([folder / "Pictures"], encoder=encoder, thumbnails=thumbnails)
    return library


def ids_of(library: Library) -> dict[str, int]:
    """Return the ids of the photographs by their names below the root."""
    with library.database.reading() as connection:
        rows = connection.execute("SELECT path, content FROM files").fetchall()
    return {os.fsdecode(path): content for path, content in rows}
