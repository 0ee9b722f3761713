"""The apps of a server: its own, and the one that immich speaks to."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pocketclip._version import __version__
from pocketclip.errors import ImageError
from pocketclip.serve.errors import RequestError
from pocketclip.serve.immich_entries import Remarks
from pocketclip.serve.routes import immich, status
from pocketclip.serve.services import Services
from pocketclip.serve.upstream import Upstream


def create_app(services: Services) -> FastAPI:
    """Return the server's own app, for any ASGI server.

    Args:
        services: the model and the rest.
    """
    app = FastAPI(title="pocketclip", version=__version__)
    app.state.services = services
    app.add_exception_handler(RequestError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    app.include_router(status.router)
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
    app = FastAPI(
        title="immich's machine-learning service, by pocketclip", version=__version__,
        openapi_url=None, docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.state.services = services
    app.state.remarks = Remarks()
    for error in (RequestError, ImageError, HTTPException):
        app.add_exception_handler(error, _answer_immich)
    app.include_router(immich.router)
    return app


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


async def _answer_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
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
    return await _answer_error(request, RequestError(error.status_code, str(error.detail)))
