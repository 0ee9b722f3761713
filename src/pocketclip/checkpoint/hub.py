"""Weight files from the Hugging Face hub, through `huggingface_hub` and its cache.

A file that is in the cache is used as it is: nothing asks the network whether there is a newer
one. The environment is read at call time: `HF_ENDPOINT` (a mirror), `HF_HUB_CACHE` or `HF_HOME`,
`HF_HUB_OFFLINE`; `HF_TOKEN` and the proxy variables are honoured by `huggingface_hub` itself.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast
from urllib.parse import urlsplit

from pocketclip.errors import HubError, first_line

_DEFAULT_ENDPOINT = "https://huggingface.co"
PICKLED = (".pt", ".pth", ".bin")
SUFFIXES = (*PICKLED, ".safetensors")
"""Of weight files."""
_SHARD = re.compile(r"-\d{5}-of-(?!00001\.)\d{5}\.[a-z]+$")
_OF_TRANSFORMERS = re.compile(
    r"(model(-00001-of-00001)?\.safetensors|pytorch_model(-00001-of-00001)?\.bin)", re.IGNORECASE
)
_OF_TRAINERS = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state(_\d+)?)\.(bin|pt|pth)", re.IGNORECASE
)
_PART = re.compile(r"\b[\w\-.]{1,96}\b", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,39}")
# What git allows in no name, besides what is looked for by `check_revision`.
_NOT_IN_REVISIONS = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|^-|^@$")
_DISK_ERRORS = {"ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS", "ENOTDIR", "ENAMETOOLONG"}
log = logging.getLogger(__name__)
_GO_ONLINE = (
    "go online once (without --offline and HF_HUB_OFFLINE), point HF_HUB_CACHE to a cache that has "
    "them"
)
_BY_HAND = "download the file by hand and pass its path"


@dataclass(frozen=True)
class HubFile:
    """A weight file in the local cache, and where it came from."""

    repo: str
    path: Path
    filename: str
    """The file's name within the repository."""
    revision: str | None
    """The commit that the file belongs to."""


class _NotThereError(HubError):
    """This source cannot deliver, for a reason that another source need not share."""


def is_hub_id(text: str) -> bool:
    """Return whether `text` is an `owner/name` that the hub allows.

    A relative path can have the same form: ask the file system first.
    """
    parts = text.split("/")
    return (
        len(parts) == 2
        and all(_PART.fullmatch(part) for part in parts)
        and "--" not in text
        and ".." not in text
        and not text.endswith(".git")
    )


def choose_weights(files: Sequence[str]) -> str:
    """Return the one of `files` that holds the weights: of a repository, cached or downloaded.

    open_clip's file (`open_clip_*`) comes first and transformers' (`model.safetensors`,
    `pytorch_model.bin`) last, for a repository may have both beside its own; safetensors come
    before pickles of the same name. Files in folders count only if there are no weights beside
    them at the top level.

    Raises:
        HubError: no weights, several that could be meant, or only a set of shards.
    """
    weights = [name for name in files if is_weight_file(name)]
    weights = [name for name in weights if "/" not in name] or weights
    whole = [name for name in weights if not _SHARD.search(name.lower())]
    if weights and not whole:
        raise HubError(
            f"the weights are split into {len(weights)} shards ({_listed(weights)}), which is not "
            "supported; join them into one file and pass its path"
        )
    open_clip = [name for name in whole if PurePosixPath(name).name.startswith("open_clip_")]
    transformers = [name for name in whole if _OF_TRANSFORMERS.fullmatch(PurePosixPath(name).name)]
    others = [name for name in whole if name not in (*open_clip, *transformers)]
    for group in (open_clip, others, transformers):
        safe = [name for name in group if name.lower().endswith(".safetensors")]
        if group is others and len({PurePosixPath(name).stem for name in others}) > 1:
            safe = others  # of different names none comes before another
        matches = safe or group
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise HubError(
                f"several files could be the weights ({_listed(matches)}); "
                "give the path of the one that you want"
            )
    raise HubError(f"no .safetensors, .bin, .pt or .pth file among: {_listed(files)}")


def is_weight_file(name: str) -> bool:
    """Return whether a file may hold weights, by its name; what trainers keep beside may not."""
    return name.lower().endswith(SUFFIXES) and not _OF_TRAINERS.fullmatch(PurePosixPath(name).name)


def _listed(files: Sequence[str]) -> str:
    shown = ", ".join(sorted(files)[:8]) or "no files"
    return f"{shown}, ..." if len(files) > 8 else shown


def cached(repo: str, *, revision: str | None = None) -> HubFile | None:
    """Return the weights of `repo` if they are in the local cache; the network is never used.

    Other libraries keep their own files of a repository in the same cache, such as transformers'
    `model.safetensors`. A file is returned only if it is known to be the one that `fetch` would
    choose: by its name (`open_clip_*`, `mobileclip*`), or because `fetch` chose it.

    Args:
        repo: its id.
        revision: a branch, a tag, a pull request (`refs/pr/1`) or a commit hash, which may be
            shortened to seven digits; None for `main`.

    Returns:
        None if the repository, this revision of it or its weight file is not there.

    Raises:
        HubError: what is no revision.
    """
    found = _in_cache(repo, check_revision(revision))
    return None if found is None or not found.is_certain else found.file


def check_revision(revision: str | None) -> str:
    """Return the revision, `main` by default.

    Raises:
        HubError: it can be the name of neither a branch nor a tag nor a commit.
    """
    name = "main" if revision is None else revision
    parts = name.split("/")
    odd = any(part.startswith(".") or part.endswith((".", ".lock")) or not part for part in parts)
    if odd or ".." in name or "@{" in name or _NOT_IN_REVISIONS.search(name) or len(name) > 250:
        raise HubError(
            f"{name!r} is no revision: give a branch, a tag, refs/pr/NUMBER or a commit hash"
        )
    return name.lower() if _COMMIT.fullmatch(name.lower()) else name


@dataclass(frozen=True)
class _Cached:
    file: HubFile
    is_certain: bool


def _in_cache(repo: str, revision: str) -> _Cached | None:
    """Return the best weight file of a repository in the cache, and if it is known to be right."""
    folder = _folder_of(repo)
    try:
        commit = _commit_of(folder, revision)
        if commit is None:
            return None
        snapshot = folder / "snapshots" / commit
        # A file is a link to its blob; the blob comes into being only after a whole download.
        files = [
            path.relative_to(snapshot).as_posix()
            for path in snapshot.rglob("*")
            if path.is_file() and path.stat().st_size > 0
        ]
        chosen = _marker(folder, commit).is_file()
        known = files if chosen else [name for name in files if _is_ours(name)]
        certain = any(map(is_weight_file, known))
        filename = choose_weights(known if certain else files)
    except (OSError, ValueError, HubError):
        return None
    path = snapshot / filename
    return _Cached(HubFile(repo=repo, path=path, filename=filename, revision=commit), certain)


def _folder_of(repo: str) -> Path:
    return _cache_dir() / ("models--" + repo.replace("/", "--"))


def _commit_of(folder: Path, revision: str) -> str | None:
    """Return the commit that the cache has for a revision."""
    if _COMMIT.fullmatch(revision):
        return revision
    reference = folder / "refs" / revision
    if reference.is_file():
        commit = reference.read_text(encoding="utf-8").strip()
        return commit if _COMMIT.fullmatch(commit) else None
    if _SHORT_COMMIT.fullmatch(revision):
        found = [path.name for path in (folder / "snapshots").glob(f"{revision}*")]
        return found[0] if len(found) == 1 else None
    return None


def _is_ours(filename: str) -> bool:
    return filename.lower().startswith(("open_clip_", "mobileclip"))


def _marker(folder: Path, commit: str) -> Path:
    """Return the file by which huggingface_hub remembers that a repository lacks this name."""
    return folder / ".no_exist" / commit / "open_clip_model.safetensors"


def fetch(
    repo_ids: Sequence[str] | str, *, offline: bool = False, revision: str | None = None
) -> HubFile:
    """Return the weights of one of `repo_ids`: interchangeable sources, the preferred one first.

    If any of them is cached, no request is made. Otherwise the first is downloaded; the next one
    is tried only if a repository is missing, closed to the caller or without usable weights. A
    failure of the network would meet them all, and ends the search. Where the hub cannot be asked,
    a cached file is used that may not be the one it would name (see `cached`), with a note in the
    log, unless it is seen to be in the names of transformers.

    Args:
        repo_ids: one or several repositories.
        offline: make no request; so does `HF_HUB_OFFLINE` in the environment.
        revision: see `cached`.

    Raises:
        HubError: an invalid id or revision; nothing cached while offline; no source has the
            weights; the hub cannot be reached; the download broke off or could not be stored, in
            which case nothing of it counts as cached.
    """
    ids = (repo_ids,) if isinstance(repo_ids, str) else tuple(repo_ids)
    if not ids:
        raise HubError("no repository to fetch weights from; pass a file's path instead")
    for repo in ids:
        if not is_hub_id(repo):
            raise HubError(f"{repo!r} is not a repository id; the form is owner/name")
    wanted = check_revision(revision)
    in_cache = [found for repo in ids if (found := _in_cache(repo, wanted)) is not None]
    for found in in_cache:
        if found.is_certain:
            return found.file
    if is_offline(offline):
        return _makeshift(in_cache, _offline_error(ids, revision))
    reasons = []
    for repo in ids:
        try:
            return _download(repo, revision and wanted)
        except _NotThereError as error:
            reasons.append(str(error))
        except HubError as error:
            return _makeshift(in_cache, error)
    raise HubError(f"{'; '.join(reasons)}; or {_BY_HAND}")


def _makeshift(in_cache: Sequence[_Cached], error: HubError) -> HubFile:
    """Return a cached file of which nobody can say now whether it is the right one, or raise."""
    for found in in_cache:
        file = found.file
        if not _is_of_transformers(file.path):
            log.warning("%s: using %s from the cache, unasked", file.repo, file.filename)
            return file
    if in_cache:
        file = in_cache[0].file
        raise HubError(
            f"of {file.repo} the cache has only {file.filename}, which is in the names of "
            f"transformers; {error}"
        ) from error
    raise error


def _is_of_transformers(path: Path) -> bool:
    """Whether the header of a safetensors file says that transformers wrote it."""
    try:
        with path.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            head = handle.read(min(size, 1 << 24))
    except OSError:
        return False
    return b'"vision_model.' in head or b'"text_model.' in head


def _download(repo: str, revision: str | None) -> HubFile:
    from huggingface_hub import HfApi, constants, hf_hub_download

    endpoint = _endpoint()
    failures = _failures()
    try:
        info = HfApi(endpoint=endpoint, library_name="pocketclip").model_info(
            repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
        names = [sibling.rfilename for sibling in info.siblings or []]
        filename = choose_weights(names)
        with _without_xet():
            # Not the commit from above but the name: only so does huggingface_hub record what
            # `main` stands for, which `cached` needs.
            path = hf_hub_download(
                repo,
                filename,
                revision=revision,
                cache_dir=_cache_dir(),
                endpoint=endpoint,
                library_name="pocketclip",
            )
    except HubError as error:
        raise _NotThereError(f"{repo} on {_shown(endpoint)}: {error}") from error
    except failures as error:
        raise _explained(error, repo, revision, endpoint) from error
    snapshot = Path(path).parents[filename.count("/")]
    if not _is_ours(filename):
        _remember(_marker(_folder_of(repo), snapshot.name))
    return HubFile(repo=repo, path=Path(path), filename=filename, revision=snapshot.name)


def _remember(marker: Path) -> None:
    # In a cache that cannot be written to, the hub is asked again the next time.
    with contextlib.suppress(OSError):
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()


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
        repo: its id.
        wanted: patterns of the files to fetch, and further ones for where the folder is not
            complete with the first.
        is_complete: says whether a folder has what is needed. A cached one that has is used
            without a request.
        offline: see `fetch`.
        revision: see `cached`.

    Raises:
        HubError: as `fetch`.
    """
    if not is_hub_id(repo):
        raise HubError(f"{repo!r} is not a repository id; the form is owner/name")
    name = check_revision(revision)
    with contextlib.suppress(OSError, ValueError):
        commit = _commit_of(_folder_of(repo), name)
        if commit is not None and is_complete(_folder_of(repo) / "snapshots" / commit):
            return _folder_of(repo) / "snapshots" / commit
    if is_offline(offline):
        at = f" at revision {revision!r}" if revision else ""
        raise HubError(
            f"cannot fetch {repo}{at}: {_cache_dir()} does not have all of it and the network is "
            f"off; {_GO_ONLINE}, or download its files by hand and pass their folder"
        )
    from huggingface_hub import snapshot_download

    endpoint, failures, folder = _endpoint(), _failures(), Path()
    try:
        for patterns in wanted:
            with _without_xet():
                found = snapshot_download(
                    repo,
                    revision=revision and name,
                    allow_patterns=list(patterns),
                    cache_dir=_cache_dir(),
                    endpoint=endpoint,
                    library_name="pocketclip",
                )
            folder = Path(found)
            if is_complete(folder):
                break
    except failures as error:
        raise _explained(error, repo, revision, endpoint) from error
    return folder


def _failures() -> tuple[type[Exception], ...]:
    # The HTTP library differs between versions of huggingface_hub (requests, httpx, httpx2). Its
    # base class of errors is a base of HfHubHTTPError in each; only InvalidURL stands apart.
    from huggingface_hub.errors import HfHubHTTPError

    base = cast("type[Exception]", HfHubHTTPError.__bases__[0])
    library = sys.modules[base.__module__.partition(".")[0]]
    invalid = cast("type[Exception]", getattr(library, "InvalidURL", ValueError))
    # A server that is no hub answers with JSON of another form, or with none (ValueError,
    # KeyError, TypeError). A SOCKS proxy without support for it is an ImportError.
    return (base, invalid, OSError, ValueError, KeyError, TypeError, ImportError)


_LOCK = threading.RLock()


@contextlib.contextmanager
def environment(*, offline: bool) -> Iterator[None]:
    """Let other libraries use huggingface_hub under the rules of this module.

    huggingface_hub reads the environment once, when it is imported; this sets what it read to what
    the environment says now, and puts it back.

    Args:
        offline: allow no request.
    """
    from huggingface_hub import constants, file_download

    endpoint = _endpoint()
    values = {
        "HF_HUB_OFFLINE": is_offline(offline),
        "HF_HUB_CACHE": str(_cache_dir()),
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    }
    with _LOCK, _without_xet():
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
    # Versions before 1.0 decide when a session is made whether it may use the network, and keep it.
    from huggingface_hub import utils

    reset = getattr(utils, "reset_sessions", None)
    if reset is not None:
        reset()


@contextlib.contextmanager
def _without_xet() -> Iterator[None]:
    # Xet has its own network stack: proxies, mirrors, time limits and errors differ, and mirrors
    # announce it without speaking it. Every file is also served over plain HTTP. There is no
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


def _explained(error: Exception, repo: str, revision: str | None, endpoint: str) -> HubError:
    from huggingface_hub import errors

    cause: BaseException = error
    # What huggingface_hub raises when it has no cached file to fall back to hides the reason.
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        cause = error.__cause__
    host = _shown(endpoint)
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return _offline_error((repo,), revision)
    if isinstance(cause, errors.RevisionNotFoundError):
        return _NotThereError(f"{repo} has no revision {revision!r} on {host}")
    if isinstance(cause, errors.GatedRepoError) or status == 403:
        return _NotThereError(
            f"{repo} on {host} is gated or closed to you: accept its terms on its page and set "
            "HF_TOKEN to a token of that account"
        )
    if isinstance(cause, errors.RepositoryNotFoundError) or status in (401, 404):
        return _NotThereError(
            f"{repo} was not found on {host}; if it is private, set HF_TOKEN to a valid token"
        )
    reason = _named_reason(cause).replace(endpoint, host)
    if isinstance(cause, OSError) and errno.errorcode.get(cause.errno or 0) in _DISK_ERRORS:
        return HubError(
            f"cannot store the weights of {repo} in {_cache_dir()}: {reason}; make room or choose "
            "another folder with HF_HUB_CACHE"
        )
    return HubError(
        f"cannot fetch the weights of {repo} from {host}: {reason}; try again, set HF_ENDPOINT to "
        f"a mirror or HTTPS_PROXY to a proxy, use --offline with a cached file, or {_BY_HAND}"
    )


def _named_reason(error: BaseException) -> str:
    # The first line says what happened; the others repeat the address or point to documentation.
    name, text = type(error).__name__, first_line(error, limit=1000).rstrip(".")
    return name if text == name else f"{name}: {text}"


def _offline_error(ids: Sequence[str], revision: str | None) -> HubError:
    at = f" at revision {revision!r}" if revision else ""
    return HubError(
        f"no weights of {' or '.join(ids)}{at} in {_cache_dir()} and the network is off; "
        f"{_GO_ONLINE}, or {_BY_HAND}"
    )


def is_offline(offline: bool = False) -> bool:
    """Return whether no request may be made: `offline`, or the environment as it is now."""
    # The values, and the second name, are those that huggingface_hub accepts.
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return offline or value.upper() in {"1", "ON", "YES", "TRUE"}


def _endpoint() -> str:
    endpoint = (os.environ.get("HF_ENDPOINT") or _DEFAULT_ENDPOINT).rstrip("/")
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is not a number, an unclosed bracket
        valid = False
    if not valid:
        raise HubError(f"HF_ENDPOINT is {endpoint!r}; it has to be an http:// or https:// address")
    return endpoint


def _shown(endpoint: str) -> str:
    # An address may carry a user and a password; error messages end up in logs.
    scheme, _, rest = endpoint.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _cache_dir() -> Path:
    env = os.environ.get
    cache = env("HF_HUB_CACHE") or env("HUGGINGFACE_HUB_CACHE")
    if not cache:
        home = env("HF_HOME") or f"{env('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
        cache = f"{home}/hub"
    return Path(os.path.expandvars(cache)).expanduser().resolve()


__all__ = [
    "PICKLED",
    "SUFFIXES",
    "HubFile",
    "cached",
    "check_revision",
    "choose_weights",
    "environment",
    "fetch",
    "fetch_folder",
    "is_hub_id",
    "is_offline",
    "is_weight_file",
]
