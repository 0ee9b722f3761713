"""The web pages and their files. They hold nothing secret, and need no key."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from starlette.responses import FileResponse

from pocketclip.pages.web_files import PAGES, media_type, web_files
from pocketclip.serve.errors import RequestError

router = APIRouter(tags=["pages"])

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' 'wasm-unsafe-eval'",
        "worker-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""The content security policy of pages and workers."""
_ISOLATED = {
    # Threads of WebAssembly share memory, which browsers allow to isolated pages only.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Content-Security-Policy": POLICY,
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}
_FOR_EVER = "public, max-age=31536000, immutable"


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
async def start_page() -> HTMLResponse:
    """Return the page that leads to the others.

    It begins a session with the token that may stand in the fragment of its address, as all pages
    do.
    """
    return _page("index")


async def page(request: Request) -> HTMLResponse:
    """Return a page."""
    return _page(request.url.path[1:].removesuffix(".html"))


for _name in PAGES:
    router.add_api_route(f"/{_name}.html", page, methods=["GET"], include_in_schema=False)


def _page(name: str) -> HTMLResponse:
    html = web_files().page(name, server=True)
    return HTMLResponse(html, headers={**_ISOLATED, "Cache-Control": "no-cache"})


@router.get("/assets/{path:path}", include_in_schema=False)
@router.get("/vendor/{path:path}", include_in_schema=False)
async def asset(request: Request) -> Response:
    """Return a file whose address changes with it."""
    return _file(request.url.path[1:], _FOR_EVER)


@router.get("/sw.js", include_in_schema=False)
@router.get("/manifest.webmanifest", include_in_schema=False)
async def named_file(request: Request) -> Response:
    """Return a file that keeps its address."""
    return _file(request.url.path[1:], "no-cache")


def _file(name: str, keep: str) -> Response:
    path = web_files().files.get(name)
    if path is None:
        raise RequestError(404, "there is no such file", code="not_found")
    # A worker has the policy of its own file.
    headers = {**_ISOLATED, "Cache-Control": keep}
    return FileResponse(path, media_type=media_type(name), headers=headers)
