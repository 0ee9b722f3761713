"""The apps of a server: its own, and the one that immich speaks to."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pocketclip._version import __version__
from pocketclip.serve.errors import RequestError
from pocketclip.serve.routes import status
from pocketclip.serve.services import Services


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
