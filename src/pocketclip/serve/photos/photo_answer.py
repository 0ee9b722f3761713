"""Answers that are files: a photograph from its descriptor, a thumbnail from memory.

Both have the hash of the photograph as their ETag, and belong to one user: shared caches keep
neither. A photograph is sent in pieces, whole or one range of it (RFC 9110, section 14), so its
size costs no memory.
"""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from urllib.parse import quote

from fastapi.responses import Response
from starlette.requests import Request

from pocketclip.formats.escaping import escape_controls
from pocketclip.search.photo_file import PhotoFile
from pocketclip.serve.errors import RequestError
from pocketclip.serve.file_answer import PieceAnswer, client_has
from pocketclip.serve.photos.workers import Workers

MEDIA_TYPES = {
    "JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp",
    "GIF": "image/gif", "BMP": "image/bmp", "TIFF": "image/tiff", "HEIF": "image/heic",
    "AVIF": "image/avif", "JPEG2000": "image/jp2",
}  # fmt: skip
"""By the format that indexing found. Others are sent as bytes to be saved."""
OTHER_TYPE = "application/octet-stream"
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_MAX_NAME = 150  # characters of a file name; more than file systems allow, if they are ASCII
_SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def thumbnail_answer(request: Request, data: bytes, digest: bytes) -> Response:
    """Return the answer with a thumbnail, or that it is the one that the client has (304).

    Args:
        request: with its conditions.
        data: a JPEG.
        digest: of the photograph.

    Raises:
        RequestError: 412, `If-Match` names another one.
    """
    etag = f'"t-{digest.hex()}"'
    headers = {**_SAFE, "ETag": etag, "Cache-Control": "private, max-age=3600"}
    if client_has(request, etag):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type="image/jpeg", headers=headers)


def photo_answer(request: Request, photo: PhotoFile, workers: Workers) -> Response:
    """Return the answer with a photograph, or a range of it; it closes the photograph.

    Args:
        request: GET or HEAD, with its conditions and its range.
        photo: opened.
        workers: read it.

    Raises:
        RequestError: 412, `If-Match` names another one; 416, it has no such range.
    """
    try:
        return _photo_answer(request, photo, workers)
    except BaseException:
        photo.close()
        raise


def _photo_answer(request: Request, photo: PhotoFile, workers: Workers) -> Response:
    etag = f'"{photo.digest.hex()}"'
    kind = MEDIA_TYPES.get(photo.format or "", OTHER_TYPE)
    headers = {
        **_SAFE, "ETag": etag, "Cache-Control": "private, no-cache", "Accept-Ranges": "bytes",
        "Content-Disposition": disposition(photo.name, inline=kind != OTHER_TYPE),
    }  # fmt: skip
    if client_has(request, etag):
        photo.close()
        return Response(status_code=304, headers=headers)
    first, end, status = 0, photo.size, 200
    asked = _asked_range(request, etag, photo.size)
    if asked is not None:
        first, end = asked
        if first >= end:
            raise RequestError(
                416, f"the photograph has {photo.size:,} bytes, and none in this range",
                headers={"Content-Range": f"bytes */{photo.size}"},
            )  # fmt: skip
        status = 206
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{photo.size}"
    headers["Content-Type"] = kind
    headers["Content-Length"] = str(end - first)
    return PieceAnswer(
        photo, functools.partial(workers.submit, bounded=False), first, end, status, headers,
        what="a photograph",
    )  # fmt: skip


def _asked_range(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """Return the first byte and the one after the last; None for all, empty if there are none.

    What is not one range of bytes is ignored, as the standard allows.
    """
    found = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    unless = request.headers.get("if-range")
    if request.method != "GET" or found is None or (unless is not None and unless != etag):
        return None
    first, last = found.groups()
    if (not first and not last) or len(first) > 18 or len(last) > 18:
        return None
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1) if last else size


def disposition(name: bytes, *, inline: bool) -> str:
    """Return the header Content-Disposition for a file name, whatever is in it (RFC 6266).

    Args:
        name: as it is on the disk.
        inline: whether it may be shown; else it is to be saved.
    """
    text = escape_controls(os.fsencode(name).decode("utf-8", "replace"))
    text = re.sub(r'[/\\:*?"<>|%]', "_", text)[-_MAX_NAME:].strip(". ") or "photograph"
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    plain = plain.strip(". ") or "photograph"
    kind = "inline" if inline else "attachment"
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(text, safe='')}"
