"""Walks through a root: which photographs are in it, and what is passed over.

Links are not followed out of the root. A link within the root to a photograph that is listed
itself is passed over, so that no file is there twice; one to a photograph that is not, because it
is in a hidden folder or has another suffix, stands for it (as in folders kept by git-annex). Links
to folders are passed over, so circles are harmless. Mount points are entered.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from pocketclip.search.indexing.rules import (
    IGNORE_FILE,
    NO_MEDIA,
    Patterns,
    Rules,
    as_text,
    compile_patterns,
    leaves_out,
    read_ignore_file,
)
from pocketclip.storage.photos import (
    HIDDEN,
    IMAGE_SUFFIXES,
    OTHER,
    OTHER_KINDS,
    SPECIAL,
    SYSTEM_NAMES,
    is_hidden,
)

FileState: TypeAlias = "tuple[int, int]"
"""Size in bytes, and time of the last change in nanoseconds since 1970; see `file_state`."""
READ_AGAIN = -1
"""Value of `files.mtime_ns` of a file that the next run reads, see `stored_state`."""

EXCLUDED_ENTRY = "excluded file or folder"
NO_MEDIA_FOLDER = "folder with a .nomedia file"
OWN_ROOT = "folder that is indexed by itself"
LIBRARY = "folder of a library's own files"
OUTSIDE = "link out of the folder"
LINKED_TWICE = "link to a photograph that is there itself"
FOLDER_LINK = "link to a folder"
BROKEN = "broken link"

_PHOTOGRAPHS = frozenset(suffix.encode() for suffix in IMAGE_SUFFIXES)
_OTHERS = {suffix.encode(): kind for suffix, kind in OTHER_KINDS.items()}
_SYSTEM = frozenset(name.encode() for name in SYSTEM_NAMES)
_DOT = ord(".")
_LATEST = (1 << 63) - 1  # nanoseconds: in the year 2262
_DERIVED, _LIBRARY_FILE = b".derived", b".sqlite"


@dataclass(slots=True)
class Listing:
    """The photographs of a root, or of a folder in it; paths are relative to the root."""

    root: Path
    below: bytes
    """The folder that was listed; empty for the whole root."""
    files: dict[bytes, FileState] = field(default_factory=dict)
    folders: set[bytes] = field(default_factory=set)
    """Folders that were listed whole."""
    failed: dict[bytes, str] = field(default_factory=dict)
    """Folders that were not, with the reason."""
    excluded_folders: set[bytes] = field(default_factory=set)
    excluded_files: set[bytes] = field(default_factory=set)
    passed_over: Counter[str] = field(default_factory=Counter)
    """Number of entries of each kind; for people: `storage.photos.passed_over_text`."""
    examples: dict[str, bytes] = field(default_factory=dict)
    """The path of one entry of each kind."""
    missing: str | None = None
    """Why nothing was listed."""
    empty: bool = False
    """Whether the folder has no entry at all."""


def file_state(state: os.stat_result) -> FileState:
    """Return a file's size and time, the time as SQLite can store it: file systems go further."""
    return state.st_size, stored_time(state.st_mtime_ns)


def stored_time(nanoseconds: int) -> int:
    """Return a time since 1970 as SQLite can store it, in 64 bits."""
    return max(-_LATEST, min(nanoseconds, _LATEST))


def is_current(state: os.stat_result, size: int, mtime_ns: int) -> bool:
    """Return whether a file has the size and time of its row; `READ_AGAIN` is any time."""
    return state.st_size == size and mtime_ns in (READ_AGAIN, stored_time(state.st_mtime_ns))


def look_up(root: bytes, path: bytes) -> os.stat_result | None:
    """Return the state of an indexed file: None if it is not there now, or a link out of its root.

    Args:
        root: the root's folder.
        path: the file's, absolute.
    """
    try:
        now = os.lstat(path)
        if stat.S_ISLNK(now.st_mode):
            inside = os.path.join(os.path.realpath(root), b"")  # noqa: PTH118 - bytes
            if not os.path.realpath(path).startswith(inside):
                return None  # links out of the root are not followed
            now = os.stat(path)  # noqa: PTH116 - of bytes
    except (OSError, ValueError):
        return None
    return now if stat.S_ISREG(now.st_mode) else None


def list_root(
    root: Path,
    rules: Rules,
    below: bytes = b"",
    *,
    progress: Callable[[int], None] | None = None,
) -> Listing:
    """Return the photographs of a root; nothing but ignore files is opened.

    Args:
        root: a real path.
        rules: what is left out.
        below: a folder of the root, relative; empty for the whole root.
        progress: called with the number of files found so far, after each folder.
    """
    listing = Listing(root, below)
    walk = _Walk(listing, rules)
    patterns = walk.way_down()
    if patterns is not None:
        walk.walk(patterns, progress)
        walk.follow_links()
    return listing


def left_out(root: Path, rules: Rules, below: bytes) -> str | None:
    """Return why a folder of a root is left out by the root's rules; None if it is not."""
    listing = Listing(root, below)
    _Walk(listing, rules).way_down()
    return listing.missing


class _Walk:
    def __init__(self, listing: Listing, rules: Rules) -> None:
        self.listing = listing
        self.own_roots = rules.own_roots
        self.exclude = compile_patterns(rules.exclude)
        self.root = os.fsencode(listing.root)
        self.prefix = self.root.rstrip(b"/") + b"/"
        self.links: list[bytes] = []

    def note(self, kind: str, path: bytes) -> None:
        self.listing.passed_over[kind] += 1
        self.listing.examples.setdefault(kind, path)

    def way_down(self) -> Patterns | None:
        """Return the patterns for the folder to list; None, with the reason, if it is left out."""
        patterns: Patterns | None = self.exclude
        folder = b""
        parts = self.listing.below.split(b"/") if self.listing.below else []
        for part in parts:
            inner = folder + b"/" + part if folder else part
            text = as_text(inner)
            try:
                patterns = self._with_ignore_file(folder, patterns or ())
                if patterns is None:
                    self.listing.missing = f"{as_text(folder) or '.'} has a .nomedia file"
                elif is_hidden(os.fsdecode(part)):
                    self.listing.missing = f"{text} is hidden"
                elif inner in self.own_roots:
                    self.listing.missing = f"{text} is indexed by itself"
                elif leaves_out(patterns, text, folder=True):
                    self.listing.missing = f"{text} is excluded"
                elif stat.S_ISLNK(os.lstat(self.prefix + inner).st_mode):
                    self.listing.missing = f"{text} is a link"
            except (OSError, ValueError) as error:
                self.listing.missing = _reason(error)
            if self.listing.missing is not None or patterns is None:
                return None
            folder = inner
        return patterns

    def _with_ignore_file(self, folder: bytes, patterns: Patterns) -> Patterns | None:
        """Add the patterns of a folder's own ignore file; None if it has a `.nomedia` file."""
        before = self.prefix + (folder + b"/" if folder else b"")
        if os.path.lexists(before + NO_MEDIA):
            return None
        ignore_file = before + IGNORE_FILE
        if os.path.lexists(ignore_file):
            return patterns + read_ignore_file(ignore_file, folder)
        return patterns

    def walk(self, patterns: Patterns, progress: Callable[[int], None] | None) -> None:
        """List the folder and everything below it, but for links."""
        listing = self.listing
        waiting = [(listing.below, patterns)]
        while waiting:
            folder, patterns = waiting.pop()
            try:
                with os.scandir(self.prefix + folder) as entries:
                    found = list(entries)
            except OSError as error:
                if folder == listing.below:
                    listing.missing = _reason(error)
                    return
                listing.failed[folder] = _reason(error)
                continue
            names = {entry.name for entry in found}
            if folder == listing.below:
                listing.empty = not names
            if NO_MEDIA in names:
                listing.excluded_folders.add(folder)
                self.note(NO_MEDIA_FOLDER, folder)
                continue
            if IGNORE_FILE in names:
                try:
                    patterns += read_ignore_file(self.prefix + folder + b"/" + IGNORE_FILE, folder)
                except (OSError, ValueError) as error:
                    # What the user wants left out is not known: nothing of it is read.
                    name = IGNORE_FILE.decode()
                    listing.failed[folder] = f"its {name} cannot be read ({_reason(error)})"
                    continue
            listing.folders.add(folder)
            folders = self._sort_out(folder, found, names, patterns)
            waiting += [(inner, patterns) for inner in folders]
            if progress is not None:
                progress(len(listing.files))

    def _sort_out(
        self,
        folder: bytes,
        entries: list[os.DirEntry[bytes]],
        names: set[bytes],
        patterns: Patterns,
    ) -> list[bytes]:
        """Record the entries of a folder; return the folders among them that are to be listed."""
        listing, note, files = self.listing, self.note, self.listing.files
        before = folder + b"/" if folder else b""
        folders = []
        for entry in entries:
            name = entry.name
            lower = name.lower()
            path = before + name
            if name[0] == _DOT or lower in _SYSTEM:
                if name != IGNORE_FILE:
                    note(HIDDEN, path)
                continue
            try:
                is_folder = entry.is_dir(follow_symlinks=False)
                if not is_folder:
                    suffix = lower[lower.rfind(b".") :]
                    if suffix not in _PHOTOGRAPHS:
                        self._note_other(entry, path, suffix)
                        continue
                if patterns and leaves_out(patterns, as_text(path), folder=is_folder):
                    (listing.excluded_folders if is_folder else listing.excluded_files).add(path)
                    note(EXCLUDED_ENTRY, path)
                elif is_folder:
                    kind = self._own_folder(path, name, names)
                    if kind is None:
                        folders.append(path)
                    else:
                        listing.excluded_folders.add(path)
                        note(kind, path)
                elif entry.is_file(follow_symlinks=False):
                    files[path] = file_state(entry.stat(follow_symlinks=False))
                elif entry.is_symlink():
                    self.links.append(path)
                else:
                    note(SPECIAL, path)
            except FileNotFoundError:
                continue  # deleted since
            except OSError as error:
                listing.failed[folder] = _reason(error)
                listing.folders.discard(folder)
        return folders

    def _own_folder(self, path: bytes, name: bytes, names: set[bytes]) -> str | None:
        """Return the kind of a folder that is not the root's."""
        if path in self.own_roots:
            return OWN_ROOT
        if name.endswith(_DERIVED) and name.removesuffix(_DERIVED) + _LIBRARY_FILE in names:
            return LIBRARY  # thumbnails
        return None

    def _note_other(self, entry: os.DirEntry[bytes], path: bytes, suffix: bytes) -> None:
        if entry.is_file(follow_symlinks=False):
            self.note(_OTHERS.get(suffix, OTHER), path)
        elif not entry.is_symlink():
            self.note(SPECIAL, path)
        else:
            kind = OTHER
            try:
                if stat.S_ISDIR(entry.stat().st_mode):
                    kind = FOLDER_LINK if self._inside(entry.path) is not None else OUTSIDE
            except OSError:
                kind = BROKEN
            self.note(kind, path)

    def follow_links(self) -> None:
        """List the links that stand for a photograph which is not listed itself."""
        taken: set[bytes] = set()
        for path in sorted(self.links):
            link = self.prefix + path
            inside = self._inside(link)
            try:
                state = os.stat(link)  # noqa: PTH116
            except OSError:
                self.note(BROKEN if inside is not None else OUTSIDE, path)
                continue
            if inside is None:
                self.note(OUTSIDE, path)
            elif stat.S_ISDIR(state.st_mode):
                self.note(FOLDER_LINK, path)
            elif not stat.S_ISREG(state.st_mode):
                self.note(SPECIAL, path)
            elif self._is_excluded(inside):
                self.listing.excluded_files.add(path)
                self.note(EXCLUDED_ENTRY, path)
            elif inside in taken or _has_photograph_path(inside):
                self.note(LINKED_TWICE, path)
            else:
                taken.add(inside)
                self.listing.files[path] = file_state(state)

    def _inside(self, link: bytes) -> bytes | None:
        """Return where a link leads, relative to the root; None if that is outside."""
        target = os.path.realpath(link)
        if target == self.root:
            return b""
        return target[len(self.prefix) :] if target.startswith(self.prefix) else None

    def _is_excluded(self, path: bytes) -> bool:
        folder = path
        while folder:
            folder = folder.rpartition(b"/")[0]
            if folder in self.listing.excluded_folders:
                return True
        return path in self.listing.excluded_files


def _has_photograph_path(path: bytes) -> bool:
    """Return whether the walk lists a file at this path by itself."""
    *folders, name = os.fsdecode(path).split("/")
    if any(is_hidden(part) for part in (*folders, name)):
        return False
    return name.lower().endswith(IMAGE_SUFFIXES)


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        if error.errno == errno.ENOENT:
            return "it is not there"
        return error.strerror or str(error)
    return str(error)
