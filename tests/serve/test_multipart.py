"""Uploads are read whole, in memory, and refused when they are damaged."""

from __future__ import annotations

import asyncio
import tempfile
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from pocketclip.serve.errors import RequestError
from pocketclip.serve.inputs.multipart import Form, read_multipart

MANY = "headers|damaged"  # by us or by the parser
PHOTO = b"\xff\xd8\xff\r\n--not the boundary\r\n" + bytes(range(256)) * 8192  # 2 MB


def read(request: httpx.Request, max_parts: int = 8, pieces: int = 1) -> Form:
    body = request.read()
    size = max(1, len(body) // pieces)
    chunks = [body[start : start + size] for start in range(0, len(body), size)]

    async def receive() -> Any:
        chunk = chunks.pop(0) if chunks else b""
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

    headers = [(name.lower(), value) for name, value in request.headers.raw]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
    return asyncio.run(read_multipart(Request(scope, receive), max_parts=max_parts))


def upload(**parts: Any) -> httpx.Request:
    return httpx.Request("POST", "http://host/", **parts)


@pytest.mark.parametrize("pieces", [1, 7])
def test_parts_are_returned_as_they_were_sent(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an upload is kept in memory")

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", refuse)
    files = [("image", ("é.jpg", PHOTO, "image/JPEG")), ("image", ("b", b"", "text/plain"))]
    request = upload(files=files, data={"labels": ["a cat", "ein Hühnchen", ""]})
    form = read(request, pieces=pieces)
    assert form.files("image") == [PHOTO, b""]
    assert form.texts("labels") == ["a cat", "ein Hühnchen", ""]
    assert form.files("other") == []
    by_name = {part.filename: part.content_type for part in form.parts}
    assert by_name == {"é.jpg": "image/jpeg", "b": "text/plain", None: ""}


def test_damaged_uploads_are_refused() -> None:
    whole = upload(files={"image": ("a", b"photo")}, data={"text": "x"})
    kind, body = whole.headers["content-type"], whole.read()
    for content, headers, status, about in [
        (body[:-9], kind, 400, "cut off"),
        (body[:30], kind, 400, "cut off"),
        (b"", kind, 400, "cut off"),
        (b"nonsense", kind, 400, "damaged"),
        (body.replace(b"name=", b"game="), kind, 400, "no name"),
        (body, "multipart/form-data", 400, "boundary"),
        (body, "multipart/form-data; boundary=" + "x" * 300, 400, "damaged"),
        (body, "application/json", 415, "multipart/form-data"),
        (
            body.replace(b"\r\n\r\n", b"\r\na: b" * 20 + 2 * b"\r\n"),
            kind,
            400,
            "headers|damaged",
        ),
        (
            body.replace(b"\r\n\r\n", b"\r\na: " + b"b" * 9000 + b"\r\n\r\n"),
            kind,
            400,
            "headers|damaged",
        ),
    ]:
        with pytest.raises(RequestError, match=about) as caught:
            read(upload(content=content, headers={"content-type": headers}))
        assert caught.value.status == status


def test_the_number_of_parts_is_limited() -> None:
    request = upload(data={"labels": [str(n) for n in range(9)]}, files={"a": b""})
    assert len(read(request, max_parts=10).parts) == 10
    with pytest.raises(RequestError, match="more than 9 parts"):
        read(request, max_parts=9)


def test_a_text_must_be_utf8_and_a_name_known() -> None:
    form = read(upload(files={"labels": ("l", b"\xff")}))
    with pytest.raises(RequestError, match="not UTF-8"):
        form.texts("labels")
    form.check_names("labels", "image")
    with pytest.raises(RequestError, match="unknown name; the names here are image, text"):
        form.check_names("image", "text")
