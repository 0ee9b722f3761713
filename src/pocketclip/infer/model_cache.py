"""The user's cache of converted models: where each is kept, and which counts.

    MODELS/OWNER--NAME/COMMIT/        the bundle of a model on the hub
                       refs.json      which commit each revision meant
    MODELS/local/NAME-HASH/           the bundle of a weight file or checkpoint here

MODELS is `models` in the user's cache (`pocketclip.storage.user_cache`). There is one bundle per
model and revision. It counts only if it was made of the weights that the MODEL argument means now:
the commit that the hub's cache has for the revision, or the file with the same size, times and
inode. The lookup makes no request and writes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketclip import zoo
from pocketclip.checkpoint import hub_cache
from pocketclip.checkpoint.hub_files import is_weight_file
from pocketclip.checkpoint.resolve import CONFIG, ModelSource
from pocketclip.errors import BundleError, CheckpointError, StorageError
from pocketclip.formats.json_text import read_json
from pocketclip.infer import bundle as bundles
from pocketclip.infer.bundle import Bundle
from pocketclip.storage.hub_settings import check_revision
from pocketclip.storage.local import write_whole
from pocketclip.storage.user_cache import user_cache

CONVERTER = 2
"""Version of the conversion; bundles of others are made again. 2: with licence and stored frame."""
_LOCAL, _REFS = "local", "refs.json"
_FULL_HASH, _SHORT_HASH = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{7,39}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the bundle of a model is kept, and what it must have been made of to count."""

    title: str
    """The model, for messages: a repository, or a file."""
    folder: Path
    origin: Mapping[str, str]
    """Entries that the bundle's `source` must have."""
    revision: str | None = None
    """Of a repository: the revision that means this commit."""

    def read(self) -> Bundle | None:
        """Return the bundle, or None if there is none that counts; its files are not hashed."""
        try:
            bundle = bundles.read(self.folder)
        except (BundleError, OSError):
            return None
        known = bundle.source
        is_same = all(known.get(key) == value for key, value in self.origin.items())
        return bundle if is_same and known.get("converter") == CONVERTER else None


def find(source: ModelSource, name: str | None) -> Bundle | None:
    """Return the bundle of a model if there is one; nothing is asked, fetched or written.

    Args:
        source: of one of `KINDS`.
        name: the zoo name that the weights must fit, see
            `pocketclip.checkpoint.stored.expected_name`.
    """
    return next(filter(None, (place.read() for place in _known_places(source, name))), None)


def hub_place(source: ModelSource, name: str | None, repo: str, commit: str) -> Place:
    """Return the place of a repository's bundle.

    Raises:
        StorageError: there is no cache.
    """
    # The name is part of the place where it is not the one that the repository has anyway.
    suffix = "" if name in (None, zoo.name_of_repository(repo)) else f".{name}"
    return Place(
        title=repo,
        folder=_repo_folder(repo) / f"{commit}{suffix}",
        origin={"repo": repo, "revision": commit},
        revision=check_revision(source.revision),
    )


def remember(place: Place) -> None:
    """Record what the revision means, and remove bundles of commits that none means any more."""
    if place.revision is None:
        return
    repo = place.folder.parent
    refs = {**read_refs(repo), place.revision: place.origin["revision"]}
    with write_whole(repo / _REFS) as temporary:
        temporary.write_text(json.dumps(refs, indent=1, sort_keys=True) + "\n", "utf-8")
    for folder in repo.iterdir():
        commit = folder.name.partition(".")[0]
        if _FULL_HASH.fullmatch(commit) and commit not in refs.values():
            shutil.rmtree(folder, ignore_errors=True)


def read_refs(repo: Path) -> dict[str, str]:
    """Return the commits that revisions meant, from a repository's folder in the cache."""
    try:
        raw = read_json(repo / _REFS)
    except (OSError, ValueError):
        return {}
    if not isinstance(raw, dict):
        return {}
    return {k: v for k, v in raw.items() if isinstance(v, str) and _FULL_HASH.fullmatch(v)}


def _known_places(source: ModelSource, name: str | None) -> Iterator[Place]:
    """Yield where a model's bundle may be, without asking the hub."""
    if source.kind != "hub":
        with contextlib.suppress(CheckpointError):
            yield local_place(source, name)
        return
    revision = check_revision(source.revision)
    for repo in source.repos:
        # The hub's cache counts: what it has for the revision is what would be converted.
        cached = hub_cache.cached(repo, revision=revision)
        commit = _commit(repo, revision) if cached is None else cached.revision
        if commit is not None:
            yield hub_place(source, name, repo, commit)


def _commit(repo: str, revision: str) -> str | None:
    """Return the commit that a revision meant when it was converted."""
    if _FULL_HASH.fullmatch(revision):
        return revision
    folder = _repo_folder(repo)
    known = read_refs(folder).get(revision)
    if known is not None or not _SHORT_HASH.fullmatch(revision) or not folder.is_dir():
        return known
    commits = {path.name.partition(".")[0] for path in folder.glob(f"{revision}*")}
    return commits.pop() if len(commits) == 1 else None


def local_place(source: ModelSource, name: str | None) -> Place:
    """Return the place of the bundle of a file or checkpoint here.

    Raises:
        CheckpointError: it cannot be read.
        StorageError: there is no cache.
    """
    path = source.path
    assert path is not None
    digest = hashlib.sha256(os.fsencode(path.absolute()) + f"\0{name}".encode()).hexdigest()[:12]
    stem = re.sub(r"[^\w.-]", "_", path.stem)[:60].strip(".")
    return Place(
        title=source.text,
        folder=models_folder() / _LOCAL / f"{stem}-{digest}",
        origin={"fingerprint": fingerprint(path, name)},
    )


def model_files(path: Path) -> list[Path]:
    """Return a weight file, or a checkpoint folder's files that can decide its model.

    Raises:
        OSError: the folder cannot be read.
    """
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.iterdir() if p.name == CONFIG or is_weight_file(p.name))


def fingerprint(path: Path, name: str | None) -> str:
    """Return a hash of a file's path, size, times and inode; of a folder's, for each model file.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        files = model_files(path)
        facts: list[Any] = [str(path.resolve()), name]
        for file in files:
            about = file.stat()
            facts.append([file.name, about.st_size, about.st_mtime_ns, about.st_ctime_ns,
                          about.st_ino])  # fmt: skip
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def models_folder() -> Path:
    """Return the folder of all bundles in the user's cache; it need not exist.

    Raises:
        StorageError: the user has no home directory, and no cache is set.
    """
    folder = user_cache("models")
    if folder is None:
        raise StorageError(
            "there is no home directory to keep converted models in: set POCKETCLIP_CACHE"
        )
    return folder


def _repo_folder(repo: str) -> Path:
    return models_folder() / repo.replace("/", "--")


def shown(path: Path) -> str:
    """Return a path for messages, with `~` for the home directory."""
    with contextlib.suppress(RuntimeError, ValueError):
        return f"~/{path.relative_to(Path.home())}"
    return str(path)


def list_ready() -> list[Bundle]:
    """Return every bundle in the user's cache that this version reads, in order of their folders.

    A bundle of a local file is listed even if the file was changed since.
    """
    with contextlib.suppress(StorageError, OSError):
        found = []
        for folder in sorted(models_folder().glob("*/*/")):
            with contextlib.suppress(BundleError, OSError):
                bundle = bundles.read(folder)
                if bundle.source.get("converter") == CONVERTER:
                    found.append(bundle)
        return found
    return []
