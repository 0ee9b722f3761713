"""Finds photographs: the walk through folders that all readers of photographs share.

photographs = find_photographs(["holidays/", "shelf/*.jpg"])
photographs.paths, photographs.passed_over
"""

from __future__ import annotations

import fnmatch
import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pocketclip.errors import PocketclipError, count_of

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".mpo", ".png", ".apng", ".webp"),
    *(".gif", ".bmp", ".dib", ".tif", ".tiff", ".heic", ".heif", ".hif", ".heics", ".heifs"),
    *(".avif", ".avifs", ".jp2", ".jpx", ".jpf", ".j2k", ".j2c", ".psd", ".tga", ".qoi"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
)
"""Suffixes of photographs, in lower case."""
IMAGE_EXTENSIONS = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)
"""The suffixes without the dot: keys of image members in webdatasets."""
SYSTEM_NAMES = frozenset(
    [
        "@eadir",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "system volume information",
        "__macosx",
        "lost+found",
    ]
)
"""Names, in lower case, under which storage devices, archives and systems keep their own files."""

Note = Callable[[str, str], None]
"""Called with the kind of a skipped entry, such as `HIDDEN`, and its path."""
HIDDEN, SPECIAL, ABOVE, OTHER = (
    "hidden entry",
    "pipe, socket or device",
    "link to a parent folder",
    "file that is not a photograph",
)
RAW, VIDEO, JPEG_XL = "RAW photograph", "video", "JPEG XL photograph"
_PLURALS = {
    HIDDEN: "hidden entries",
    SPECIAL: "pipes, sockets or devices",
    ABOVE: "links to parent folders",
    OTHER: "files that are not photographs",
}
_NOT_READ = {
    RAW: "3fr ari arw bay cr2 cr3 crw dcr dng erf fff gpr iiq k25 kdc mef mos mrw nef nrw orf pef "
    "ptx raf raw rw2 rwl sr2 srf srw x3f",
    VIDEO: "3g2 3gp asf avi braw divx f4v flv insv lrv m2t m2ts m2v m4v mkv mov mp4 mpe mpeg mpg "
    "mts mxf ogv r3d vob webm wmv",
    JPEG_XL: "jxl",
}
OTHER_KINDS = {
    f".{suffix}": kind for kind, suffixes in _NOT_READ.items() for suffix in suffixes.split()
}
"""What files are by their suffix in lower case, if they hold pictures that are not read."""


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is hidden or belongs to a system.

    Hidden names begin with a dot (`._IMG.jpg`, `.thumbnails`). Storage devices, archives and
    systems keep their own files in folders such as `@eaDir` and `__MACOSX`.
    """
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def is_photograph(name: str) -> bool:
    """Return whether a file name has the suffix of a photograph."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def walk_files(
    root: str, *, recursive: bool = True, passed_over: Note = lambda _what, _path: None
) -> Iterator[os.DirEntry[str]]:
    """Yield the files in a local folder, in no particular order, without opening them.

    Hidden files and folders, pipes, sockets and devices are skipped. Links are followed, each
    folder once, so links to parent folders and circles are harmless. Dangling links are yielded,
    so that reading them reports the problem.

    Args:
        root: a folder.
        recursive: yield files in subfolders too.
        passed_over: called for each skipped entry.

    Raises:
        OSError: a folder cannot be read.
    """
    waiting, links = [root], list[str]()
    seen: set[tuple[int, int]] = set()
    while waiting or links:
        # Linked folders come last, so files that are also in the tree itself get that path.
        folder = waiting.pop() if waiting else links.pop()
        state = os.stat(folder)  # noqa: PTH116
        if (state.st_dev, state.st_ino) in seen:
            continue
        seen.add((state.st_dev, state.st_ino))
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name, reverse=True)
        for entry in ordered:
            if is_hidden(entry.name):
                passed_over(HIDDEN, entry.path)
            elif _is_dangling(entry) or entry.is_file():
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


def _is_dangling(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110


def leads_above(link: str, root: str) -> bool:
    """Return whether a link points to `root` or to one of its parent folders."""
    folder, root = os.path.realpath(link), os.path.realpath(root)
    return root == folder or root.startswith(folder.rstrip(os.sep) + os.sep)


@dataclass(frozen=True)
class Found:
    """Photographs, and notes about skipped files."""

    paths: list[Path]
    passed_over: list[str] = field(default_factory=list)
    """One sentence with counts per folder in which files were skipped."""


def find_photographs(inputs: Sequence[str]) -> Found:
    """Return the files that `inputs` name, in their order.

    An input is a file of any name; a folder, in which `walk_files` looks for names that
    `is_photograph` accepts; or a pattern (`shelf/*.jpg`, `**` for any depth). Folders that match a
    pattern without `**` are searched too. A file named twice is returned twice; matches of folders
    and patterns are not repeated.

    Raises:
        PocketclipError: an input is empty, or a folder or pattern has no photograph.
        OSError: a folder cannot be read.
    """
    paths: list[Path] = []
    notes: list[str] = []
    searched: set[Path] = set()
    """Files found through folders or patterns, not named by the user."""
    for text in inputs:
        if not text.strip():
            raise PocketclipError('an empty path: give a file, a folder ("." for the current one) '
                                  "or a pattern")  # fmt: skip
        if Path(text).is_dir():
            matches = _search_folder(text, notes)
        elif os.path.lexists(text) or not glob.has_magic(text):
            # A missing file is reported later, like any unreadable photograph.
            if Path(text) not in searched:
                paths.append(Path(text))
            searched.discard(Path(text))
            continue
        else:
            matches = _match_pattern(text, notes)
        if not matches:
            passed = f"; {notes[-1]}" if notes else ""
            raise PocketclipError(f"{text}: no photographs in this folder{passed}")
        known = set(paths)
        new = [path for path in matches if path not in known]
        paths += new
        searched.update(new)
    return Found(paths, notes)


def _match_pattern(pattern: str, notes: list[str]) -> list[Path]:
    parts = Path(pattern).parts
    if "**" in parts:
        paths = _match_any_depth(parts)
    else:
        paths = []
        for match in sorted(Path(match) for match in glob.glob(pattern)):  # noqa: PTH207
            if is_hidden(match.name) and glob.has_magic(parts[-1]):
                continue
            paths += _search_folder(str(match), notes) if match.is_dir() else [match]
    if not paths:
        raise PocketclipError(f"{pattern}: no file matches this pattern")
    return paths


def _match_any_depth(parts: tuple[str, ...]) -> list[Path]:
    """Return the files that match a pattern with `**`; `glob` would follow circular links."""
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


def _search_folder(folder: str, notes: list[str]) -> list[Path]:
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}

    def passed_over(reason: str, path: str) -> None:
        counts[reason] += 1
        first.setdefault(reason, path)

    paths = []
    for entry in walk_files(folder, passed_over=passed_over):
        if is_photograph(entry.name):
            paths.append(Path(entry.path))
        else:
            passed_over(OTHER, entry.path)
    if counts:
        inside = {kind: os.path.relpath(path, folder) for kind, path in first.items()}
        notes.append(f"{folder}: skipped {passed_over_text(counts, inside)}")
    return sorted(paths)


def passed_over_text(counts: Mapping[str, int], first: Mapping[str, str] | None = None) -> str:
    """Return what a walk skipped, for people: "2 hidden entries (.a, ...), 1 video (b.mov)".

    Args:
        counts: number of entries of each kind, a singular noun.
        first: the path of one entry of each kind.
    """
    listed = []
    kinds = [HIDDEN, SPECIAL, ABOVE, *(kind for kind in counts if kind != OTHER), OTHER]
    for kind in dict.fromkeys(kind for kind in kinds if counts.get(kind)):
        count = counts[kind]
        text = count_of(count, kind, _PLURALS.get(kind, ""))
        if first and kind in first:
            text += f" ({first[kind]}{', ...' * (count > 1)})"
        listed.append(text)
    return ", ".join(listed)
