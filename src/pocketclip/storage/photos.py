"""Which files are photographs: one walk of folders for all that read photographs.

found = find_photographs(["holidays/", "shelf/*.jpg"])
found.paths, found.passed_over
"""

from __future__ import annotations

import fnmatch
import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pocketclip.errors import PocketclipError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".mpo", ".png", ".apng", ".webp"),
    *(".gif", ".bmp", ".dib", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
"""The endings of photographs' names, in small letters."""
IMAGE_EXTENSIONS = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)
"""The same without the dot: keys of the members of a webdataset."""
_SYSTEM = frozenset(
    ["@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "__macosx"]
)

Note = Callable[[str, str], None]
"""Called with what kind of thing was passed over, and its path."""
HIDDEN, SPECIAL, ABOVE, OTHER = (
    "hidden",
    "no file (a pipe, socket or device)",
    "a link to a folder above",
    "no photograph by its name",
)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is not the user's own.

    Names with a leading dot (`._IMG.jpg`, `.thumbnails`) are hidden, and so are the folders in
    which storage devices, archives and systems keep things for themselves (`@eaDir`, `__MACOSX`).
    """
    return name.startswith(".") or name.lower() in _SYSTEM


def is_photograph(name: str) -> bool:
    """Return whether a file of this name is a photograph."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def walk_files(
    root: str, *, recursive: bool = True, passed_over: Note = lambda _what, _path: None
) -> Iterator[os.DirEntry[str]]:
    """Yield the files in a local folder, in no particular order; none is opened.

    Hidden files and folders, pipes, sockets and devices are passed over. Links are followed, each
    folder once: one that leads above `root`, or in a circle, does not end the walk nor repeat it.
    A link that leads nowhere is yielded, so that whoever reads it says so.

    Args:
        root: a folder.
        recursive: whether files in the folders within it are yielded too.
        passed_over: is told of everything that was passed over.

    Raises:
        OSError: a folder cannot be read.
    """
    waiting, links = [root], list[str]()
    seen: set[tuple[int, int]] = set()
    while waiting or links:
        # Linked folders come last: what also lies in the tree itself has its path there.
        folder = waiting.pop() if waiting else links.pop()
        state = os.stat(folder)  # noqa: PTH116
        if (state.st_dev, state.st_ino) in seen:
            continue
        seen.add((state.st_dev, state.st_ino))
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name, reverse=True)
        for entry in found:
            if is_hidden(entry.name):
                passed_over(HIDDEN, entry.path)
            elif _leads_nowhere(entry) or entry.is_file():
                yield entry
            elif not entry.is_dir():
                passed_over(SPECIAL, entry.path)
            elif not recursive:
                continue
            elif not entry.is_symlink():
                waiting.append(entry.path)
            elif leads_above(entry.path, root):
                passed_over(ABOVE, entry.path)
            else:
                links.append(entry.path)


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110


def leads_above(link: str, root: str) -> bool:
    """Return whether a linked folder is the folder `root`, or one that `root` lies in."""
    folder, root = os.path.realpath(link), os.path.realpath(root)
    return root == folder or root.startswith(folder.rstrip(os.sep) + os.sep)


@dataclass(frozen=True)
class Found:
    """Photographs, and what was passed over while they were looked for."""

    paths: list[Path]
    passed_over: list[str] = field(default_factory=list)
    """A sentence per folder in which something was passed over, with counts."""


def find_photographs(inputs: Sequence[str]) -> Found:
    """Return the files that `inputs` name, in their order.

    An input is a file, which is taken whatever it is called; a folder, which is searched as
    `walk_files` does for the names that `is_photograph` admits; or a pattern (`shelf/*.jpg`, `**`
    for any depth), of which a folder that matches is searched as well, but for those of `**`.
    A file that is written twice is there twice; what folders and patterns find is not repeated.

    Raises:
        PocketclipError: an empty input; a folder or pattern without any photograph.
        OSError: a folder cannot be read.
    """
    paths: list[Path] = []
    notes: list[str] = []
    searched: set[Path] = set()
    """What a folder or pattern found, and nobody wrote."""
    for text in inputs:
        if not text.strip():
            raise PocketclipError('an empty path: give a file, a folder ("." for this one) or a '
                                  "pattern")  # fmt: skip
        if Path(text).is_dir():
            found = _inside(text, notes)
        elif os.path.lexists(text) or not glob.has_magic(text):
            # A missing file is reported like any photograph that is bad.
            if Path(text) not in searched:
                paths.append(Path(text))
            searched.discard(Path(text))
            continue
        else:
            found = _matching(text, notes)
        if not found:
            passed = f"; {notes[-1]}" if notes else ""
            raise PocketclipError(f"{text}: no photographs in this folder{passed}")
        there = set(paths)
        new = [path for path in found if path not in there]
        paths += new
        searched.update(new)
    return Found(paths, notes)


def _matching(pattern: str, notes: list[str]) -> list[Path]:
    parts = Path(pattern).parts
    if "**" in parts:
        found = _matching_deep(parts)
    else:
        found = []
        for match in sorted(Path(match) for match in glob.glob(pattern)):  # noqa: PTH207
            if is_hidden(match.name) and glob.has_magic(parts[-1]):
                continue
            found += _inside(str(match), notes) if match.is_dir() else [match]
    if not found:
        raise PocketclipError(f"{pattern}: no file matches this pattern")
    return found


def _matching_deep(parts: tuple[str, ...]) -> list[Path]:
    """Return the files that a pattern with `**` means: `glob` would follow links in circles."""
    fixed = next(at for at, part in enumerate(parts) if glob.has_magic(part))
    base = Path(*parts[:fixed])
    if not base.is_dir():
        return []
    files = (Path(entry.path) for entry in walk_files(str(base)))
    return sorted(f for f in files if _fits(parts[fixed:], f.relative_to(base).parts))


def _fits(parts: tuple[str, ...], names: tuple[str, ...]) -> bool:
    if not parts or not names:
        return not names and set(parts) <= {"**"}
    if parts[0] == "**":
        return _fits(parts[1:], names) or _fits(parts, names[1:])
    return fnmatch.fnmatchcase(names[0], parts[0]) and _fits(parts[1:], names[1:])


def _inside(folder: str, notes: list[str]) -> list[Path]:
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}

    def passed_over(what: str, path: str) -> None:
        counts[what] += 1
        first.setdefault(what, path)

    found = []
    for entry in walk_files(folder, passed_over=passed_over):
        if is_photograph(entry.name):
            found.append(Path(entry.path))
        else:
            passed_over(OTHER, entry.path)
    if counts:
        listed = ", ".join(
            f"{counts[what]} {what} ({os.path.relpath(first[what], folder)}"
            f"{', ...' * (counts[what] > 1)})"
            for what in (HIDDEN, SPECIAL, ABOVE, OTHER)
            if counts[what]
        )
        notes.append(f"{folder}: passed over {listed}")
    return sorted(found)
