"""Sessions of browsers: a one-time token, or the key, is exchanged for a cookie."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from pocketclip.serve.errors import RequestError
from pocketclip.serve.middleware.access import (
    address_of,
    cookie_names,
    is_encrypted,
    session_of,
    unauthorized,
)  # fmt: skip
from pocketclip.serve.middleware.sessions import SESSION_SECONDS, TOKEN_SECONDS
from pocketclip.serve.schema import Schema, StrictSchema, errors, example
from pocketclip.serve.services import Services, services_of

router = APIRouter(tags=["session"])

With = Annotated[Services, Depends(services_of)]


class NewSession(StrictSchema):
    """What a session is begun with: a token or the key."""

    model_config = example({"token": "dGhpcyBpcyBubyB0b2tlbiwgYnV0IGl0IGxvb2tzIGxpa2U"})

    token: str | None = Field(None, max_length=200)
    """Of a link that the server printed or made; it is void then."""
    key: str | None = Field(None, max_length=4096)
    """The server's key."""


class SessionState(Schema):
    """Whether the browser may use the server."""

    model_config = example({"required": True, "active": True})

    required: bool
    """Whether the server asks for a key or a session."""
    active: bool
    """Whether the request belongs to a session."""


class SessionLink(Schema):
    """What begins a session in another browser."""

    model_config = example(
        {"token": "dGhpcyBpcyBubyB0b2tlbiwgYnV0IGl0IGxvb2tzIGxpa2U", "expires_in": 600}
    )

    token: str
    """For the fragment of the server's address: `http://host:port/#token=...`."""
    expires_in: int
    """Seconds; after its first use, it is void too."""


@router.get("/session", operation_id="get_session", summary="Whether there is a session",
            response_model=SessionState, response_description="Whether there is.")  # fmt: skip
async def get_session(request: Request, services: With) -> SessionState:
    """Say whether a key is needed, and whether the cookie that was sent is of a session."""
    active = session_of(request.scope, services) is not None
    return SessionState(required=services.keys.is_required, active=active)


@router.post(
    "/session", operation_id="begin_session", summary="Begin a session",
    response_model=SessionState, response_description="There is one now, and its cookie.",
    responses=errors(401, 422, 429),
)  # fmt: skip
async def begin_session(
    body: NewSession, request: Request, response: Response, services: With
) -> SessionState:
    """Exchange a token, or the key, for the cookie of a session.

    The cookie cannot be read by scripts (`HttpOnly`) and is sent by the server's own pages only
    (`SameSite=Strict`); under TLS it is never sent without it. A session ends after 30 days, or
    with the server. A server without a key needs none, and sets none.
    """
    if (body.token is None) == (body.key is None):
        raise RequestError(422, "give a token or a key, one of them", param="token")
    if not services.keys.is_required:
        return SessionState(required=False, active=False)
    if body.token is not None:
        secret = services.sessions.redeem(body.token)
        if secret is None:
            raise unauthorized("this link was used before, or it is older than ten minutes; give "
                               "the key instead")  # fmt: skip
    else:
        key = str(body.key).encode("utf-8", "surrogatepass")
        if not services.keys.accepts(key, address_of(request.scope)):
            raise unauthorized("this is not the server's key")
        secret = services.sessions.begin()
    _set_cookie(response, request, secret, SESSION_SECONDS)
    return SessionState(required=True, active=True)


@router.delete("/session", operation_id="end_session", summary="End the session",
               response_model=SessionState, response_description="There is none now.")  # fmt: skip
async def end_session(request: Request, response: Response, services: With) -> SessionState:
    """End the session of the cookie that was sent, and remove the cookie."""
    secret = session_of(request.scope, services)
    if secret is not None:
        services.sessions.end(secret)
        _set_cookie(response, request, "", 0)
    return SessionState(required=services.keys.is_required, active=False)


@router.post(
    "/session/links", operation_id="create_session_link", summary="Let another browser in",
    response_model=SessionLink, response_description="The token.",
    responses=errors(409, s409="The server has no key."),
)  # fmt: skip
async def create_session_link(services: With) -> SessionLink:
    """Return a token with which another browser begins a session, without knowing the key."""
    if not services.keys.is_required:
        raise RequestError(409, "the server has no key; its address is enough", code="no_key")
    return SessionLink(token=services.sessions.new_token(), expires_in=int(TOKEN_SECONDS))


def _set_cookie(response: Response, request: Request, value: str, seconds: float) -> None:
    encrypted = is_encrypted(request.scope)
    response.set_cookie(
        cookie_names(request.scope)[encrypted], value, max_age=int(seconds), path="/",
        secure=encrypted, httponly=True, samesite="strict",
    )  # fmt: skip
