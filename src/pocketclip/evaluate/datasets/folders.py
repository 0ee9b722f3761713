"""Sets in folders by class, as ImageNet is kept: `SPLIT/CLASS/photo.jpg` or `CLASS/photo.jpg`."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from pocketclip import storage
from pocketclip.evaluate.classes import class_list, match_classes
from pocketclip.evaluate.datasets.examples import (
    CLASSES,
    TEMPLATES,
    DataOptions,
    Example,
    TaskData,
    identity,
    templates_in,
)
from pocketclip.storage.photos import IMAGE_SUFFIXES, is_hidden, leads_above
from pocketclip.storage.stores import connect, explained

log = logging.getLogger(__name__)
_AT_ONCE = 16
"""Folders that are listed at the same time: a store takes its time for each."""


def open_folders(place: str, options: DataOptions) -> TaskData | None:
    """Return the set in this folder, or None if it holds no folders with images in them.

    The classes are the names of the folders with images, unless a list gives others: see
    `match_classes`. What lies deeper than in a class's folder, or beside the folders, is not read;
    a warning says how many images that are.

    Raises:
        DataError: the list of class names does not fit the folders.
        StorageError: a folder cannot be read.
    """
    for base in (storage.join(place, options.split), place):
        counted = _counted(base)
        if counted:
            break
    else:
        return None
    listed = class_list(options, storage.join(place, CLASSES), storage.join(base, CLASSES))
    folders = {name: storage.join(base, name) for name in counted}
    unused = [name for name in subfolders(base) if name not in counted]
    classes, number = match_classes(folders, listed, base, unused=unused)
    _warn_of_others(base, [*counted, *unused])
    templates = templates_in(options, storage.join(place, TEMPLATES))

    def samples() -> Iterator[Example]:
        for name, folder in folders.items():
            for path in storage.list_files(folder, IMAGE_SUFFIXES):
                yield Example(name=path, image=path, label=number[name])

    return TaskData(
        place=base,
        kind="classification",
        classes=classes,
        templates=templates,
        total=sum(count for count, _ in counted.values()),
        identity=identity("folders", counted, classes, templates),
        samples=samples,
    )


def subfolders(path: str) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones.

    Those of a plain web server cannot be listed: there are none.

    Raises:
        StorageError: it cannot be read.
    """
    if path.lower().startswith(("http://", "https://")) or not storage.is_folder(path):
        return []
    if not storage.is_remote(path):
        root = storage.absolute(path)
        with explained(path, "list"), os.scandir(root) as entries:
            names = [entry.name for entry in entries if entry.is_dir()
                     and not (entry.is_symlink() and leads_above(entry.path, root))]  # fmt: skip
    else:
        fs, name = connect(path)
        with explained(path, "list", fs, name):
            found = fs.ls(name, detail=True)
        names = [str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in found
                 if entry["type"] == "directory"]  # fmt: skip
    return sorted(name for name in names if not is_hidden(name))


def _warn_of_others(base: str, names: list[str]) -> None:
    """Say how many images lie where none are read, in the folder of a set and its classes."""
    if storage.is_remote(base):
        return  # where listing takes its time
    others = list(storage.list_files(base, IMAGE_SUFFIXES))
    for name in names:
        folder = storage.join(base, name)
        for inner in subfolders(folder):
            others += storage.list_files(
                storage.join(folder, inner), IMAGE_SUFFIXES, recursive=True
            )
    if others:
        log.warning("%s: %d images are left out, since they lie in no class's folder itself: %s%s",
                    base, len(others), others[0], ", ..." * (len(others) > 1))  # fmt: skip


def _counted(base: str) -> dict[str, tuple[int, str]]:
    """Return, by class, how many images there are, and a hash of their names and sizes."""

    def count(name: str) -> tuple[int, str]:
        folder = storage.join(base, name)
        found = storage.list_sizes(folder, IMAGE_SUFFIXES)
        digest = hashlib.sha256()
        for path, size in found:
            digest.update(f"{path[len(folder) + 1 :]}\0{size}\n".encode(errors="surrogateescape"))
        return len(found), digest.hexdigest()

    names = subfolders(base)
    if not names:
        return {}
    with ThreadPoolExecutor(_AT_ONCE if storage.is_remote(base) else 1) as pool:
        counts = pool.map(count, names)
        return {name: found for name, found in zip(names, counts, strict=True) if found[0]}
