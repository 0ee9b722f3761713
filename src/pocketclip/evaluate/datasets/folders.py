"""Sets with a folder per class, like ImageNet: `SPLIT/CLASS/photo.jpg` or `CLASS/photo.jpg`."""

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
    load_templates,
)
from pocketclip.storage.photos import IMAGE_SUFFIXES, is_hidden, leads_above
from pocketclip.storage.stores import connect, explained

log = logging.getLogger(__name__)
_LISTING_THREADS = 16  # for object stores, which answer slowly


def open_folders(path: str, options: DataOptions) -> TaskData | None:
    """Return the set in this folder, or None if none of its folders holds images.

    The class names are the names of the folders with images, unless a list gives others: see
    `match_classes`. Images deeper than a class's folder, or beside the folders, are not read; a
    warning counts them.

    Raises:
        DataError: the list of class names does not match the folders.
        StorageError: a folder cannot be read.
    """
    for base in (storage.join(path, options.split), path):
        counted = _count_images(base)
        if counted:
            break
    else:
        return None
    listed = class_list(options, storage.join(path, CLASSES), storage.join(base, CLASSES))
    folders = {name: storage.join(base, name) for name in counted}
    unused = [name for name in subfolders(base) if name not in counted]
    classes, number = match_classes(folders, listed, base, unused=unused)
    _warn_of_unread(base, [*counted, *unused])
    templates = load_templates(options, storage.join(path, TEMPLATES))

    def samples() -> Iterator[Example]:
        for name, folder in folders.items():
            for image in storage.list_files(folder, IMAGE_SUFFIXES):
                yield Example(name=image, image=image, label=number[name])

    return TaskData(
        path=base,
        kind="classification",
        classes=classes,
        templates=templates,
        total=sum(count for count, _ in counted.values()),
        identity=identity("folders", counted, classes, templates),
        samples=samples,
    )


def subfolders(path: str) -> list[str]:
    """Return the sorted names of the visible folders in a folder; none on a plain web server.

    Raises:
        StorageError: the folder cannot be read.
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
            listing = fs.ls(name, detail=True)
        names = [str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in listing
                 if entry["type"] == "directory"]  # fmt: skip
    return sorted(name for name in names if not is_hidden(name))


def _warn_of_unread(base: str, names: list[str]) -> None:
    """Log the number of images that lie beside or below the class folders."""
    if storage.is_remote(base):
        return  # listing an object store takes too long
    unread = list(storage.list_files(base, IMAGE_SUFFIXES))
    for name in names:
        folder = storage.join(base, name)
        for inner in subfolders(folder):
            unread += storage.list_files(
                storage.join(folder, inner), IMAGE_SUFFIXES, recursive=True
            )
    if unread:
        log.warning("%s: %d images are not read, as they are not directly in a class folder: %s%s",
                    base, len(unread), unread[0], ", ..." * (len(unread) > 1))  # fmt: skip


def _count_images(base: str) -> dict[str, tuple[int, str]]:
    """Return, by class, the number of images and a hash of their names and sizes."""

    def count(name: str) -> tuple[int, str]:
        folder = storage.join(base, name)
        files = storage.list_sizes(folder, IMAGE_SUFFIXES)
        digest = hashlib.sha256()
        for path, size in files:
            digest.update(f"{path[len(folder) + 1 :]}\0{size}\n".encode(errors="surrogateescape"))
        return len(files), digest.hexdigest()

    names = subfolders(base)
    if not names:
        return {}
    with ThreadPoolExecutor(_LISTING_THREADS if storage.is_remote(base) else 1) as pool:
        counts = pool.map(count, names)
        return {name: counted for name, counted in zip(names, counts, strict=True) if counted[0]}
