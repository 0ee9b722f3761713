"""How `huggingface_hub` is used: with today's environment, over plain HTTP, its errors explained.

The settings are those of `pocketclip.storage.hub_settings`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence

from pocketclip.errors import NOT_STORED, HubError, first_line
from pocketclip.storage.hub_settings import (
    cache_dir,
    get_endpoint,
    hide_credentials,
    is_offline,
)

BY_HAND = "download the file by hand and pass its path"
GO_ONLINE = (
    "go online once (without --offline and HF_HUB_OFFLINE), point HF_HUB_CACHE to a cache that has "
    "them"
)
_LOCK = threading.RLock()


class UnusableSourceError(HubError):
    """This repository cannot deliver the weights, but an alternative one may."""


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
