"""The apps of a server: its own, and the one that immich speaks to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pocketclip._version import __version__
from pocketclip.errors import ImageError
from pocketclip.serve.errors import RequestError
from pocketclip.serve.exchange import note_drop
from pocketclip.serve.immich_entries import Remarks
from pocketclip.serve.observation import Observation
from pocketclip.serve.openapi import Api
from pocketclip.serve.routes import immich, status
from pocketclip.serve.services import Services
from pocketclip.serve.upstream import Upstream

ROUTERS: tuple[APIRouter, ...] = (status.router,)
"""Of the server's own app, in the order of the documentation."""
IMMICH_ROUTERS: tuple[APIRouter, ...] = (immich.router,)
"""Of immich's port."""
_ABOUT = """Embeddings of images and texts in one space, zero-shot classification, and search in \
photographs. Each request has one answer; nothing is kept of its contents.

An error has a body in OpenAI's form, `{"error": {"message", "type", "param", "code"}}`. With a \
status of 429 or 503 comes the header `Retry-After`.
"""
_ABOUT_IMMICH = """What immich asks its machine-learning service for smart search. Set it in \
immich as the URL of machine learning. It has a port of its own, and no key."""


def create_app(services: Services) -> FastAPI:
    """Return the server's own app, for any ASGI server.

    Args:
        services: the model and the rest.
    """
    app = main_routes()
    app.state.services = services
    # The one that is added last is the outermost one.
    app.add_middleware(Observation, services=services, port="main", templates=_templates(ROUTERS))
    return app


def create_immich_app(services: Services) -> FastAPI:
    """Return the app that immich speaks to, which has its machine-learning routes and no others.

    Args:
        services: the model and the rest.

    Raises:
        ConfigError: `upstream` of the settings is no URL.
    """
    url = services.settings.upstream
    if url is not None:
        services.upstream = Upstream(url, services.settings.limits)
    app = immich_routes()
    app.state.services = services
    app.state.remarks = Remarks()
    app.add_middleware(
        Observation, services=services, port="immich", templates=_templates(IMMICH_ROUTERS)
    )
    return app


def main_routes() -> FastAPI:
    """Return the routes of the server's own app, which answer when `app.state.services` is set."""
    app = Api(
        title="pocketclip", version=__version__, description=_ABOUT,
        summary="Embeddings, classification and search",
    )  # fmt: skip
    app.add_exception_handler(RequestError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    for router in ROUTERS:
        app.include_router(router)
    return app


def immich_routes() -> FastAPI:
    """Return the routes of immich's port; as `main_routes`."""
    app = Api(
        immich=True, title="pocketclip for immich", version=__version__,
        description=_ABOUT_IMMICH, summary="immich's machine-learning service", openapi_url=None,
    )  # fmt: skip
    for error in (RequestError, ImageError, HTTPException):
        app.add_exception_handler(error, _answer_immich)
    for router in IMMICH_ROUTERS:
        app.include_router(router)
    return app


def openapi_documents() -> dict[str, dict[str, Any]]:
    """Return the OpenAPI documents of the server's own app, `main`, and of immich's port."""
    return {"main": main_routes().openapi(), "immich": immich_routes().openapi()}


def _templates(routers: Sequence[APIRouter]) -> list[str]:
    """Return the paths of all routes, as they are written there."""
    return ["/openapi.json", *(route.path for one in routers for route in one.routes)]  # type: ignore[attr-defined]


def _immich_form(error: RequestError) -> dict[str, Any]:
    """Return the body of an error in the form of immich's service."""
    return {"detail": str(error)}


async def _answer_immich(_request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, ImageError):
        error = RequestError(400, str(error))
    elif isinstance(error, HTTPException):
        error = RequestError(error.status_code, str(error.detail))
    assert isinstance(error, RequestError)
    return JSONResponse(_immich_form(error), error.status, error.headers)


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    if error.code == "queue_full":
        note_drop(request.scope, "queue_full")
    return JSONResponse(error.body(), error.status, error.headers)


async def _answer_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    return await _answer_error(
        request, RequestError(422, f"{place}: {first['msg']}" if place else first["msg"],
                              param=place or None)
    )  # fmt: skip


async def _answer_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    answer = await _answer_error(request, RequestError(error.status_code, str(error.detail)))
    answer.headers.update(error.headers or {})
    return answer
