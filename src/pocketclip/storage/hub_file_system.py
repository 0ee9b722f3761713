"""huggingface_hub's file system, for repositories at fixed commits.

What is known of a commit stays true, so listings and facts are kept. A single file is asked for by
its name: its folder, which may hold 100,000 files, is listed only once many of them were asked for.
Every request is repeated if the hub is overloaded or a connection breaks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.hf_api import RepoFile

from pocketclip.storage import retries
from pocketclip.storage.hub_settings import is_passing

if TYPE_CHECKING:  # what the versions of huggingface_hub have in common
    from fsspec import AbstractFileSystem as HfFileSystem
    from fsspec.spec import AbstractBufferedFile as HfFileSystemFile
else:
    from huggingface_hub import HfFileSystem
    from huggingface_hub.hf_file_system import HfFileSystemFile

_SINGLE = 16
"""Files of one folder that are asked for one by one, before the folder is listed."""
_LONGEST_WAIT = 30.0
_T = TypeVar("_T")


def patiently(call: Callable[[], _T]) -> _T:
    """Return what `call` returns; it is repeated after errors that may pass."""
    return retries.patiently(call, is_passing, pause=_pause)


def _pause(error: Exception, attempt: int) -> float:
    return min(_wait_for(error) or 2.0**attempt, _LONGEST_WAIT)


def _wait_for(error: Exception) -> float | None:
    """Return the seconds that the server asks to wait."""
    headers: Any = getattr(getattr(error, "response", None), "headers", {})
    try:
        return max(float(headers.get("Retry-After")), 0.0)
    except (TypeError, ValueError):
        return None


class HubFile(HfFileSystemFile):  # type: ignore[misc]  # fsspec is not typed
    """A file that is read in blocks."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        data: bytes = patiently(lambda: super(HubFile, self)._fetch_range(start, end))
        if len(data) != end - start:
            # A proxy that ignores ranges would silently give the file's beginning.
            raise OSError(f"received {len(data)} of {end - start} bytes from {start} on")
        return data

    def read(self, length: int = -1) -> bytes:
        """Read up to `length` bytes, by default all that are left."""
        # The parent streams the rest of a file, and older versions then give compressed bytes.
        return bytes(super(HfFileSystemFile, self).read(length))


class HubFiles(HfFileSystem):  # type: ignore[misc]
    """The files of all repositories; names have the commit: `datasets/OWNER/NAME@HASH/FILE`."""

    cachable = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._hub: Any = HfApi(endpoint=self.endpoint, library_name="pocketclip")
        self._facts: dict[str, dict[str, Any]] = {}
        self._folders: dict[str, list[dict[str, Any]]] = {}
        self._asked: Counter[str] = Counter()

    def commit(self, kind: str, repo: str, revision: str) -> str:
        """Return the commit that a revision means now, or the revision if the hub does not say."""
        from huggingface_hub import constants

        def ask() -> Any:
            # Without `expand` the answer names all files.
            return self._hub.repo_info(
                repo, revision=revision, repo_type=kind, expand=["sha"],
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
            )  # fmt: skip

        return str(patiently(ask).sha or revision)

    def _repo_and_revision_exist(self, *_: Any, **__: Any) -> tuple[bool, None]:
        return True, None  # the commit was just looked up

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return the facts of a file or folder: name, size, type, etag."""
        name = self._strip_protocol(path)
        known = self._facts.get(name)
        if known is not None:
            return known
        place = self.resolve_path(name)
        if not place.path_in_repo:
            return {"name": name, "size": 0, "type": "directory"}
        parent = self._parent(name)
        if parent not in self._folders:
            self._asked[parent] += 1
            if self._asked[parent] <= _SINGLE:
                found = patiently(
                    lambda: self._hub.get_paths_info(
                        place.repo_id, [place.path_in_repo], revision=place.revision,
                        repo_type=place.repo_type,
                    )
                )  # fmt: skip
                self._keep(name[: -len(place.path_in_repo)], found)
            else:
                self._list(parent)
        if name not in self._facts:
            raise FileNotFoundError(name)
        return self._facts[name]

    def _keep(self, root: str, entries: Iterable[Any]) -> list[dict[str, Any]]:
        out = []
        for entry in entries:
            fact: dict[str, Any] = {"name": root + entry.path, "size": 0, "type": "directory"}
            if isinstance(entry, RepoFile):
                # For a large file the hash of its content, as its HTTP header has it, too.
                etag = entry.lfs.sha256 if entry.lfs else entry.blob_id
                fact |= {"size": entry.size, "type": "file", "etag": etag}
            self._facts[fact["name"]] = fact
            out.append(fact)
        return out

    def _list(self, name: str, *, recursive: bool = False) -> list[dict[str, Any]]:
        """Return the entries of a folder, or all below it; none if there is no such folder."""
        if not recursive and name in self._folders:
            return self._folders[name]
        place = self.resolve_path(name)

        def ask() -> list[Any]:
            tree = self._hub.list_repo_tree(
                place.repo_id, place.path_in_repo or None, recursive=recursive,
                revision=place.revision, repo_type=place.repo_type,
            )  # fmt: skip
            return list(tree)

        try:
            found = patiently(ask)
        except EntryNotFoundError:
            found = []
        root = name[: -len(place.path_in_repo)] if place.path_in_repo else f"{name}/"
        entries = self._keep(root, found)
        if not recursive:
            self._folders[name] = entries
        return entries

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """Return the entries of a folder."""
        name = self._strip_protocol(path)
        found = self._list(name) or [self.info(name)]
        return found if detail else [entry["name"] for entry in found]

    def find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        **_: Any,
    ) -> Any:
        """Return the files below a folder, to a depth; a file itself."""
        name = self._strip_protocol(path)
        entries = self._list(name, recursive=maxdepth != 1)
        if not entries and self.isfile(name):
            entries = [self.info(name)]
        depth = name.count("/") + (maxdepth or 1000)
        out = {
            entry["name"]: entry
            for entry in entries
            if (withdirs or entry["type"] == "file") and entry["name"].count("/") <= depth
        }
        return {key: out[key] for key in sorted(out)} if detail else sorted(out)

    def exists(self, path: str, **_: Any) -> bool:
        """Return whether there is a file or folder."""
        return self._type(path) is not None

    def isdir(self, path: str) -> bool:
        """Return whether there is a folder."""
        return self._type(path) == "directory"

    def isfile(self, path: str) -> bool:
        """Return whether there is a file."""
        return self._type(path) == "file"

    def _type(self, path: str) -> str | None:
        # The parent's take every error for a file that is not there.
        try:
            return str(self.info(path)["type"])
        except FileNotFoundError:
            return None

    def url(self, path: str) -> str:
        """Return the address of a file."""
        place = self.resolve_path(self._strip_protocol(path))
        return hf_hub_url(
            place.repo_id, place.path_in_repo, repo_type=place.repo_type, revision=place.revision,
            endpoint=self.endpoint,
        )  # fmt: skip

    def _open(self, path: str, mode: str = "rb", block_size: Any = None, **kwargs: Any) -> HubFile:
        if mode != "rb":
            raise NotImplementedError("files on the hub are only read")
        facts = self.info(path)
        if facts["type"] == "directory":
            raise IsADirectoryError(21, "is a folder", path)
        return HubFile(self, path, mode=mode, block_size=block_size or "default",
                       size=facts["size"], **kwargs)  # fmt: skip
