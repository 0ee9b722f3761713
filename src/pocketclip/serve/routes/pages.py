"""The web pages and their files. They hold nothing secret, and need no key."""

from __future__ import annotations

import gzip
import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response

from pocketclip.pages.offline import offline_files
from pocketclip.pages.render import render
from pocketclip.pages.web_files import PAGES, POLICY, TYPES, WebFiles, media_type
from pocketclip.serve.errors import RequestError
from pocketclip.serve.file_answer import FOR_EVER, bytes_answer, file_answer
from pocketclip.serve.services import Services, services_of

router = APIRouter(tags=["pages"])
With = Annotated[Services, Depends(services_of)]

_ISOLATED = {
    # Threads of WebAssembly share memory, which browsers allow to isolated pages only.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Content-Security-Policy": "; ".join((*POLICY, "frame-ancestors 'none'")),
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}
_ASK_AGAIN = "no-cache"
_NO_GZIP = re.compile(r"gzip\s*;\s*q=0(\.0*)?\s*(,|$)")


@router.head("/", include_in_schema=False)
@router.get(
    "/", operation_id="get_start_page", summary="A page for people", response_class=HTMLResponse,
    response_description="The page.",
    responses={
        200: {
            "content": {
                "text/html": {
                    "schema": {"type": "string"}, "example": "<!DOCTYPE html>\n<html>...</html>\n",
                }
            },
        }
    },
)  # fmt: skip
async def start_page(request: Request, services: With) -> Response:
    """Return the page that leads to the others.

    It begins a session with the token that may stand in the fragment of its address, as all pages
    do.
    """
    return _page(request, services, "index")


async def page(request: Request, services: With) -> Response:
    """Return a page."""
    return _page(request, services, request.url.path[1:].removesuffix(".html"))


for _name in PAGES:
    router.add_api_route(f"/{_name}.html", page, methods=["GET", "HEAD"], include_in_schema=False)


@router.head("/assets/{path:path}", include_in_schema=False)
@router.get("/assets/{path:path}", include_in_schema=False)
@router.head("/vendor/{path:path}", include_in_schema=False)
@router.get("/vendor/{path:path}", include_in_schema=False)
async def asset(request: Request, services: With) -> Response:
    """Return a file whose address changes with it."""
    return await _file(request, services.web, f"public, {FOR_EVER}")


@router.head("/sw.js", include_in_schema=False)
@router.get("/sw.js", include_in_schema=False)
@router.head("/manifest.webmanifest", include_in_schema=False)
@router.get("/manifest.webmanifest", include_in_schema=False)
async def named_file(request: Request, services: With) -> Response:
    """Return the service worker or the manifest, which keep their addresses."""
    name = request.url.path[1:]
    return _answer(request, _offline(services.web)[name], media_type(name), _ASK_AGAIN)


def make_pages(site: WebFiles) -> None:
    """Make the pages and the service worker, so that all are of the version that now runs."""
    for name in PAGES:
        _rendered(site, name)
    _offline(site)


def missing_page(request: Request) -> Response | None:
    """Return the page for an address with nothing behind it; None for others than people."""
    if request.method != "GET" or "text/html" not in request.headers.get("accept", ""):
        return None
    services: Services = request.app.state.services
    root = "../" * (request.url.path.count("/") - 1)
    html = render("missing.html", "pocketclip.web", root=root, assets=services.web.assets)
    return HTMLResponse(html, 404, headers=_ISOLATED)


def _page(request: Request, services: Services, name: str) -> Response:
    return _answer(request, _rendered(services.web, name), "text/html; charset=utf-8", _ASK_AGAIN)


async def _file(request: Request, site: WebFiles, keep: str) -> Response:
    name = request.url.path[1:]
    kind = media_type(name)
    content = site.files.get(name)
    if content is None:
        raise RequestError(404, "there is no such file", code="not_found")
    if Path(name).suffix in TYPES and not kind.startswith("image/png"):
        return _answer(request, _text_file(site, name), kind, keep)
    # A worker has the policy of its own file.
    headers = {**_ISOLATED, "Content-Type": kind, "Cache-Control": keep}
    etag = f'"{hashlib.sha256(name.encode()).hexdigest()[:16]}"'  # its address is of its content
    if isinstance(content, bytes):
        return bytes_answer(request, content, etag, headers)
    return await file_answer(request, content.path, etag, headers, content.is_it)


class _Text(NamedTuple):
    """A text that is sent compressed to whoever takes it so."""

    plain: bytes
    packed: bytes
    etag: str


def _answer(request: Request, text: _Text, kind: str, keep: str) -> Response:
    headers = {
        **_ISOLATED, "Content-Type": kind, "Cache-Control": keep, "Vary": "Accept-Encoding"
    }  # fmt: skip
    accepted = ", ".join(request.headers.getlist("accept-encoding")).lower()
    if "gzip" not in accepted or _NO_GZIP.search(accepted):
        return bytes_answer(request, text.plain, f'"{text.etag}"', headers)
    headers["Content-Encoding"] = "gzip"
    return bytes_answer(request, text.packed, f'W/"{text.etag}"', headers)


@lru_cache(maxsize=64)
def _rendered(site: WebFiles, name: str) -> _Text:
    return _text(site.page(name, server=True).encode())


@lru_cache(maxsize=8)
def _offline(site: WebFiles) -> dict[str, _Text]:
    return {name: _text(data) for name, data in offline_files(site, server=True).items()}


@lru_cache(maxsize=256)
def _text_file(site: WebFiles, name: str) -> _Text:
    return _text(site.content(name))


def _text(content: bytes) -> _Text:
    packed = gzip.compress(content, 9, mtime=0)
    return _Text(content, packed, hashlib.sha256(content).hexdigest()[:16])
