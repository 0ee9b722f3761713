"""How `huggingface_hub` is used: its settings from today's environment, and its errors explained.

`huggingface_hub` reads the environment once, at import; this module reads it at call time:
`HF_ENDPOINT` (a mirror), `HF_HUB_OFFLINE` and the cache's variables. `huggingface_hub` itself
honours `HF_TOKEN` and the proxy variables.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import cast
from urllib.parse import urlsplit

from pocketclip.checkpoint.hub_cache import cache_dir
from pocketclip.errors import NOT_STORED, HubError, first_line

_DEFAULT_ENDPOINT = "https://huggingface.co"
BY_HAND = "download the file by hand and pass its path"
GO_ONLINE = (
    "go online once (without --offline and HF_HUB_OFFLINE), point HF_HUB_CACHE to a cache that has "
    "them"
)
_LOCK = threading.RLock()


class UnusableSourceError(HubError):
    """This repository cannot deliver the weights, but an alternative one may."""


def is_offline(offline: bool = False) -> bool:
    """Return whether requests are forbidden: by `offline`, or by the environment as it is now."""
    # huggingface_hub accepts the same values, and the second name.
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return offline or value.upper() in {"1", "ON", "YES", "TRUE"}


def get_endpoint() -> str:
    """Return the hub's address: `HF_ENDPOINT`, by default huggingface.co.

    Raises:
        HubError: `HF_ENDPOINT` is not an HTTP address.
    """
    endpoint = (os.environ.get("HF_ENDPOINT") or _DEFAULT_ENDPOINT).rstrip("/")
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an invalid port, an unclosed bracket
        valid = False
    if not valid:
        raise HubError(f"HF_ENDPOINT is {endpoint!r}; it must be an http:// or https:// address")
    return endpoint


def hide_credentials(endpoint: str) -> str:
    """Return the address without user and password, since error messages end up in logs."""
    scheme, _, rest = endpoint.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


@contextlib.contextmanager
def environment(*, offline: bool) -> Iterator[None]:
    """Let other libraries use huggingface_hub with the environment as it is now.

    huggingface_hub reads the environment at import. Within this context, its constants have the
    current values; afterwards the earlier ones are restored.

    Args:
        offline: forbid requests.
    """
    from huggingface_hub import constants, file_download

    endpoint = get_endpoint()
    values = {
        "HF_HUB_OFFLINE": is_offline(offline),
        "HF_HUB_CACHE": str(cache_dir()),
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    }
    with _LOCK, without_xet():
        before = [
            (module, name, getattr(module, name))
            for module in (constants, file_download)  # older versions have copies in the latter
            for name in values
            if hasattr(module, name)
        ]
        for module, name, _ in before:
            setattr(module, name, values[name])
        _reset_sessions()
        try:
            yield
        finally:
            for module, name, value in before:
                setattr(module, name, value)
            _reset_sessions()


def _reset_sessions() -> None:
    # Before version 1.0, a session decides at its creation whether it may use the network.
    from huggingface_hub import utils

    reset = getattr(utils, "reset_sessions", None)
    if reset is not None:
        reset()


@contextlib.contextmanager
def without_xet() -> Iterator[None]:
    """Within it, huggingface_hub downloads over plain HTTP."""
    # Xet has its own network stack: proxies, mirrors, timeouts and errors differ, and some mirrors
    # announce it but do not support it. Every file is also served over plain HTTP. There is no
    # argument for this: newer versions read the constant, older ones the environment.
    from huggingface_hub import constants

    name = "HF_HUB_DISABLE_XET"
    with _LOCK:
        constant, variable = getattr(constants, name, None), os.environ.get(name)
        setattr(constants, name, True)
        os.environ[name] = "1"
        try:
            yield
        finally:
            setattr(constants, name, constant)
            if variable is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = variable


def download_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that a request through huggingface_hub may raise."""
    # The HTTP library differs between versions of huggingface_hub (requests, httpx, httpx2). Its
    # base class of errors is a base of HfHubHTTPError in each, but InvalidURL does not derive
    # from it.
    from huggingface_hub.errors import HfHubHTTPError

    base = cast("type[Exception]", HfHubHTTPError.__bases__[0])
    library = sys.modules[base.__module__.partition(".")[0]]
    invalid = cast("type[Exception]", getattr(library, "InvalidURL", ValueError))
    # A server that is not a hub answers with other JSON or none (ValueError, KeyError, TypeError).
    # A SOCKS proxy without the package for it is an ImportError.
    return (base, invalid, OSError, ValueError, KeyError, TypeError, ImportError)


def explain_error(error: Exception, repo: str, revision: str | None, endpoint: str) -> HubError:
    """Return a `HubError` that says what is wrong and what to do next."""
    from huggingface_hub import errors

    cause: BaseException = error
    # Without a cached file to fall back to, huggingface_hub raises an error that hides the cause.
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        cause = error.__cause__
    host = hide_credentials(endpoint)
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return offline_error((repo,), revision)
    if isinstance(cause, errors.RevisionNotFoundError):
        return UnusableSourceError(f"{repo} has no revision {revision!r} on {host}")
    if isinstance(cause, errors.GatedRepoError) or status == 403:
        return UnusableSourceError(
            f"{repo} on {host} is gated or closed to you: accept the terms on its page and set "
            "HF_TOKEN to a token of that account"
        )
    if isinstance(cause, errors.RepositoryNotFoundError) or status in (401, 404):
        return UnusableSourceError(
            f"{repo} was not found on {host}; if it is private, set HF_TOKEN to a valid token"
        )
    reason = _named_reason(cause).replace(endpoint, host)
    if isinstance(cause, OSError) and cause.errno in NOT_STORED:
        return HubError(
            f"cannot store the weights of {repo} in {cache_dir()}: {reason}; make room or choose "
            "another folder with HF_HUB_CACHE"
        )
    return HubError(
        f"cannot fetch the weights of {repo} from {host}: {reason}; try again, set HF_ENDPOINT to "
        f"a mirror or HTTPS_PROXY to a proxy, use --offline with a cached file, or {BY_HAND}"
    )


def _named_reason(error: BaseException) -> str:
    # The first line says what happened; further lines repeat the address or link documentation.
    name, text = type(error).__name__, first_line(error, limit=1000).rstrip(".")
    return name if text == name else f"{name}: {text}"


def offline_error(ids: Sequence[str], revision: str | None) -> HubError:
    """Return the error for weights that the cache lacks while requests are forbidden."""
    at = f" at revision {revision!r}" if revision else ""
    return HubError(
        f"no weights of {' or '.join(ids)}{at} in {cache_dir()} and the network is off; "
        f"{GO_ONLINE}, or {BY_HAND}"
    )
