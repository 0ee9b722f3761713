"""Sets in folders by class, as ImageNet is kept: `SPLIT/CLASS/photo.jpg` or `CLASS/photo.jpg`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.evaluate.examples import (
    CLASSES,
    IMAGE_SUFFIXES,
    TEMPLATES,
    DataOptions,
    Example,
    TaskData,
    classes_in,
    identity,
    templates_in,
)
from pocketclip.stores import connect, explained

_AT_ONCE = 16
"""Folders that are listed at the same time: a store takes its time for each."""


def open_folders(place: str, options: DataOptions) -> TaskData | None:
    """Return the set in this folder, or None if it holds no folders with images in them.

    The classes are the names of the folders with images, sorted, unless a list gives others: see
    `named`. What lies deeper than in a class's folder is not read.

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
    lists = (storage.join(place, CLASSES), storage.join(base, CLASSES))
    lines, source = classes_in(options, *lists), options.classes_file or lists[0]
    folders = {name: storage.join(base, name) for name in counted}
    classes, number = named(folders, lines, base, source)
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
        with explained(path, "list"):
            names = [entry.name for entry in Path(storage.absolute(path)).iterdir()
                     if entry.is_dir()]  # fmt: skip
    else:
        fs, name = connect(path)
        with explained(path, "list", fs, name):
            found = fs.ls(name, detail=True)
        names = [str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in found
                 if entry["type"] == "directory"]  # fmt: skip
    return sorted(name for name in names if not name.startswith("."))


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


def named(
    labels: Mapping[str, str], lines: list[str] | None, place: str, source: str
) -> tuple[list[str], dict[str, int]]:
    """Return the class names for prompts, and the number of each label among them.

    A list is one of: `label<TAB>name` lines; the labels themselves; names in the order of the
    sorted labels, as many as there are of these. In the first two there may be classes that do
    not occur in the data.

    Args:
        labels: the labels that occur in the data, and where each does, for messages.
        lines: the list; None for none: the sorted labels are the names.
        place: the data, for messages.
        source: the list, for messages.

    Raises:
        DataError: another number of names than of labels, a label without a name, or one twice;
            names in the order of the labels of which one is another's label.
    """
    ordered = sorted(labels)
    number = {label: position for position, label in enumerate(ordered)}
    if lines is None:
        return ordered, number
    if any("\t" in line for line in lines):
        return _by_label([line.partition("\t") for line in lines], labels, source)
    if set(labels) <= set(lines):
        return _by_label([(line, "\t", line) for line in lines], labels, source)
    if len(lines) != len(labels):
        raise DataError(
            f"{source} has {len(lines)} class names, and {place} has {len(labels)} classes: one "
            "name per line, in the order of the sorted labels, or label<TAB>name"
        )
    for position, line in enumerate(lines):
        if number.get(line, position) != position:
            raise DataError(
                f"{source} line {position + 1}: {line!r} stands where the name of "
                f"{ordered[position]!r} should: give the names in the order of the sorted labels, "
                "or label<TAB>name"
            )
    return lines, number


def _by_label(
    lines: list[tuple[str, str, str]], labels: Mapping[str, str], source: str
) -> tuple[list[str], dict[str, int]]:
    number: dict[str, int] = {}
    for position, (label, tab, name) in enumerate(lines):
        if not tab or not name.strip() or label.strip() in number:
            what = f"{label!r} comes twice" if label.strip() in number else "no label<TAB>name"
            raise DataError(f"{source} line {position + 1}: {what}")
        number[label.strip()] = position
    for label, where in labels.items():
        if label not in number:
            raise DataError(f"{where}: {source} has no name for the class {label!r}")
    return [name.strip() for _, _, name in lines], number
