"""Small pictures of what is shown, made when they are first needed.

They are kept in the library's `derived` folder by the hash of the photograph's bytes, for the user
only, without the photograph's metadata. A damaged one is made again, and a folder that cannot be
written to only costs time.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from pocketclip.errors import ImageError, PocketclipError
from pocketclip.search.records import Hit
from pocketclip.search.store.location import Location, private_file, private_folder
from pocketclip.storage.local import write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 320
"""The longer side, in pixels."""
_MAX_BYTES = 1 << 18  # of a thumbnail
_MAX_PROFILE = 1 << 13  # bytes
_QUALITY = 80
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
    file = thumbnail_file(location, digest)
    kept = _read_kept(file) if current else None
    if kept is not None:
        return kept
    data = _make(path, digest)
    if data is not None:
        with contextlib.suppress(OSError, PocketclipError):
            _keep(file, data)
    return data


def thumbnail_file(location: Location, digest: bytes) -> Path:
    """Return where the thumbnail of a content is kept."""
    name = digest.hex()
    return location.derived / "thumbnails" / name[:2] / f"{name}.jpg"


def _read_kept(file: Path) -> bytes | None:
    from pocketclip.images import open_image

    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES or max(open_image(data, max_pixels=SIDE**2).size) > SIDE:
            return None
    except (OSError, ImageError):
        return None
    return data


def _make(path: Path, digest: bytes) -> bytes | None:
    from PIL import Image

    from pocketclip.images import MAX_FILE, open_image
    from pocketclip.search.indexing.reading import content_digest

    try:
        if path.stat().st_size > MAX_FILE or not path.is_file():
            return None
        data = path.read_bytes()
        if content_digest(data) != digest:
            return None
        # Of a large JPEG only a fraction is decoded.
        profiles: list[bytes | None] = []
        image = open_image(
            data, least_side=SIDE, on_header=lambda header: profiles.append(_profile(header))
        )
    except (OSError, ImageError):
        return None
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    image.info = {}  # Pillow would write the comment again
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY, icc_profile=profiles[0])
    return stream.getvalue()


def _profile(header: Image) -> bytes | None:
    """Return what the colours of an RGB image mean, as phones note it; without it they are dull."""
    profile = header.info.get("icc_profile")
    if header.mode != "RGB" or not isinstance(profile, bytes) or profile[16:20] != b"RGB ":
        return None
    return profile if len(profile) <= _MAX_PROFILE else None


def _keep(file: Path, data: bytes) -> None:
    private_folder(file.parent)
    with write_whole(file, tidy=False) as temporary:
        private_file(temporary)
        temporary.write_bytes(data)
