"""The page for people: it lets a browser in, and says what the server has."""

from __future__ import annotations

import base64
import functools
import hashlib
import re

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from pocketclip.pages.render import render

router = APIRouter(tags=["pages"])

_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; style-src {style}; script-src {script}"
)


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
    """Return a page that asks for the key, if there is one, and says what the server has.

    It begins a session with the token that may stand in the fragment of its address.
    """
    page, policy = _start_page()
    return HTMLResponse(page, headers={"Content-Security-Policy": policy})


@functools.cache
def _start_page() -> tuple[str, str]:
    """Return the page, and the policy that lets run what stands in it, and nothing else."""
    page = render("start.html", "pocketclip.serve", title="pocketclip")
    sources = {name: _hashes(page, name) for name in ("style", "script")}
    return page, _POLICY.format(**sources)


def _hashes(page: str, element: str) -> str:
    """Return the sources that allow the elements of a page, by their hashes."""
    contents = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
    digests = (hashlib.sha256(content.encode()).digest() for content in contents)
    return " ".join(f"'sha256-{base64.b64encode(one).decode()}'" for one in digests)
