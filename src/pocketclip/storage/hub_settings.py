"""The Hugging Face hub as it is set up now: address, network, cache, names; kinds of errors.

`huggingface_hub` reads the environment once, at import; these functions read it at call time:
`HF_ENDPOINT` (a mirror), `HF_HUB_OFFLINE` and the cache's variables. `huggingface_hub` itself
honours `HF_TOKEN` and the proxy variables.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from pocketclip.errors import HubError
from pocketclip.storage.retries import RETRY_STATUS

_DEFAULT_ENDPOINT = "https://huggingface.co"
_ID_PART = re.compile(r"\b[\w\-.]{1,96}\b", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
"""The hash of a commit."""
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,39}")
# What git allows in no name, besides what `check_revision` looks for.
_NOT_IN_REVISIONS = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|^-|^@$")


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


def is_hub_id(text: str) -> bool:
    """Return whether `text` is an `owner/name` that the hub allows.

    A relative path can look the same: check the file system first.
    """
    parts = text.split("/")
    return (
        len(parts) == 2
        and all(_ID_PART.fullmatch(part) for part in parts)
        and "--" not in text
        and ".." not in text
        and not text.endswith(".git")
    )


def check_revision(revision: str | None) -> str:
    """Return the revision, `main` by default.

    Raises:
        HubError: it cannot be the name of a branch, a tag or a commit.
    """
    name = "main" if revision is None else revision
    parts = name.split("/")
    odd = any(part.startswith(".") or part.endswith((".", ".lock")) or not part for part in parts)
    if odd or ".." in name or "@{" in name or _NOT_IN_REVISIONS.search(name) or len(name) > 250:
        raise HubError(
            f"{name!r} is not a revision: pass a branch, a tag, refs/pr/NUMBER or a commit hash"
        )
    return name.lower() if COMMIT.fullmatch(name.lower()) else name


def cache_dir() -> Path:
    """Return the hub's cache: `HF_HUB_CACHE`, or `hub` within `HF_HOME`."""
    env = os.environ.get
    cache = env("HF_HUB_CACHE") or env("HUGGINGFACE_HUB_CACHE")
    if not cache:
        home = env("HF_HOME") or f"{env('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
        cache = f"{home}/hub"
    return Path(os.path.expandvars(cache)).expanduser().resolve()


def find_commit(folder: Path, revision: str) -> str | None:
    """Return the commit that the cache has for a revision; None if it knows none.

    Args:
        folder: the repository's in the cache.
        revision: a branch, a tag, or a commit, which may be shortened to seven digits.
    """
    if COMMIT.fullmatch(revision):
        return revision
    reference = folder / "refs" / revision
    if not reference.is_file() and _SHORT_COMMIT.fullmatch(revision):
        commits = [path.name for path in (folder / "snapshots").glob(f"{revision}*")]
        return commits[0] if len(commits) == 1 else None
    try:
        commit = reference.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return commit if COMMIT.fullmatch(commit) else None


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


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of the answer that an error is about; None if there was none."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def is_passing(error: BaseException) -> bool:
    """Return whether a request that failed so may succeed if it is repeated."""
    status = status_of(error)
    if status is not None:
        return status in RETRY_STATUS
    network = download_errors()[0]
    return isinstance(error, (network, ConnectionError, TimeoutError))
