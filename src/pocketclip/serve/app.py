"""The apps of a server: its own, and the one that immich speaks to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Route

from pocketclip._version import __version__
from pocketclip.serve.errors import RequestError
from pocketclip.serve.inputs.immich_entries import Remarks
from pocketclip.serve.inputs.upstream import Upstream
from pocketclip.serve.middleware.access import Access
from pocketclip.serve.middleware.admission import Admission
from pocketclip.serve.middleware.answers import ErrorForm, answer_error, detail_form, openai_form
from pocketclip.serve.monitoring.observation import Observation
from pocketclip.serve.openapi import Api
from pocketclip.serve.routes import (
    browse,
    classify,
    immich,
    knn,
    library,
    models,
    openai,
    pages,
    photos,
    session,
    status,
    zero_shot,
)  # fmt: skip
from pocketclip.serve.services import Services

ROUTERS: tuple[APIRouter, ...] = (
    openai.router, zero_shot.router, classify.router, library.router, photos.router,
    browse.router, knn.router, models.router, session.router, status.router, pages.router,
)  # fmt: skip
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
    app = main_routes(needs_key=services.settings.api_key is not None)
    app.state.services = services
    pages.make_pages(services.web)
    # The one that is added last is the outermost one.
    app.add_middleware(Admission, services=services)
    app.add_middleware(Access, services=services)
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
        Admission, services=services, waits=True, form=detail_form,
        deadline=services.settings.limits.immich_deadline,
    )  # fmt: skip
    app.add_middleware(Access, services=services, pages=False)
    app.add_middleware(
        Observation, services=services, port="immich", templates=_templates(IMMICH_ROUTERS)
    )
    return app


def main_routes(*, needs_key: bool = True) -> FastAPI:
    """Return the routes of the server's own app, which answer when `app.state.services` is set.

    Args:
        needs_key: whether the server has a key, for the OpenAPI document.
    """
    app = Api(
        needs_key=needs_key,
        title="pocketclip", version=__version__, description=_ABOUT,
        summary="Embeddings, classification and search",
    )  # fmt: skip
    return _prepared(app, ROUTERS, openai_form)


def immich_routes() -> FastAPI:
    """Return the routes of immich's port; as `main_routes`."""
    app = Api(
        immich=True, title="pocketclip for immich", version=__version__,
        description=_ABOUT_IMMICH, summary="immich's machine-learning service", openapi_url=None,
        redirect_slashes=False,
    )  # fmt: skip
    return _prepared(app, IMMICH_ROUTERS, detail_form)


def _prepared(app: FastAPI, routers: Sequence[APIRouter], form: ErrorForm) -> FastAPI:
    app.router.redirect_slashes = False
    app.state.error_form = form
    app.state.missing_page = pages.missing_page if form is openai_form else lambda _: None
    app.state.methods = _methods(routers)
    for error in (RequestError, RequestValidationError, HTTPException):
        app.add_exception_handler(error, answer_error)
    for router in routers:
        app.include_router(router)
    return app


def openapi_documents() -> dict[str, dict[str, Any]]:
    """Return the OpenAPI documents of the server's own app, `main`, and of immich's port."""
    return {"main": main_routes().openapi(), "immich": immich_routes().openapi()}


def _methods(routers: Sequence[APIRouter]) -> dict[str, str]:
    """Return the methods of each path, as the header `Allow` has them."""
    found: dict[str, set[str]] = {"/openapi.json": {"GET", "HEAD"}}
    for route in (route for one in routers for route in one.routes):
        assert isinstance(route, Route)
        found.setdefault(route.path, set()).update(route.methods or ())
    return {path: ", ".join(sorted(methods)) for path, methods in found.items()}


def _templates(routers: Sequence[APIRouter]) -> list[str]:
    """Return the paths of all routes, as they are written there."""
    return list(_methods(routers))
