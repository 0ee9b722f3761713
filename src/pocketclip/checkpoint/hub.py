"""Weight files from the Hugging Face hub, through `huggingface_hub` and its cache.

    file = fetch("timm/MobileCLIP2-S0-OpenCLIP")
    file.path, file.revision

A cached file is used without a request: nothing checks whether the hub has a newer one.

| module | holds |
|---|---|
| `hub_files` | which file of a repository holds the weights |
| `hub_cache` | the local cache |
| `hub_client` | endpoint, offline mode, errors of `huggingface_hub` |
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pocketclip.checkpoint.hub_cache import (
    CachedFile,
    HubFile,
    cached,
    find_cached,
    has_own_name,
    record_choice,
    repo_folder,
)
from pocketclip.checkpoint.hub_client import (
    BY_HAND,
    GO_ONLINE,
    UnusableSourceError,
    environment,
    explain_error,
    offline_error,
    without_xet,
)
from pocketclip.checkpoint.hub_files import (
    CONFIG,
    PICKLED,
    SUFFIXES,
    WEIGHTS,
    choose_weights,
    is_own_repository,
    is_weight_file,
)
from pocketclip.checkpoint.weight_license import CARD, name_on_card
from pocketclip.errors import HubError
from pocketclip.license import FILE, choose_file
from pocketclip.storage.hub_settings import (
    cache_dir,
    check_revision,
    download_errors,
    find_commit,
    get_endpoint,
    hide_credentials,
    is_hub_id,
    is_offline,
)

log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A repository's weight file as the hub describes it now."""

    repo: str
    filename: str
    commit: str | None
    """The commit that the revision means now."""
    license: str | None
    """The licence in the repository's description."""
    beside: tuple[str, ...] = ()
    """Files with the licence: its text, and the description if that names it."""
    needs: tuple[str, ...] = ()
    """Further files without which the weights cannot be read: of a checkpoint of ours."""


def fetch(
    repo_ids: Sequence[str] | str, *, offline: bool = False, revision: str | None = None
) -> HubFile:
    """Return the weights of one of several repositories with the same weights.

    If the cache has any of them, no request is made. Otherwise the first repository is downloaded;
    the next one is tried only if a repository is missing, closed to the caller or without usable
    weights. A network failure would affect all of them and ends the search. If the hub cannot be
    asked, a cached file is used even if the hub might name another one (see `cached`), unless it
    has the parameter names of transformers; a warning is logged.

    Args:
        repo_ids: one repository or several, in order of preference.
        offline: make no request; `HF_HUB_OFFLINE` in the environment does the same.
        revision: see `cached`.

    Raises:
        HubError: an invalid id or revision; nothing cached while offline; no repository has the
            weights; the hub cannot be reached; the download was interrupted or could not be
            stored (then no part of it counts as cached).
    """
    ids, name = _checked(repo_ids, revision)
    matches = [match for repo in ids if (match := find_cached(repo, name)) is not None]
    for match in matches:
        if match.is_certain:
            return match.file
    if is_offline(offline):
        return _fall_back(matches, offline_error(ids, revision))
    try:
        return _first_usable(ids, lambda repo: download(_ask(repo, revision and name), revision))
    except _AllUnusableError:
        raise
    except HubError as error:
        return _fall_back(matches, error)


def ask(repo_ids: Sequence[str] | str, *, revision: str | None = None) -> RemoteFile:
    """Ask the hub which commit a revision means now, and for the name of its weight file.

    Of several repositories the first usable one is described, as `fetch` chooses it.

    Args:
        repo_ids: one repository or several, in order of preference.
        revision: see `cached`.

    Raises:
        HubError: as `fetch`; requests are forbidden.
    """
    ids, name = _checked(repo_ids, revision)
    if is_offline():
        raise offline_error(ids, revision)
    return _first_usable(ids, lambda repo: _ask(repo, revision and name))


class _AllUnusableError(HubError):
    """None of the repositories can deliver the weights."""


def _first_usable(ids: Sequence[str], attempt: Callable[[str], _T]) -> _T:
    reasons = []
    for repo in ids:
        try:
            return attempt(repo)
        except UnusableSourceError as error:
            reasons.append(str(error))
    raise _AllUnusableError(f"{'; '.join(reasons)}; or {BY_HAND}")


def _checked(repo_ids: Sequence[str] | str, revision: str | None) -> tuple[tuple[str, ...], str]:
    ids = (repo_ids,) if isinstance(repo_ids, str) else tuple(repo_ids)
    if not ids:
        raise HubError("no repository to fetch weights from; pass a file's path instead")
    for repo in ids:
        if not is_hub_id(repo):
            raise HubError(f"{repo!r} is not a repository id; write it as owner/name")
    return ids, check_revision(revision)


def _fall_back(matches: Sequence[CachedFile], error: HubError) -> HubFile:
    """Return a cached file that may not be the one the hub would name, or raise `error`."""
    for match in matches:
        file = match.file
        if not _has_transformers_names(file.path):
            log.warning(
                "%s: using %s from the cache without asking the hub", file.repo, file.filename
            )
            return file
    if matches:
        file = matches[0].file
        raise HubError(
            f"the cache has only {file.filename} of {file.repo}, whose parameter names are "
            f"transformers'; {error}"
        ) from error
    raise error


def _has_transformers_names(path: Path) -> bool:
    """Return whether the header of a safetensors file has transformers' parameter names."""
    try:
        with path.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            head = handle.read(min(size, 1 << 24))
    except OSError:
        return False
    return b'"vision_model.' in head or b'"text_model.' in head


def _ask(repo: str, revision: str | None) -> RemoteFile:
    from huggingface_hub import HfApi, constants

    endpoint = get_endpoint()
    errors = download_errors()
    try:
        info = HfApi(endpoint=endpoint, library_name="pocketclip").model_info(
            repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
        names = [sibling.rfilename for sibling in info.siblings or []]
        facts = getattr(info, "card_data", None)
        own = is_own_repository(names, facts.to_dict() if facts is not None else {})
        filename = WEIGHTS if own else choose_weights(names)
    except HubError as error:
        raise UnusableSourceError(f"{repo} on {hide_credentials(endpoint)}: {error}") from error
    except errors as error:
        raise explain_error(error, repo, revision, endpoint) from error
    named = None if facts is None else name_on_card(facts.to_dict())
    text = choose_file(names)
    card = CARD if named is not None and CARD in names else None
    beside = tuple(filter(None, (text, card)))
    # Somebody may have uploaded a checkpoint of ours by hand, without our card.
    wanted = (CONFIG, FILE) if own else (CONFIG,) if filename == WEIGHTS else ()
    needs = tuple(name for name in wanted if name in names)
    return RemoteFile(repo, filename, info.sha, named, beside, needs)


def download(remote: RemoteFile, revision: str | None = None) -> HubFile:
    """Download what `ask` described, unless the cache has it already.

    Args:
        remote: the file.
        revision: what `ask` was asked for.

    Raises:
        HubError: as `fetch`.
    """
    from huggingface_hub import hf_hub_download

    repo, filename, endpoint = remote.repo, remote.filename, get_endpoint()
    errors = download_errors()
    if revision is not None:
        revision = check_revision(revision)
    try:
        with without_xet():
            # The revision's name rather than the commit from above: huggingface_hub then records
            # which commit `main` is, and `cached` needs that.
            path = hf_hub_download(
                repo,
                filename,
                revision=revision,
                cache_dir=cache_dir(),
                endpoint=endpoint,
                library_name="pocketclip",
            )
            for name in remote.needs:
                hf_hub_download(
                    repo, name, revision=Path(path).parent.name, cache_dir=cache_dir(),
                    endpoint=endpoint, library_name="pocketclip",
                )  # fmt: skip
    except errors as error:
        raise explain_error(error, repo, revision, endpoint) from error
    snapshot = Path(path).parents[filename.count("/")]
    _download_beside(remote, snapshot.name, errors)
    if not has_own_name(filename):
        record_choice(repo_folder(repo), snapshot.name)
    return HubFile(
        repo=repo, path=Path(path), filename=filename, revision=snapshot.name,
        license=remote.license,
    )  # fmt: skip


def _download_beside(remote: RemoteFile, commit: str, errors: tuple[type[Exception], ...]) -> None:
    """Download the licence to the weights; without it, its name and page are still known."""
    from huggingface_hub import hf_hub_download

    for name in remote.beside:
        with contextlib.suppress(*errors), without_xet():
            hf_hub_download(
                remote.repo, name, revision=commit, cache_dir=cache_dir(),
                endpoint=get_endpoint(), library_name="pocketclip",
            )  # fmt: skip


def fetch_folder(
    repo: str,
    wanted: Sequence[Sequence[str]],
    *,
    is_complete: Callable[[Path], bool],
    offline: bool = False,
    revision: str | None = None,
) -> Path:
    """Return a local folder with several files of a repository, under the rules of `fetch`.

    Args:
        repo: the repository's id.
        wanted: groups of file patterns; each further group is fetched only if the folder is not
            complete with those before it.
        is_complete: returns whether a folder has all that is needed. A complete cached folder is
            used without a request.
        offline: see `fetch`.
        revision: see `cached`.

    Raises:
        HubError: as `fetch`.
    """
    if not is_hub_id(repo):
        raise HubError(f"{repo!r} is not a repository id; write it as owner/name")
    name = check_revision(revision)
    with contextlib.suppress(OSError, ValueError):
        commit = find_commit(repo_folder(repo), name)
        if commit is not None and is_complete(repo_folder(repo) / "snapshots" / commit):
            return repo_folder(repo) / "snapshots" / commit
    if is_offline(offline):
        at = f" at revision {revision!r}" if revision else ""
        raise HubError(
            f"cannot fetch {repo}{at}: {cache_dir()} lacks some of its files and the network is "
            f"off; {GO_ONLINE}, or download its files by hand and pass their folder"
        )
    from huggingface_hub import snapshot_download

    endpoint, errors, folder = get_endpoint(), download_errors(), Path()
    try:
        for patterns in wanted:
            with without_xet():
                snapshot = snapshot_download(
                    repo,
                    revision=revision and name,
                    allow_patterns=list(patterns),
                    cache_dir=cache_dir(),
                    endpoint=endpoint,
                    library_name="pocketclip",
                )
            folder = Path(snapshot)
            if is_complete(folder):
                break
    except errors as error:
        raise explain_error(error, repo, revision, endpoint) from error
    return folder


__all__ = [
    "PICKLED",
    "SUFFIXES",
    "HubFile",
    "RemoteFile",
    "ask",
    "cached",
    "check_revision",
    "choose_weights",
    "download",
    "environment",
    "fetch",
    "fetch_folder",
    "is_hub_id",
    "is_offline",
    "is_weight_file",
]
