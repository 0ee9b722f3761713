"""What evaluation sets are made of, whatever form they are stored in.

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
from pocketclip.errors import DataError, ParseError
from pocketclip.evaluate.tasks import Kind
from pocketclip.formats.lines import load_lines
from pocketclip.prompts import split_template


class NoSetError(DataError):
    """A task's set is in none of the places where it could be."""


CLASSES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
DEFAULT_TEMPLATES = ("a photo of {c}.",)
"""For sets that bring no prompts of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One image with what is known of it."""

    name: str
    """File and row, or tar and sample: for messages."""
    image: bytes | str
    """The encoded file, or where it lies (a local path, or one in an object store)."""
    label: int | None = None
    captions: tuple[str, ...] = ()
    metadata: NDArray[np.int64] | None = None
    """(F,), in the order of the task's `Grouping.fields`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Puzzle:
    """An association of WinoGAViL (arXiv 2207.12576): which images belong to the cue?"""

    name: str
    cue: str
    images: tuple[str, ...]
    associated: tuple[bool, ...]
    """As long as `images`; at least one is true."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """How the user's own sets are to be read; published ones need none of it."""

    image_column: str | None = None
    label_column: str | None = None
    caption_column: str | None = None
    where: tuple[tuple[str, str], ...] = ()
    """Only the rows of a table whose column has this value."""
    classes_file: str | None = None
    """Class names by line; for labels that are names, lines `label<TAB>name` are better."""
    templates_file: str | None = None
    templates: tuple[str, ...] = ()
    split: str = "test"
    """The sub-folder of a set in folders, or the stem of a table within it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskData:
    """One evaluation set. Iterating it reads it from the start, one sample at a time."""

    place: str
    kind: Kind
    samples: Callable[[], Iterator[Example | Puzzle]]
    identity: str
    """A hash of what the set is: files and sizes or rows, classes, prompts."""
    classes: list[str] | None = None
    templates: list[str] | None = None
    total: int | None = None
    """How many samples, where that is known without reading them."""

    def __iter__(self) -> Iterator[Example | Puzzle]:
        return self.samples()


def identity(*parts: object) -> str:
    """Return a hash of plain JSON values."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_lines(path: str) -> list[str]:
    """Return the lines of a text file, blank ones too; they end at LF or CR LF and nowhere else.

    Raises:
        DataError: it is empty, not UTF-8 text, or holds too many lines.
        StorageError: it cannot be read.
    """
    try:
        lines = load_lines(storage.read_bytes(path), what=path)
    except ParseError as error:
        raise DataError(str(error)) from error
    if not lines:
        raise DataError(f"{path} is empty")
    return lines


def lines_of(path: str) -> list[str]:
    """Return the lines of a text file without blank ones at its end.

    Raises:
        DataError: it is not UTF-8 text, or has a blank line between others.
        StorageError: it cannot be read.
    """
    lines = read_lines(path)
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise DataError(f"{path} line {number} is empty: something stands in each line")
    if not lines:
        raise DataError(f"{path} is empty")
    return lines


def templates_in(options: DataOptions, *places: str) -> list[str]:
    """Return the prompts: the user's, or those in the first of `places` there is, or ours.

    Raises:
        DataError: a prompt has no place for the class name.
    """
    if options.templates:
        found, path = list(options.templates), "--template"
    else:
        given = options.templates_file or next((p for p in places if storage.exists(p)), None)
        if given is None:
            return list(DEFAULT_TEMPLATES)
        found, path = lines_of(given), given
    for number, template in enumerate(found, 1):
        split_template(template, f"{path} line {number}")
    return found
