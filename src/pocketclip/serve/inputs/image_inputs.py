"""Images in the JSON of requests: data URIs, base64, and, where it is allowed, https URLs.

    images = await read_images({"input[0]": "data:image/jpeg;base64,..."}, services)

A text never names a file of this machine. Sizes are checked before anything is decoded, and nothing
is fetched before all other inputs of the request have passed.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from pocketclip.serve.errors import RequestError
from pocketclip.serve.services import Services
from pocketclip.serve.settings import Limits

HOW = 'send it as "data:image/jpeg;base64,..." or as plain base64'
_INLINE = 1 << 18  # more characters are decoded in a thread: they take more than a millisecond
_PIECE = 1 << 20
_DATA_URI = re.compile(r"data:(?P<type>[^,;]*)(?P<options>(?:;[^,;]*)*),", re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_LINE_ENDS = b"\r\n"
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_MAX_HEAD = 256  # characters of a data URI before its data
# How the base64 of an image file begins: JPEG, PNG, GIF, WebP, BMP, HEIC, AVIF, TIFF.
_BASE64_IMAGES = (
    "/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "AAAAGGZ0eX", "AAAAHGZ0eX", "AAAAIGZ0eX",
    "AAAAJGZ0eX", "SUkqA", "TU0AK",
)  # fmt: skip


def looks_like_image(text: str) -> bool:
    """Return whether a text is an image in base64, which somebody sent as a text by mistake."""
    if text[:11].lower() == "data:image/":
        return True
    return len(text) > 64 and text.startswith(_BASE64_IMAGES) and not re.search(r"\s", text[:64])


async def read_images(values: Mapping[str, Any], services: Services) -> list[bytes]:
    """Return the image files that a request holds or names, in order.

    That they are images is not checked here: `Engine.embed_images` opens them.

    Args:
        values: the texts of the request, or files of an upload, by the names of their fields, such
            as `input[3]`.
        services: with the limits, and what fetches URLs.

    Raises:
        RequestError: 400, one is no image as we take it, or there are too many; 413, one is too
            large; 429, too many requests wait for images to be fetched.
    """
    limits = services.settings.limits
    check_count(len(values), limits)
    size = sum(len(value) for value in values.values() if isinstance(value, str))
    if size <= _INLINE:
        found = _decoded(values, services)
    else:
        found = await asyncio.to_thread(_decoded, values, services)
    urls = {name: image for name, image in found.items() if isinstance(image, str)}
    if urls:
        assert services.fetcher is not None
        fetched = await services.fetcher.fetch(urls, functools.partial(_hold, services))
        found.update(zip(urls, fetched, strict=True))
    return [image for image in found.values() if isinstance(image, bytes)]


def _hold(services: Services, size: int) -> None:
    """Count bytes as those of a body, until the request is answered."""
    task = asyncio.current_task()
    assert task is not None
    if not services.room.hold(size, services.settings.limits.held_bytes):
        raise RequestError(
            429, "the server holds as many images as it may: try again later", code="held_bytes",
            retry_after=1,
        )  # fmt: skip
    task.add_done_callback(lambda _: services.room.release(size))


def check_count(images: int, limits: Limits) -> None:
    """Refuse a request with too many images.

    Raises:
        RequestError: 400.
    """
    if images > limits.images:
        raise RequestError(
            400, f"{images:,} images in one request; the limit is {limits.images:,}: send several "
            "requests", param="input",
        )  # fmt: skip


def _decoded(values: Mapping[str, Any], services: Services) -> dict[str, bytes | str]:
    """Return images, or URLs that may be fetched."""
    return {name: _decode(value, name, services) for name, value in values.items()}


def _decode(value: Any, name: str, services: Services) -> bytes | str:
    if isinstance(value, bytes):
        if len(value) > services.settings.limits.image_bytes:
            raise _too_large(name, services.settings.limits)
        return value
    if not isinstance(value, str):
        raise RequestError(400, f"{name} is not a text that holds an image: {HOW}", param=name)
    value = value.lstrip() if value[:1].isspace() else value
    if value[:5].lower() == "data:":
        return _decode_data_uri(value, name, services.settings.limits)
    if _SCHEME.match(value[:_MAX_HEAD]):
        if services.fetcher is None:
            raise RequestError(
                400, f"{name} is a URL, and this server fetches no images: {HOW}; the operator can "
                "allow hosts by --fetch-from", param=name,
            )  # fmt: skip
        services.fetcher.check(value, name)
        return value
    return decode_base64(value, name, services.settings.limits)


def _decode_data_uri(value: str, name: str, limits: Limits) -> bytes:
    match = _DATA_URI.match(value[:_MAX_HEAD])
    options = match["options"].lower().replace(" ", "").split(";") if match else []
    if match is None or options[-1:] != ["base64"]:
        raise RequestError(
            400, f"{name} is a data URI without base64: write data:image/jpeg;base64,...",
            param=name,
        )  # fmt: skip
    kind = match["type"].strip().lower()
    if kind and not kind.startswith("image/") and kind != "application/octet-stream":
        raise RequestError(400, f"{name} is a data URI of another type than an image", param=name)
    return decode_base64(value[match.end() :], name, limits)


def decode_base64(text: str, name: str, limits: Limits) -> bytes:
    """Return what a text in base64 holds.

    The alphabet of URLs (`-` and `_`), `%2B` and the like, line ends, and a missing end (`=`) are
    understood; everything else that is not base64 is refused.

    Args:
        text: of the request.
        name: of its field, for the message.
        limits: `image_bytes` is checked before decoding.

    Raises:
        RequestError: 400, it is not base64, or empty; 413, it is too large.
    """
    if len(text) > 4 * limits.image_bytes:
        raise _too_large(name, limits)
    try:
        data = text.encode("ascii").strip()
    except UnicodeEncodeError:
        raise _not_base64(name) from None
    if b"%" in data:
        data = unquote_to_bytes(data)
    data = b"".join(part.translate(_TO_STANDARD, _LINE_ENDS) for part in _parts(data))
    padding = data[-2:].count(b"=")
    if 3 * (len(data) - padding) // 4 > limits.image_bytes:
        raise _too_large(name, limits)
    if not data:
        raise RequestError(400, f"{name} is empty: {HOW}", param=name)
    if not padding:
        data += b"=" * (-len(data) % 4)
    elif data.find(b"=") != len(data) - padding:
        raise _not_base64(name)
    try:
        return b"".join(base64.b64decode(part, validate=True) for part in _parts(data))
    except (binascii.Error, ValueError):
        raise _not_base64(name) from None


def _parts(data: bytes) -> Iterator[bytes]:
    """Yield pieces of data, of a multiple of four bytes: between them, other threads may run."""
    for start in range(0, len(data), _PIECE):
        yield data[start : start + _PIECE]


def _too_large(name: str, limits: Limits) -> RequestError:
    return RequestError(
        413, f"{name} is an image of more than {limits.image_bytes:,} bytes: reduce its size",
        param=name,
    )  # fmt: skip


def _not_base64(name: str) -> RequestError:
    return RequestError(400, f"{name} is not base64: {HOW}", param=name)
