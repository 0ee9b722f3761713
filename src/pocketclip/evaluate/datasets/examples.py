"""Evaluation sets and their examples, independent of the storage format.

Shapes: F metadata fields.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketclip import storage
from pocketclip._deprecated import renamed_arguments, renamed_attribute
from pocketclip.errors import DataError, ParseError
from pocketclip.evaluate.tasks import Kind
from pocketclip.formats.lines import load_lines
from pocketclip.prompts import split_template


class NoSetError(DataError):
    """A task's set was not found."""


CLASSES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
DEFAULT_TEMPLATES = ("a photo of {c}.",)
"""For sets without prompts of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An image with its label, captions or metadata."""

    name: str
    """File and row, or tar and example, for messages."""
    image: bytes | str
    """The encoded file, or its path (local or in an object store)."""
    label: int | None = None
    captions: tuple[str, ...] = ()
    metadata: NDArray[np.int64] | None = None
    """(F,), in the order of the task's `Grouping.fields`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Puzzle:
    """An association of WinoGAViL (arXiv 2207.12576): a cue and candidate images."""

    name: str
    cue: str
    images: tuple[str, ...]
    associated: tuple[bool, ...]
    """Per image, whether it belongs to the cue; at least one is true."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """How to read the user's own sets; published sets need no options."""

    image_column: str | None = None
    label_column: str | None = None
    caption_column: str | None = None
    where: tuple[tuple[str, str], ...] = ()
    """(column, value) pairs; only rows with these values are read."""
    classes_file: str | None = None
    """A file of class names, one per line, or of lines `label<TAB>name`."""
    templates_file: str | None = None
    templates: tuple[str, ...] = ()
    split: str = "test"
    """The sub-folder of a set in folders, or the stem of the table in its folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskData:
    """An evaluation set. Each iteration reads it from the start, one example at a time."""

    path: str
    kind: Kind
    samples: Callable[[], Iterator[Example | Puzzle]]
    identity: str
    """A hash of the set: files and sizes or rows, classes, prompts."""
    classes: list[str] | None = None
    templates: list[str] | None = None
    total: int | None = None
    """Number of examples, if known without reading them."""

    place = renamed_attribute("place", "path")

    def __iter__(self) -> Iterator[Example | Puzzle]:
        return self.samples()


TaskData.__init__ = renamed_arguments(place="path")(TaskData.__init__)  # type: ignore[method-assign]


def identity(*parts: object) -> str:
    """Return a hash of plain JSON values."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_lines(path: str) -> list[str]:
    """Return the lines of a text file, blank ones too; only LF and CR LF end a line.

    Raises:
        DataError: the file is empty, not UTF-8 text, or has too many lines.
        StorageError: the file cannot be read.
    """
    try:
        lines = load_lines(storage.read_bytes(path), what=path)
    except ParseError as error:
        raise DataError(str(error)) from error
    if not lines:
        raise DataError(f"{path} is empty")
    return lines


def lines_of(path: str) -> list[str]:
    """Return the lines of a text file without trailing blank ones.

    Raises:
        DataError: the file is not UTF-8 text, or has a blank line between others.
        StorageError: the file cannot be read.
    """
    lines = read_lines(path)
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise DataError(f"{path} line {number} is empty: remove it or fill it")
    if not lines:
        raise DataError(f"{path} is empty")
    return lines


def load_templates(options: DataOptions, *paths: str) -> list[str]:
    """Return the user's prompts, or those in the first existing file of `paths`, or the default.

    Raises:
        DataError: a prompt does not say where the class name goes.
    """
    if options.templates:
        templates, source = list(options.templates), "--template"
    else:
        file = options.templates_file or next((p for p in paths if storage.exists(p)), None)
        if file is None:
            return list(DEFAULT_TEMPLATES)
        templates, source = lines_of(file), file
    for number, template in enumerate(templates, 1):
        split_template(template, f"{source} line {number}")
    return templates
