"""Sets in folders by class, as ImageNet is kept: `SPLIT/CLASS/photo.jpg` or `CLASS/photo.jpg`."""

from __future__ import annotations

from collections.abc import Iterator

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


def open_folders(place: str, options: DataOptions) -> TaskData | None:
    """Return the set in this folder, or None if it holds no folders of images.

    The classes are the folders' names, sorted, unless a list gives others: by line in the same
    order, or as `folder<TAB>name`.

    Raises:
        DataError: the list of class names does not fit the folders.
    """
    for base in (storage.join(place, options.split), place):
        found = storage.list_sizes(base, IMAGE_SUFFIXES, recursive=True)
        by_class = [(_class_of(path, base), path, size) for path, size in found]
        inside = [row for row in by_class if row[0]]
        if inside:
            break
    else:
        return None
    folders = sorted({folder for folder, _, _ in inside})
    lists = (storage.join(place, CLASSES), storage.join(base, CLASSES))
    classes = named(folders, classes_in(options, *lists), base, options.classes_file or lists[0])
    templates = templates_in(options, storage.join(place, TEMPLATES))
    number = {folder: position for position, folder in enumerate(folders)}
    files = [(path[len(base) :], size) for _, path, size in inside]

    def samples() -> Iterator[Example]:
        for folder, path, _ in inside:
            yield Example(name=path, image=path, label=number[folder])

    return TaskData(
        place=base,
        kind="classification",
        classes=classes,
        templates=templates,
        total=len(inside),
        identity=identity("folders", files, classes, templates),
        samples=samples,
    )


def _class_of(path: str, base: str) -> str:
    below = path[len(base) :].replace("\\", "/").lstrip("/")
    folder, slash, _ = below.partition("/")
    return folder if slash else ""


def named(labels: list[str], lines: list[str] | None, place: str, source: str) -> list[str]:
    """Return the class names for prompts, in the order of the sorted `labels`.

    Args:
        labels: the labels as they stand in the data, sorted.
        lines: a list of names in that order, or of `label<TAB>name` in any; None for none.
        place: the data, for messages.
        source: the list, for messages.

    Raises:
        DataError: another number of names than of labels, or a label without a name.
    """
    if lines is None:
        return labels
    if all("\t" in line for line in lines):
        names = dict(tuple(line.split("\t", 1)) for line in lines)
        without = [label for label in labels if not names.get(label, "").strip()]
        if without:
            raise DataError(f"{source} has no name for {without[0]!r}, a class of {place}")
        return [names[label].strip() for label in labels]
    if len(lines) != len(labels):
        raise DataError(
            f"{source} has {len(lines)} class names, and {place} has {len(labels)} classes: one "
            "name per line, in the order of the sorted labels, or label<TAB>name"
        )
    return lines
