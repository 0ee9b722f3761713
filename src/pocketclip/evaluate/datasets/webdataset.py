"""Sets in DataComp's layout: tars of examples beside lists of class names and prompts.

    wds_TASK_test/classnames.txt, zeroshot_classification_templates.txt, dataset_type.txt
    wds_TASK_test/test/nshards.txt, 0.tar, 1.tar, ...

A tar holds `NAME.jpg|png|webp` with `NAME.cls` (the class index), or `NAME.txt` (captions by
line), or `NAME.npy` (metadata). Nothing is unpickled.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pocketclip import storage
from pocketclip.errors import DataError
from pocketclip.evaluate.classes import class_index, class_list, indexed_names
from pocketclip.evaluate.datasets.examples import (
    CLASSES,
    TEMPLATES,
    DataOptions,
    Example,
    TaskData,
    identity,
    lines_of,
    load_templates,
)
from pocketclip.evaluate.tasks import Kind, Task
from pocketclip.formats.lines import split_lines
from pocketclip.formats.npy import parse_npy
from pocketclip.formats.tar import split_name
from pocketclip.shards.tar import Group, groups, members
from pocketclip.storage.photos import IMAGE_EXTENSIONS

_COUNT = "nshards.txt"
MAX_TEXT = 1 << 24
"""Size limit of an example's text: 16 MiB."""
_PARTS = frozenset({"cls", "txt", "npy", *IMAGE_EXTENSIONS})
_KINDS: dict[str, Kind] = {
    "classification": "classification",
    "retrieval": "retrieval",
    "image_caption_selection": "caption_choice",
}


def open_webdataset(path: str, task: Task, options: DataOptions) -> TaskData | None:
    """Return the set in this folder, or None if it holds no webdataset.

    Raises:
        DataError: a tar is missing, or a list is invalid.
    """
    folder = storage.join(path, options.split)
    listed = dict(storage.list_sizes(folder, (".tar",)))
    count = storage.join(folder, _COUNT)
    if storage.exists(count):
        tars = _announced(count, folder, listed)
    elif listed:
        tars = sorted(listed, key=_by_number)
    else:
        return None
    kind = task.kind or _kind(path)
    classes = templates = None
    if kind in ("classification", "faces"):
        names = storage.join(path, CLASSES)
        lines = class_list(options, names)
        if lines is None:
            raise DataError(f"{names} is missing: it holds the class names, one per line")
        if kind == "faces":  # lines are objective:text
            classes = lines.names()
        else:
            classes = indexed_names(lines, lambda: _highest_label(tars))
        templates = load_templates(options, storage.join(path, TEMPLATES))
    sizes = [(tar.rpartition("/")[2], listed.get(tar)) for tar in tars]
    return TaskData(
        path=path,
        kind=kind,
        classes=classes,
        templates=templates,
        identity=identity("webdataset", kind, sizes, classes, templates),
        samples=lambda: _samples(tars, kind, len(classes or ())),
    )


def _announced(path: str, folder: str, listed: dict[str, int]) -> list[str]:
    text = lines_of(path)[0].strip()
    if not re.fullmatch(r"[1-9][0-9]{0,5}", text):
        raise DataError(f"{path}: {text[:40]!r} is not a number of tars")
    tars = [storage.join(folder, f"{number}.tar") for number in range(int(text))]
    # A plain web server cannot be listed; there a missing tar fails when it is read.
    missing = [tar for tar in tars if tar not in listed] if listed else []
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"{missing[0]}{more} of the {text} tars that {path} announces are missing")
    extra = sorted(set(listed) - set(tars), key=_by_number)
    if extra:
        raise DataError(f"{extra[0]} is not among the {text} tars that {path} announces")
    return tars


def _by_number(path: str) -> tuple[int, str]:
    number = re.search(r"(\d+)\.tar$", path)
    return (int(number[1]) if number else -1, path)


def _kind(path: str) -> Kind:
    declared = storage.join(path, "dataset_type.txt")
    if storage.exists(declared):
        name = lines_of(declared)[0].strip()
        if name not in _KINDS:
            raise DataError(f"{declared}: {name!r} is not one of {', '.join(_KINDS)}")
        return _KINDS[name]
    return "classification" if storage.exists(storage.join(path, CLASSES)) else "retrieval"


def _samples(tars: list[str], kind: Kind, classes: int) -> Iterator[Example]:
    for path in tars:
        empty = True
        with storage.open_read(path) as stream:
            for group in groups(members(stream, path, load=_is_relevant)):
                yield _example(group, path, kind, classes)
                empty = False
        if empty:
            raise DataError(f"{path}: the tar holds no samples")


def _is_relevant(name: str) -> bool:
    return split_name(name)[1] in _PARTS


def _highest_label(tars: list[str]) -> int:
    """Return the highest class index; -1 without examples."""
    labels = (example.label for example in _samples(tars, "classification", sys.maxsize))
    return max((label for label in labels if label is not None), default=-1)


def _example(group: Group, path: str, kind: Kind, classes: int) -> Example:
    name = f"{path}: {group.uid}"
    try:
        group.check(_PARTS)
    except DataError as error:
        raise DataError(f"{name}.{error}") from error
    image = next((group.members[key] for key in IMAGE_EXTENSIONS if key in group.members), None)
    if image is None:
        raise DataError(f"{name} has no image, only {', '.join(sorted(group.members))}")
    label = None
    captions: tuple[str, ...] = ()
    if kind == "classification":
        if "cls" not in group.members:
            raise DataError(f"{name} has no .cls file with its class index")
        label = class_index(_text(group.members["cls"], f"{name}.cls"), classes, name)
    elif kind in ("retrieval", "caption_choice"):
        if "txt" not in group.members:
            raise DataError(f"{name} has no .txt file with its captions")
        lines = split_lines(_text(group.members["txt"], f"{name}.txt"))
        captions = tuple(line.strip() for line in lines if line.strip())
        if not captions:
            raise DataError(f"{name}: the list of captions is empty")
    metadata = _metadata(group.members["npy"], name) if "npy" in group.members else None
    return Example(name=name, image=image, label=label, captions=captions, metadata=metadata)


def _text(data: bytes, name: str) -> str:
    if len(data) > MAX_TEXT:
        raise DataError(f"{name} has {len(data):,} bytes, above the limit of {MAX_TEXT:,}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 text (byte {error.start})") from error


def _metadata(data: bytes, name: str) -> NDArray[np.int64]:
    """Return the numbers (F,) of an npy file, read without numpy's pickle support."""
    try:
        values = parse_npy(data)
        if values.ndim > 1:
            raise ValueError(f"{values.dtype} {values.shape} is not a row of numbers")
        values = values.reshape(-1)
        numeric = values.dtype.kind in "iuf" and np.isfinite(values).all()
        if not numeric or not np.array_equal(values, np.trunc(values)):
            raise ValueError(f"{values.dtype} {values[:5].tolist()} are not whole numbers")
        if len(values) and np.abs(values.astype(np.float64)).max() >= 2.0**63:
            raise ValueError("some numbers are too large")
    except (ValueError, TypeError, DataError) as error:
        raise DataError(f"{name}: invalid metadata in its .npy file: {error}") from error
    return values.astype(np.int64)
