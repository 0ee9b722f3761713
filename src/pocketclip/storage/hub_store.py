"""`hf://` paths: files of repositories on the Hugging Face hub, to be read, never written.

    hf://datasets/OWNER/NAME/PATH            a dataset, at `main`
    hf://datasets/OWNER/NAME@REVISION/PATH   at a branch, a tag, refs/pr/1 or a commit
    hf://OWNER/NAME/PATH                     a model's repository; spaces/OWNER/NAME a space's

A branch is looked up once in a while and then read at its commit, so that a listing and the files
agree even if somebody pushes meanwhile. With the network off, by `HF_HUB_OFFLINE`, the files in the
hub's cache are read (`hf download OWNER/NAME --repo-type dataset` puts them there).
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from pocketclip.errors import HubError, MissingDependencyError, StorageError, one_line
from pocketclip.storage import hub_settings

SCHEME = "hf"
REMEMBER = 300.0
"""Seconds for which the commit of a branch counts as known."""
_KINDS = {"datasets": "dataset", "models": "model", "spaces": "space"}
_FORM = "the form is hf://datasets/OWNER/NAME/PATH or hf://datasets/OWNER/NAME@REVISION/PATH"
_REFS = re.compile(r"(refs/(?:pr/\d+|convert/[\w.\-]+))(?:/|$)")
_PATTERN = re.compile(r"[*?\[{]")
log = logging.getLogger(__name__)

_file_systems: dict[tuple[str, ...], Any] = {}
_commits: dict[tuple[str, ...], tuple[str, float]] = {}
# Plain dictionaries without a lock: a lock that a thread holds while another one forks would stay
# locked in the child. The worst that can happen is that the hub is asked twice.


@dataclass(frozen=True)
class HubPath:
    """A path on the hub, in its parts."""

    kind: str
    """`dataset`, `model` or `space`."""
    repo: str
    revision: str
    """A branch, a tag, a pull request or a commit."""
    inner: str
    """The path within the repository; empty for its root."""
    written: str
    """The path up to the repository and its revision, as it was written."""

    @property
    def name(self) -> str:
        """The repository, for messages: `hf://datasets/OWNER/NAME`."""
        return f"{SCHEME}://{self.place(None)}"

    def place(self, revision: str | None) -> str:
        """Return the name of the repository's root in huggingface_hub's file system."""
        folder = "" if self.kind == "model" else f"{self.kind}s/"
        at = "" if revision is None else f"@{quote(revision, safe='')}"
        return f"{folder}{self.repo}{at}"


def is_hub(path: str) -> bool:
    """Return whether `path` is on the hub."""
    return path[:5].lower() == "hf://"


def parse(path: str) -> HubPath:
    """Return the parts of an `hf://` path.

    Raises:
        StorageError: it is none, or one of a kind that is not read.
    """
    parts = path.partition("://")[2].split("/")
    if parts[0] == "buckets":
        raise StorageError(f"{path}: buckets are not read, only repositories; {_FORM}")
    kind = _KINDS.get(parts[0], "model")
    lead = parts[:1] if parts[0] in _KINDS else []
    owner, name, *rest = [*parts[len(lead) :], "", ""]
    inner = "/".join(rest).strip("/")
    name, at, revision = name.partition("@")
    if at and revision == "refs":
        found = _REFS.match(f"refs/{inner}")
        if found:
            revision, inner = found[1], f"refs/{inner}"[found.end() :].strip("/")
    repo = f"{owner}/{name}"
    if not hub_settings.is_hub_id(repo) or (at and not revision):
        raise StorageError(f"{path}: {repo.strip('/')!r} is not a repository; {_FORM}")
    written = "/".join(filter(None, [*lead, f"{repo}{at}{revision}"]))
    try:
        revision = hub_settings.check_revision(unquote(revision) or None)
    except HubError as error:
        raise StorageError(f"{path}: {error}") from None
    if any(part in ("", ".", "..") for part in inner.split("/")) and inner:
        raise StorageError(f"{path}: a path on the hub has no empty parts, no . and no ..")
    return HubPath(kind, repo, revision, inner, f"{SCHEME}://{written}")


def connect(path: str) -> tuple[Any, str]:
    """Return a file system for an `hf://` path, and the path's name in it.

    Both belong to one commit. The file system is made once per process.

    Raises:
        MissingDependencyError: huggingface_hub is not installed.
        StorageError: it is no such path; no such repository or revision; the hub cannot be reached;
            the network is off and the cache has no files of it.
    """
    parts = parse(path)
    if hub_settings.is_offline():
        return _in_cache(path, parts)
    try:
        from pocketclip.storage.hub_file_system import HubFiles
    except ImportError as error:
        raise MissingDependencyError(
            f"{path}: the hub's files need huggingface_hub ({one_line(error)}): "
            "pip install huggingface_hub"
        ) from None
    try:
        endpoint = hub_settings.get_endpoint()
    except HubError as error:
        raise StorageError(str(error)) from None
    key = ("hub", endpoint)
    fs = _file_systems.get(key)
    if fs is None:
        fs = _file_systems[key] = HubFiles(endpoint=endpoint, skip_instance_cache=True)
    commit = _commit(path, parts, fs)
    return fs, "/".join(filter(None, (parts.place(commit), parts.inner)))


def _commit(path: str, parts: HubPath, fs: Any) -> str:
    if hub_settings.COMMIT.fullmatch(parts.revision):
        return parts.revision
    key = (fs.endpoint, parts.kind, parts.repo, parts.revision)
    known, asked = _commits.get(key, ("", 0.0))
    if known and time.monotonic() - asked < REMEMBER:
        return known
    try:
        commit = str(fs.commit(parts.kind, parts.repo, parts.revision))
    except Exception as error:
        if known and hub_settings.is_passing(error):
            return known
        raise StorageError(explain(path, "read", error)[1]) from error
    _commits[key] = commit, time.monotonic()
    return commit


def _in_cache(path: str, parts: HubPath) -> tuple[Any, str]:
    """Return what `connect` returns for the files in the hub's cache."""
    from pocketclip.storage.hub_snapshot import SnapshotFiles

    home = hub_settings.cache_dir() / f"{parts.kind}s--{parts.repo.replace('/', '--')}"
    commit = hub_settings.find_commit(home, parts.revision)
    folder = home / "snapshots" / (commit or "")
    if commit is None or not folder.is_dir():
        what = f"{parts.repo} --revision {parts.revision}"
        raise StorageError(
            f"{path}: the network is off (HF_HUB_OFFLINE) and {home.parent} has no files of it at "
            f"{parts.revision!r}; unset HF_HUB_OFFLINE, or go online once with `hf download {what} "
            f"--repo-type {parts.kind}`"
        )
    root = parts.place(commit)
    key = ("cache", str(folder), root)
    if key not in _file_systems:
        log.warning(
            "%s: the network is off (HF_HUB_OFFLINE); only the files in %s are seen",
            parts.name, folder,
        )  # fmt: skip
        _file_systems[key] = SnapshotFiles(root, folder, skip_instance_cache=True)
    return _file_systems[key], "/".join(filter(None, (root, parts.inner)))


def restore(like: str, name: str) -> str:
    """Return the path of a name in the file system, written as the path or pattern `like`."""
    parts = parse(_PATTERN.split(like, maxsplit=1)[0])
    depth = 2 if parts.kind == "model" else 3
    return "/".join([parts.written, *name.split("/")[depth:]])


def refuse_writing(path: str) -> None:
    """Raise the error of every attempt to write to the hub.

    Raises:
        StorageError: always, for a path on the hub.
    """
    if is_hub(path):
        raise StorageError(
            f"{path}: hf:// is only read: write to a local folder, and upload it when it is "
            "finished (`hf upload OWNER/NAME FOLDER --repo-type dataset`, a model with "
            "`pocketclip push`)"
        )


def explain(path: str, verb: str, error: BaseException) -> tuple[bool, str]:
    """Return what is wrong with a path on the hub, and what to do next.

    Args:
        path: on the hub.
        verb: what was tried.
        error: from huggingface_hub or its HTTP library.

    Returns:
        Whether only this file or folder is not there, and the text.
    """
    parts = parse(_PATTERN.split(path, maxsplit=1)[0])
    kinds = {kind.__name__ for kind in type(error).__mro__}
    status = hub_settings.status_of(error)
    try:
        host = hub_settings.hide_credentials(hub_settings.get_endpoint())
    except HubError as unusable:
        return False, str(unusable)
    page = f"{host}/{parts.place(None)}"
    if "GatedRepoError" in kinds or status == 403:
        why = (
            f"{page} is gated or closed to you: accept the terms on its page, and set HF_TOKEN to "
            "a token of that account that may read it (or run `hf auth login`)"
        )
    elif "RevisionNotFoundError" in kinds:
        why = f"{page} has no revision {parts.revision!r}"
    elif kinds & {"FileNotFoundError", "EntryNotFoundError"}:
        return True, f"{path}: no such file or folder in {page}; check the path"
    elif "RepositoryNotFoundError" in kinds or status in (401, 404):
        why = (
            f"there is no {parts.kind} {parts.repo} on {host}, or it is private: check the name; "
            "if it is private, set HF_TOKEN to a token that may read it (or run `hf auth login`)"
        )
    elif status == 429:
        why = (
            f"{host} takes no more requests for now (429): try again in some minutes; with "
            "HF_TOKEN set, it takes more"
        )
    else:
        name = type(error).__name__
        reason = one_line(getattr(error, "strerror", None) or error, limit=300).rstrip(".")
        why = (
            f"cannot {verb} from {host} ({name}: {reason.partition(' (Request ID')[0]}); check the "
            "network, try again, or set HF_ENDPOINT to a mirror"
        )
    return False, f"{path}: {why}"
