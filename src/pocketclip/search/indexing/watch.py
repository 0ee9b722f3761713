"""Keeps a library up to date: indexes again whenever something changes in its roots.

    watch([Path("/home/me/Pictures")], lambda folders: library.index(folders))

What the system reports of changes is only a hint of where to look. Reports may be lost, and say
nothing of network file systems: there, and where the package watchfiles is missing, the folders
are listed again and again instead. All roots are listed once an hour, too.

A root may vanish and come back, as with a drive.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from pocketclip.errors import LibraryError, how_to_install, one_line
from pocketclip.search.indexing.roots import identity_of, resolve_root, rules_of
from pocketclip.search.indexing.rules import IGNORE_FILE, NO_MEDIA
from pocketclip.search.indexing.walk import left_out
from pocketclip.search.store.database import Database
from pocketclip.search.store.file_systems import network_of
from pocketclip.storage.photos import is_hidden, is_photograph

Run: TypeAlias = Callable[[list[Path]], object]
"""Indexes folders, each a root or in one."""
_Paths: TypeAlias = "set[str] | None"
"""What changed; None: that is not known."""

_MANY = 50  # changed folders from which on their whole roots are listed
_SIGNS = (os.fsdecode(IGNORE_FILE), os.fsdecode(NO_MEDIA))
_LIBRARY_SUFFIXES = (
    *(".sqlite", ".sqlite-wal", ".sqlite-shm", ".sqlite-journal"), ".lock", ".progress",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Times:
    """How long to wait, in seconds."""

    settle: float = 2.5
    """Without changes, before indexing: files are complete, and their times can be trusted."""
    settle_at_most: float = 30.0
    """Before indexing although changes go on."""
    check: float = 5.0
    """Between looks for roots that vanished or came back."""
    listing: float = 60.0
    """Between listings of a root of which no changes are reported."""
    all: float = 3600.0
    """Between listings of all roots."""
    retry: float = 30.0
    """After an error."""


_TIMES = Times()
_BUSY = 0.1  # of the time may be spent on listing roots of which no changes are reported


def is_left_out(database: Database, folder: Path) -> bool:
    """Return whether a root leaves out a folder in it, so that there is nothing to index."""
    try:
        target = resolve_root(database, folder)
        if target.root_id is None:
            return True
        rules = rules_of(database, target.root_id)
    except LibraryError:
        return True  # it is not there any more
    return left_out(target.path, rules, target.below) is not None


def watch(
    roots: Sequence[Path],
    run: Run,
    *,
    skip: Callable[[Path], bool] = lambda _folder: False,
    remark: Callable[[str], None] = lambda _text: None,
    stop: threading.Event | None = None,
    times: Times | None = None,
) -> None:
    """Index roots whenever something changes in them, until interrupted.

    Args:
        roots: folders, by their real paths; they need not be there now.
        run: called with the roots when they are watched, and then with the folders that changed,
            none in another one. After a `LibraryError`, such as that another process writes, it is
            called again later.
        skip: says of a folder in a root that it is left out, so that its changes do not matter.
        remark: receives what the user should know.
        stop: ends it when set.
        times: how long to wait; None for `Times()`.

    Raises:
        KeyboardInterrupt: from the user, or from `run`.
    """
    _Watch(list(roots), run, skip, remark, stop or threading.Event(), times or _TIMES).go_on()


class _Watch:
    def __init__(
        self,
        roots: list[Path],
        run: Run,
        skip: Callable[[Path], bool],
        remark: Callable[[str], None],
        stop: threading.Event,
        times: Times,
    ) -> None:
        self.roots, self.run, self.skip, self.remark = roots, run, skip, remark
        self.stop, self.times = stop, times
        self.listed: set[Path] = set()  # roots of which no changes are reported
        self.pending: set[Path] = set()
        self.identities = {root: identity_of(root) for root in roots}
        self.not_before = 0.0
        self.next_listing = time.monotonic() + times.listing
        self.next_all = time.monotonic() + times.all
        self.said: set[str] = set()

    def go_on(self) -> None:
        """Wait for changes and index them, until stopped."""
        while not self.stop.is_set():
            watched = [root for root in self.roots if self._can_be_watched(root)]
            self.listed = set(self.roots) - set(watched)
            is_first = True
            for changes in self._changes(watched):
                if is_first or changes is None:
                    self.pending.update(watched)  # of what changed before, nobody says anything
                    is_first = False
                if changes is not None:
                    self.pending |= changed_folders(changes, self.roots)
                self._add_due()
                moved = self._add_moved()
                self._index()
                if moved or changes is None:
                    break  # watch anew

    def _can_be_watched(self, root: Path) -> bool:
        if self.identities[root] is None:
            return False  # `check` notices when it is there
        try:
            os.fspath(root).encode("utf-8")
            import watchfiles  # noqa: F401
        except UnicodeError:
            return False  # watchfiles takes text only
        except ImportError:
            self._say(
                "watchfiles is not installed, so changes are looked for every "
                f"{self.times.listing:g} s: {how_to_install('search')}"
            )
            return False
        kind = network_of(root)
        if kind is not None:
            self._say(
                f"{root} is on a network file system ({kind}): changes are looked for every "
                f"{self.times.listing:g} s"
            )
        return kind is None

    def _changes(self, roots: Sequence[Path]) -> Iterator[_Paths]:
        """Yield changed paths, or none after `check` seconds; ends when stopped.

        A last None says that they are not known, and that the roots have to be watched anew.
        """
        began = time.monotonic()
        if not roots:
            while not self.stop.wait(self.times.check):
                yield set()
            return
        import watchfiles

        try:
            for changes in watchfiles.watch(
                *roots,
                watch_filter=None,
                step=round(self.times.settle * 1000),
                debounce=round(self.times.settle_at_most * 1000),
                rust_timeout=round(self.times.check * 1000),
                yield_on_timeout=True,
                stop_event=self.stop,
                ignore_permission_denied=True,
            ):
                yield {path for _, path in changes}
            return
        except OSError as error:
            if any(identity_of(root) != self.identities[root] for root in roots):
                yield set()  # one vanished
                return
            problem = one_line(error)  # such as more folders than the system watches
        except RuntimeError as error:
            # Of a name that is not UTF-8 it says nothing else, and stops.
            if time.monotonic() - began > self.times.settle:
                yield None
                return
            problem = one_line(error)
        self._say(
            f"changes cannot be watched ({problem}), so they are looked for every "
            f"{self.times.listing:g} s"
        )
        self.listed.update(roots)
        while time.monotonic() - began < self.times.all and not self.stop.wait(self.times.check):
            yield set()

    def _add_due(self) -> None:
        """Add the roots that are due to be listed."""
        now = time.monotonic()
        if now >= self.next_all:
            self.pending.update(self.roots)
            self.next_all = now + self.times.all
        if self.listed and now >= self.next_listing:
            self.pending.update(self.listed)

    def _add_moved(self) -> bool:
        """Add the roots that came back, or are another folder now; return whether any changed."""
        changed = False
        for root, before in self.identities.items():
            now = identity_of(root)
            if now == before:
                continue
            changed = True
            self.identities[root] = now
            if now is None:
                self.remark(f"{root} is not there now: what is known of it is kept")
            else:
                self.pending.add(root)
        return changed

    def _index(self) -> None:
        """Index what is pending, unless an error was a short time ago."""
        began = time.monotonic()
        folders = [
            folder for folder in _outermost(self.pending)
            if folder in self.roots or not self.skip(folder)
        ]  # fmt: skip
        if not folders:
            self.pending.clear()
        if not folders or began < self.not_before:
            return
        try:
            self.run(folders)
        except LibraryError as error:
            self.remark(f"{error}; trying again in {self.times.retry:g} s")
            self.not_before = time.monotonic() + self.times.retry
            return
        self.pending.clear()
        took = time.monotonic() - began
        self.next_listing = time.monotonic() + max(self.times.listing, took / _BUSY)

    def _say(self, text: str) -> None:
        """Remark something once."""
        if text not in self.said:
            self.said.add(text)
            self.remark(text)


def changed_folders(changes: Iterable[str], roots: Sequence[Path]) -> set[Path]:
    """Return the folders to index after changes of paths; many become their whole roots.

    Hidden paths, files that are no photographs, and a library's own files do not matter.
    """
    found: dict[Path, set[Path]] = {}
    for text in changes:
        path = Path(text)
        # Of roots within each other the innermost.
        inside = [root for root in roots if path.is_relative_to(root)]
        if not inside:
            continue
        root = max(inside, key=lambda root: len(root.parts))
        folder = _folder_of(path, root)
        if folder is not None:
            found.setdefault(root, set()).add(folder)
    return {
        folder
        for root, folders in found.items()
        for folder in ([root] if len(folders) > _MANY else _outermost(folders))
    }


def _folder_of(path: Path, root: Path) -> Path | None:
    """Return the folder to index after a change of a path; None if the change does not matter."""
    if path == root:
        return root
    *folders, name = path.relative_to(root).parts
    if any(is_hidden(folder) for folder in folders) or (is_hidden(name) and name not in _SIGNS):
        return None
    if name.endswith(_LIBRARY_SUFFIXES) or any(part.endswith(".derived") for part in folders):
        return None
    try:
        mode = path.lstat().st_mode
    except OSError:
        folder = path.parent  # it is gone, and may have been a folder
    else:
        if not stat.S_ISDIR(mode) and not is_photograph(name) and name not in _SIGNS:
            return None
        folder = path if stat.S_ISDIR(mode) else path.parent
    while folder != root and not os.path.isdir(folder):  # noqa: PTH112
        folder = folder.parent
    return folder


def _outermost(folders: Iterable[Path]) -> list[Path]:
    """Return folders without those that are in another of them, by path."""
    kept: list[Path] = []
    for folder in sorted(folders):
        if not kept or not folder.is_relative_to(kept[-1]):
            kept.append(folder)
    return kept
