"""Who is answered: hosts, origins, keys and sessions, as a pure ASGI middleware.

| what | answer |
|---|---|
| a `Host` that is no IP address, localhost or allowed name: it may be another site's | 421 |
| a page of another origin, that `cors` does not name | 403 |
| no key and no session, where the server has a key | 401 |

A browser sends with each request which page made it, `Origin` or `Sec-Fetch-Site`. Without a key,
everyone on this machine is answered, but not the web pages that they look at. A key proves more
than an origin, as no page can send one without having it; a cookie does not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocketclip.pages.web_files import PAGES
from pocketclip.serve.addresses import machine_names
from pocketclip.serve.errors import RequestError
from pocketclip.serve.middleware.admission import ALWAYS_ANSWERED
from pocketclip.serve.middleware.answers import (
    ErrorForm,
    detail_form,
    header_values,
    openai_form,
    refuse,
)
from pocketclip.serve.origins import (
    allowed_name,
    host_name,
    is_address,
    is_local,
    is_same_origin,
    normal_origin,
)  # fmt: skip
from pocketclip.serve.services import Services

OPEN = frozenset(
    {"/", "/livez", "/readyz", "/session", "/sw.js", "/manifest.webmanifest"}
    | {f"/{name}.html" for name in PAGES}
)
"""Paths that need neither key nor session."""
COOKIE = "pocketclip_session"
"""The cookie's name; the port follows, and under TLS `__Host-` stands before it."""

_FILES = ("/photos/", "/thumbnails/", "/model-files/", "/label-sets/")
_OPEN_FOLDERS = ("/assets/", "/vendor/")  # the pages' own files, which are the same everywhere
_PROBES = ALWAYS_ANSWERED & OPEN  # what asks them may use any name
_MOST_HEADERS = 50
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_ALLOWED_HEADERS = ("Authorization", "Content-Type")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
_CORS = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Max-Age": "600",
}

Origin = Literal["none", "same", "listed", "foreign"]
"""Whose page makes a request: nobody's or unknown, ours, one that `cors` names, another one."""


class Access:
    """Lets requests through to an app.

    Args:
        app: what answers.
        services: with the settings, the key and the sessions.
        pages: whether browsers are answered at all; if not, as on immich's port, no key is asked
            for.
    """

    def __init__(self, app: ASGIApp, services: Services, *, pages: bool = True) -> None:
        settings = services.settings
        self._app, self._services, self._pages = app, services, pages
        self._form: ErrorForm = openai_form if pages else detail_form
        own = settings.host if pages or settings.immich is None else settings.immich[0]
        names = (allowed_name(name) for name in (*settings.allow_hosts, own))
        self._names = {name for name in names if name}
        if settings.tls and pages:
            # Its certificate is for them. Over plain HTTP, anybody in the local network could make
            # such a name of a page of theirs lead here.
            self._names.update(machine_names())
        self._listed = {one for one in map(normal_origin, settings.cors) if one}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = self._origin(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._add_headers(MutableHeaders(scope=message), scope, origin)
            await send(message)

        try:
            if scope["path"] not in _PROBES:
                self._check_host(scope)
                if self._pages and _is_preflight(scope):
                    await self._answer_preflight(scope, origin, send_with_headers)
                    return
                self._check(scope, origin)
        except RequestError as error:
            await refuse(scope, send_with_headers, error, self._form)
        else:
            await self._app(scope, receive, send_with_headers)

    # Hosts and origins

    def _check_host(self, scope: Scope) -> None:
        hosts = header_values(scope["headers"], b"host")
        name = host_name(hosts[0].decode("latin-1")) if len(hosts) == 1 else None
        if name is None:
            raise RequestError(400, "the request needs one header Host, with a name or address")
        known = is_address(name) or is_local(name) or name in self._names
        if not known:
            raise RequestError(
                421, "the server does not answer to the name in the header Host; if it is the "
                "server's, start it with --allow-host NAME", code="unknown_host",
            )  # fmt: skip

    def _origin(self, scope: Scope) -> Origin:
        headers = scope["headers"]
        origins = header_values(headers, b"origin")
        if not origins:
            return "none"
        origin = normal_origin(origins[0].decode("latin-1")) if len(origins) == 1 else None
        hosts = header_values(headers, b"host")
        if origin is None or len(hosts) != 1:
            return "foreign"
        if is_same_origin(origin, scope["scheme"], hosts[0].decode("latin-1")):
            return "same"
        return "listed" if origin in self._listed else "foreign"

    def _check(self, scope: Scope, origin: Origin) -> None:
        """Refuse pages of other origins, and requests without a key."""
        if not self._pages:
            if origin != "none" or _is_of_another_site(scope):
                raise _foreign("this port is not for web pages")
            return
        has_key = self._has_key(scope)
        if not has_key:
            self._check_page(scope, origin)
        path = scope["path"]
        is_open = path in OPEN or path.startswith(_OPEN_FOLDERS)
        if is_open or has_key or not self._services.keys.is_required:
            return
        # Ports of one host share cookies: those of a page elsewhere do not count.
        if origin in ("none", "same") and session_of(scope, self._services) is not None:
            return
        raise unauthorized("this server needs its key: send the header Authorization: Bearer KEY")

    def _check_page(self, scope: Scope, origin: Origin) -> None:
        if origin == "foreign":
            raise _foreign("pages of this origin may not use the server; if they shall, start it "
                           "with --cors ORIGIN")  # fmt: skip
        if scope["path"].startswith("/session") and origin == "listed":
            raise _foreign("sessions are for the server's own pages; send the key instead")
        if origin != "none" or not _is_of_another_site(scope):
            return
        if scope["path"].startswith(_FILES) or not _is_visit(scope):
            raise _foreign("pages elsewhere may not use the server")

    # Keys

    def _has_key(self, scope: Scope) -> bool:
        values = header_values(scope["headers"], b"authorization")
        keys = self._services.keys
        if len(values) != 1 or not keys.is_required:
            return False
        scheme, _, given = values[0].partition(b" ")
        if scheme.lower() != b"bearer":
            return False
        return keys.accepts(given.strip(), address_of(scope))

    # Headers of answers

    def _add_headers(self, headers: MutableHeaders, scope: Scope, origin: Origin) -> None:
        for name, value in _HEADERS.items():
            headers.setdefault(name, value)
        if self._listed:
            headers.add_vary_header("Origin")
        if origin == "listed":
            sent = header_values(scope["headers"], b"origin")[0].decode("latin-1")
            headers["Access-Control-Allow-Origin"] = sent
            headers["Access-Control-Expose-Headers"] = "Retry-After, X-Request-Id"

    async def _answer_preflight(self, scope: Scope, origin: Origin, send: Send) -> None:
        """Tell a browser whether a page may send its request."""
        if origin not in ("listed", "same"):
            raise _foreign("pages of this origin may not use the server; if they shall, start it "
                           "with --cors ORIGIN")  # fmt: skip
        asked = header_values(scope["headers"], b"access-control-request-headers")
        allowed = ", ".join(_names_of_headers(asked))
        answer = {**_CORS, "Access-Control-Allow-Headers": allowed, "Content-Length": "0"}
        if header_values(scope["headers"], b"access-control-request-private-network"):
            answer["Access-Control-Allow-Private-Network"] = "true"
        headers = [(name.lower().encode(), value.encode()) for name, value in answer.items()]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body"})


def session_of(scope: Scope, services: Services) -> str | None:
    """Return the secret of the session that a request belongs to; None if it belongs to none."""
    names = cookie_names(scope)
    for cookies in header_values(scope["headers"], b"cookie"):
        for cookie in cookies.decode("latin-1").split(";"):
            name, _, value = cookie.strip().partition("=")
            if name in names and services.sessions.holds(value):
                return value
    return None


def cookie_names(scope: Scope) -> tuple[str, str]:
    """Return the names of a session's cookie: without TLS, and with it.

    Browsers send a cookie to all ports of a host, so that servers beside each other would take
    each other's; hence the port in its name.
    """
    hosts = header_values(scope["headers"], b"host")
    _, _, port = hosts[0].decode("latin-1").rpartition(":") if hosts else ("", "", "")
    name = f"{COOKIE}_{port}" if port.isdecimal() and port.isascii() else COOKIE
    return name, f"__Host-{name}"


def is_encrypted(scope: Scope) -> bool:
    """Return whether the browser speaks TLS, with the server or with a proxy before it."""
    origins = header_values(scope["headers"], b"origin")
    return scope["scheme"] == "https" or any(one.startswith(b"https:") for one in origins)


def address_of(scope: Scope) -> str | None:
    """Return the IP address that a request came from, if it came from one."""
    client = scope.get("client")
    return client[0] if client else None


def unauthorized(message: str) -> RequestError:
    """Return the answer to a request without a key, or with a wrong one."""
    return RequestError(
        401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
    )


def _foreign(message: str) -> RequestError:
    return RequestError(403, message, code="foreign_origin")


def _is_of_another_site(scope: Scope) -> bool:
    """Return whether a browser says that a page elsewhere makes a request."""
    sites = header_values(scope["headers"], b"sec-fetch-site")
    return any(one in (b"cross-site", b"same-site") for one in sites)


def _is_visit(scope: Scope) -> bool:
    """Return whether somebody followed a link: the page it was on sees nothing of the answer."""
    headers = scope["headers"]
    return (
        scope["method"] in ("GET", "HEAD")
        and header_values(headers, b"sec-fetch-mode") == [b"navigate"]
        and header_values(headers, b"sec-fetch-dest") == [b"document"]
    )


def _is_preflight(scope: Scope) -> bool:
    asked = header_values(scope["headers"], b"access-control-request-method")
    return scope["method"] == "OPTIONS" and bool(asked)


def _names_of_headers(asked: Sequence[bytes]) -> list[str]:
    """Return the headers that a listed page may send: those that it asks for.

    Clients in a browser send more than a key and a type: OpenAI's adds ten of its own.
    """
    names = {name.lower(): name for name in _ALLOWED_HEADERS}
    for value in asked:
        for name in value.decode("latin-1").split(",")[:_MOST_HEADERS]:
            if _TOKEN.fullmatch(name.strip()):
                names.setdefault(name.strip().lower(), name.strip())
    return list(names.values())
