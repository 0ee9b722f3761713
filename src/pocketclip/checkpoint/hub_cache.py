"""Weight files in the Hugging Face hub's local cache; no network is used.

The folders are those of `huggingface_hub`: `models--OWNER--NAME/` with `refs/`, `snapshots/` and
`.no_exist/`. The environment is read at call time.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from pocketclip.checkpoint.hub_files import (
    WEIGHTS,
    choose_weights,
    is_own_folder,
    is_weight_file,
)
from pocketclip.errors import HubError
from pocketclip.storage.hub_settings import cache_dir, check_revision, find_commit


@dataclass(frozen=True)
class HubFile:
    """A weight file in the local cache, and its origin."""

    repo: str
    path: Path
    filename: str
    """The file's name within the repository."""
    revision: str | None
    """The commit that the file belongs to."""
    license: str | None = None
    """The licence in the repository's description, if the hub was asked just now."""


@dataclass(frozen=True)
class CachedFile:
    """A weight file that the cache has."""

    file: HubFile
    is_certain: bool
    """Whether `pocketclip.checkpoint.hub.fetch` would choose this file."""


def cached(repo: str, *, revision: str | None = None) -> HubFile | None:
    """Return the weights of `repo` if the local cache has them.

    Other libraries store their own files of a repository in the same cache, such as transformers'
    `model.safetensors`. A file is returned only if `pocketclip.checkpoint.hub.fetch` would choose
    it: because of its name (`open_clip_*`, `mobileclip*`), or because `fetch` chose it before.

    Args:
        repo: the repository's id.
        revision: a branch, a tag, a pull request (`refs/pr/1`) or a commit hash, which may be
            shortened to seven digits; None for `main`.

    Returns:
        None if the cache lacks the repository, this revision of it or its weight file.

    Raises:
        HubError: an invalid revision.
    """
    match = find_cached(repo, check_revision(revision))
    return None if match is None or not match.is_certain else match.file


def find_cached(repo: str, revision: str) -> CachedFile | None:
    """Return a repository's most likely weight file in the cache, or None."""
    folder = repo_folder(repo)
    try:
        commit = find_commit(folder, revision)
        if commit is None:
            return None
        snapshot = folder / "snapshots" / commit
        if is_own_folder(snapshot):
            own = HubFile(repo=repo, path=snapshot / WEIGHTS, filename=WEIGHTS, revision=commit)
            return CachedFile(own, is_certain=True)
        # A file is a link to its blob, and the blob appears only once its download is complete.
        files = [
            path.relative_to(snapshot).as_posix()
            for path in snapshot.rglob("*")
            if path.is_file() and path.stat().st_size > 0
        ]
        was_chosen = choice_marker(folder, commit).is_file()
        known = files if was_chosen else [name for name in files if has_own_name(name)]
        is_certain = any(map(is_weight_file, known))
        filename = choose_weights(known if is_certain else files)
    except (OSError, ValueError, HubError):
        return None
    path = snapshot / filename
    return CachedFile(HubFile(repo=repo, path=path, filename=filename, revision=commit), is_certain)


def has_own_name(filename: str) -> bool:
    """Return whether only open_clip's or MobileCLIP's weights are called like this file."""
    return filename.lower().startswith(("open_clip_", "mobileclip"))


def choice_marker(folder: Path, commit: str) -> Path:
    """Return the file that marks a commit whose weights `fetch` chose among all files.

    With it, huggingface_hub records that a repository has no file of this name.
    """
    return folder / ".no_exist" / commit / "open_clip_model.safetensors"


def record_choice(folder: Path, commit: str) -> None:
    """Create `choice_marker`. A read-only cache is left alone; the hub is then asked again."""
    marker = choice_marker(folder, commit)
    with contextlib.suppress(OSError):
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()


def repo_folder(repo: str) -> Path:
    """Return the cache's folder of a repository."""
    return cache_dir() / ("models--" + repo.replace("/", "--"))
