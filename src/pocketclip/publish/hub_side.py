"""What the hub is asked before an upload, and what its refusals mean."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pocketclip.checkpoint.weight_license import name_on_card
from pocketclip.errors import HubError, first_line
from pocketclip.license import UNKNOWN, License
from pocketclip.storage.hub_settings import (
    download_errors,
    get_endpoint,
    hide_credentials,
    is_offline,
    status_of,
)

HUB = "https://huggingface.co"
"""The public hub, which cards link to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Existing:
    """A repository that is there already."""

    private: bool
    commit: str | None
    files: tuple[str, ...]


def ask_license(kind: str, repo: str) -> License:
    """Return the licence on a repository's card on the hub, as far as it says one.

    Args:
        kind: `model` or `dataset`.
        repo: its id.
    """
    from huggingface_hub import HfApi, constants

    with contextlib.suppress(*download_errors()):
        api = HfApi(endpoint=get_endpoint(), library_name="pocketclip")
        info = api.repo_info(repo, repo_type=kind, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        facts = getattr(info, "card_data", None)
        name = None if facts is None else name_on_card(facts.to_dict())
        folder = "datasets/" if kind == "dataset" else ""
        if name is not None:
            return License(name=name, url=f"{HUB}/{folder}{repo}")
    return UNKNOWN


def look(repo: str, branch: str, *, dry_run: bool) -> tuple[str | None, Existing | None]:
    """Return the name of the account, and the repository if it exists."""
    from huggingface_hub import HfApi, constants, get_token

    if is_offline():
        if dry_run:
            return None, None
        raise HubError("the network is off (HF_HUB_OFFLINE): unset it to upload")
    endpoint, errors = get_endpoint(), download_errors()
    host, token = hide_credentials(endpoint), get_token()
    if token is None and not dry_run:
        raise HubError(
            f"there is no token for {host}: create one with write access at "
            f"{host}/settings/tokens, and set HF_TOKEN to it or run `hf auth login`"
        )
    api = HfApi(endpoint=endpoint, library_name="pocketclip")
    account = None
    try:
        if token is not None:
            account = _account(api.whoami(), repo, host)
        info = api.model_info(
            repo, revision=None if branch == "main" else branch,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )  # fmt: skip
    except errors as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "RevisionNotFoundError" in kinds:
            return account, _of_main(api, repo, endpoint, errors)
        if "RepositoryNotFoundError" in kinds and (account is not None or dry_run):
            return account, None
        raise explain(error, repo, endpoint) from error
    return account, _existing(info)


def _of_main(api: Any, repo: str, endpoint: str, errors: Any) -> Existing:
    """Return what a repository is whose branch to upload to does not exist yet."""
    try:
        return _existing(api.model_info(repo), branch_exists=False)
    except errors as error:
        raise explain(error, repo, endpoint) from error


def _existing(info: Any, *, branch_exists: bool = True) -> Existing:
    files = tuple(sibling.rfilename for sibling in info.siblings or [])
    commit = info.sha if branch_exists else None
    return Existing(private=bool(info.private), commit=commit, files=files)


def _account(answer: Mapping[str, Any], repo: str, host: str) -> str:
    """Return the name of the account; refuse what its token can never do."""
    name = str(answer.get("name"))
    owner = repo.partition("/")[0]
    mine = [name, *(str(org.get("name")) for org in answer.get("orgs") or [])]
    token = (answer.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise HubError(
            f"the token of {name} may only read: create one with write access at "
            f"{host}/settings/tokens, and set HF_TOKEN to it"
        )
    if token.get("role") == "write" and owner.lower() not in map(str.lower, mine):
        raise HubError(
            f"{repo} would belong to {owner}, and the token is of {name}: push to "
            f"{' or '.join(f'{one}/{repo.partition(chr(47))[2]}' for one in mine[:4])}"
        )
    return name


def explain(error: Exception, repo: str, endpoint: str, *, created: bool = False) -> HubError:
    """Return the error that says why an upload failed, and what to do next."""
    host = hide_credentials(endpoint)
    cause: BaseException = error
    while status_of(cause) is None and cause.__cause__ is not None:
        cause = cause.__cause__
    status = status_of(cause)
    empty = f"; the new repository {repo} is empty, and the same command fills it" * created
    if status == 401:
        return HubError(
            f"the token is not valid on {host}: create one with write access at "
            f"{host}/settings/tokens, and set HF_TOKEN to it or run `hf auth login`{empty}"
        )
    if status in (403, 404):
        return HubError(
            f"{host} does not let this token write to {repo}: it needs write access to the "
            f"repositories of {repo.partition('/')[0]}, see {host}/settings/tokens{empty}"
        )
    if status in (409, 412):
        return HubError(
            f"{repo} was changed by somebody else meanwhile: run the command again to see what is "
            "there now"
        )
    reason = first_line(cause, limit=300).rstrip(".")
    return HubError(
        f"the upload to {repo} on {host} failed ({type(cause).__name__}: {reason}): nothing was "
        f"changed{empty or ', try again'}"
    )
